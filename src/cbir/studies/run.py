"""The report of a study: notebooks run in sequence with papermill, pages, files, failures."""

import sys
import time
from pathlib import Path

from cbir import StudyError, __version__
from cbir.cache import MANIFEST, is_current, make_key, versions, write_manifest, write_text
from cbir.images import leaks, protocols
from cbir.networks import weights
from cbir.progress import describe_skipped, duration, own_stderr
from cbir.reporting.pages import write_page
from cbir.reporting.runs import STUDY_FILES, is_whole, write_study
from cbir.reporting.sentences import describe_leaks
from cbir.studies import params
from cbir.studies.study import Study, git_state, notebook_digest, page_digest, run_key

# Notebooks that read what architectures left, their pages and titles.
PAGES = {"comparison": "index.html", "grid": "index.html", "metrics": "metrics.html"}
TITLES = {
    "comparison": "Image retrieval compared",
    "grid": "Image retrieval, point by point",
    "metrics": "What mAP@k means",
}
LARGEST_PAGE = 8_000_000  # bytes


def bring_up_to_date(study: Study) -> bool:
    """Bring a study's report up to date; whether every chosen architecture has its results."""
    _check_writable(study)
    started = time.perf_counter()
    dataset = study.dataset
    print(
        f"{study.name}: {len(dataset.gallery):,} gallery images, "
        f"{len(dataset.queries):,} queries, {len(dataset.classes)} classes"
    )
    if dataset.skipped:
        print(describe_skipped(dataset.skipped))
    for run in study.runs:
        asked = {name: run.parameters[name] for name in ("protocols", "unseen", "draws")}
        list(protocols.views(dataset, **asked))  # refuses what the data cannot serve
    first = protocols.view(dataset, study.runs[0].parameters["protocols"][0])
    print(describe_leaks(leaks.audit(first), len(first.queries)), flush=True)
    current, failures, ran = {}, {}, False
    for run in study.runs:
        name = run.architecture
        key, reason, ran_now = _architecture(study, run)
        ran = ran or ran_now
        if not reason:
            current[name] = key
        elif name in study.chosen:
            failures[name] = reason
            print(f"{name}: failed: {reason}", file=sys.stderr, flush=True)
        else:
            print(f"{name}: left out", flush=True)
    changed = _compare(study, current, failures)
    index = (study.folder / "index.html").relative_to(study.root)
    if ran or changed:
        print(f"{index} written in {duration(time.perf_counter() - started)}")
    elif not failures:
        print(f"nothing to do: {index} is up to date")
    if failures:
        print(
            f"failed: {', '.join(failures)}; the reasons stand in {index}, logs beside it",
            file=sys.stderr,
        )
    return not failures


def _architecture(study: Study, run: params.RunConfig) -> tuple[str, str, bool]:
    """An architecture's key, why it has no results (empty where it has), whether it ran now."""
    name = run.architecture
    page = study.folder / f"{name}.html"
    is_chosen = name in study.chosen
    if not is_chosen and weights.missing(*run.weights):
        # Not worth a download: without its weights it cannot have been run.
        if not page.exists():
            _write_note(study, name, "not run", page.name)
        return "", "not run", False
    try:
        key = run_key(study, run)
    except StudyError as error:
        if is_chosen:
            (study.folder / name / MANIFEST).unlink(missing_ok=True)
            _write_note(study, name, str(error), page.name)
        return "", str(error), False
    if is_current(study.folder / name, key) and page.exists() and is_whole(study.name, name):
        print(f"{name}: up to date", flush=True)
        return key, "", False
    if not is_chosen:
        if not page.exists():
            _write_note(study, name, "not run", page.name)
        return key, "not run", False
    try:
        _run_architecture(study, run, key)
    except StudyError as error:
        if (study.folder / f"{name}.ipynb").exists():
            _write_page(study, study.folder / f"{name}.ipynb", page.name, name)
        else:
            _write_note(study, name, str(error), page.name)
        return key, str(error), True
    return key, "", True


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


def _run_architecture(study: Study, run: params.RunConfig, key: str) -> None:
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
    executed.unlink(missing_ok=True)
    _execute(run.notebook, executed, run.notebook_parameters, study.root)
    seconds = time.perf_counter() - started
    _write_page(study, executed, f"{name}.html", name)
    write_manifest(
        folder,
        step="run",
        key=key,
        parameters=run.parameters,
        seconds=seconds,
        git=git_state(study.root),
    )
    print(f"{name}: done in {duration(seconds)}", flush=True)


