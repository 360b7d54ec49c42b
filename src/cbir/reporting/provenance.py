"""Where networks come from: their weights, what of them was trained, on what, in words and rows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cbir import cache, project_root
from cbir.cache import MANIFEST
from cbir.networks.weights import STUDY_PREFIX
from cbir.reporting import grids
from cbir.reporting.runs import Run, run_folder

if TYPE_CHECKING:  # the comparison reads results without Keras
    from cbir.networks.models import Network


def provenance_table(study: str) -> pd.DataFrame:
    """What a report was made from, as a table, from its manifest.json; empty without one."""
    manifest = run_folder(study) / MANIFEST
    if not manifest.exists():
        return pd.DataFrame({"value": []})
    content = json.loads(manifest.read_text("utf-8"))
    commit, machine = content["git"]["commit"] or "not under git", content["machine"]
    rows = {
        "command": content["command"],
        "commit": commit
        + (" (with uncommitted changes)" if content["git"]["clean"] is False else ""),
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "GPU": ", ".join(machine["gpus"]) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        "data, SHA-256": content["data"]["fingerprint"],
    }
    for name, run in content["architectures"].items():
        if run["weights"]:
            source, sha256 = run["weights"]["source"], run["weights"]["started from"]
            rows[f"{name}, started from"] = (
                "random" if source == "none" else f"{source}, SHA-256 {sha256}"
            )
            rows[f"{name}, weights, SHA-256"] = run["weights"]["trained"]
        rows[f"{name}, seconds"] = ", ".join(
            f"{step} {seconds:.1f}" for step, seconds in run["seconds"].items()
        )
        rows[f"{name}, peak memory"] = f"{run['peak_memory_bytes'] / 1e9:.2f} GB"
    return pd.DataFrame({"value": rows})


# Beside the weights' kinds, what is said of a network that started from them.
STARTED = {
    "imagenet": "from ImageNet weights",
    "file": "from a file of weights",
    "study": "from what the backbone learnt in another study of this project",
    "none": "from random weights",
}
# Parameters that are 0 or false where they are not used, and the columns that tell of them.
OPTIONAL = {
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "early_stopping": "early stopping (epochs)",
    "dropout": "dropout",
    "test_time_flips": "test-time flips",
    "whitening": "whitening (dimensions)",
}
UNUSED = "none"
TRAINED = {"all": "all of it", "head": "the head alone, on a frozen backbone"}


def describe_network(network: "Network") -> str:
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


def networks_table(results: dict[str, Run]) -> pd.DataFrame:
    """What each architecture is and was trained from; baselines, which were not, are left out.

    What few networks use, such as `OPTIONAL`, has a column only where one of them uses it. Where
    the head was trained alone first, a cell tells of both: `512 head, 32`.
    """
    rows = {}
    for name, result in results.items():
        if result.is_baseline:
            continue
        given, weights = result.summary["parameters"], result.summary["weights"]
        last, head = given["training"], _artifact(result, "head")
        stages = given["train"], head
        rows[name] = {
            "backbone": given["backbone"],
            "weights": _source(weights),
            "trained": _trained(given["train"]),
            "input (px)": given["input_size"],
            "pooling": given["pooling"],
            "embedding": f"{given['embedding']}, {result.summary['embedding_dim']}",
            "training images": result.summary["dataset"]["train"],
            "epochs": epochs(result),
            "batch": _by_stage("batch_size", last, *stages),
            "optimizer": f"{last['optimizer']}, {last['schedule']}",
            "learning rate": _by_stage("learning_rate", last, *stages),
            "augmentation": ", ".join(last["augmentation"]) or "none",
            **_optional(given | last | _artifact(result, "embeddings")),
            "precision": given["precision"].removeprefix("mixed_"),
        }
    described = pd.DataFrame.from_dict(rows, orient="index").rename_axis("architecture")
    unused = [name for name in OPTIONAL.values() if name in described
              and described[name].isin([UNUSED, "–"]).all()]  # fmt: skip
    return described.drop(columns=unused)


def epochs(result: Run) -> str:
    """How often a network saw its training images before it was as it is: `20 head + 3`.

    With early stopping these are the epochs up to the best one, whose weights are kept.
    """
    summary, head = result.summary, result.summary.get("head_epochs")
    train = summary["parameters"]["train"]
    if head is None:  # an older summary, which leaves it to the history
        head = int((result.history["stage"] == "head").sum()) if "stage" in result.history else 0
    return _epochs(train, head, summary["epochs"])


def epochs_of_manifest(run: dict, epoch: int | None = None) -> str:
    """The same of an architecture in a study's manifest, or of its state after an epoch."""
    given, head = run["parameters"], run.get("head_epochs")
    # Older manifests say how many epochs were asked for alone.
    head = given["head_epochs"] if head is None else head
    return _epochs(given["train"], head, epoch or run["epochs"])


def shared_settings(described: pd.DataFrame) -> str:
    """What is the same for all networks of `table`, in a sentence."""
    same = [f"{name} {described[name].iloc[0]}" for name in described if _is_same(described[name])]
    return f"The same for all: {'; '.join(same)}." if same and len(described) > 1 else ""


