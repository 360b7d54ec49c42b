"""The YAML files of a study, read in layers: its runs, and the points of their grids.

`study.yaml` sets what the architectures of a study share, `<architecture>.yaml` what is their own,
a grid what one run differs in from the next, and SET overrides everything.
"""

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from cbir import StudyError
from cbir.studies.params import (
    DATA,
    GROUPS,
    MEASUREMENT,
    OF_BASELINES,
    OF_NETWORKS,
    PLACED,
    Layer,
    conflict,
    merge,
    names_in,
)

SHARED = "study.yaml"
# The notebook of an architecture that has none of its own, and of all baselines.
GENERIC, BASELINE = "architecture", "baseline"


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
    parameters = merge([shared, own, point, changes], names)
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
