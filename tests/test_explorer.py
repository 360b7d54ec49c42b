"""The explorer: it searches, shows, marks and exports what the user selects."""

import io
import json
import re
import shutil
from datetime import datetime

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

from cbir.reporting import explanations, tables, tidy
from cbir.reporting.pages import write_page
from cbir.reporting.runs import read_run
from cbir.retrieval.feedback import Rocchio
from cbir.search import answers
from cbir.search.answers import data_url
from cbir.search.engine import best_architecture, first_finished
from cbir.search.explorer import (
    ALL,
    MAPS,
    NEGATIVE,
    NO_MARK,
    ONE_CLASS,
    POSITIVE,
    UPLOAD,
    WORST,
    Explorer,
    explore,
    map_overlays,
)

QUERY = "data/shapes/circle/circle-00.png"


@pytest.fixture
def explorer(finished_study):
    explorer = Explorer("tiny")
    explorer.architectures.value = ("cnn",)
    return explorer


def shown(explorer: Explorer, panel=0) -> list[int]:
    """Gallery positions that a panel shows, in order."""
    positions = [result.position for result in explorer.answers[panel].results]
    assert len(cells(explorer, panel)) == len(positions)
    return positions


def cells(explorer: Explorer, panel=0) -> list:
    """The widgets of each result of a panel: its image, and the buttons that mark it."""
    _, row, _ = explorer.results.children[panel].children
    return [cell.children for cell in row.children]


def images(explorer: Explorer, panel=0) -> list[str]:
    """The HTML of each result of a panel."""
    return [image.value for image, _ in cells(explorer, panel)]


def heading(explorer: Explorer, panel=0) -> str:
    return explorer.results.children[panel].children[0].value


def note(explorer: Explorer, panel=0) -> str:
    return explorer.results.children[panel].children[2].value


def mark(explorer: Explorer, place: int, sign: str) -> None:
    """Mark a result, as a click does."""
    _, buttons = cells(explorer)[place]
    buttons.value = sign


def choose(explorer: Explorer, place: int) -> None:
    """Search with one of the queries to choose from, as a click does."""
    _, button = explorer.choice_row.children[place].children
    button.click()


def upload(content: bytes) -> tuple[dict]:
    return ({"name": "mine.png", "type": "image/png", "size": len(content),
             "content": memoryview(content), "last_modified": datetime(2026, 1, 1)},)  # fmt: skip


def test_first_query_is_searched_at_once_with_the_best_architecture(finished_study):
    explorer = Explorer("tiny")
    best = best_architecture("tiny")
    assert explorer.architectures.value == (best,)
    assert shown(explorer) == read_run("tiny", best).rankings["unrestricted"][0].tolist()
    assert "predicted: " in heading(explorer)
    assert explorer.status.value == ""


def test_results_follow_k_search_and_query(explorer):
    run = read_run("tiny", "cnn")
    explorer.k.value = 4
    assert shown(explorer) == run.rankings["unrestricted"][0, :4].tolist()
    explorer.search.value = "predicted_class"
    assert shown(explorer) == run.rankings["predicted_class"][0, :4].tolist()
    choose(explorer, 5)
    assert shown(explorer) == run.rankings["predicted_class"][5, :4].tolist()


def test_architectures_are_shown_side_by_side(explorer):
    explorer.architectures.value = ("cnn", "whitened")
    assert len(explorer.results.children) == 2
    for panel, name in enumerate(("cnn", "whitened")):
        assert f"<h4>{name}</h4>" in heading(explorer, panel)
        rankings = read_run("tiny", name).rankings["unrestricted"]
        assert shown(explorer, panel) == rankings[0].tolist()
    explorer.architectures.value = ("whitened",)
    assert len(explorer.results.children) == 1


def test_queries_can_be_chosen_by_class_and_by_score(explorer):
    dataset = explorer.engines[0].run.dataset
    explorer.queries.value = ONE_CLASS
    explorer.label.value = "square"
    assert explorer.choices == np.flatnonzero(dataset.query_labels == 2).tolist()
    assert len(explorer.choice_row.children) == len(explorer.choices)
    explorer.queries.value = WORST
    scores = tables.average_precision(read_run("tiny", "cnn"), "unrestricted", "closed")
    worst = [scores.loc[dataset.queries[query]] for query in explorer.choices]
    assert worst == sorted(worst)
    assert worst[0] == scores.min()
    explorer.queries.value = ALL
    assert explorer.choices == list(range(12))
    explorer.more.click()
    assert explorer.choices[0] == 0  # the twelve queries fill a single page


