"""The YAML files of a study, read in layers: its runs, and the points of their grids.

`study.yaml` sets the parameters that the architectures of a study share, `<architecture>.yaml`
those of a single architecture, a grid those that vary between its runs, and SET overrides all.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import yaml

from cbir import StudyError
from cbir.studies import params

SHARED = "study.yaml"
# Limits far beyond what a study needs, so that reading it takes less than a second.
LARGEST_FILE, MOST_NESTED, MOST_POINTS, MOST_LETTERS = 65_536, 8, 1000, 100
# The notebooks for an architecture without its own notebook, and for all baselines.
GENERIC, BASELINE = "architecture", "baseline"


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a study does not need, and that can be used to hang a reader."""


class _Loader(yaml.SafeLoader):
    """Reads YAML in which each value is written out once.

    Numbers are decimal, as in YAML 1.2: 1e-3 is a number, 032 and 1:30 are texts.
    """

    yaml_implicit_resolvers: ClassVar = {}
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if event.anchor or getattr(event, "tag", None):
            self.refuse("anchors, aliases and tags are not supported: write the value itself")
        self.depth += 1
        if self.depth > MOST_NESTED:
            self.refuse(f"lists and mappings must not be nested more than {MOST_NESTED} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        keys = Counter((key.tag, key.value) for key, _ in node.value if key.id == "scalar")
        for (_, key), count in keys.items():
            if count > 1:
                self.refuse(f"{params.shortened(key)} is set twice: keep one", node)
        return super().construct_mapping(node, deep)

    def refuse(self, reason: str, node: yaml.Node | None = None) -> NoReturn:
        mark = node.start_mark if node else self.peek_event().start_mark
        raise _Refused(problem=reason, problem_mark=mark)


for _name, _pattern in {
    "bool": "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    "null": "~|null|Null|NULL|",
    "int": "[-+]?(0|[1-9][0-9]{0,17})",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"({_pattern})$"), None)


@dataclass(frozen=True)
class RunConfig:
    """One architecture of a study: the notebook that runs it, and its parameters.

    Attributes:
        architecture: its name in the report: that of its file, followed by the values of its point.
        file: the name of its file in params/<study>/, without the extension.
        parameters: all parameters, flat, those in `PLACED` first.
    """

    architecture: str
    file: str
    notebook: Path
    parameters: dict

    @property
    def is_baseline(self) -> bool:
        """Whether this is a baseline, without a network."""
        return "baseline" in self.parameters

    @property
    def weights(self) -> tuple[str, str]:
        """Backbone and weights, as for `weights.find`."""
        return self.parameters.get("backbone", ""), self.parameters.get("weights", "none")

    @property
    def vectors(self) -> str:
        """The file of vectors that replaces a network; empty for all others."""
        return self.parameters.get("vectors", "")

    @property
    def notebook_parameters(self) -> dict:
        """The parameters of the notebook: those in `PLACED`, a baseline's, and others by group."""
        flat = (*params.PLACED, *params.names_in("baseline"))
        groups = {key: self.parameters[key] for key in flat if key in self.parameters}
        for group in params.GROUPS:
            names = [name for name in params.names_in(group) if name in self.parameters]
            if names and group != "baseline":
                groups[group] = {name: self.parameters[name] for name in names}
        return groups


def studies(root: Path) -> list[str]:
    """Names of the studies in params/."""
    return sorted(path.parent.name for path in (root / "params").glob(f"*/{SHARED}"))


def further_pages(root: Path, study: str) -> dict[str, dict]:
    """The key `pages` of study.yaml: notebooks that run after the others, and their parameters.

    StudyError if a notebook does not exist, or its parameters are not a mapping.
    """
    path = root / "params" / study / SHARED
    source, content = _read_yaml(path, root)
    pages = content.get("pages", {})
    for name, parameters in pages.items() if isinstance(pages, dict) else [(pages, None)]:
        if not isinstance(parameters, dict) or not (root / "notebooks" / f"{name}.ipynb").exists():
            raise StudyError(
                f"{source}: pages: must name a notebook in notebooks/ and its parameters, as in "
                f"`pages: {{scale: {{sizes: [10000]}}}}`, not {name!r}"
            )
    return pages


