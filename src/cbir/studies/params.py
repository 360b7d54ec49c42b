"""The parameters of a study: the one list of them, and the YAML files that set them.

`PARAMETERS` has a row per parameter: its group, type, default, bounds and description. Checks,
error messages and `docs/parameters.md` come from it. YAML files are flat; a notebook is given one
dictionary per group.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cbir import StudyError
from cbir.images.protocols import PROTOCOLS
from cbir.networks.backbones import BACKBONES

SHARED = "study.yaml"
# The notebook of an architecture that has none of its own, and of all baselines.
GENERIC, BASELINE = "architecture", "baseline"
# Set by the place of a file, params/<study>/<architecture>.yaml, and by the point of a grid.
PLACED = ("study", "architecture", "variant")
GROUPS = {
    "data": "The images. All architectures of a study share them, but for `learn_from`.",
    "network": "How the network is built.",
    "training": "How the network is trained: the head alone first, where `head_epochs` is not 0.",
    "embedding": "How embeddings are made from the trained network.",
    "measurement": "What is measured.",
    "baseline": "What stands in the place of a network.",
}
TYPES = {"str": str, "int": int, "float": float, "bool": bool}


class Bound(NamedTuple):
    """What a value must fulfil beyond its type; `rule` follows the parameter's name in errors."""

    holds: Callable[[Any], bool]
    rule: str


@dataclass(frozen=True)
class Parameter:
    """A row of `PARAMETERS`.

    Attributes:
        group: a name in `GROUPS`.
        type: as an annotation, such as "list[int]".
        description: one sentence in Markdown.
        default: None where the study must set it.
        bound: None where every value of its type will do.
    """

    group: str
    type: str
    description: str
    default: Any = None
    bound: Bound | None = None

    def error(self, value) -> str:
        """Why a value will not do, in words that follow the parameter's name; empty where it will.

        An int passes for a float.
        """
        if not _is_of(value, self.type):
            return f"must be {self.type}, not {value!r}"
        if self.bound and not self.bound.holds(value):
            return f"{self.bound.rule}, not {value!r}"
        return ""


def _one_of(*names: str) -> Bound:
    return Bound(lambda value: value in names, f"must be one of {', '.join(names)}")


def _some_of(*names: str) -> Bound:
    return Bound(
        lambda value: set(value) <= set(names) and len(set(value)) == len(value),
        f"must name some of {', '.join(names)}, each once",
    )


def _at_least(least: int, unit: str = "") -> Bound:
    return Bound(lambda value: value >= least, f"must be {least} or more{unit}")


def _each_at_least(least: int, noun: str) -> Bound:
    return Bound(
        lambda value: value and min(value) >= least and len(set(value)) == len(value),
        f"must name at least one {noun}, each {least} or more and each once",
    )


