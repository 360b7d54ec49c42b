"""A study, from its files to its report: which notebooks must run, and running them in sequence."""

import functools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from cbir import StudyError, __version__, data, params, results, sources
from cbir.cache import (
    MANIFEST,
    code_digest,
    is_current,
    make_key,
    versions,
    write_manifest,
    write_text,
)
from cbir.pages import log_of, write_page
from cbir.progress import duration, own_stderr


@dataclass(frozen=True)
class Study:
    """What the command line asked for, read and checked.

    Attributes:
        name: of the folder in reports/; that of a trial ends in "-trial".
        runs: every architecture of the study.
        chosen: the architectures to bring up to date.
        command: what makes this report again.
        root: the project's folder.
    """

    name: str
    runs: list[params.Run]
    chosen: list[str]
    command: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "reports" / self.name

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """Its images; read on first use."""
        shared = self.runs[0].parameters
        return data.load(**{key: shared[key] for key in params.DATA})

    @property
    def links(self) -> list[tuple[str, str]]:
        """Name and file of each page of the report."""
        pages = [(run.architecture, f"{run.architecture}.html") for run in self.runs]
        return [("Comparison", "index.html"), *pages]


def open_study(
    root: Path, study: str, architectures: str = "", dataset: str = "", overrides: str = ""
) -> Study:
    """Read a study's files and check them, before any work.

    Args:
        root: the project's folder.
        study: a folder in params/; empty for digits, or for folder where `dataset` is given.
        architectures: names separated by spaces; empty for all.
        dataset: a folder of pictures in the place of the study's own images; empty for those.
        overrides: "key=value key=value", for a trial.

    Raises:
        StudyError: in one line, what to mend.
    """
    study = study or ("folder" if dataset else "digits")
    name = study
    if dataset:
        name = Path(dataset).resolve().name
        name += "-folder" if name in params.studies(root) else ""
    name += "-trial" if overrides else ""
    runs = params.load(root, study, report=name, dataset=dataset or None, overrides=overrides)
    known = [run.architecture for run in runs]
    chosen = architectures.split() or known
    for architecture in chosen:
        if architecture not in known:
            raise StudyError(
                f"unknown architecture {architecture!r}: params/{study}/ has {', '.join(known)}"
            )
    words = ["make report", f"STUDY={study}"]
    for key, text in (("ARCHITECTURES", architectures), ("DATA", dataset), ("SET", overrides)):
        words += [f'{key}="{text}"'] if text else []
    return Study(name, runs, chosen, " ".join(words), root)


def report(study: Study) -> bool:
    """Bring a study's report up to date; whether every chosen architecture has its results."""
    _check_writable(study)
    started = time.perf_counter()
    dataset = study.dataset
    print(
        f"{study.name}: {len(dataset.train_labels):,} gallery images, "
        f"{len(dataset.test_labels):,} queries, {len(dataset.classes)} classes"
    )
    ran, current, failures = [], {}, {}
    for run in study.runs:
        name, mark = run.architecture, study.folder / run.architecture
        is_chosen = name in study.chosen
        try:
            key = run_key(study, run)
            if is_current(mark, key):
                print(f"{name}: up to date", flush=True)
                current[name] = key
            elif is_chosen:
                ran.append(name)
                _run_architecture(study, run, key)
                current[name] = key
            else:
                print(f"{name}: left out", flush=True)
        except StudyError as error:
            if is_chosen:
                failures[name] = str(error)
                print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
        if name not in current:
            _page_without_results(study, name, failures.get(name, "not run"))
    changed = _compare(study, current, failures)
    index = (study.folder / "index.html").relative_to(study.root)
    if ran or changed:
        print(f"{index} written in {duration(time.perf_counter() - started)}")
    elif not failures:
        print(f"nothing to do: {index} is up to date")
    if failures:
        print(f"failed: {', '.join(failures)}; the reasons stand in {index}", file=sys.stderr)
    return not failures


def _check_writable(study: Study) -> None:
    probe = study.folder / ".writable"
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StudyError(
            f"cannot write into {study.folder} ({error.strerror}): make it writable and run again"
        ) from None


def run_key(study: Study, run: params.Run) -> str:
    """The key of an architecture's run: parameters, data, weights, notebook and code."""
    given = run.parameters
    path = sources.find_weights(given["backbone"], given["weights"])
    reads = [study.dataset.split_fingerprint, sources.weights_fingerprint(path)]
    return make_key("run", given, reads, notebook_digest(run.notebook))


