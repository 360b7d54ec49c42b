"""A study as requested on the command line: its images, its runs, its pages and their keys."""

import functools
import itertools
import json
import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cbir import StudyError, report_command
from cbir.cache import digest, make_key, package_digest, read_manifest
from cbir.images import protocols
from cbir.images.dataset import Dataset, load_dataset
from cbir.images.folders import PACKAGED, TABLES, readable_name
from cbir.networks import vector_files, weights
from cbir.networks.backbones import BACKBONES
from cbir.reporting.runs import data_of
from cbir.studies import configs, params

# The notebooks of index.html, with their titles.
INDEX = {"comparison": "Image retrieval compared", "grid": "Image retrieval, point by point"}
# The further pages about all runs. To add one, add a notebook to notebooks/ and its title here.
PAGES = {
    "failures": "What goes wrong",
    "explanations": "Why two images match",
    "feedback": "What relevance feedback gains",
    "metrics": "What mAP@k means",
}
# The run whose embeddings large galleries resemble, unless a study names another.
TEMPLATE_RUN = "cifar10/resnet50_finetuned"


@dataclass(frozen=True)
class Page:
    """A page of a report: the name of its executed notebook and log, and the notebook's path."""

    name: str
    notebook: Path

    @property
    def folder(self) -> str:
        """The folder whose manifest records what the page was made from."""
        return "index" if self.name in INDEX else self.name

    @property
    def file(self) -> str:
        """The page's name in the report's folder."""
        return f"{self.folder}.html"

    @property
    def title(self) -> str:
        """The title of the browser's window."""
        return (INDEX | PAGES).get(self.name, self.name)


@dataclass(frozen=True)
class Study:
    """A study, read and checked.

    Attributes:
        name: name of the folder in reports/; that of a trial ends in "-trial-" and six digits of
            the digest of its overrides.
        runs: every architecture of the study.
        chosen: the architectures to bring up to date.
        command: the command that makes the report for all architectures.
        further_pages: notebooks that only this study has, and their parameters.
    """

    name: str
    runs: list[configs.RunConfig]
    chosen: list[str]
    command: str
    root: Path
    further_pages: dict[str, dict]

    @property
    def folder(self) -> Path:
        return self.root / "reports" / self.name

    @property
    def data(self) -> dict:
        """The parameters that determine its images."""
        return {key: self.runs[0].parameters[key] for key in params.DATA}

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Its images; read on first use."""
        return load_dataset(**self.data)

    def check_protocols(self, dataset: Dataset) -> None:
        """Raise StudyError if the images do not fit a protocol."""
        for run in self.runs:
            names = {name: run.parameters[name] for name in ("protocols", "unseen", "draws")}
            list(protocols.views(dataset, **names))

    def command_for(self, architectures: Collection[str]) -> str:
        """The command that makes the results of these architectures."""
        if all(run.architecture in architectures for run in self.runs):
            return self.command
        names = []
        for file, runs in itertools.groupby(self.runs, key=lambda run: run.file):
            points = [run.architecture for run in runs]
            made = [point for point in points if point in architectures]
            names += [file] if made == points else made
        return f'{self.command} ARCHITECTURES="{" ".join(names)}"'

    @property
    def pages(self) -> list[Page]:
        """The pages about all runs whose notebooks exist, index.html first."""
        is_grid = any(run.parameters["variant"] for run in self.runs)
        names = ["grid" if is_grid else "comparison", *PAGES, *self.further_pages]
        pages = [Page(name, self.root / "notebooks" / f"{name}.ipynb") for name in names]
        return [page for page in pages if page.notebook.exists()]

    @property
    def links(self) -> list[tuple[str, str]]:
        """Label and file of each page of the report."""
        index, *deeper = self.pages
        links = [("Comparison", index.file)]
        links += [(run.architecture, f"{run.architecture}.html") for run in self.runs]
        return links + [(page.name.capitalize(), page.file) for page in deeper]


def open_study(
    root: Path, study: str, architectures: str = "", dataset: str = "", overrides: str = ""
) -> Study:
    """Read and check a study's files, before any work starts.

    Args:
        study: a folder in params/; empty for `digits`, or for `folder` if `dataset` is given.
        architectures: names of files or of points of a grid, separated by spaces; empty for all.
        dataset: a folder of pictures, or a CSV file of them, that replaces those of the study,
            relative to the working directory; empty to keep these.
        overrides: as for `configs.parse_overrides`, for a trial.

    Raises:
        StudyError: the study, an architecture or a parameter is unknown or does not fit.
    """
    study = study or ("folder" if dataset else "digits")
    ending = ""
    if dataset:
        dataset = _data_path(root, dataset)
        if dataset != readable_name(dataset):
            raise StudyError(f"DATA: {readable_name(dataset)} is not UTF-8: rename the folder")
    if overrides:
        # Trials with different overrides have reports of their own.
        ending = f"-trial-{digest(configs.parse_overrides(overrides))[:6]}"
    reports = {path.parent.name for path in (root / "reports").glob("*/manifest.json")}
    if study in reports.difference(configs.studies(root)):
        raise StudyError(
            f"STUDY: {study} is a report, not a study in params/. "
            f"`{report_command(study)}` made it: use the variables of that command"
        )
    name = (_report_name(root, dataset, ending) if dataset else study) + ending
    names = architectures.split()
    runs = configs.load(
        root, study, report=name, dataset=dataset or None, overrides=overrides, architectures=names
    )
    for run in runs:
        if run.architecture in ("index", "export", *INDEX, *PAGES):
            raise StudyError(
                f"params/{study}/{run.file}.yaml: the report already has a page or folder called "
                f"{run.file}: rename the file"
            )
    chosen = [run for run in runs if configs.is_chosen(names, run.file, run.architecture)]
    _check_overrides(overrides, chosen)
    command = f"make report STUDY={shlex.quote(study)}"
    command += f" DATA={_quoted(dataset)}" if dataset else ""
    command += f" SET={_quoted(overrides)}" if overrides else ""
    names = [run.architecture for run in chosen]
    return Study(name, runs, names, command, root, configs.further_pages(root, study))


def _data_path(root: Path, dataset: str) -> str:
    """A folder or file as the parameter `dataset`: relative to the project if it is inside."""
    requested_path = Path(dataset).expanduser()
    path = Path(os.path.normpath(Path.cwd() / requested_path))
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
    if requested_path.is_absolute() and not inside or inside in PACKAGED:
        return str(path)
    return inside or os.path.relpath(path, root)


def _report_name(root: Path, dataset: str, ending: str) -> str:
    """The name of a folder's report, with folders above it if others have that name."""
    path = (root / dataset).resolve()
    words = [*path.parts[1:-1], path.stem if path.suffix in TABLES else path.name or "folder"]
    names = ["-".join(words[-count:]) for count in range(1, len(words) + 1)]
    # A report of a folder of pictures must not overwrite that of a study.
    taken = [*configs.studies(root), "lab", "published"]
    names = [f"{n}-folder" if n in taken or "-trial-" in n else n for n in names]
    data = {name: data_of(f"{name}{ending}") for name in names}
    same = [name for name in names if data[name] and (root / data[name]).resolve() == path]
    return [*same, *(name for name in names if not data[name]), names[-1]][0]


