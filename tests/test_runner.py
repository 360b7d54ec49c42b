"""Running a study with notebooks that do nothing: the order, repeated runs, and failures."""

import errno
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from conftest import STUDY, load_shapes
from conftest import write_study as write_study_files
from PIL import Image

from cbir import StudyError
from cbir.cache import locked, read_manifest, write_manifest, write_text
from cbir.reporting.runs import STUDY_FILES
from cbir.retrieval import engines
from cbir.studies import plan, runner
from cbir.studies.study import PAGES, TEMPLATE_RUN, Page, open_study

DEEPER = [*PAGES]
RUNS = ["cnn", "resnet50", "vgg16"]


@pytest.fixture
def bring(project, monkeypatch):
    """A function that brings `tiny` up to date and returns its success and the notebooks that ran.

    Notebooks whose names it is given fail. `had_index` tells whether index.html existed when a
    notebook ran; `during` has functions to call while a notebook runs.
    """
    executed, had_index, during = [], {}, {}

    def execute(study, page, target, parameters):
        executed.append(target.stem)
        had_index[target.stem] = (target.parent / "index.html").exists()
        cells = [nbformat.v4.new_markdown_cell(f"# {target.stem}")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), target)
        during.get(target.stem, lambda: None)()
        if target.stem in broken:
            raise StudyError("no luck")

    def write_study(folder, architectures, about):
        for name in STUDY_FILES:
            write_text(folder / name, " ".join(architectures))

    broken: set[str] = set()
    monkeypatch.setattr(runner, "_execute", execute)
    monkeypatch.setattr(runner.kernels, "start_ahead", lambda *arguments: None)
    monkeypatch.setattr(runner, "write_study", write_study)
    monkeypatch.setattr(runner, "is_whole", lambda study, name: True)

    def bring_up_to_date(*names: str, architectures: str = "") -> tuple[bool, list[str]]:
        broken.clear()
        broken.update(names)
        executed.clear()
        study = open_study(project, "tiny", architectures=architectures)
        is_done = runner.bring_up_to_date(study)
        # Deeper pages run two at a time, so their order may differ.
        deeper = [name for name in DEEPER if name in executed]
        return is_done, [name for name in executed if name not in deeper] + deeper

    bring_up_to_date.had_index, bring_up_to_date.during = had_index, during
    return bring_up_to_date


def test_the_index_is_written_before_the_deeper_pages(bring, project):
    assert bring() == (True, [*RUNS, "comparison", *DEEPER])
    assert not bring.had_index["comparison"]
    assert all(bring.had_index[name] for name in DEEPER)
    pages = {path.stem for path in (project / "reports" / "tiny").glob("*.html")}
    assert pages == {"index", *RUNS, *DEEPER}


def test_vectors_are_measured_again_after_their_file_has_changed(bring, project):
    dino = {"baseline": "vectors", "vectors": "data/dino.npz"}
    write_study_files(project, "tiny", STUDY, {"dino": dino})
    names = np.array(load_shapes().names)

    def write_vectors(seed: int) -> None:
        vectors = np.random.default_rng(seed).normal(size=(len(names), 4))
        np.savez(project / "data" / "dino.npz", path=names, vector=vectors)

    write_vectors(1)
    assert bring() == (True, [*RUNS, "dino", "comparison", *DEEPER])
    write_vectors(1)
    assert bring() == (True, [])
    write_vectors(2)
    # The page of metrics shows only the first run.
    assert bring() == (True, ["dino", "comparison", *DEEPER[:-1]])


def test_a_study_that_is_up_to_date_is_not_run_again(bring, capsys):
    bring()
    capsys.readouterr()
    assert bring() == (True, [])
    assert "nothing to do: reports/tiny/index.html is up to date" in capsys.readouterr().out


def test_a_page_that_fails_is_reported_and_leaves_the_index(bring, project, capsys):
    assert bring("explanations") == (False, [*RUNS, "comparison", *DEEPER])
    output, error = capsys.readouterr()
    assert "reports/tiny/index.html written in" in output
    lines = error.splitlines()
    assert lines[0] == "explanations: failed: no luck"
    assert lines[1].startswith("failed: explanations; ")
    reports = project / "reports" / "tiny"
    assert (reports / "index.html").exists()
    assert (reports / "explanations.html").exists()
    # Only this page is tried again.
    assert bring() == (True, ["explanations"])


def test_two_deeper_pages_run_at_once_and_an_interruption_ends_both(bring, project, monkeypatch):
    barrier, killed = threading.Barrier(2, timeout=30), threading.Event()
    monkeypatch.setattr(runner.kernels, "kill_running", killed.set)

    def interrupt() -> None:
        barrier.wait()
        raise KeyboardInterrupt

    def run_until_killed() -> None:
        killed.wait(30)
        raise KeyboardInterrupt

    def join_and_run_until_killed() -> None:
        barrier.wait()
        run_until_killed()

    bring.during["explanations"] = interrupt
    bring.during |= {"feedback": join_and_run_until_killed, "metrics": run_until_killed}
    with pytest.raises(KeyboardInterrupt):
        bring()
    assert killed.is_set()
    bring.during.clear()
    # Pages finished before are kept.
    assert bring() == (True, ["explanations", "feedback", "metrics"])