def differing_settings(described: pd.DataFrame) -> pd.DataFrame:
    """The columns of `table` in which networks differ."""
    if len(described) < 2:
        return described
    return described[[name for name in described if not _is_same(described[name])]]


def _is_same(column: pd.Series) -> bool:
    return column.nunique() == 1


def weights_label(results: dict[str, Run]) -> str:
    """What is said of the results wherever they appear: what they started from."""
    return _weights_label(
        {name: each.summary for name, each in results.items() if not each.is_baseline}
    )


def weights_label_of_manifest(runs: dict[str, dict]) -> str:
    """The same from the architectures of a study's manifest."""
    return _weights_label({name: run for name, run in runs.items() if run["weights"]})


def _weights_label(networks: dict[str, dict]) -> str:
    """The label of networks, each with its `weights` and its `variant`."""
    sources = {name: each["weights"]["source"] for name, each in networks.items()}
    kinds = {name: _kind(source) for name, source in sources.items()}
    started = {kind: said for kind, said in STARTED.items() if kind in kinds.values()}
    if not started:
        return ""
    if "study" in started:
        # By its name: what a study's own networks started from and saw is told in its report.
        studies = dict.fromkeys(
            sources[name].removeprefix(STUDY_PREFIX).partition("/")[0]
            for name, kind in kinds.items()
            if kind == "study"
        )
        started["study"] += f" ({', '.join(studies)})"
    if len(started) == 1:
        (said,) = started.values()
        no_imagenet = " No ImageNet weights had a part in these figures." * ("none" in started)
        return f"All networks started {said}.{no_imagenet}"
    files = {name: grids.parse(name, each["variant"])[0] for name, each in networks.items()}
    parts = [f"{said}: {', '.join(_of_kind(kind, kinds, files))}" for kind, said in started.items()]
    return f"Started {'; '.join(parts)}."


def _kind(source: str) -> str:
    known = "study" if source.startswith(STUDY_PREFIX) else source
    return known if known in STARTED else "file"


def _of_kind(kind: str, kinds: dict[str, str], files: dict[str, str]) -> list[str]:
    """The runs of a kind; those of a grid by their architecture, where all of it is of the kind."""
    mixed = {files[name] for name in kinds if kinds[name] != kind}
    own = [name for name in kinds if kinds[name] == kind]
    return list(dict.fromkeys(name if files[name] in mixed else files[name] for name in own))


def pretrained_warning(results: dict[str, Run]) -> str:
    """A warning where classes called unseen may have been seen in pretraining."""
    started = [
        name
        for name, result in results.items()
        if "unseen_classes" in result.summary["measurement"]["protocols"]
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
    named = source if source.startswith(STUDY_PREFIX) else Path(source).name
    return f"{named} ({weights['started from'][:12]}…)"


def _epochs(train: str, head: int, last: int) -> str:
    if train == "head":
        return f"{last} head"
    return f"{head} head + {last}" if head else f"{last}"


def _by_stage(name: str, last: dict, train: str, head: dict) -> str:
    """A setting of the training, and that of its head alone before it."""
    told = _setting_text(last.get(name))
    if train == "head":
        return f"{told} head"
    return f"{_setting_text(head.get(name))} head, {told}" if head else told


def _optional(given: dict) -> dict[str, str]:
    return {
        column: UNUSED if given.get(name) in (0, False) else _setting_text(given.get(name))
        for name, column in OPTIONAL.items()
    }


def _setting_text(value: float | bool | None) -> str:
    """A setting as it is read; a dash where it is not known any more."""
    if value is None:
        return "–"
    return "yes" if value is True else f"{value:g}"


def _artifact(result: Run, step: str) -> dict:
    """The parameters of a step of the run; nothing where it had no such step, or that is gone."""
    place = result.summary.get("artifacts", {}).get(step)
    found = cache.read(project_root() / place) if place else None
    return found.manifest["parameters"] if found else {}


# They name the run; the table's columns do so already.
NAMES = ("study", "architecture")


def parameters_table(study: str) -> pd.DataFrame:
    """The parameters of a study's runs, a row a parameter, a column a run; empty without a report.

    A parameter that a run does not have, such as a baseline that of a network, is a dash.
    """
    runs = _manifest(study).get("architectures", {})
    columns = {
        name: {key: _text(value) for key, value in run["parameters"].items() if key not in NAMES}
        for name, run in runs.items()
    }
    return pd.DataFrame(columns).fillna("–").rename_axis("parameter")


def commands(study: str) -> str:
    """The commands that make a study's report again, as Markdown; nothing without a report."""
    manifest = _manifest(study)
    if not manifest:
        return ""
    git, lines = manifest["git"], [manifest["command"]]
    if git["commit"]:
        lines.insert(0, f"git checkout {git['commit']}")
    said = "\n".join(["```", *lines, "```"])
    if git["clean"] is False:
        said += "\n\nThe commit alone does not make it: there were uncommitted changes."
    return said


def _manifest(study: str) -> dict:
    path = run_folder(study) / MANIFEST
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _text(value) -> str:
    """A parameter as YAML would have it, but for quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
