"""Running a study: its notebooks with papermill, the pages of its report, failures.

Manifests mark what is finished: that of a run or page records its own files, and that of index.html
also the files of the whole study, so that numbers and pages of different runs are never mixed.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path

import numpy as np

from cbir import StudyError, __version__
from cbir.cache import MANIFEST, is_current, package_digest, write_manifest
from cbir.files import as_study_error, disk_errors, locked, write_text
from cbir.images import leaks, protocols
from cbir.images.dataset import Dataset, forget, load_dataset
from cbir.images.folders import describe_files
from cbir.machine import git_state, versions
from cbir.networks import weights
from cbir.networks.embeddings import embed_baseline
from cbir.networks.vector_files import VECTORS
from cbir.progress import duration
from cbir.reporting import measurements, tables
from cbir.reporting.runs import RUN_FILES, STUDY_FILES, is_whole, read_summary, write_study
from cbir.reporting.sentences import describe_leaks, leak_details
from cbir.studies import kernels
from cbir.studies.configs import RunConfig
from cbir.studies.study import PAGES, Page, Study, page_inputs, run_key

# The file in a report's folder that lists the files that are left out, or used with a remark.
FILES = "files.csv"
# The files that the notebooks of pages write, beside those of the whole study.
PAGE_FILES = {
    "explanations": ["explanations.csv"],
    "feedback": ["feedback.csv"],
    "scale": ["engines.csv", "reductions.csv", "rerankings.csv"],
}
LARGEST_PAGE = 4_000_000  # bytes
# Seconds that a kernel may take to start, since other programs may keep the machine busy.
KERNEL_SECONDS = 600


def bring_up_to_date(study: Study, check: bool = False) -> bool:
    """Bring a study's report up to date; return whether all chosen runs and pages succeeded.

    index.html is written as soon as all architectures have run. A later page that fails does not
    change it.

    Args:
        check: whether to decode all pictures again, and say whether they have changed.
    """
    _check_writable(study)
    with locked(study.folder):
        if check and (fingerprint := forget(study.data)):
            is_same = study.dataset.fingerprint == fingerprint
            print("no picture has changed" if is_same else "some pictures have changed")
        try:
            return _run_all(study)
        finally:
            kernels.stop_waiting()


def _run_all(study: Study) -> bool:
    started = time.perf_counter()
    if following := _following(study, None):
        kernels.start_ahead(*_kernel_of(study, following))
    _check_images(study)
    run_keys, reasons, has_run = {}, {}, False
    for run in study.runs:
        name = run.architecture
        try:
            run_keys[name], is_new = _update_run(study, run)
            has_run |= is_new
        except StudyError as error:
            reasons[name] = str(error) if name in study.chosen else "not run"
            kernels.stop_waiting()  # The kernel of this run may wait for its notebook.
            if name in study.chosen:
                print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{name}: left out", flush=True)
    failed = [name for name in reasons if name in study.chosen]
    missing = [f"{name}: {reason}" for name, reason in reasons.items()]
    inputs = {page: page_inputs(study, page, run_keys, missing) for page in study.pages}
    stale = [p for p, (key, _) in inputs.items() if not is_current(study.folder / p.folder, key)]
    index = (study.folder / "index.html").relative_to(study.root)
    if study.pages[0] in stale:
        # After an interruption from here on, the page and the study's files count as unfinished.
        (study.folder / study.pages[0].folder / MANIFEST).unlink(missing_ok=True)
        _write_files(study, run_keys, {name: reasons[name] for name in failed})

    def update(page: Page) -> bool:
        """Write a page; whether it succeeded."""
        try:
            if run_keys:
                _run_notebook(study, page, *inputs[page])
            else:
                _write_note(study, page, "; ".join(missing))
        except StudyError as error:
            print(f"{page.name}: failed: {error}", file=sys.stderr, flush=True)
            return False
        if page == study.pages[0]:
            print(f"{index} written in {duration(time.perf_counter() - started)}", flush=True)
        return True

    done = {page: update(page) for page in stale if page == study.pages[0]}
    done |= _two_at_once(update, [page for page in stale if page.name in PAGES])
    # A page that only this study has may measure times, so nothing runs beside it.
    done |= {page: update(page) for page in stale if page not in done}
    failed += [page.name for page in stale if not done[page]]
    has_run |= bool(run_keys and stale)
    if failed:
        names = ", ".join(failed)
        print(f"failed: {names}; their pages beside {index} say why", file=sys.stderr)
    else:
        print(f"done: {index}" if has_run else f"nothing to do: {index} is up to date")
    return not failed


def _two_at_once(update: Callable[[Page], bool], pages: list[Page]) -> dict[Page, bool]:
    """Call a function for each page, for two pages at a time; its results.

    An interruption or error ends the notebooks that run, and no other starts.
    """
    with ThreadPoolExecutor(2) as threads:
        calls = {threads.submit(update, page): page for page in pages}
        try:
            return {calls[call]: call.result() for call in as_completed(calls)}
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            # A kernel that is just starting is killed later.
            while not all(call.done() for call in calls):
                kernels.kill_running()
                time.sleep(0.1)
            raise


def _check_writable(study: Study) -> None:
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=study.folder).close()
    except OSError as error:
        raise StudyError(
            f"cannot write to {study.folder} ({error.strerror}): make it writable and run again"
        ) from None


def _check_images(study: Study) -> None:
    """Read the images, describe them, and reject protocols and vectors that do not fit them."""
    dataset = study.dataset
    print(
        f"{study.name}: {len(dataset.gallery):,} gallery images, "
        f"{len(dataset.queries):,} queries, {len(dataset.classes)} classes"
    )
    if dataset.layout:
        print(dataset.layout)
    files = study.folder / FILES
    files.unlink(missing_ok=True)
    if text := describe_files(len(dataset.labels), dataset.left_out, dataset.remarks):
        measurements.write_csv(tables.named_files(dataset), files)
        print(f"{text}\nall of these files: {files.relative_to(study.root)}")
    study.check_protocols(dataset)
    for run in study.runs:
        if run.vectors and run.architecture in study.chosen:
            embed_baseline(VECTORS, dataset, 0, run.vectors)
    # All runs of a study have the same first protocol.
    first = protocols.view(dataset, study.runs[0].parameters["protocols"][0])
    audit = leaks.audit(first)
    print(f"{describe_leaks(audit)}\n{leak_details(audit)}", flush=True)


def _update_run(study: Study, run: RunConfig) -> tuple[str, bool]:
    """Bring an architecture's run up to date; return its key, and whether it was executed.

    Raises:
        StudyError: it has no results, because it failed or was not chosen.
    """
    name, page = run.architecture, Page(run.architecture, run.notebook)
    is_chosen = name in study.chosen
    try:
        # Without its weights, it cannot have run before, so they are not downloaded to get its key.
        if not is_chosen and weights.missing(*run.weights):
            raise StudyError("not run")
        key = run_key(study, run)
        if is_current(study.folder / name, key) and is_whole(study.name, name):
            print(f"{name}: up to date", flush=True)
            return key, False
        if not is_chosen:
            raise StudyError("not run")
    except StudyError as error:
        if is_chosen or not (study.folder / page.file).exists():
            _write_note(study, page, str(error))
        raise
    seconds = _run_notebook(study, page, key, run.notebook_parameters, parameters=run.parameters)
    print(f"{name}: done in {duration(seconds)}", flush=True)
    return key, True


def _write_files(study: Study, run_keys: dict[str, str], failures: dict[str, str]) -> None:
    """Write the study's own files."""
    about = {
        "study": study.name,
        "command": study.command_for(run_keys or study.chosen),
        "cbir": __version__,
        "date": date.today().isoformat(),
        "git": git_state(study.root),
        "versions": versions(),
        "failures": failures,
    }
    with disk_errors(study.folder):
        write_study(study.folder, list(run_keys), about)


