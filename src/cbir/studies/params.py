"""What a study asks for: YAML files in layers, defaults first.

The parameters cell is the one list of what a notebook knows: each line there names a parameter,
its type and its value by hand. The files must set every one of them, and nothing else, so that a
report never rests on a value that nobody wrote down.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

import yaml

from cbir import StudyError
from cbir.reporting import grids
from cbir.studies.cells import known
from cbir.studies.limits import LIMITS, TYPES, conflict

# Set by where a file stands, not by what stands in it: params/<study>/<architecture>.yaml.
PLACED = ("study", "architecture", "variant")
SHARED, DEFAULTS = "study.yaml", "defaults.yaml"
# What decides the images: the same for all architectures of a study.
DATA = (
    "dataset", "image_size", "training_images", "test_images", "test_fraction",
    "validation_fraction", "split_seed",
)  # fmt: skip
# What is measured of an architecture.
ASKED = ("seeds", "protocols", "unseen", "draws", "ks")


@dataclass(frozen=True)
class RunConfig:
    """One architecture of a study: the notebook that runs it and what the notebook is given.

    Attributes:
        architecture: its name in the report; that of the file, and where there is a grid the
            values of its point.
        file: the name of its file in params/<study>/, without its ending.
        notebook: the notebook's path.
        parameters: what it is given.
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

    @property
    def asked(self) -> dict:
        """What is to be measured."""
        return {key: self.parameters[key] for key in ASKED}


def studies(root: Path) -> list[str]:
    """Names of the studies in params/."""
    return sorted(path.parent.name for path in (root / "params").glob(f"*/{SHARED}"))


def defaults(root: Path) -> dict:
    """What holds where a study's files say nothing.

    Raises:
        StudyError: the file is gone.
    """
    path = root / "params" / DEFAULTS
    if not path.exists():
        raise StudyError(f"params/{DEFAULTS} is gone: it belongs to the project, get it back")
    return _read_yaml(path, root)


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
        dataset: takes the place of the study's own `dataset`.
        overrides: "key=value key=value", values in YAML, over what the files say.

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
    shared = folder / SHARED
    usual, common = defaults(root), _read_yaml(shared, root)
    grid = _read_grids(common.pop("grid", {}), _name(shared, root))
    changes = {"dataset": dataset} if dataset is not None else {}
    changes |= parse_overrides(overrides)
    found, runs = [], []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != SHARED:
            found.append(_read_run(path, root))
    anywhere = {key for *_, types in found for key in types}
    for name, own, own_grid, notebook, types in found:
        # What is for all is for those that know it: a baseline has no epochs.
        elsewhere = anywhere - types.keys()
        shared_layers = [
            (file, {key: value for key, value in layer.items() if key not in elsewhere})
            for file, layer in [(_name(shared, root), common),
                                ("DATA or SET" if dataset else "SET", changes)]
        ]  # fmt: skip
        known_defaults = {key: value for key, value in usual.items() if key in types}
        for_all = [(f"params/{DEFAULTS}", known_defaults), *shared_layers]
        known_grids = [{key: each[key] for key in each if key not in elsewhere} for each in grid]
        for point in _points(known_grids if own_grid is None else own_grid, changes):
            placed = {"study": report or study, "variant": grids.variant(point)}
            file = Path(name).stem
            placed["architecture"] = grids.point_name(file, point)
            parameters = _layered(
                types, [*for_all[:2], (name, own), (f"{name}, grid", point), for_all[2]]
            )
            runs.append(RunConfig(placed["architecture"], file, notebook, placed | parameters))
    if not runs:
        raise StudyError(f"params/{study}/ names no architecture: add a file such as cnn.yaml")
    names = [run.architecture for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"params/{study}/: grid: two of its points are called {twice[0]}")
    for run in runs:
        _check_together(run, runs[0])
    return sorted(runs, key=lambda run: run.is_baseline)


def _read_grids(content, file: str) -> list[dict[str, list]]:
    """The key `grid` of a file: one grid, or a list of several over the same parameters."""
    several = content if isinstance(content, list) and content else [content]
    found = [grids.read_grid(each, file, (*DATA, *ASKED)) for each in several]
    if any(list(each) != list(found[0]) for each in found):
        raise StudyError(f"{file}: grid: all of the list must name the same parameters, in order")
    return found


