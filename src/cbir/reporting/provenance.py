"""What a report was made from: weights, settings, parameters, machine, commits, in tables and text.

Two sources tell of it: the runs of a study, and its manifest.json, which is also what is published.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cbir import cache, project_root
from cbir.cache import MANIFEST
from cbir.networks.weights import STUDY_PREFIX
from cbir.reporting import grids
from cbir.reporting.runs import Run, networks, run_folder

if TYPE_CHECKING:  # Keras takes seconds to import
    from cbir.networks.models import Network

# What networks started from, by the kind of their weights.
STARTED = {
    "imagenet": "from ImageNet weights",
    "file": "from a file of weights",
    "study": "from a backbone trained in another study of this project",
    "none": "from random weights",
}
# Settings that few networks use, and their columns. They are 0 or false where they are not used.
OPTIONAL = {
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "early_stopping": "early stopping (epochs)",
    "dropout": "dropout",
    "test_time_flips": "test-time flips",
    "whitening": "whitening (dimensions)",
}
UNUSED, UNKNOWN = "none", "–"
# Parameters that the columns of `parameters_table` name already.
PLACE = ("study", "architecture")


def provenance_table(study: str) -> pd.DataFrame:
    """What a report was made from, from its manifest.json; empty without one."""
    if not (manifest := _manifest(study)):
        return pd.DataFrame({"value": []})
    git, machine = manifest["git"], manifest["machine"]
    changes = " (with uncommitted changes)" if git["clean"] is False else ""
    versions = manifest["versions"].items()
    rows = {
        "command": manifest["command"],
        "commit": f"{git['commit'] or 'not under git'}{changes}",
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "GPU": ", ".join(machine["gpus"]) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in versions),
        "data, SHA-256": manifest["data"]["fingerprint"],
    }
    for name, run in manifest["architectures"].items():
        if weights := run["weights"]:
            file = f"{weights['source']}, SHA-256 {weights['started from']}"
            rows[f"{name}, started from"] = "random" if weights["source"] == "none" else file
            rows[f"{name}, weights, SHA-256"] = weights["trained"]
        steps = run["seconds"].items()
        rows[f"{name}, seconds"] = ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps)
        rows[f"{name}, peak memory"] = f"{run['peak_memory_bytes'] / 1e9:.2f} GB"
    return pd.DataFrame({"value": rows})


def parameters_table(study: str) -> pd.DataFrame:
    """The parameters of a study's runs: a row per parameter, a column per run.

    It is empty without a report. A parameter that a run does not have is a dash.
    """
    columns = {
        name: {key: _yaml(value) for key, value in run["parameters"].items() if key not in PLACE}
        for name, run in _manifest(study).get("architectures", {}).items()
    }
    return pd.DataFrame(columns).fillna(UNKNOWN).rename_axis("parameter")


def commands(study: str) -> str:
    """The commands that make a study's report again, as Markdown; empty without a report."""
    if not (manifest := _manifest(study)):
        return ""
    git, lines = manifest["git"], [manifest["command"]]
    if git["commit"]:
        lines.insert(0, f"git checkout {git['commit']}")
    text = "\n".join(["```", *lines, "```"])
    if git["clean"] is False:
        text += "\n\nThe commit alone does not suffice: there were uncommitted changes."
    return text


def describe_network(network: "Network") -> str:
    """A network's weights and which layers are trained, in two or three sentences."""
    weights, parameters = network.weights, network.parameters
    start = "random weights"
    if weights.path:
        start = f"the weights `{weights.source}` (SHA-256 {weights.sha256[:12]}…)"
    text = f"It starts from {start}. Training changes {_trained(parameters['train'])}."
    if parameters["was_frozen"] and parameters["train"] != "head":
        text += " The head is trained first, and batch normalisation stays in inference mode."
    return text


def networks_table(runs: dict[str, Run]) -> pd.DataFrame:
    """What each architecture is and how it was trained; baselines, which were not, are left out.

    A setting of `OPTIONAL` has a column only where a network uses it. Where the head was trained
    first, a cell has both values: `512 head, 32`.
    """
    table = pd.DataFrame.from_dict(
        {name: _settings(run) for name, run in networks(runs).items()}, orient="index"
    )
    unused = [
        column
        for column in OPTIONAL.values()
        if column in table and table[column].isin([UNUSED, UNKNOWN]).all()
    ]
    return table.drop(columns=unused).rename_axis("architecture")


def _settings(run: Run) -> dict:
    parameters, summary = run.summary["parameters"], run.summary
    training, head = parameters["training"], _artifact_parameters(run, "head")

    def by_stage(name: str) -> str:
        value = _number(training.get(name))
        if parameters["train"] == "head":
            return f"{value} head"
        return f"{_number(head.get(name))} head, {value}" if head else value

    optional = parameters | training | _artifact_parameters(run, "embeddings")
    return {
        "backbone": parameters["backbone"],
        "weights": _source(summary["weights"]),
        "trained": _trained(parameters["train"]),
        "input (px)": parameters["input_size"],
        "pooling": parameters["pooling"],
        "embedding": f"{parameters['embedding']}, {summary['embedding_dim']}",
        "training images": summary["dataset"]["train"],
        "epochs": epochs(run),
        "batch": by_stage("batch_size"),
        "optimizer": f"{training['optimizer']}, {training['schedule']}",
        "learning rate": by_stage("learning_rate"),
        "augmentation": ", ".join(training["augmentation"]) or "none",
        **{
            column: UNUSED if optional.get(name) in (0, False) else _number(optional.get(name))
            for name, column in OPTIONAL.items()
        },
        "precision": parameters["precision"].removeprefix("mixed_"),
    }


