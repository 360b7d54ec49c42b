"""Running a study with notebooks that do nothing: in which order, what again, what fails."""

import nbformat
import numpy as np
import pytest
from conftest import STUDY, load_shapes
from conftest import write_study as write_study_files

from cbir import StudyError
from cbir.cache import write_text
from cbir.reporting.runs import STUDY_FILES
from cbir.studies import runner
from cbir.studies.study import open_study

DEEPER = ["failures", "explanations", "feedback", "metrics"]
RUNS = ["cnn", "resnet50", "vgg16"]


@pytest.fixture
def bring(project, monkeypatch):
    """Brings the study `tiny` up to date; whether it succeeded, and the notebooks that ran.

    The notebooks in `broken` fail. Each notebook notes whether index.html was there.
    """
    executed, had_index = [], {}

    def execute(study, page, target, parameters):
        executed.append(target.stem)
        had_index[target.stem] = (target.parent / "index.html").exists()
        cells = [nbformat.v4.new_markdown_cell(f"# {target.stem}")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), target)
        if target.stem in broken:
            raise StudyError("no luck")

    def write_study(folder, architectures, about):
        for name in STUDY_FILES:
            write_text(folder / name, " ".join(architectures))

    broken: set[str] = set()
    monkeypatch.setattr(runner, "_execute", execute)
    monkeypatch.setattr(runner, "write_study", write_study)
    monkeypatch.setattr(runner, "is_whole", lambda study, name: True)

    def bring_up_to_date(*names: str, architectures: str = "") -> tuple[bool, list[str]]:
        broken.clear()
        broken.update(names)
        executed.clear()
        study = open_study(project, "tiny", architectures=architectures)
        return runner.bring_up_to_date(study), list(executed)

    bring_up_to_date.had_index = had_index
    return bring_up_to_date


def test_the_index_is_written_before_the_deeper_pages(bring, project):
    assert bring() == (True, [*RUNS, "comparison", *DEEPER])
    assert not bring.had_index["comparison"]
    assert all(bring.had_index[name] for name in DEEPER)
    pages = {path.stem for path in (project / "reports" / "tiny").glob("*.html")}
    assert pages == {"index", *RUNS, *DEEPER}


def test_vectors_are_measured_again_when_their_file_has_changed(bring, project):
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


def test_what_is_up_to_date_does_not_run_again(bring, capsys):
    bring()
    capsys.readouterr()
    assert bring() == (True, [])
    assert "nothing to do: reports/tiny/index.html is up to date" in capsys.readouterr().out


def test_a_page_that_fails_is_named_and_leaves_the_index(bring, project, capsys):
    assert bring("explanations") == (False, [*RUNS, "comparison", *DEEPER])
    output, error = capsys.readouterr()
    assert "reports/tiny/index.html written in" in output
    lines = error.splitlines()
    assert lines[0] == "explanations: failed: no luck"
    assert lines[1].startswith("failed: explanations; ")
    reports = project / "reports" / "tiny"
    assert (reports / "index.html").exists()
    assert (reports / "explanations.html").exists()
    # It alone is tried again.
    assert bring() == (True, ["explanations"])


def test_a_failed_architecture_is_missing_from_the_pages_and_tried_again(bring, capsys):
    assert bring("vgg16") == (False, [*RUNS, "comparison", *DEEPER])
    assert "failed: vgg16; " in capsys.readouterr().err
    # Metrics are shown on the first run alone, which has not changed.
    assert bring() == (True, ["vgg16", "comparison", *DEEPER[:-1]])


def test_without_any_results_every_page_says_so(bring, project):
    assert bring(*RUNS) == (False, RUNS)
    reports = project / "reports" / "tiny"
    for page in ("index", *DEEPER):
        assert "No results" in (reports / f"{page}.html").read_text("utf-8")


def test_pages_come_back_once_there_are_results_again(bring, project):
    bring()
    index = project / "reports" / "tiny" / "index.html"
    for name in RUNS:
        (index.parent / name / "manifest.json").unlink()
    assert bring(*RUNS) == (False, RUNS)
    assert "No results" in index.read_text("utf-8")
    assert bring() == (True, [*RUNS, "comparison", *DEEPER])
    assert "No results" not in index.read_text("utf-8")


def test_an_architecture_that_is_left_out_has_a_page_that_says_so(bring, project):
    _, executed = bring(architectures="cnn")
    assert executed == ["cnn", "comparison", *DEEPER]
    assert "not run" in (project / "reports" / "tiny" / "vgg16.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["index", "metrics", "failures", "comparison"])
def test_an_architecture_cannot_be_called_as_another_page(name, project):
    folder = project / "params" / "tiny"
    (folder / "cnn.yaml").rename(folder / f"{name}.yaml")
    with pytest.raises(StudyError, match=f"params/tiny/{name}.yaml: .*rename the file"):
        open_study(project, "tiny")