def _execute(notebook: Path, executed: Path, parameters: dict, root: Path) -> None:
    """Run a notebook with papermill; its lines go to the terminal, all of it to a log beside it.

    Raises:
        StudyError: it failed, with the reason in one line.
    """
    # These take seconds to import, which a wrong call need not wait for.
    import papermill
    from papermill.exceptions import PapermillExecutionError

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
        if "Kernel died" in reason:
            reason += " (perhaps for want of memory: lower batch_size or input_size)"
    if executed.exists():
        from cbir.reporting.pages import log_of

        write_text(executed.with_suffix(".log"), log_of(executed))
    if reason:
        raise StudyError(reason)


def _write_note(study: Study, name: str, reason: str, page: str) -> None:
    """A page that has no results to show, but the reason."""
    import nbformat

    notebook = study.folder / f"{name}.ipynb"
    cells = [nbformat.v4.new_markdown_cell(f"# {name}\n\nNo results: {reason}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    _write_page(study, notebook, page, name)


def _write_page(study: Study, notebook: Path, page: str, title: str) -> None:

    path = study.folder / page
    title = f"{title} · {study.name}"
    write_page(notebook, path, report=study.name, title=title, links=study.links)
    if (size := path.stat().st_size) > LARGEST_PAGE:
        print(
            f"warning: {path.relative_to(study.root)} has {size / 1e6:.1f} MB, above "
            f"{LARGEST_PAGE / 1e6:.0f}: browsers and mail may refuse it",
            flush=True,
        )


def _compare(study: Study, current: dict[str, str], failures: dict[str, str]) -> bool:
    """Write the study's own files and pages, where they are not up to date; False where all are."""
    missing = [
        f"{run.architecture}: {failures.get(run.architecture, 'not run')}"
        for run in study.runs
        if run.architecture not in current
    ]
    about = {
        "study": study.name,
        "command": study.command_for(current or study.chosen),
        "cbir": __version__,
        "git": git_state(study.root),
        "versions": versions(),
        "failures": failures,
    }
    if not current:
        write_study(study.folder, [], about)
        for name in ("comparison", "metrics"):
            _write_note(study, name, "; ".join(missing), PAGES[name])
        return True
    architectures = [run.architecture for run in study.runs]
    first = next(iter(current))  # one ranking is enough to show what definitions do
    index = "grid" if any(run.parameters["variant"] for run in study.runs) else "comparison"
    given = {
        index: {"study": study.name, "architectures": architectures, "missing": missing},
        "metrics": {"study": study.name, "architecture": first},
    }
    reads = {index: list(current.values()), "metrics": [current[first]]}
    stale = {}
    for name, asked in given.items():
        notebook = notebook_digest(study.root / "notebooks" / f"{name}.ipynb")
        key = make_key(name, asked, [*reads[name], page_digest()], notebook)
        if not (is_current(study.folder / name, key) and (study.folder / PAGES[name]).exists()):
            stale[name] = key
    lacking = [name for name in STUDY_FILES if not (study.folder / name).exists()]
    if index in stale or lacking:
        write_study(study.folder, list(current), about)
    for name, key in stale.items():
        _run_page(study, name, given[name], key)
    return bool(stale or lacking)


def _run_page(study: Study, name: str, given: dict, key: str) -> None:
    """Run a notebook that reads what architectures left."""
    folder = study.folder / name
    folder.mkdir(exist_ok=True)
    # Of the notebooks that write the same page, the last one's mark alone stays.
    for each in (other for other, page in PAGES.items() if page == PAGES[name]):
        (study.folder / each / MANIFEST).unlink(missing_ok=True)
    print(f"{name}: running notebooks/{name}.ipynb", flush=True)
    started = time.perf_counter()
    executed = study.folder / f"{name}.ipynb"
    try:
        _execute(study.root / "notebooks" / executed.name, executed, given, study.root)
    except StudyError as error:
        raise StudyError(f"{name}: failed: {error}") from error
    _write_page(study, executed, PAGES[name], TITLES[name])
    write_manifest(folder, step=name, key=key, seconds=time.perf_counter() - started)