def test_marks_move_the_query_and_can_be_undone_and_exported(explorer, finished_study):
    engine = explorer.engines[0]
    engine.__dict__["chosen_weights"] = weights = Rocchio(1.0, 2.0, 0.5)
    before = shown(explorer)
    explorer.again.click()
    assert "mark some results first" in explorer.status.value
    mark(explorer, 3, POSITIVE)
    mark(explorer, 0, NEGATIVE)
    assert explorer.marks == {before[3]: POSITIVE, before[0]: NEGATIVE}
    assert shown(explorer) == before  # until the user searches again
    explorer.again.click()
    vectors = engine.gallery.vectors
    answer = answers.search(
        engine, engine.gallery, answers.picture_of_query(engine, 0), 10,
        positive=vectors[[before[3]]], negative=vectors[[before[0]]],
        left_out={before[3], before[0]},
    )  # fmt: skip
    assert shown(explorer) == [result.position for result in answer.results]
    explorer.export.click()
    path = finished_study / re.match(r"(.*) written", explorer.status.value)[1]
    assert path == finished_study / "data" / "marks" / "001.json"
    content = json.loads(path.read_text("utf-8"))
    path.rename(path.with_name("007.json"))
    explorer.export.click()
    assert (path.parent / "008.json").exists()
    shutil.rmtree(path.parent)
    assert content["positive"] == [engine.gallery.names[before[3]]]
    assert content["negative"] == [engine.gallery.names[before[0]]]
    assert content["weights"] == {"cnn": vars(weights)}
    explorer.undo.click()
    assert explorer.marks == {before[3]: POSITIVE}
    explorer.undo.click()
    assert shown(explorer) == before
    assert {marks.value for _, marks in cells(explorer)} == {NO_MARK}
    explorer.undo.click()
    assert explorer.marks == {}


def test_another_query_clears_the_marks(explorer):
    mark(explorer, 0, POSITIVE)
    choose(explorer, 1)
    assert explorer.marks == {}


def test_uploaded_picture_is_searched_each_time(explorer, finished_study):
    explorer.queries.value = UPLOAD
    assert explorer.choice_row.layout.display == "none"
    content = (finished_study / "data/shapes/cross/cross-03.png").read_bytes()
    explorer.upload.value = upload(content)
    engine = explorer.engines[0]
    square = np.asarray(Image.open(io.BytesIO(content)).resize((32, 32), Image.BICUBIC))
    (picture,) = answers.embed_pictures(engine, {"mine": square})
    answer = answers.search(engine, engine.gallery, picture, 10)
    positions = [result.position for result in answer.results]
    assert shown(explorer) == positions
    assert "query: mine.png" in explorer.query_image.value
    explorer.queries.value = ALL
    choose(explorer, 0)
    assert "query: mine.png" not in explorer.query_image.value
    explorer.upload.value = upload(content)
    assert shown(explorer) == positions
    assert "query: mine.png" in explorer.query_image.value


def test_uploaded_picture_is_searched_with_another_architecture(explorer, finished_study):
    explorer.queries.value = UPLOAD
    explorer.upload.value = upload((finished_study / QUERY).read_bytes())
    explorer.architectures.value = ("whitened",)
    assert "<h4>whitened</h4>" in heading(explorer)


def test_another_study_starts_with_its_first_query(finished_study):
    reports = finished_study / "reports"
    shutil.copytree(reports / "tiny", reports / "another")
    try:
        explorer = Explorer("tiny")
        explorer.queries.value = UPLOAD
        explorer.upload.value = upload((finished_study / QUERY).read_bytes())
        explorer.study.value = "another"
        assert explorer.queries.value == ALL
        run = explorer.engines[0].run
        assert run.study == "another"
        assert shown(explorer) == run.rankings["unrestricted"][0].tolist()
    finally:
        shutil.rmtree(reports / "another")


def test_errors_are_shown(explorer, monkeypatch):
    monkeypatch.setattr(answers, "search", lambda *_, **__: 1 / 0)
    choose(explorer, 1)
    assert "the search failed: division by zero" in explorer.status.value


