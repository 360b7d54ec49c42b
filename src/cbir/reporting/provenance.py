"""What a report was made from: weights, settings, parameters, machine, commits, in tables and text.

The information comes from the runs of a study and from its manifest.json, which is also published.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cbir import cache, project_root
from cbir.networks.weights import STUDY_PREFIX
from cbir.reporting.runs import Run, machine_name, networks, parse_point, read_manifest, run_folder

if TYPE_CHECKING:  # Keras takes seconds to import
    from cbir.networks.models import Network

# Settings that few networks use, and their columns. They are 0 or false if they are not used.
OPTIONAL = {
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "early_stopping": "early stopping (epochs)",
    "dropout": "dropout",
    "test_time_flips": "test-time flips",
    "whitening": "whitening (dimensions)",
}
# The column of the machines of networks that were trained elsewhere than they were measured.
TRAINED_ON = "trained on"
UNUSED, UNKNOWN = "none", "–"
IMAGENET, RANDOM = "ImageNet", "random"
_ORIGINS = {"none": "from random weights", "imagenet": f"from {IMAGENET} weights"}
# The names of known weights by the SHA-256 of their files, wherever these are.
KNOWN_WEIGHTS = {
    # An ImageNet-trained ResNet-50 whose publishers pruned it by about 80 % and quantised it.
    "9cc9db1f5ca12982d61c890bee636cc85cde81050dd99b5882325e63d828d29a": "ImageNet (pruned, 8-bit)",
    # VGG16 with the values that its authors published.
    "a2f51117308129c3de9a523c91d35160eb75a6a9e5db1e2afb4f48e48dfb733a": IMAGENET,
    # MobileNet with a width of 0.25, with its classifier.
    "dc1ff623e6cd99c3cc0dd2821ca0807ba013606af5a4e2afd4488fbf26a8b589": IMAGENET,
}


def provenance_table(study: str) -> pd.DataFrame:
    """What a report was made from, from its manifest.json; empty without one."""
    if not (manifest := read_manifest(run_folder(study))):
        return pd.DataFrame({"value": []})
    rows = {"command": manifest["command"], **_ran_with(manifest)}
    rows["data, SHA-256"] = manifest["data"]["fingerprint"]
    for name, run in manifest["architectures"].items():
        if weights := run["weights"]:
            start = weights_name(weights)
            digest = "" if start == RANDOM else f", SHA-256 {weights['started from']}"
            rows[f"{name}, started from"] = start + digest
            rows[f"{name}, weights, SHA-256"] = weights["trained"]
            commit = (run.get("trained_on") or {}).get("commit")
            is_other = commit and commit != manifest["git"]["commit"]
            if place := ", ".join(filter(None, [is_other and f"commit {commit}", trained_on(run)])):
                rows[f"{name}, {TRAINED_ON}"] = place
        if vectors := run.get("vectors"):
            rows[f"{name}, vectors"] = f"{vectors['source']}, SHA-256 {vectors['sha256']}"
        steps = run["seconds"].items()
        rows[f"{name}, seconds"] = ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps)
        rows[f"{name}, peak memory"] = f"{run['peak_memory_bytes'] / 1e9:.2f} GB"
    return pd.DataFrame({"value": rows})


def training_table(run: Run) -> pd.DataFrame:
    """The commit, machine and versions with which the network of a run's page was trained.

    They may differ from those of the study, which reuses cached trainings.
    """
    manifest = _artifact_manifest(run, "training")
    return pd.DataFrame({"value": _ran_with(manifest) if manifest else {}})


def _ran_with(manifest: dict) -> dict[str, str]:
    """Commit, machine and versions in the manifest of a study or a step, for readers."""
    # Earlier versions of the project did not record the commit of a step.
    git, machine = manifest.get("git", {"commit": UNKNOWN, "clean": None}), manifest["machine"]
    changes = " (with uncommitted changes)" if git["clean"] is False else ""
    versions = manifest["versions"].items()
    return {
        "commit": f"{git['commit'] or 'not under git'}{changes}",
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "GPU": ", ".join(machine["gpus"]) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in versions),
    }


def parameters_table(study: str) -> pd.DataFrame:
    """The parameters of a study's runs as in YAML, a column per run; empty without a report."""
    runs = read_manifest(run_folder(study)).get("architectures", {})
    table = pd.DataFrame({name: run["parameters"] for name, run in runs.items()}, dtype=object)
    table = table.drop(index=["study", "architecture"], errors="ignore")
    as_yaml = table.map(lambda value: json.dumps(value, ensure_ascii=False).replace('"', ""))
    return as_yaml.where(table.notna(), UNKNOWN).rename_axis("parameter")