def test_a_failed_architecture_is_missing_from_the_pages_and_tried_again(bring, capsys):
    assert bring("vgg16") == (False, [*RUNS, "comparison", *DEEPER])
    assert "failed: vgg16; " in capsys.readouterr().err
    # The page of metrics shows only the first run, which has not changed.
    assert bring() == (True, ["vgg16", "comparison", *DEEPER[:-1]])


def test_pages_of_a_study_without_results_say_so(bring, project):
    assert bring(*RUNS) == (False, RUNS)
    reports = project / "reports" / "tiny"
    for page in ("index", *DEEPER):
        assert "No results" in (reports / f"{page}.html").read_text("utf-8")


def test_pages_are_made_again_when_there_are_results(bring, project):
    bring()
    index = project / "reports" / "tiny" / "index.html"
    for name in RUNS:
        (index.parent / name / "manifest.json").unlink()
    assert bring(*RUNS) == (False, RUNS)
    assert "No results" in index.read_text("utf-8")
    assert bring() == (True, [*RUNS, "comparison", *DEEPER])
    assert "No results" not in index.read_text("utf-8")


def test_a_plan_lists_the_runs_and_pages_that_would_run(bring, project):
    def planned(architectures: str = "") -> list[str]:
        text = plan.plan_text(open_study(project, "tiny", architectures=architectures))
        pattern = r"^(\w+): notebooks/\w+\.ipynb: (will run|up to date|left out)"
        states = re.findall(pattern, text, re.MULTILINE)
        assert [name for name, _ in states] == [*RUNS, "comparison", *DEEPER]
        names = [name for name, state in states if state == "will run"]
        assert text.endswith("nothing to run") == (not names)
        return names

    for architectures in ("cnn", "", "cnn"):
        names = planned(architectures)
        assert bring(architectures=architectures) == (True, names)
    assert names == []
    path = project / "params" / "tiny" / "vgg16.yaml"
    path.write_text(path.read_text().replace("dropout: 0.1", "dropout: 0.2"))
    names = planned()
    assert names == ["vgg16", "comparison", *DEEPER[:-1]]
    assert bring() == (True, names)
    path.write_text(re.sub("(weights:).*", r"\1 data/nowhere.weights.h5", path.read_text()))
    for _ in range(2):
        names = planned("cnn")
        assert bring(architectures="cnn") == (True, names)
    assert names == []


def test_the_page_of_an_architecture_that_is_left_out_says_so(bring, project):
    _, executed = bring(architectures="cnn")
    assert executed == ["cnn", "comparison", *DEEPER]
    assert "not run" in (project / "reports" / "tiny" / "vgg16.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["index", "metrics", "failures", "comparison"])
def test_an_architecture_cannot_have_the_name_of_a_page(name, project):
    folder = project / "params" / "tiny"
    (folder / "cnn.yaml").rename(folder / f"{name}.yaml")
    with pytest.raises(StudyError, match=f"params/tiny/{name}.yaml: .*rename the file"):
        open_study(project, "tiny")


# Faults


@pytest.fixture
def bring_small_study(bring, project):
    """The study with two runs and one page about both."""
    (project / "params" / "tiny" / "vgg16.yaml").unlink()
    for name in DEEPER:
        (project / "notebooks" / f"{name}.ipynb").unlink()
    return bring


def report_files(project, page: str) -> list:
    """The files that the manifest of a page or run records."""
    folder = project / "reports" / "tiny" / page
    return [folder / name for name in read_manifest(folder)["files"]]


@pytest.mark.parametrize("damage", ["flipped", pytest.param("gone", marks=pytest.mark.faults)])
def test_a_page_or_run_whose_files_changed_is_made_again(
    bring_small_study, project, damage, capsys
):
    bring_small_study()
    for page, again in (("cnn", ["cnn"]), ("index", ["comparison"])):
        for path in report_files(project, page):
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            if damage == "gone":
                path.unlink()
            capsys.readouterr()
            assert bring_small_study() == (True, again), path
            word = "missing" if damage == "gone" else "damaged"
            assert f"{path.name} is {word}: it counts as unfinished" in capsys.readouterr().out
    assert bring_small_study() == (True, [])


def test_the_page_of_engines_runs_again_after_changes_of_engines_template_or_rerankings(
    bring_small_study, project, monkeypatch
):
    shared, installed = project / "params" / "tiny" / "study.yaml", []
    monkeypatch.setattr(engines, "versions", lambda kind: installed * (kind == "faiss"))
    shared.write_text(shared.read_text() + "\npages:\n  scale:\n    sizes: [100]\n")
    assert bring_small_study()[1][-1] == "scale"
    (project / "reports" / "tiny" / "rerankings.csv").write_text("")
    for again in ([], ["faiss-cpu 1"], ["faiss-cpu 2"]):
        installed[:] = again
        assert bring_small_study() == (True, ["scale"] if again else [])
    (project / "reports" / TEMPLATE_RUN).mkdir(parents=True)
    write_manifest(project / "reports" / TEMPLATE_RUN, [], key="new")
    assert bring_small_study() == (True, ["scale"])
    assert bring_small_study() == (True, [])
    (project / "reports" / "tiny" / "rerankings.csv").write_text("other")
    assert bring_small_study() == (True, ["scale"])


def test_the_manifest_of_the_index_covers_the_files_of_the_study(bring_small_study, project):
    bring_small_study()
    names = {path.name for path in report_files(project, "index")}
    assert names == {"index.html", *STUDY_FILES}


def test_an_interrupted_change_of_parameters_leaves_no_files_of_other_parameters(
    bring_small_study, project, monkeypatch
):
    """A process dies between the files of the study and its page; the parameters change back."""
    bring_small_study()
    metrics = project / "reports" / "tiny" / "metrics.csv"
    before = metrics.read_text()

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "_run_notebook", die)
        bring_small_study(architectures="cnn")
        (project / "reports" / "tiny" / "resnet50" / "manifest.json").unlink()
        bring_small_study(architectures="cnn")
    assert metrics.read_text() != before
    assert bring_small_study() == (True, ["resnet50", "comparison"])
    assert metrics.read_text() == before