def _run_notebook(study: Study, page: Page, key: str, notebook_parameters: dict, **about) -> float:
    """Run a notebook, write its page, and mark its folder as finished; return the seconds it took.

    Args:
        key: the key of the notebook's results.
        notebook_parameters: the parameters of the notebook.
        about: further content of the folder's manifest.

    Raises:
        StudyError: the notebook failed; its page shows the output up to the failure.
    """
    folder = study.folder / page.folder
    with disk_errors(study.folder):
        folder.mkdir(exist_ok=True)
        # Without a manifest, the folder counts as unfinished, whatever it contains.
        (folder / MANIFEST).unlink(missing_ok=True)
        print(f"{page.name}: running {page.notebook.relative_to(study.root)}", flush=True)
        started = time.perf_counter()
        executed = study.folder / f"{page.name}.ipynb"
        executed.unlink(missing_ok=True)
        try:
            _execute(study, page, executed, notebook_parameters)
            _check_unchanged(study, folder)
        except StudyError as error:
            if executed.exists():
                _write_page(study, page)
            else:
                _write_note(study, page, str(error))
            raise
        seconds = time.perf_counter() - started
        _write_page(study, page)
        write_manifest(
            folder, _files(study, page), step=page.name, key=key, seconds=seconds, **about
        )
    return seconds


def _files(study: Study, page: Page) -> list[Path]:
    """The files of a page or run."""
    from cbir.reporting.notebook_html import copies_of

    path = study.folder / page.file
    files = [path, *copies_of(path)]
    files += [study.folder / page.folder / name for name in RUN_FILES]
    if page == study.pages[0]:
        files += [study.folder / name for name in STUDY_FILES]
    files += [study.folder / name for name in PAGE_FILES.get(page.name, ())]
    return [file for file in files if file.exists()]