def shared_settings(table: pd.DataFrame) -> str:
    """The settings that all networks of `networks_table` share, in a sentence."""
    shared = table.drop(columns=differing_settings(table).columns)
    parts = [f"{name} {values.iloc[0]}" for name, values in shared.items()]
    return f"The same for all: {'; '.join(parts)}." if parts else ""


def differing_settings(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `networks_table` in which networks differ; all of them for one network."""
    return table if len(table) < 2 else table.loc[:, table.nunique() > 1]


def epochs(run: Run) -> str:
    """How many epochs a network was trained for: `20 head + 3`.

    With early stopping these are the epochs up to the best one, whose weights are kept.
    """
    summary = run.summary
    head = summary.get("head_epochs", 0)
    return _epochs(summary["parameters"]["train"], head, summary["epochs"])


def epochs_of_manifest(run: dict, epoch: int | None = None) -> str:
    """The same of an architecture in a study's manifest, or of its state after an epoch."""
    parameters, head = run["parameters"], run.get("head_epochs")
    # Published manifests of earlier versions lack the epochs that were kept.
    head = parameters["head_epochs"] if head is None else head
    return _epochs(parameters["train"], head, epoch or run["epochs"])


def weights_label(runs: dict[str, Run]) -> str:
    """What the networks started from, wherever their results are shown."""
    return weights_label_of_manifest(
        {name: run.summary for name, run in runs.items() if not run.is_baseline}
    )


def weights_label_of_manifest(runs: dict[str, dict]) -> str:
    """The same from the architectures of a study's manifest."""
    trained = {name: run for name, run in runs.items() if run["weights"]}
    sources = {name: run["weights"]["source"] for name, run in trained.items()}
    kinds = {name: _kind(source) for name, source in sources.items()}
    texts = {kind: text for kind, text in STARTED.items() if kind in kinds.values()}
    if not texts:
        return ""
    if "study" in texts:
        # The report of that study says what its networks started from.
        studies = [
            source.removeprefix(STUDY_PREFIX).partition("/")[0]
            for name, source in sources.items()
            if kinds[name] == "study"
        ]
        texts["study"] += f" ({', '.join(dict.fromkeys(studies))})"
    if len(texts) == 1:
        (text,) = texts.values()
        no_imagenet = " No ImageNet weights were used." if "none" in texts else ""
        return f"All networks started {text}.{no_imagenet}"
    architectures = {name: grids.parse(name, run["variant"])[0] for name, run in trained.items()}
    parts = [f"{text}: {', '.join(_of_kind(kind, kinds, architectures))}"
             for kind, text in texts.items()]  # fmt: skip
    return f"Started {'; '.join(parts)}."


def _of_kind(kind: str, kinds: dict[str, str], architectures: dict[str, str]) -> list[str]:
    """The runs of a kind; a grid is named by its architecture if all of it is of that kind."""
    mixed = {architectures[name] for name in kinds if kinds[name] != kind}
    names = [name for name in kinds if kinds[name] == kind]
    return list(
        dict.fromkeys(name if architectures[name] in mixed else architectures[name]
                      for name in names)
    )  # fmt: skip


def pretrained_warning(runs: dict[str, Run]) -> str:
    """A warning where classes called unseen may have been seen in pretraining; else empty."""
    pretrained = [
        name
        for name, run in networks(runs).items()
        if "unseen_classes" in run.summary["measurement"]["protocols"]
        and run.summary["weights"]["started from"] != "random"
    ]
    if not pretrained:
        return ""
    return (
        f"{', '.join(pretrained)} started from pretrained weights, which may have seen the classes "
        "that are called unseen here."
    )


def _kind(source: str) -> str:
    kind = "study" if source.startswith(STUDY_PREFIX) else source
    return kind if kind in STARTED else "file"


def _source(weights: dict) -> str:
    if weights["source"] == "none":
        return "random"
    source = weights["source"]
    name = source if source.startswith(STUDY_PREFIX) else Path(source).name
    return f"{name} ({weights['started from'][:12]}…)"


def _trained(train: str) -> str:
    if train == "all":
        return "all layers"
    if train == "head":
        return "the head alone, on a frozen backbone"
    return f"the head and the last {train.removeprefix('last_blocks:')} blocks"


def _epochs(train: str, head: int, last: int) -> str:
    if train == "head":
        return f"{last} head"
    return f"{head} head + {last}" if head else f"{last}"


def _number(value: float | bool | None) -> str:
    """A setting as text; a dash where it is unknown."""
    if value is None:
        return UNKNOWN
    return "yes" if value is True else f"{value:g}"


def _artifact_parameters(run: Run, step: str) -> dict:
    """The parameters of a step of the run; empty where there was no such step, or it is gone."""
    place = run.summary.get("artifacts", {}).get(step)
    artifact = cache.read(project_root() / place) if place else None
    return artifact.manifest["parameters"] if artifact else {}


def _manifest(study: str) -> dict:
    path = run_folder(study) / MANIFEST
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _yaml(value) -> str:
    """A parameter as YAML would have it, without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