def load(
    root: Path,
    study: str,
    *,
    report: str | None = None,
    dataset: str | None = None,
    overrides: str = "",
    architectures: Collection[str] = (),
) -> list[RunConfig]:
    """Read and check a study's files, before any work starts.

    Args:
        study: name of a folder in params/.
        report: name of the folder in reports/ that the notebooks write to; the study's by default.
        dataset: overrides the study's `dataset`.
        overrides: as for `parse_overrides`; overrides everything in the files.
        architectures: names of files or of points of a grid, which must fit the overrides.

    Returns:
        One run per architecture, and per point of its grid, in the order of their file names, with
        baselines last. Architectures that are not chosen and do not fit the overrides are left out.

    Raises:
        StudyError: an architecture or a parameter is unknown, missing, ill-typed or out of bounds;
            the message names the file, the key and the nearest known key.
    """
    folder = root / "params" / study
    if study not in studies(root):
        raise StudyError(f"unknown study {study!r}: params/ contains {', '.join(studies(root))}")
    shared_source, shared = _read_yaml(folder / SHARED, root)
    shared_grids = _check_grids(shared.pop("grid", {}), shared_source)
    shared.pop("pages", None)
    changes = ({"dataset": dataset} if dataset else {}) | parse_overrides(overrides)
    paths = sorted(path for path in folder.glob("*.yaml") if path.name != SHARED)
    if not paths:
        raise StudyError(f"params/{study}/ has no architecture: add a file such as cnn.yaml")
    files = {path.stem: _read_yaml(path, root) for path in paths}
    known = {name: params.names_for(content) for name, (_, content) in files.items()}
    runs, names = [], set(files)
    for name, (source, content) in files.items():
        # Parameters that only other kinds of runs have are ignored here: a baseline has no epochs.
        elsewhere = set().union(*known.values()) - set(known[name])
        notebook = _find_notebook(name, source, content, root)
        grids = _check_grids(content.pop("grid"), source) if "grid" in content else shared_grids
        for point in points(grids, elsewhere | changes.keys()):
            layers = {
                shared_source: _without(elsewhere, shared),
                source: content,
                f"{source}, grid": point,
                "DATA or SET" if dataset else "SET": _without(elsewhere, changes),
            }
            architecture = point_name(name, point)
            if len(architecture) > MOST_LETTERS:
                raise StudyError(
                    f"{source}: grid: a point must have a name of at most {MOST_LETTERS} letters, "
                    f"not {params.shortened(architecture)}"
                )
            names.add(architecture)
            parameters = {"study": report or study, "architecture": architecture}
            try:
                resolved = _resolve(layers, known[name], changes)
            except StudyError:
                if is_chosen(architectures, name, architecture) or not changes:
                    raise
                layers.popitem()  # without the overrides, the files must be valid
                _resolve(layers, known[name], {})
                continue
            parameters |= {"variant": variant(point)} | resolved
            runs.append(RunConfig(architecture, name, notebook, parameters))
    if unknown := [name for name in architectures if name not in names]:
        raise StudyError(
            f"unknown architecture {unknown[0]!r}: params/{study}/ contains {', '.join(files)}"
        )
    (architecture, count), *_ = Counter(run.architecture for run in runs).most_common()
    if count > 1:
        raise StudyError(f"params/{study}/: grid: two points are called {architecture}")
    for run in runs:
        _check_together(run, runs[0])
    return sorted(runs, key=lambda run: run.is_baseline)


def is_chosen(names: Collection[str], *run: str) -> bool:
    """Whether a run, given by its file and its architecture, is among the names; all if empty."""
    return not names or not set(names).isdisjoint(run)


def _without(names: Collection[str], values: dict) -> dict:
    return {key: value for key, value in values.items() if key not in names}


def _find_notebook(name: str, source: str, content: dict, root: Path) -> Path:
    """The notebook that a file names (its key is removed), else that of its name or the generic."""
    named = content.pop("notebook", BASELINE if "baseline" in content else None)
    if named is not None and not (
        isinstance(named, str) and re.fullmatch(r"[\w. -]{1,100}", named)
    ):
        raise StudyError(
            f"{source}: notebook must be the name of a file in notebooks/, without its ending, not "
            f"{params.shortened(named)}"
        )
    names = [named] if named else [name, GENERIC]
    for stem in names:
        if (notebook := root / "notebooks" / f"{stem}.ipynb").exists():
            return notebook
    raise StudyError(
        f"{source}: no notebook {names[0]}.ipynb in notebooks/: use the key `notebook` to name "
        "the one that runs this architecture"
    )


def _resolve(layers: dict[str, dict], names: Collection[str], changes: dict) -> dict:
    """All parameters of a run, from layers as for `merge`."""
    layers = {source: layer for source, layer in layers.items() if layer}
    parameters = params.merge(layers, names)
    # A trial with fewer epochs measures only those that it has.
    if "epochs" in changes and "measured_epochs" not in changes and "epochs" in parameters:
        measured = parameters["measured_epochs"]
        parameters["measured_epochs"] = [e for e in measured if e <= parameters["epochs"]]
    if broken := params.conflict(parameters):
        of_networks = set(params.OF_NETWORKS) - set(params.OF_BASELINES)
        sources = [source for source, layer in layers.items() if layer.keys() & of_networks]
        raise StudyError(f"{' or '.join(sources)}: {broken}")
    return parameters