def test_results_after_failures_are_written_to_the_files_of_the_study(bring_small_study, project):
    bring_small_study()
    metrics = project / "reports" / "tiny" / "metrics.csv"
    before = metrics.read_text()
    for name in RUNS[:2]:
        (metrics.parent / name / "manifest.json").unlink()
    assert bring_small_study(*RUNS[:2]) == (False, RUNS[:2])
    assert metrics.read_text() != before
    bring_small_study()
    assert metrics.read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("replaced", "1 replaced, such as circle/circle-00.png"),
        pytest.param("added", "1 added, such as circle/new.png", marks=pytest.mark.faults),
        pytest.param(
            "removed", "1 removed, such as circle/circle-00.png", marks=pytest.mark.faults
        ),
    ],
)
def test_pictures_that_change_during_a_run_make_it_fail(
    bring_small_study, project, capsys, change, words
):
    folder = project / "data" / "shapes" / "circle"

    def change_pictures() -> None:
        path = folder / ("new.png" if change == "added" else "circle-00.png")
        path.unlink(missing_ok=True)
        if change != "removed":
            Image.new("RGB", (24, 24), "red").save(path)

    bring_small_study.during["resnet50"] = change_pictures
    assert bring_small_study()[0] is False
    lines = capsys.readouterr().err.splitlines()
    failed = [line for line in lines if ": failed: pictures have changed since" in line]
    assert [line.partition(":")[0] for line in failed] == ["resnet50", "comparison"]
    assert all(words in line for line in failed)
    # The results that are kept were all measured on one state of the pictures.
    bring_small_study.during.clear()
    assert bring_small_study() == (True, [*RUNS[:2], "comparison"])


def test_a_second_run_waits_for_the_first(bring_small_study, project, capsys):
    started = threading.Event()
    folder = project / "reports" / "tiny"

    def hold() -> None:
        with locked(folder):
            started.set()
            time.sleep(0.3)

    first_run = threading.Thread(target=hold)
    first_run.start()
    started.wait(10)
    assert bring_small_study(architectures="cnn")[0]
    first_run.join()
    output = capsys.readouterr().out
    assert f"waiting for {folder}, in use by process {os.getpid()} on " in output


def test_trials_have_separate_folders(project):
    def name(overrides: str) -> str:
        return open_study(project, "tiny", overrides=overrides).name

    names = [name(""), name("epochs=2"), name("epochs=3"), name("epochs=3 ks=[1]")]
    assert len(set(names)) == 4
    assert all(re.fullmatch("tiny-trial-[0-9a-f]{6}", trial) for trial in names[1:])
    assert name("ks=[1] epochs=3") == names[3]


def test_a_full_disk_does_not_stop_other_architectures(
    bring_small_study, project, monkeypatch, capsys
):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_manifest", full)
        assert bring_small_study() == (False, RUNS[:2])
    lines = capsys.readouterr().err.splitlines()
    reason = f"failed: disk full while writing {project}/reports/tiny: free some space"
    for name, line in zip(RUNS[:2], lines, strict=False):
        assert line.startswith(f"{name}: {reason}")
    assert bring_small_study() == (True, [*RUNS[:2], "comparison"])


def test_the_kernel_started_ahead_is_that_of_the_next_notebook(tmp_path):
    run = SimpleNamespace(architecture="cnn", notebook=Path("cnn.ipynb"))
    of_run, *pages = [Page(name, Path(f"{name}.ipynb")) for name in ("cnn", "index", "failures")]
    study = SimpleNamespace(runs=[run], chosen=["cnn"], folder=tmp_path, pages=pages)
    assert runner._following(study) == of_run
    assert runner._following(study, of_run) == pages[0]
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "manifest.json").touch()
    assert runner._following(study) is None
    assert runner._following(study, pages[0]) == pages[1]
    assert runner._following(study, pages[1]) is None