def _points(several: list[dict[str, list]], changes: dict) -> list[dict]:
    """The points of each grid; one that SET makes of two of them is there once."""
    found = [point for each in several for point in grids.points(each, changes)]
    return [point for place, point in enumerate(found) if point not in found[:place]]


def _read_run(path: Path, root: Path) -> tuple[str, dict, list[dict] | None, Path, dict]:
    """An architecture's file: its name, content, own grids, notebook, and what that knows."""
    own = _read_yaml(path, root)
    if apart := [key for key in (*DATA, "unseen") if key in own]:
        raise StudyError(
            f"{_name(path, root)}: {apart[0]} belongs into {SHARED}: all architectures of a "
            "study see the same images"
        )
    notebook = root / "notebooks" / f"{own.pop('notebook', path.stem)}.ipynb"
    if not notebook.exists():
        raise StudyError(
            f"{_name(path, root)}: no notebook {notebook.name} in notebooks/: name the one "
            "that runs this architecture with the key `notebook`"
        )
    types = known(notebook)
    if lacking := [key for key in (*DATA, *ASKED, *PLACED) if key not in types]:
        raise StudyError(f"{notebook.name}: the parameters cell lacks {', '.join(lacking)}")
    grid = None
    if "grid" in own:
        grid = _read_grids(own.pop("grid"), _name(path, root))
    return _name(path, root), own, grid, notebook, types


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


def _layered(types: dict[str, str], layers: list[tuple[str, dict]]) -> dict:
    """Later layers over earlier ones, each checked against what the notebook knows."""
    parameters = {}
    for file, layer in layers:
        for key, value in layer.items():
            if key in PLACED or key not in types:
                raise StudyError(f"{file}: unknown parameter {key!r}{_nearest(key, types)}")
            if not _fits(value, types[key]):
                raise StudyError(f"{file}: {key} must be {types[key]}, not {value!r}")
            holds, otherwise = LIMITS.get(key, (lambda _: True, ""))
            if not holds(value):
                raise StudyError(f"{file}: {key} {otherwise}, not {value!r}")
            parameters[key] = float(value) if types[key] == "float" else value
    if missing := [key for key in types if key not in parameters and key not in PLACED]:
        files = " or ".join(file for file, _ in layers[1:3])
        raise StudyError(f"{files}: missing parameter {', '.join(missing)}: add it to one of them")
    # A trial of fewer epochs measures what it has.
    changed = layers[-1][1]
    if "epochs" in changed and "measured_epochs" not in changed:
        epochs = parameters.get("epochs", 0)
        kept = [epoch for epoch in parameters.get("measured_epochs", []) if epoch <= epochs]
        parameters["measured_epochs"] = kept
    if "backbone" in parameters and (broken := conflict(parameters)):
        raise StudyError(f"{' or '.join(file for file, layer in layers[2:] if layer)}: {broken}")
    # In the order in which the notebook lists them, as its page shows them.
    return {key: parameters[key] for key in types if key in parameters}


def _check_together(run: RunConfig, first: RunConfig) -> None:
    """What no parameter shows alone.

    Raises:
        StudyError: a protocol that the data cannot serve, or nothing to compare runs under.
    """
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


def _fits(value, annotation: str) -> bool:
    """Whether a value is of the type that a parameters cell gives; an int passes for a float."""
    if annotation.startswith("list["):
        element = annotation.removeprefix("list[").removesuffix("]")
        return isinstance(value, list) and all(_fits(each, element) for each in value)
    if annotation == "float" and type(value) is int:
        return True
    return type(value) is TYPES[annotation]


def _nearest(key: str, types: dict[str, str]) -> str:
    names = [name for name in types if name not in PLACED]
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"


def _read_yaml(path: Path, root: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{_name(path, root)}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{_name(path, root)}: must hold lines of the form `key: value`")
    return {key: _number(value) for key, value in content.items()}


def _number(value):
    """YAML 1.1 reads 1e-3 as a string; whoever writes it means a number."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    if isinstance(value, dict):
        return {key: _number(each) for key, each in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            pass
    return value


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