def _quoted(value: str) -> str:
    """A value quoted for the shell."""
    return shlex.quote(value) if set(value) & set('"$`\\!') else f'"{value}"'


def _check_overrides(overrides: str, chosen: list[configs.RunConfig]) -> None:
    """StudyError if SET changes a parameter that none of the chosen runs uses.

    A trial with only baselines ignores parameters of networks, as a study's files do.
    """
    if all(run.is_baseline for run in chosen):
        return
    for key in configs.parse_overrides(overrides):
        used = [run for run in chosen if key in run.parameters
                and (run.is_baseline or key not in params.unused(run.parameters))]  # fmt: skip
        if not used:
            names = ", ".join(run.architecture for run in chosen)
            hint = f": if train is head, use head_{key}" if key in params.NOT_OF_HEAD else ""
            raise StudyError(f"SET: {key} has no effect on {names}{hint}")


def run_key(study: Study, run: configs.RunConfig) -> str:
    """The key of a run: parameters, backbone, data, weights or vectors, notebook and code."""
    parameters = dict(run.parameters)
    if not run.is_baseline:
        parameters["row"] = BACKBONES[parameters["backbone"]].key_fields()
    reads = [study.dataset.split_fingerprint, weights.find(*run.weights).sha256]
    if run.vectors:
        reads += vector_files.fingerprints(run.vectors, study.dataset)
    return notebook_key("run", run.notebook, parameters, reads)


def page_inputs(
    study: Study, page: Page, run_keys: dict[str, str], missing: list[str]
) -> tuple[str, dict]:
    """The key of a page, and the parameters of its notebook.

    Args:
        run_keys: the keys of the runs that have results.
        missing: "architecture: reason" for each other run.
    """
    names = [run.architecture for run in study.runs]
    parameters = {"study": study.name, "architectures": names, "missing": missing}
    parameters |= study.further_pages.get(page.name, {})
    if page.name == "metrics":
        # One ranking is enough to show how definitions differ.
        run_keys = dict(list(run_keys.items())[:1])
        parameters = {"study": study.name, "architecture": "".join(run_keys)}
    reads = [*run_keys.values()]
    if page.name == "scale":
        from cbir.retrieval import engines  # imports Numba, which few pages need

        # What is installed or run later is measured then.
        reads += [version for kind in engines.PACKAGES for version in engines.versions(kind)]
        template = study.folder.parent / parameters.setdefault("like", TEMPLATE_RUN)
        reads.append(read_manifest(template).get("key", ""))
    return notebook_key(page.name, page.notebook, parameters, reads), parameters


def notebook_key(step: str, notebook: Path, parameters: dict, reads: list[str]) -> str:
    """The key of a notebook's page: of its cells, the code that they run, and the templates."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    templates = (Path(__file__).parent.parent / "reporting" / "template").iterdir()
    texts += [path.read_text("utf-8") for path in sorted(templates) if path.is_file()]
    return make_key(step, parameters, reads, digest([texts, package_digest("reporting")]))