def commands(study: str) -> str:
    """The commands that reproduce a study's report, as Markdown; empty without a report."""
    if not (manifest := read_manifest(run_folder(study))):
        return ""
    git = manifest["git"]
    checkout = f"git checkout {git['commit']}\n" if git["commit"] else ""
    text = f"To repeat this report:\n\n```\n{checkout}{manifest['command']}\n```"
    if git["clean"] is False:
        text += "\n\nThe commit is not sufficient, because there were uncommitted changes."
    return text


def citation(study: str) -> str:
    """How to cite a study's report, as Markdown; empty without a report."""
    if not (manifest := read_manifest(run_folder(study))):
        return ""
    commit = (manifest["git"]["commit"] or "")[:12]
    note = ", ".join(filter(None, [f"cbir {manifest['cbir']}", commit and f"commit {commit}"]))
    return (
        "To cite this page:\n\n```\n"
        f"@misc{{cbir-{study},\n"
        f"  title = {{Which architecture retrieves best? Study {study}}},\n"
        "  author = {{The maintainers of cbir}},\n"
        f"  year = {{{manifest.get('date', '')[:4]}}},\n"
        f"  note = {{{note}}}\n}}\n```"
    )


def describe_network(network: "Network") -> str:
    """A network's initial weights and trained layers, in two or three sentences."""
    weights, train = network.weights, network.parameters["train"]
    start = "random weights"
    if weights.path:
        name = weights_name({"source": weights.source, "started from": weights.sha256})
        start = f"the weights `{name}` (SHA-256 {_first_digits(weights.sha256)})"
    text = f"It starts from {start}. Training changes {_trained_layers(train)}."
    if network.parameters["was_frozen"] and train != "head":
        text += " The head is trained first, and batch normalisation stays in inference mode."
    return text


def networks_table(runs: dict[str, Run]) -> pd.DataFrame:
    """What each network is and how it was trained.

    A setting of `OPTIONAL` has a column only if a network uses it, and `trained on` only if a
    network was trained elsewhere than it was measured. `512 head, 32` are values of both trainings.
    """
    settings = {name: _settings(run) for name, run in networks(runs).items()}
    table = pd.DataFrame.from_dict(settings, orient="index").rename_axis("architecture")
    is_empty = table.isin([UNUSED, UNKNOWN]).all()
    optional = [*OPTIONAL.values(), TRAINED_ON]
    return table.drop(columns=[name for name in optional if is_empty.get(name)])


def _settings(run: Run) -> dict:
    summary, parameters = run.summary, run.summary["parameters"]
    training, head = parameters["training"], _artifact_manifest(run, "head").get("parameters", {})

    def by_stage(name: str) -> str:
        value = _number(training.get(name))
        if parameters["train"] == "head":
            return f"{value} head"
        return f"{_number(head.get(name))} head, {value}" if head else value

    embedding_parameters = _artifact_manifest(run, "embeddings").get("parameters", {})
    optional = parameters | training | embedding_parameters
    return {
        "backbone": parameters["backbone"],
        "weights": weights_and_digest(summary["weights"]),
        "trained": _trained_layers(parameters["train"]),
        "input (px)": parameters["input_size"],
        "pooling": parameters["pooling"],
        "embedding": f"{parameters['embedding']}, {summary['embedding_dim']}",
        "training images": summary["dataset"]["train"],
        "epochs": epochs(summary),
        "batch": by_stage("batch_size"),
        "optimizer": f"{training['optimizer']}, {training['schedule']}",
        "learning rate": by_stage("learning_rate"),
        "augmentation": ", ".join(training["augmentation"]) or "none",
        **{column: _number(optional.get(name)) for name, column in OPTIONAL.items()},
        "precision": parameters["precision"].removeprefix("mixed_"),
        TRAINED_ON: trained_on(summary) or UNKNOWN,
    }


def trained_on(summary: dict) -> str:
    """Machine and versions of a training in a summary, as far as they differ from the run's."""
    if not (place := summary.get("trained_on")):
        return ""
    machine = [machine_name(place["machine"])] if place["machine"] else []
    return ", ".join(machine + [f"{name} {value}" for name, value in place["versions"].items()])


def epochs(summary: dict, epoch: int | None = None) -> str:
    """The number of epochs for which a network was trained, such as `20 head + 3`.

    With early stopping, these are the epochs up to the best one. `summary` is that of a run or its
    entry in a study's manifest; `epoch` that of an earlier state.
    """
    last, head = epoch or summary["epochs"], summary.get("head_epochs")
    if summary["parameters"]["train"] == "head":
        return f"{last} head"
    return f"{head} head + {last}" if head else f"{last}"