_POSITIVE = Bound(lambda value: value > 0, "must be greater than 0")
_NOT_NEGATIVE = Bound(lambda value: value >= 0, "must be 0 or greater")
_FRACTION = Bound(lambda value: 0 < value < 1, "must lie between 0 and 1, both excluded")
_SHARE = Bound(lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
_RATE = Bound(lambda value: 0 < value < float("inf"), "must be greater than 0 and finite")

# The names of poolings, embeddings, optimisers, schedules, augmentations and baselines are written
# out, since the modules that define them import Keras; a test compares the two.
# fmt: off
PARAMETERS = {
    # The images.
    "dataset": Parameter("data", "str",
        "`digits`, `cifar10`, or the path of a folder of pictures."),
    "image_size": Parameter("data", "int",
        "Side in pixels of the squares that pictures become by a centre crop.",
        32, _at_least(8, " (pixels)")),
    "training_images": Parameter("data", "int",
        "Training images to keep, in equal shares of all classes; 0 keeps all.", 0, _NOT_NEGATIVE),
    "test_images": Parameter("data", "int",
        "Test images to keep, in equal shares of all classes; 0 keeps all.", 0, _NOT_NEGATIVE),
    "test_fraction": Parameter("data", "float",
        "Share of each class that becomes test images, where the data set has none of its own.",
        0.2, _FRACTION),
    "validation_fraction": Parameter("data", "float",
        "Share of each class's training images set apart for validation.", 0.1, _FRACTION),
    "split_seed": Parameter("data", "int",
        "Seed of every choice of images, whatever the seed of the training.", 0, _NOT_NEGATIVE),
    "learn_from": Parameter("data", "int",
        "Training images to learn from and to validate on, in equal shares of all classes; 0 takes "
        "all. The gallery keeps all. Architectures may differ in it.", 0, _NOT_NEGATIVE),
    # How the network is built.
    "backbone": Parameter("network", "str",
        "The part of the network that turns pixels into feature maps.", bound=_one_of(*BACKBONES)),
    "weights": Parameter("network", "str",
        "Initial weights of the backbone: `none` (random), `imagenet`, `study:<study>` (as trained "
        "in another study) or the path of a weights file.", "none",
        Bound(lambda value: value not in ("", "study:"),
              "must be none, imagenet, study:<study> or the path of a weights file")),
    "train": Parameter("network", "str",
        "What is trained: `all`; `last_blocks:<n>`, the head and the last n blocks of the "
        "backbone; `head`, which keeps the backbone frozen.", "all",
        Bound(lambda value: re.fullmatch("head|all|last_blocks:[1-9][0-9]*", value) is not None,
              "must be head, last_blocks:<n> or all")),
    "input_size": Parameter("network", "int",
        "Side in pixels of what the backbone sees; the network resizes images itself.",
        32, _at_least(32, " (pixels)")),
    "pooling": Parameter("network", "str",
        "How feature maps become a vector; `gem` is the generalised mean, `attention` a learnt "
        "weighted mean.", "avg", _one_of("avg", "max", "gem", "attention", "flatten")),
    "feature_maps": Parameter("network", "bool",
        "Whether a frozen backbone's feature maps are cached in place of its pooled features, so "
        "that heads with different poolings share them.", False),
    "embedding": Parameter("network", "str",
        "The layer that is the embedding: `penultimate`, a dense layer with ReLU under the "
        "classifier; `projection`, one without ReLU; `pooled`, the pooled features.",
        "penultimate", _one_of("penultimate", "projection", "pooled")),
    "embedding_dim": Parameter("network", "int",
        "Units of that dense layer; `pooled` has none.", 256, _POSITIVE),
    "dropout": Parameter("network", "float",
        "Share of the embedding dropped in training; the plain CNN drops half of that share after "
        "each stage, too.", 0.0, _SHARE),
    "mixed_precision": Parameter("network", "bool",
        "Whether a GPU computes in half precision where it can; a CPU never does.", True),
    # How it is trained.
    "head_epochs": Parameter("training", "int",
        "Epochs of the head alone, on features of the frozen backbone, before all else.",
        0, _NOT_NEGATIVE),
    "head_batch_size": Parameter("training", "int",
        "Images in a step of those epochs.", 512, _POSITIVE),
    "head_learning_rate": Parameter("training", "float",
        "Highest learning rate of those epochs.", 1e-3, _RATE),
    "epochs": Parameter("training", "int",
        "Epochs of the backbone with its head; not used with `train: head`.", 0, _NOT_NEGATIVE),
    "measured_epochs": Parameter("training", "list[int]",
        "Epochs after which the network is measured, besides the last.", [],
        Bound(lambda value: all(epoch > 0 for epoch in value) and len(set(value)) == len(value),
              "must be epochs from 1 on, each once")),
    "batch_size": Parameter("training", "int", "Images in a step.", 64, _POSITIVE),
    "optimizer": Parameter("training", "str",
        "`sgd` has a Nesterov momentum of 0.9.", "adam", _one_of("adam", "adamw", "sgd")),
    "learning_rate": Parameter("training", "float", "Highest learning rate.", 1e-3, _RATE),
    "schedule": Parameter("training", "str",
        "How the learning rate changes; `cosine` begins with a warm-up epoch.",
        "cosine", _one_of("constant", "cosine", "one_cycle")),
    "weight_decay": Parameter("training", "float",
        "Share of each weight taken away in a step, times the learning rate.", 0.0, _SHARE),
    "augmentation": Parameter("training", "list[str]",
        "Random changes of each training image, drawn anew in each epoch.", [],
        _some_of("flip", "shift", "rotate", "zoom", "contrast", "brightness", "erase")),
    "label_smoothing": Parameter("training", "float",
        "Share of the target probability spread over all classes.", 0.0, _SHARE),
    "early_stopping": Parameter("training", "int",
        "Epochs without a better validation accuracy after which training ends, with the weights "
        "of the best epoch; 0 trains for all epochs.", 0, _NOT_NEGATIVE),
    # How embeddings are made.
    "test_time_flips": Parameter("embedding", "bool",
        "Whether an embedding is the mean over an image and its mirror image.", False),
    "whitening": Parameter("embedding", "int",
        "Dimensions that PCA whitening, fitted on the training images, keeps; 0 for no whitening.",
        0, _NOT_NEGATIVE),
    # What is measured.
    "seeds": Parameter("measurement", "list[int]",
        "Seeds of initial weights, order of the images and dropout; each is a training of its own.",
        bound=_each_at_least(0, "seed")),
    "protocols": Parameter("measurement", "list[str]",
        "Which images are searched, and with which; architectures are compared under the first. "
        "`hashing_1k` is for `cifar10` alone.",
        bound=Bound(lambda value: value and _some_of(*PROTOCOLS).holds(value)
                    and value[0] != "unseen_classes",
                    f"must name some of {', '.join(PROTOCOLS)}, each once, unseen_classes not "
                    "first")),
    "unseen": Parameter("measurement", "int",
        "Classes that the protocol `unseen_classes` keeps from training.", 2, _POSITIVE),
    "draws": Parameter("measurement", "int",
        "How often that protocol draws these classes; each draw is a training.", 3, _POSITIVE),
    "ks": Parameter("measurement", "list[int]",
        "Depths at which rankings are measured.", [1, 5, 10, 100], _each_at_least(1, "k")),
    # What can take the place of a network.
    "baseline": Parameter("baseline", "str",
        "Embeddings made without a network; set in place of `backbone`.",
        bound=_one_of("random", "raw_pixels", "hand_crafted")),
}
# fmt: on
POOLINGS_THAT_LEARN = ("gem", "attention")
# Those of the backbone; the head's have the same names after `head_`.
NOT_OF_HEAD = ("epochs", "batch_size", "learning_rate")


def names_in(*groups: str) -> tuple[str, ...]:
    """The parameters of some groups, in the order of `PARAMETERS`."""
    return tuple(name for name, row in PARAMETERS.items() if row.group in groups)


# What decides the images, the same for all runs of a study, and what is measured of them.
DATA = tuple(name for name in names_in("data") if name != "learn_from")
MEASUREMENT = names_in("measurement")
OF_BASELINES = (*DATA, *MEASUREMENT, "baseline")
OF_NETWORKS = names_in("data", "network", "training", "embedding", "measurement")


@dataclass(frozen=True)
class Settings:
    """Complete parameters by group; those of a network are empty for a baseline."""

    data: dict
    network: dict
    training: dict
    embedding: dict
    measurement: dict


def complete(
    *,
    data: dict,
    measurement: dict,
    network: dict | None = None,
    training: dict | None = None,
    embedding: dict | None = None,
    baseline: str | None = None,
) -> Settings:
    """Check the groups of parameters of a notebook and fill in defaults.

    Args:
        data, measurement, network, training, embedding: parameters by name, as in `PARAMETERS`.
        baseline: what stands in the place of a network.

    Raises:
        StudyError: a parameter is unknown, missing, ill-typed or out of bounds, or contradicts
            another.
    """
    groups = {"data": data, "measurement": measurement}
    if baseline is None:
        groups |= {"network": network, "training": training, "embedding": embedding}
    else:
        _check(Layer("this notebook", {"baseline": baseline}), ["baseline"])
    complete_groups = {field.name: {} for field in fields(Settings)}
    for group, values in groups.items():
        layer, names = Layer(group, values or {}), names_in(group)
        for key in layer.values:
            if key in PARAMETERS and key not in names:
                raise StudyError(f"{group}: {key} belongs to {PARAMETERS[key].group}")
        complete_groups[group] = _stack([layer], names)
        if missing := [name for name in names if name not in complete_groups[group]]:
            raise StudyError(f"{group}: missing parameter {', '.join(missing)}")
    flat = {key: value for values in complete_groups.values() for key, value in values.items()}
    if "backbone" in flat and (broken := conflict(flat)):
        raise StudyError(broken)
    return Settings(**complete_groups)


def conflict(given: Mapping) -> str:
    """The first contradiction between parameters of a network; empty where there is none."""
    return next(_conflicts(given), "")


def _conflicts(given: Mapping) -> Iterator[str]:
    train, weights, backbone = given["train"], given["weights"], given["backbone"]
    n_blocks, n_trained = len(BACKBONES[backbone].blocks), int(train.partition(":")[2] or 0)
    if weights == "imagenet" and not BACKBONES[backbone].imagenet:
        yield f"weights: {backbone} has no ImageNet weights: use none, study:<study> or a path"
    yield from _conflicts_of_epochs(given)
    if n_trained > n_blocks:
        yield f"train: {train}: {backbone} has {n_blocks} blocks"
    if n_trained and weights == "none":
        yield (
            f"train: {train}: must be all where weights is none: the other blocks would keep "
            "random weights"
        )
    if train == "head" and given["augmentation"]:
        yield (
            "augmentation: a frozen backbone sees each image once, so no image can change from "
            "epoch to epoch: set augmentation: [] or train: all"
        )
    if given["embedding"] != "pooled" and given["whitening"] > given["embedding_dim"]:
        yield (
            f"whitening: {given['whitening']} dimensions of an embedding of "
            f"{given['embedding_dim']}"
        )


def _conflicts_of_epochs(given: Mapping) -> Iterator[str]:
    train, weights, measured = given["train"], given["weights"], given["measured_epochs"]
    if train == "head":
        if measured:
            yield "measured_epochs: must be [] where train is head: they are those of the backbone"
        if not given["head_epochs"]:
            yield "head_epochs: must be greater than 0 where train is head"
    elif not given["epochs"]:
        yield f"epochs: must be greater than 0 where train is {train}"
    elif weights == "none" and given["head_epochs"]:
        yield (
            "head_epochs: must be 0 where weights is none: a head trained on random features is of "
            "no use to a backbone that is then trained"
        )
    elif weights != "none" and not given["head_epochs"]:
        yield (
            f"head_epochs: must be greater than 0 where weights is {weights} and train is {train}: "
            "gradients that pass through a head of random weights would spoil the backbone"
        )
    if beyond := [epoch for epoch in measured if epoch > given["epochs"]]:
        yield f"measured_epochs: {beyond[:1]} lies beyond epochs: {given['epochs']}"
    if measured and given["early_stopping"]:
        yield (
            "measured_epochs: must be [] with early_stopping, which decides how many epochs there "
            "are"
        )


def unused(given: Mapping) -> set[str]:
    """The parameters of a network that others make meaningless."""
    names = set()
    if given["train"] == "head":
        names |= set(NOT_OF_HEAD)
    if not given["head_epochs"]:
        names |= {"head_batch_size", "head_learning_rate"}
    if given["embedding"] == "pooled":
        names.add("embedding_dim")
    return names


@dataclass(frozen=True)
class RunConfig:
    """One architecture of a study: the notebook that runs it, and its parameters.

    Attributes:
        architecture: its name in the report: that of its file, followed by the values of its point
            where there is a grid.
        file: the name of its file in params/<study>/, without its ending.
        notebook: the notebook's path.
        parameters: all of them, flat, those in `PLACED` first.
    """

    architecture: str
    file: str
    notebook: Path
    parameters: dict

    @property
    def is_baseline(self) -> bool:
        """Whether it stands in the place of an architecture, without a network."""
        return "baseline" in self.parameters

    @property
    def weights(self) -> tuple[str, str]:
        """Backbone and weights, as `weights.find` takes them."""
        return self.parameters.get("backbone", ""), self.parameters.get("weights", "none")

    def group(self, name: str) -> dict:
        """The parameters of a group of `GROUPS`."""
        return {key: self.parameters[key] for key in names_in(name) if key in self.parameters}

    @property
    def notebook_parameters(self) -> dict:
        """What the notebook is given: its place, and its parameters by group."""
        given = {key: self.parameters[key] for key in PLACED}
        if self.is_baseline:
            given["baseline"] = self.parameters["baseline"]
        groups = {name: self.group(name) for name in GROUPS if name != "baseline"}
        return given | {name: values for name, values in groups.items() if values}


@dataclass(frozen=True)
class Layer:
    """Parameters set in one place; `source` is what error messages call it."""

    source: str
    values: dict


@dataclass(frozen=True)
class RunFile:
    """An architecture's file: its parameters, its grids (None: the study's) and its notebook."""

    layer: Layer
    grids: list[dict[str, list]] | None
    notebook: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it can have."""
        return OF_BASELINES if "baseline" in self.layer.values else OF_NETWORKS


def studies(root: Path) -> list[str]:
    """Names of the studies in params/."""
    return sorted(path.parent.name for path in (root / "params").glob(f"*/{SHARED}"))


def load(
    root: Path,
    study: str,
    *,
    report: str | None = None,
    dataset: str | None = None,
    overrides: str = "",
) -> list[RunConfig]:
    """Read and check a study's files, before any work.

    Args:
        root: the project's folder.
        study: name of a folder in params/.
        report: name of the folder in reports/ that the notebooks write to; the study's by default.
        dataset: overrides the study's own `dataset`.
        overrides: "key=value key=value", values in YAML; overrides everything in the files.

    Returns:
        One run per architecture, and per point of its grid, in the order of their file names, the
        baselines last.

    Raises:
        StudyError: an unknown study, or a parameter that is unknown, missing, ill-typed or out of
            bounds; the text names the file, the key and the nearest known one.
    """
    folder = root / "params" / study
    if study not in studies(root):
        raise StudyError(f"unknown study {study!r}: params/ has {', '.join(studies(root))}")
    shared = Layer(_name(folder / SHARED, root), _read_yaml(folder / SHARED, root))
    study_grids = _read_grids(shared.values.pop("grid", {}), shared.source)
    data = {} if dataset is None else {"dataset": dataset}
    changes = Layer("DATA or SET" if dataset else "SET", data | parse_overrides(overrides))
    paths = sorted(path for path in folder.glob("*.yaml") if path.name != SHARED)
    if not paths:
        raise StudyError(f"params/{study}/ names no architecture: add a file such as cnn.yaml")
    files = {path.stem: _read_run(path, root) for path in paths}
    in_study = {name for file in files.values() for name in file.names}
    runs = []
    for name, file in files.items():
        # What only other runs of the study know is not for this one: a baseline has no epochs.
        elsewhere = in_study - set(file.names)
        run_grids = file.grids
        if run_grids is None:
            run_grids = [_without(elsewhere, grid) for grid in study_grids]
        for point in _points(run_grids, changes.values):
            parameters = _resolve(
                file.names,
                shared=Layer(shared.source, _without(elsewhere, shared.values)),
                own=file.layer,
                point=Layer(f"{file.layer.source}, grid", point),
                changes=Layer(changes.source, _without(elsewhere, changes.values)),
            )
            architecture = point_name(name, point)
            placed = {"study": report or study, "architecture": architecture}
            placed["variant"] = variant(point)
            runs.append(RunConfig(architecture, name, file.notebook, placed | parameters))
    names = [run.architecture for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"params/{study}/: grid: two of its points are called {twice[0]}")
    for run in runs:
        _check_together(run, runs[0])
    return sorted(runs, key=lambda run: run.is_baseline)


def _without(names: Collection[str], values: dict) -> dict:
    return {key: value for key, value in values.items() if key not in names}


def _read_run(path: Path, root: Path) -> RunFile:
    """Read an architecture's file and find its notebook."""
    source, own = _name(path, root), _read_yaml(path, root)
    if shared := [key for key in (*DATA, "unseen") if key in own]:
        raise StudyError(
            f"{source}: {shared[0]} belongs into {SHARED}: all architectures of a study see the "
            "same images"
        )
    notebook = _find_notebook(own.pop("notebook", None), "baseline" in own, path, root)
    own_grids = _read_grids(own.pop("grid"), source) if "grid" in own else None
    return RunFile(Layer(source, own), own_grids, notebook)


def _find_notebook(named: str | None, is_baseline: bool, path: Path, root: Path) -> Path:
    """The notebook that the file names, else that of its name, else the generic one."""
    names = [named or (BASELINE if is_baseline else path.stem)]
    if not (named or is_baseline):
        names.append(GENERIC)
    for name in names:
        if (notebook := root / "notebooks" / f"{name}.ipynb").exists():
            return notebook
    raise StudyError(
        f"{_name(path, root)}: no notebook {names[0]}.ipynb in notebooks/: name the one that runs "
        "this architecture with the key `notebook`"
    )


def _resolve(
    names: Collection[str], *, shared: Layer, own: Layer, point: Layer, changes: Layer
) -> dict:
    """All parameters of a run, each layer overriding the ones before it.

    Args:
        names: the parameters that the run knows.
        shared: of the whole study.
        own: of the architecture's file.
        point: of the grid.
        changes: of the command line.
    """
    parameters = _stack([shared, own, point, changes], names)
    if missing := [name for name in names if name not in parameters]:
        files = f"{shared.source} or {own.source}"
        raise StudyError(f"{files}: missing parameter {', '.join(missing)}: add it to one of them")
    # A trial of fewer epochs measures those that it has.
    if "epochs" in changes.values and "measured_epochs" not in changes.values:
        measured = parameters.get("measured_epochs", [])
        kept = [epoch for epoch in measured if epoch <= parameters["epochs"]]
        parameters["measured_epochs"] = kept
    if "backbone" in parameters and (broken := conflict(parameters)):
        sources = [layer.source for layer in (own, point, changes) if layer.values]
        raise StudyError(f"{' or '.join(sources)}: {broken}")
    return parameters


def _stack(layers: list[Layer], names: Collection[str]) -> dict:
    """Defaults and layers, each overriding the ones before it, in the order of `names`."""
    values = {}
    for layer in layers:
        _check(layer, names)
        values |= layer.values
    stacked = {}
    for name in names:
        row = PARAMETERS[name]
        if name in values or row.default is not None:
            value = values.get(name, row.default)
            stacked[name] = float(value) if row.type == "float" else value
    return stacked


def _check(layer: Layer, names: Collection[str]) -> None:
    """Raise StudyError for the first parameter of a layer that is unknown or will not do."""
    for key, value in layer.values.items():
        if key not in names:
            raise StudyError(f"{layer.source}: unknown parameter {key!r}{_nearest(key, names)}")
        if error := PARAMETERS[key].error(value):
            raise StudyError(f"{layer.source}: {key} {error}")


def _check_together(run: RunConfig, first: RunConfig) -> None:
    """Raise StudyError where a protocol does not fit the data, or runs cannot be compared."""
    protocols, dataset = run.parameters["protocols"], run.parameters["dataset"]
    if "hashing_1k" in protocols and dataset != "cifar10":
        raise StudyError(
            f"{run.architecture}: protocols: hashing_1k is that of cifar10: leave it out for "
            f"{dataset}"
        )
    if "hashing_1k" in protocols and run.parameters.get("learn_from"):
        raise StudyError(
            f"{run.architecture}: learn_from: must be 0 where protocols names hashing_1k, which "
            "says itself how many images are learnt from"
        )
    if protocols[0] != first.parameters["protocols"][0]:
        raise StudyError(
            f"{run.architecture}: protocols: must begin with {first.parameters['protocols'][0]}, "
            f"as those of {first.architecture} do: architectures are compared under the first"
        )


def _is_of(value, annotation: str) -> bool:
    """Whether a value is of a type; an int passes for a float, a bool for nothing else."""
    if annotation.startswith("list["):
        element = annotation.removeprefix("list[").removesuffix("]")
        return isinstance(value, list) and all(_is_of(item, element) for item in value)
    if annotation == "float" and type(value) is int:
        return True
    return type(value) is TYPES[annotation]


def _nearest(key, names: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"


# Grids: one architecture of a study, run once for every combination of some parameters' values.


def _read_grids(content, source: str) -> list[dict[str, list]]:
    """The key `grid` of a file: one grid, or a list of several over the same parameters."""
    several = content if isinstance(content, list) and content else [content]
    grids = [read_grid(grid, source) for grid in several]
    if any(list(grid) != list(grids[0]) for grid in grids):
        raise StudyError(f"{source}: grid: all of the list must name the same parameters, in order")
    return grids


def read_grid(content, source: str) -> dict[str, list]:
    """A grid of a file: the values that each of its parameters is to take.

    Args:
        content: as the file has it.
        source: the file's name, for the error.

    Raises:
        StudyError: no lists of values, or a parameter that all runs of a study share.
    """
    fits = isinstance(content, dict) and all(
        isinstance(values, list) and values for values in content.values()
    )
    if not fits:
        raise StudyError(
            f"{source}: grid must give each parameter a list of values, as in "
            "`grid: {input_size: [32, 64]}`"
        )
    for key, values in content.items():
        if any(values.count(value) > 1 for value in values):
            raise StudyError(f"{source}: grid: {key} must name each value once, not {values}")
    if 0 in content.get("learn_from", []):
        raise StudyError(
            f"{source}: grid: learn_from: give the number of images in the place of 0 (all of "
            "them), which would be sorted as the fewest"
        )
    if shared := [key for key in content if key in (*DATA, *MEASUREMENT)]:
        raise StudyError(f"{source}: grid: {shared[0]} must be the same for all of a study")
    return content


def _points(grids: list[dict[str, list]], changes: Collection[str]) -> list[dict]:
    """The points of all grids; SET may make one of two of them, which then counts once."""
    found = [point for grid in grids for point in points(grid, changes)]
    return [point for place, point in enumerate(found) if point not in found[:place]]


def points(grid: dict[str, list], changes: Collection[str]) -> list[dict]:
    """Every combination of a grid's values; a parameter that SET sets is no dimension of it.

    Returns:
        One empty point where there is no grid.
    """
    free = {key: values for key, values in grid.items() if key not in changes}
    return [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]


def point_name(architecture: str, point: dict) -> str:
    """The name of a point's run, and of its folder: mobilenet-96-head."""
    words = [re.sub(r"[^\w.]", "", point_text(value)) for value in point.values()]
    return "-".join([architecture, *words])


def variant(point: dict) -> str:
    """A point in words: input_size=96 train=head; a list has no spaces: [flip,shift]."""
    return " ".join(f"{key}={point_text(value)}" for key, value in point.items())


def point_text(value) -> str:
    """A value in words without spaces."""
    if isinstance(value, list):
        return f"[{','.join(point_text(item) for item in value)}]"
    return str(value)


def parse_overrides(text: str) -> dict:
    """ "epochs=3 ks=[1,10]" as a dictionary; values are YAML.

    Raises:
        StudyError: a piece is not `key=value`.
    """
    changes = {}
    for piece in text.split():
        key, equals, value = piece.partition("=")
        if not (key and equals and value):
            raise StudyError(f'SET: {piece!r} is not key=value, as in SET="epochs=3 ks=[1,10]"')
        try:
            changes[key] = _number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise StudyError(
                f"SET: {piece!r} is not key=value in YAML; a value has no spaces, as in ks=[1,10]"
            ) from None
    return changes


def _read_yaml(path: Path, root: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{_name(path, root)}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{_name(path, root)}: must hold lines of the form `key: value`")
    return {key: _number(value) for key, value in content.items()}


def _number(value):
    """A value of YAML; YAML 1.1 reads 1e-3, which is meant as a number, as a string."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            pass
    return value


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def document() -> str:
    """The text of docs/parameters.md."""
    lines = [
        "# Parameters",
        "",
        "Every parameter that a study can set, written by `make docs` from "
        "`src/cbir/studies/params.py`. A study's `params/<study>/study.yaml` sets what its "
        "architectures share, `params/<study>/<architecture>.yaml` what is their own, and "
        '`make report SET="key=value"` overrides both. A parameter without a default must be set.',
    ]
    for group, text in GROUPS.items():
        lines += ["", f"## {group.capitalize()}", "", text, ""]
        lines += ["| parameter | type | default | bounds | |", "|---|---|---|---|---|"]
        for name in names_in(group):
            row = PARAMETERS[name]
            default = yaml.safe_dump([row.default], default_flow_style=True).strip()[1:-1]
            default = "" if row.default is None else f"`{default}`"
            bounds = row.bound.rule.replace("<", "\\<") if row.bound else ""
            lines.append(f"| `{name}` | `{row.type}` | {default} | {bounds} | {row.description} |")
    return "\n".join(lines) + "\n"
