"""What the command line asked for: a study, its images, its runs and their keys."""

import functools
import json
import subprocess
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cbir import StudyError
from cbir.cache import digest, make_key, package_digest, source_digest
from cbir.images.dataset import Dataset, load_dataset
from cbir.networks import weights
from cbir.networks.backbones import BACKBONES
from cbir.studies import params


@dataclass(frozen=True)
class Study:
    """What the command line asked for, read and checked.

    Attributes:
        name: of the folder in reports/; that of a trial ends in "-trial".
        runs: every architecture of the study.
        chosen: the architectures to bring up to date.
        command: what makes the report of all architectures again.
        root: the project's folder.
    """

    name: str
    runs: list[params.RunConfig]
    chosen: list[str]
    command: str
    root: Path
    _learnt_from: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        return self.root / "reports" / self.name

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Its images; read on first use."""
        shared = self.runs[0].parameters
        return load_dataset(**{key: shared[key] for key in params.DATA})

    def command_for(self, architectures: Collection[str]) -> str:
        """What makes the results of these architectures again, in whatever steps they were made."""
        if all(run.architecture in architectures for run in self.runs):
            return self.command
        by_file = {}
        for run in self.runs:
            by_file.setdefault(run.file, []).append(run.architecture)
        names = []
        for file, points in by_file.items():
            made = [each for each in points if each in architectures]
            names += [file] if made == points else made
        return f'{self.command} ARCHITECTURES="{" ".join(names)}"'

    def dataset_of(self, run: params.RunConfig) -> Dataset:
        """Its images as a run sees them, which may learn from a part of them alone."""
        given = run.parameters
        count = given.get("learn_from", 0)
        if count not in self._learnt_from:
            shared = {key: given[key] for key in params.DATA}
            self._learnt_from[count] = load_dataset(**shared, learn_from=count)
        return self._learnt_from[count]

    @property
    def links(self) -> list[tuple[str, str]]:
        """Name and file of each page of the report."""
        pages = [(run.architecture, f"{run.architecture}.html") for run in self.runs]
        return [("Comparison", "index.html"), *pages, ("Metrics", "metrics.html")]


def open_study(
    root: Path, study: str, architectures: str = "", dataset: str = "", overrides: str = ""
) -> Study:
    """Read a study's files and check them, before any work.

    Args:
        root: the project's folder.
        study: a folder in params/; empty for digits, or for folder where `dataset` is given.
        architectures: names separated by spaces, of files or of points of a grid; empty for all.
        dataset: a folder of pictures in the place of the study's own images; empty for those.
        overrides: "key=value key=value", for a trial.

    Raises:
        StudyError: in one line, what to mend.
    """
    study = study or ("folder" if dataset else "digits")
    name = study
    if dataset:
        dataset = str(Path(dataset).expanduser())
        name = Path(dataset).resolve().name or "folder"
        # A report of one's own pictures never passes for another one.
        taken = [*params.studies(root), "lab", "published"]
        name += "-folder" if name in taken or name.endswith("-trial") else ""
    name += "-trial" if overrides else ""
    runs = params.load(root, study, report=name, dataset=dataset or None, overrides=overrides)
    known = list(dict.fromkeys(run.file for run in runs))
    asked = architectures.split()
    for each in asked:
        if each not in known and each not in [run.architecture for run in runs]:
            raise StudyError(
                f"unknown architecture {each!r}: params/{study}/ has {', '.join(known)}"
            )
    chosen = [
        run.architecture
        for run in runs
        if not asked or run.file in asked or run.architecture in asked
    ]
    _check_overrides(overrides, [run for run in runs if run.architecture in chosen])
    words = ["make report", f"STUDY={study}"]
    for key, text in (("DATA", dataset), ("SET", overrides)):
        words += [f'{key}="{text}"'] if text else []
    return Study(name, runs, chosen, " ".join(words), root)


def _check_overrides(overrides: str, chosen: list[params.RunConfig]) -> None:
    """Raise StudyError where SET changes a parameter by which none of the chosen runs goes.

    What is for networks may stand there for baselines alone, as in a study's files.
    """
    if all(run.is_baseline for run in chosen):
        return
    for key in params.parse_overrides(overrides):
        used = [run for run in chosen if key in run.parameters
                and (run.is_baseline or key not in params.unused(run.parameters))]  # fmt: skip
        if not used:
            names = ", ".join(run.architecture for run in chosen)
            hint = f": where train is head, head_{key} decides" if key in params.NOT_OF_HEAD else ""
            raise StudyError(f"SET: {key} changes nothing for {names}{hint}")


def run_key(study: Study, run: params.RunConfig) -> str:
    """The key of an architecture's run: parameters, backbone, data, weights, notebook and code."""
    found = weights.find(*run.weights)
    reads = [study.dataset.split_fingerprint, found.sha256, page_digest()]
    given = run.parameters | _row(run)
    return make_key("run", given, reads, notebook_digest(run.notebook))


def _row(run: params.RunConfig) -> dict:
    """What the table of backbones says of a run's own, which no digest of code covers.

    Its rates are estimates for a plan, and where its ImageNet weights come from decides nothing
    that their SHA-256 does not say.
    """
    if run.is_baseline:
        return {}
    row = asdict(BACKBONES[run.parameters["backbone"]])
    return {"row": {key: row[key] for key in row if key not in ("rates", "imagenet")}}


def page_digest() -> str:
    """Digest of what makes pages of notebooks."""
    package = Path(__file__).parent.parent / "reporting"
    files = [package / "pages.py", *sorted((package / "template").iterdir())]
    return digest([path.read_text("utf-8") for path in files if path.is_file()])


def notebook_digest(notebook: Path) -> str:
    """Digest of a notebook's cells and of the code that they can run."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    source = ["".join(cell["source"]) for cell in cells]
    code = "\n".join(
        text for cell, text in zip(cells, source, strict=True) if cell["cell_type"] == "code"
    )
    return digest([source_digest(code), source, package_digest("reporting")])


def git_state(root: Path) -> dict:
    """The commit the project stands at, and whether its files are as committed."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "clean": None}