def weights_name(weights: dict) -> str:
    """What a summary's `weights` are: `random`, `ImageNet`, a study, a file's name."""
    source, known = weights["source"], KNOWN_WEIGHTS.get(weights.get("started from"))
    names = {"none": RANDOM, "imagenet": IMAGENET}
    if known or source.startswith(STUDY_PREFIX):
        return known or source
    return names.get(source, Path(source).name)


def weights_and_digest(weights: dict) -> str:
    """`weights_name` with the first digits of the file's SHA-256, if it is recorded."""
    name, digest = weights_name(weights), weights.get("started from", "")
    return f"{name}, {_first_digits(digest)}" if digest and name != RANDOM else name


def treatment(run: Run) -> str:
    """How a network was trained, in words: frozen, fine-tuned or from scratch, and from what.

    Networks of one treatment can be compared: their weights have the same origin.
    """
    train, start = run.summary["parameters"]["train"], _origin(run.summary["weights"])
    if train == "head":
        return f"frozen, {start}"
    return start if start == _ORIGINS["none"] else f"fine-tuned, {start}"


def weights_label(runs: Mapping[str, Run | dict]) -> str:
    """The initial weights of the networks, and the files of vectors, shown with all results.

    A grid is named by its architecture if all its runs started from the same weights. `runs` are a
    study's runs, or their entries in its manifest.
    """
    rows, texts = [], []
    for name, run in runs.items():
        summary = run.summary if isinstance(run, Run) else run
        if weights := summary.get("weights"):
            architecture, _ = parse_point(name, summary["variant"])
            rows.append((name, architecture, _origin(weights, has_digest=True)))
        if file := summary.get("vectors"):
            texts.append(
                f"The vectors of {name} were made elsewhere: {Path(file['source']).name} "
                f"(SHA-256 {_first_digits(file['sha256'])})."
            )
    table = pd.DataFrame(rows, columns=["name", "architecture", "start"])
    starts = table["start"].unique()
    if len(starts) == 1:
        no_imagenet = " No ImageNet weights were used." if "from random weights" in starts else ""
        texts.insert(0, f"All networks started {starts[0]}.{no_imagenet}")
    elif len(starts):
        is_mixed = table.groupby("architecture")["start"].transform("nunique") > 1
        labels = table["name"].where(is_mixed, table["architecture"]).groupby(table["start"])
        parts = [f"{start}: {', '.join(names.unique())}" for start, names in labels]
        texts.insert(0, f"Started {'; '.join(parts)}.")
    return " ".join(texts)


def pretrained_warning(runs: dict[str, Run]) -> str:
    """A warning if unseen classes may have been seen in pretraining or elsewhere; else empty."""
    summaries = {
        name: run.summary
        for name, run in runs.items()
        if "unseen_classes" in run.summary["measurement"]["protocols"]
    }
    pretrained = [
        name
        for name, summary in summaries.items()
        if summary.get("weights", {}).get("started from", "random") != "random"
    ]
    elsewhere = [name for name, summary in summaries.items() if "vectors" in summary]
    warnings = []
    if pretrained:
        warnings.append(
            f"{', '.join(pretrained)} started from pretrained weights. Their pretraining may have "
            "included the classes that are called unseen here."
        )
    if elsewhere:
        warnings.append(
            f"The vectors of {', '.join(elsewhere)} were made elsewhere, where a network may have "
            "been trained on the classes that are called unseen here."
        )
    return " ".join(warnings)


def _origin(weights: dict, has_digest: bool = False) -> str:
    """The kind of a network's initial weights in words; a known file possibly with its SHA-256."""
    source, digest = weights["source"], weights.get("started from")
    if digest in KNOWN_WEIGHTS:
        name = f"from {weights_name(weights)} weights (SHA-256 {_first_digits(digest)})"
        return name if has_digest else _ORIGINS["imagenet"]
    if source.startswith(STUDY_PREFIX):
        study = source.removeprefix(STUDY_PREFIX).partition("/")[0]
        return f"from a backbone trained in another study of this project ({study})"
    return _ORIGINS.get(source, "from a weights file")


def _first_digits(digest: str) -> str:
    return f"{digest[:12]}…"


def _trained_layers(train: str) -> str:
    if train == "all":
        return "all layers"
    if train == "head":
        return "only the head, on a frozen backbone"
    return f"the head and the last {train.removeprefix('last_blocks:')} blocks"


def _number(value: float | bool | None) -> str:
    """A setting as text; a dash if it is unknown."""
    if value is None:
        return UNKNOWN
    return UNUSED if not value else "yes" if value is True else f"{value:g}"


def _artifact_manifest(run: Run, step: str) -> dict:
    """The manifest of a step of the run; empty if the step does not exist or was deleted."""
    folder = run.summary.get("artifacts", {}).get(step)
    artifact = cache.read(project_root() / folder, thorough=False) if folder else None
    return artifact.manifest if artifact else {}