def _check_together(run: RunConfig, first: RunConfig) -> None:
    """Raise StudyError if a protocol does not fit the data, or runs cannot be compared."""
    protocols, dataset = run.parameters["protocols"], run.parameters["dataset"]
    if "hashing_1k" in protocols and dataset != "cifar10":
        raise StudyError(
            f"{run.architecture}: protocols: hashing_1k requires cifar10: remove it for {dataset}"
        )
    if "hashing_1k" in protocols and run.parameters.get("learn_from"):
        raise StudyError(
            f"{run.architecture}: learn_from: must be 0 if protocols contains hashing_1k, which "
            "determines the number of training images"
        )
    if protocols[0] != first.parameters["protocols"][0]:
        raise StudyError(
            f"{run.architecture}: protocols: must begin with {first.parameters['protocols'][0]}, "
            f"as for {first.architecture}: architectures are compared under the first protocol"
        )


# Grids: an architecture of a study runs once for every combination of some parameter values.


def _check_grids(content, source: str) -> list[dict[str, list]]:
    """The key `grid` of a file: one grid, or a list of several over the same parameters.

    StudyError if values are not lists, or a parameter must be the same for all runs of a study.
    """
    grids = content if isinstance(content, list) and content else [content]
    for grid in grids:
        if not isinstance(grid, dict) or not all(
            isinstance(values, list) and values for values in grid.values()
        ):
            raise StudyError(
                f"{source}: grid must have a list of values for each parameter, as in "
                "`grid: {input_size: [32, 64]}`"
            )
    if (n_points := sum(math.prod(map(len, grid.values())) for grid in grids)) > MOST_POINTS:
        raise StudyError(
            f"{source}: grid: must have at most {MOST_POINTS:,} points, not {n_points:,}"
        )
    for grid in grids:
        for key, values in grid.items():
            if any(values.count(value) > 1 for value in values):
                raise StudyError(f"{source}: grid: {key} must not contain a value twice: {values}")
            if key in (*params.DATA, *params.MEASUREMENT):
                raise StudyError(f"{source}: grid: {key} must be the same for all runs of a study")
        if 0 in grid.get("learn_from", []):
            raise StudyError(
                f"{source}: grid: learn_from: replace 0 (all images) by their number, because 0 "
                "would be sorted as the smallest"
            )
    if any(list(grid) != list(grids[0]) for grid in grids):
        raise StudyError(
            f"{source}: grid: all grids must have the same parameters, in the same order"
        )
    return grids


def points(grids: list[dict[str, list]], fixed: Collection[str] = ()) -> list[dict]:
    """Every combination of each grid's values, once; a single empty point if there is no grid.

    `fixed` parameters, such as those set by SET, are not varied.
    """
    combinations = []
    for grid in grids:
        free = _without(fixed, grid)
        for values in itertools.product(*free.values()):
            point = dict(zip(free, values, strict=True))
            if point not in combinations:
                combinations.append(point)
    return combinations


def point_name(architecture: str, point: dict) -> str:
    """The name of a point's run, and of its folder: mobilenet-96-head."""
    words = [re.sub(r"[^\w.]", "", point_text(value)) for value in point.values()]
    return "-".join([architecture, *words])


def variant(point: dict) -> str:
    """A point in words: input_size=96 train=head; a list has no spaces: [flip,shift]."""
    return " ".join(f"{key}={point_text(value)}" for key, value in point.items())


def point_text(value) -> str:
    """A value in words without spaces."""
    return f"[{','.join(map(point_text, value))}]" if isinstance(value, list) else str(value)


def parse_overrides(text: str) -> dict:
    """Overrides, such as "epochs=3 ks=[1,10]", as a dictionary; values are YAML.

    StudyError if a part is not `key=value`.
    """
    changes = {}
    for piece in text.split():
        key, equals, value = piece.partition("=")
        if not (key and equals and value):
            raise StudyError(
                f'SET: {params.shortened(piece)} is not key=value, as in SET="epochs=3 ks=[1,10]"'
            )
        if key in changes:
            raise StudyError(f"SET: {params.shortened(key)} is set twice: keep one")
        try:
            changes[key] = yaml.load(value, _Loader)
        except _Refused as error:
            raise StudyError(f"SET: {params.shortened(piece)}: {error.problem}") from None
        except yaml.YAMLError:
            raise StudyError(
                f"SET: {params.shortened(piece)} is not key=value in YAML; a value has no spaces, "
                "as in ks=[1,10]"
            ) from None
    return changes


def _read_yaml(path: Path, root: Path) -> tuple[str, dict]:
    """A file's name for error messages, and its content."""
    source = path.relative_to(root).as_posix()
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise StudyError(f"{source}: must be a file of at most {LARGEST_FILE:,} bytes")
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        kind = "" if isinstance(error, _Refused) else "not YAML: "
        line = error.problem_mark.line + 1
        raise StudyError(f"{source}: {kind}line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise StudyError(f"{source}: must contain lines of the form `key: value`")
    if path.name != SHARED:
        for key in (*params.DATA, "unseen"):
            if key in content:
                raise StudyError(
                    f"{source}: {key} belongs in {SHARED}, because all architectures of a study "
                    "use the same images"
                )
    return source, content