def notebook_digest(notebook: Path) -> str:
    """Digest of a notebook's cells and of every module that they import."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    source = ["".join(cell["source"]) for cell in cells]
    code = "\n".join(
        text for cell, text in zip(cells, source, strict=True) if cell["cell_type"] == "code"
    )
    return code_digest(code + f"\n{source!r}")


def _run_architecture(study: Study, run: params.Run, key: str) -> None:
    """Run an architecture's notebook and mark its folder with the key.

    Raises:
        StudyError: the notebook failed, with its reason.
    """
    name = run.architecture
    folder = study.folder / name
    folder.mkdir(exist_ok=True)
    # Without its mark the folder counts as unfinished, whatever stands in it.
    (folder / MANIFEST).unlink(missing_ok=True)
    print(f"{name}: running {run.notebook.relative_to(study.root)}", flush=True)
    started = time.perf_counter()
    executed = study.folder / f"{name}.ipynb"
    _execute(run.notebook, executed, run.parameters, study.root)
    seconds = time.perf_counter() - started
    write_manifest(folder, step="run", key=key, parameters=run.parameters, seconds=seconds)
    _write_page(study, executed, f"{name}.html", name)
    print(f"{name}: done in {duration(seconds)}", flush=True)


def _execute(notebook: Path, executed: Path, parameters: dict, root: Path) -> None:
    """Run a notebook with papermill; its lines go to the terminal, all of it to a log beside it.

    Raises:
        StudyError: it failed, with the reason in one line.
    """
    reason = ""
    try:
        with own_stderr(executed.with_suffix(".stderr.log")):
            papermill.execute_notebook(
                str(notebook), str(executed), parameters=parameters, kernel_name="python3",
                cwd=str(root), stdout_file=sys.stdout, progress_bar=sys.stderr.isatty(),
            )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        kind = "" if error.ename == "StudyError" else f"{error.ename}: "
        reason = kind + " ".join(str(error.evalue).split())[:600]
    except Exception as error:  # a kernel that dies is reported in many ways
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
    if executed.exists():
        write_text(executed.with_suffix(".log"), log_of(executed))
    if reason:
        raise StudyError(reason)


def _page_without_results(study: Study, name: str, reason: str, page: str = "") -> None:
    """A page that has no results to show: the failed notebook, or the reason alone."""
    notebook = study.folder / f"{name}.ipynb"
    if page or reason == "not run" or not notebook.exists():
        text = f"# {name}\n\nNo results: {reason}."
        cells = [nbformat.v4.new_markdown_cell(text)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    _write_page(study, notebook, page or f"{name}.html", name)


def _write_page(study: Study, notebook: Path, page: str, title: str) -> None:
    path = study.folder / page
    title = f"{title} · {study.name}"
    write_page(notebook, path, report=study.name, title=title, links=study.links)


def _compare(study: Study, current: dict[str, str], failures: dict[str, str]) -> bool:
    """Write metrics.csv, manifest.json and index.html; False where they are up to date."""
    notebook = study.root / "notebooks" / "comparison.ipynb"
    given = {
        "study": study.name,
        "architectures": [run.architecture for run in study.runs],
        "missing": [
            f"{run.architecture}: {failures.get(run.architecture, 'not run')}"
            for run in study.runs
            if run.architecture not in current
        ],
    }
    key = make_key("comparison", given, current.values(), notebook_digest(notebook))
    folder = study.folder / "comparison"
    if is_current(folder, key):
        return False
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    about = {
        "study": study.name,
        "command": study.command,
        "cbir": __version__,
        "git": git_state(study.root),
        "versions": versions(),
        "failures": failures,
    }
    results.write_study(study.folder, list(current), about)
    if not current:
        _page_without_results(study, "comparison", "; ".join(given["missing"]), "index.html")
        return True
    print("comparison: running notebooks/comparison.ipynb", flush=True)
    started = time.perf_counter()
    executed = study.folder / "comparison.ipynb"
    try:
        _execute(notebook, executed, given, study.root)
    except StudyError as error:
        raise StudyError(f"comparison: failed: {error}") from error
    _write_page(study, executed, "index.html", "Image retrieval compared")
    write_manifest(folder, step="comparison", key=key, seconds=time.perf_counter() - started)
    return True


def git_state(root: Path) -> dict:
    """The commit the project stands at, and whether its files are as committed."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "clean": None}