def _check_unchanged(study: Study, folder: Path) -> None:
    """Check that a notebook used the images and the code that the study's keys stand for.

    Raises:
        StudyError: pictures or code have changed since the run began.
    """
    if _picture_changes(study.dataset, now := load_dataset(**study.data)):
        raise StudyError(
            f"pictures have changed since this run began ({_picture_changes(study.dataset, now)}): "
            "run the same command again"
        )
    if (folder / "summary.json").exists():
        summary = read_summary(study.name, folder.name)
        if summary["dataset"]["fingerprint"] != study.dataset.fingerprint:
            raise StudyError("pictures changed while it ran: run the same command again")
        if summary["code"] != package_digest("retrieval"):
            raise StudyError("the code changed while it ran: run the same command again")


def _picture_changes(before: Dataset, now: Dataset) -> str:
    """What distinguishes the pictures of a data set from those of an earlier reading, in words."""
    if before.fingerprint == now.fingerprint:
        return ""
    rows = {name: row for row, name in enumerate(before.names)}
    changes = {
        "added": [name for name in now.names if name not in rows],
        "removed": sorted(rows.keys() - set(now.names)),
        "replaced": [
            name
            for row, name in enumerate(now.names)
            if name in rows and not np.array_equal(now.images[row], before.images[rows[name]])
        ],
    }
    return (
        "; ".join(
            f"{len(names):,} {change}, such as {names[0]}"
            for change, names in changes.items()
            if names
        )
        or "other labels"
    )


def _execute(study: Study, page: Page, executed: Path, parameters: dict) -> None:
    """Run a notebook with papermill; print its standard output, and log all output beside it.

    Raises:
        StudyError: the notebook failed; the message is the reason, in one line.
    """
    # Slow imports, here and below: a study that is up to date needs none of them.
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from cbir.reporting.notebook_html import log_of

    reason = ""
    kernel = kernels.take(*_kernel_of(study, page))
    try:
        if following := _following(study, page):
            kernels.start_ahead(*_kernel_of(study, following))
        papermill.execute_notebook(
            str(page.notebook), str(executed), parameters=parameters, kernel_name="python3",
            km=kernel.manager, stdout_file=sys.stdout, start_timeout=KERNEL_SECONDS,
            # Two bars at once would overwrite each other.
            progress_bar=sys.stderr.isatty() and page.name not in PAGES,
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        reason = f"{error.ename}: {' '.join(str(error.evalue).split())[:600]}"
        reason = reason.removeprefix("StudyError: ")
    except Exception as error:  # The death of a kernel is reported in many ways.
        if kernel.is_killed:
            raise KeyboardInterrupt from None
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        if "Kernel died" in reason:
            reason += " (possibly out of memory: lower batch_size or input_size)"
    finally:
        kernel.stop()
    if "No space left" in reason:
        executed.unlink(missing_ok=True)  # It may have been cut off.
        reason = str(as_study_error(OSError(reason), study.folder))
    if executed.exists():
        write_text(executed.with_suffix(".log"), log_of(executed))
    if reason:
        raise StudyError(reason)


def _kernel_of(study: Study, page: Page) -> tuple[Path, Path, Path]:
    """A page's notebook, the log of its kernel, and the kernel's working directory."""
    return page.notebook, study.folder / f"{page.name}.stderr.log", study.root


def _following(study: Study, page: Page | None = None) -> Page | None:
    """The page whose notebook runs after that of another, or first, if it can be foreseen.

    It is that of an unfinished run, or one about all runs. Two of those run at once.
    """
    runs = []
    for run in study.runs:
        name, is_finished = run.architecture, (study.folder / run.architecture / MANIFEST).exists()
        if page and name == page.name or name in study.chosen and not is_finished:
            runs.append(Page(name, run.notebook))
    return (
        dict(itertools.pairwise([None, *runs, *study.pages[:2]])).get(page)
        if runs or page
        else None
    )


def _write_note(study: Study, page: Page, reason: str) -> None:
    """Write a page that says why there are no results."""
    import nbformat

    cells = [nbformat.v4.new_markdown_cell(f"# {page.name}\n\nNo results: {reason}")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with disk_errors(study.folder):
        (study.folder / page.folder / MANIFEST).unlink(missing_ok=True)
        nbformat.write(notebook, study.folder / f"{page.name}.ipynb")
        _write_page(study, page)


def _write_page(study: Study, page: Page) -> None:
    from cbir.reporting.notebook_html import write_index, write_page

    path, title = study.folder / page.file, f"{page.title} · {study.name}"
    executed = study.folder / f"{page.name}.ipynb"
    write_page(executed, path, report=study.name, title=title, links=study.links)
    if path.name == "index.html":
        write_index(study.folder.parent)
    if (size := path.stat().st_size) > LARGEST_PAGE:
        print(
            f"warning: {path.relative_to(study.root)} has {size / 1e6:.1f} MB, more than "
            f"{LARGEST_PAGE / 1e6:.0f} MB: it may load slowly, and be too large for e-mail",
            flush=True,
        )