def test_first_finished_study_replaces_an_unfinished_one(finished_study):
    assert first_finished("nothing") == "tiny"
    assert Explorer("nothing").study.value == "tiny"


def test_unreadable_upload_is_reported_and_results_stay(explorer):
    before = shown(explorer)
    explorer.upload.value = upload(b"not a picture")
    assert "mine.png cannot be read" in explorer.status.value
    assert shown(explorer) == before


def test_similarity_maps_cover_query_and_results(explorer):
    plain = images(explorer)
    assert explorer.maps.options == (("none", None), (MAPS["similarity"], "similarity"))
    explorer.maps.value = "similarity"
    assert all(html.count("<img ") == 2 for html in images(explorer))
    assert explorer.status.value == ""
    assert "trusted" in note(explorer)
    explorer.maps.value = None
    assert images(explorer) == plain
    assert note(explorer) == ""


def test_attention_maps_are_those_of_attention_pooling(explorer):
    explorer.architectures.value = ("cnn", "whitened")
    explorer.maps.value = "attention"
    assert "no attention pooling" in note(explorer, 0)
    assert all(html.count("<img ") == 1 for html in images(explorer, 0))
    assert note(explorer, 1) == ""
    engine = explorer.engines[1]
    answer = answers.search(engine, engine.gallery, answers.picture_of_query(engine, 0), 10)
    overlays = map_overlays(engine, answer, "attention")
    for html, pair in zip(images(explorer, 1), overlays, strict=True):
        assert all(data_url(image) in html for image in pair)
    # The first architecture has no such maps, so the choice goes with the second.
    explorer.architectures.value = ("cnn",)
    assert explorer.maps.value is None


def test_reliability_of_the_maps_is_shown_under_them(explorer, finished_study):
    rows = [
        {"test": test, "against": against, "gain": gain, "p": p, "n_queries": 40}
        for test, against, gain, p in (
            ("deletion", "random maps", 0.1, 0.001), ("deletion", "maps of other pairs", 0, 0.9),
            ("insertion", "random maps", 0.1, 0.8), ("insertion", "maps of other pairs", -1, 0),
        )
    ]  # fmt: skip
    path = finished_study / "reports" / "tiny" / explanations.FILE
    tidy.write_csv(pd.DataFrame(rows).assign(architecture="cnn"), path)
    text = explanations.trust("tiny", "cnn")
    explorer.maps.value = "similarity"
    path.unlink()
    assert text.startswith("Tested on 40 pairs")
    assert text in note(explorer)


def test_without_a_finished_study_it_says_what_to_do(tmp_path, monkeypatch):
    for name in ("params", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert "run `make report` first" in explore("digits").value


def test_a_result_has_one_mark_at_a_time(explorer):
    first, second, *_ = shown(explorer)
    for place, sign in ((0, POSITIVE), (1, NEGATIVE), (0, NEGATIVE)):
        mark(explorer, place, sign)
    assert explorer.marks == {first: NEGATIVE, second: NEGATIVE}
    mark(explorer, 1, NO_MARK)
    assert explorer.marks == {first: NEGATIVE}


def test_widgets_that_are_no_longer_shown_are_closed(explorer):
    before = [widget for cell in cells(explorer) for widget in cell]
    assert all(widget.comm for widget in before)
    choose(explorer, 1)
    assert not any(widget.comm for widget in before)
    assert all(widget.comm for cell in cells(explorer) for widget in cell)


def test_notebook_shows_an_example_without_widgets(finished_study):
    notebook = nbformat.read(ROOT / "notebooks" / "explore.ipynb", as_version=4)
    shell = InteractiveShell.instance()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = cell.source.replace('"digits"', '"tiny"').replace("= 3", "= 1")
            with capture_output() as captured:
                shell.run_cell(source).raise_error()
            cell.outputs = [
                nbformat.v4.new_output("display_data", output.data, metadata=output.metadata or {})
                for output in captured.outputs
            ]
    executed, page = finished_study / "explore.ipynb", finished_study / "explore.html"
    nbformat.write(notebook, executed)
    write_page(executed, page, report="tiny", title="explore", links=[])
    assert page.read_text("utf-8").count("<figure") == 1
