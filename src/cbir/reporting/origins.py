"""Where networks come from: their weights, what of them was trained, on what, in words and rows."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cbir.reporting.results import Result

if TYPE_CHECKING:
    from cbir.networks.models import Network

TRAINED = {"all": "all of it", "head": "the head alone, on a frozen backbone"}


def of_network(network: "Network") -> str:
    """A network's weights and what of it is trained, in one or two sentences."""
    weights, given = network.weights, network.parameters
    if weights.path:
        said = f"It starts from the weights `{weights.source}` (SHA-256 {weights.sha256[:12]}…). "
    else:
        said = "It starts from random weights. "
    said += f"What is trained: {_trained(given['train'])}."
    if given["was_frozen"] and given["train"] != "head":
        said += " Its head is trained first, and batch normalisation stays in inference."
    return said


def table(results: dict[str, Result]) -> pd.DataFrame:
    """What each architecture is and was trained from; controls, which were not, are left out."""
    rows = {}
    for name, result in results.items():
        if result.is_control:
            continue
        given, weights = result.summary["parameters"], result.summary["weights"]
        last = given["training"]
        rows[name] = {
            "backbone": given["backbone"],
            "weights": _source(weights),
            "trained": _trained(given["train"]),
            "input (px)": given["input_size"],
            "pooling": given["pooling"],
            "embedding": f"{given['embedding']}, {result.summary['embedding_dim']}",
            "training images": result.summary["dataset"]["train"],
            "epochs": len(result.history),
            "batch": last["batch_size"],
            "optimizer": f"{last['optimizer']}, {last['schedule']}",
            "augmentation": ", ".join(last["augmentation"]) or "none",
            "precision": given["precision"].removeprefix("mixed_"),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("architecture")


def shared(described: pd.DataFrame) -> str:
    """What is the same for all networks of `table`, in a sentence."""
    same = [f"{name} {described[name].iloc[0]}" for name in described if _is_same(described[name])]
    return f"The same for all: {'; '.join(same)}." if same and len(described) > 1 else ""


def differing(described: pd.DataFrame) -> pd.DataFrame:
    """The columns of `table` in which networks differ."""
    if len(described) < 2:
        return described
    return described[[name for name in described if not _is_same(described[name])]]


def _is_same(column: pd.Series) -> bool:
    return column.nunique() == 1


def label(results: dict[str, Result]) -> str:
    """What is said of the results wherever they appear: what they started from."""
    groups: dict[str, list[str]] = {"imagenet": [], "study": [], "none": [], "file": []}
    for name, result in results.items():
        if not result.is_control:
            source = result.summary["weights"]["source"]
            known = "study" if source.startswith("study:") else source
            groups[known if known in groups else "file"].append(name)
    told = {
        "imagenet": "from ImageNet weights",
        "file": "from a file of weights",
        "study": "from what the backbone learnt in another study of this project",
        "none": "from random weights",
    }
    kinds = [kind for kind in told if groups[kind]]
    if not kinds:
        return ""
    if len(kinds) == 1:
        said = f"All networks started {told[kinds[0]]}."
    else:
        parts = [f"{told[kind]}: {', '.join(groups[kind])}" for kind in kinds]
        said = "Started " + "; ".join(parts) + "."
    # A study hands on what its own networks started from: their pixels tell.
    if all(
        result.is_control or result.summary["parameters"]["pixels"] == "scaled"
        for result in results.values()
    ):
        said += " No ImageNet weights had a part in these figures."
    return said


def pretrained(results: dict[str, Result]) -> str:
    """A warning where classes called unseen may have been seen in pretraining."""
    started = [
        name
        for name, result in results.items()
        if "unseen_classes" in result.summary["asked"]["protocols"]
        and result.summary.get("weights", {}).get("started from", "random") != "random"
    ]
    if not started:
        return ""
    return (
        f"{', '.join(started)} started from pretrained weights, which may have seen the classes "
        "that are called unseen here."
    )


def _trained(train: str) -> str:
    if train in TRAINED:
        return TRAINED[train]
    return f"the head and the last {train.removeprefix('last_blocks:')} blocks"


def _source(weights: dict) -> str:
    if weights["source"] == "none":
        return "random"
    source = weights["source"]
    named = source if source.startswith("study:") else Path(source).name
    return f"{named} ({weights['started from'][:12]}…)"
