"""The explorer: what is chosen is what is searched, shown, marked and exported."""

import io
import json
import re
import shutil
from datetime import datetime

import numpy as np
import pandas as pd
import papermill
import pytest
from conftest import ROOT
from PIL import Image

from cbir.reporting import explanations, tables, tidy
from cbir.reporting.pages import write_page
from cbir.reporting.runs import read_run
from cbir.retrieval.feedback import Rocchio
from cbir.search import answers, engine, output, panels
from cbir.search.explorer import ALL, NO_MAPS, OF_CLASS, UPLOAD, WORST, Explorer, explore
from cbir.search.panels import MAPS, NEGATIVE, POSITIVE, Marks

QUERY = "data/shapes/circle/circle-00.png"


@pytest.fixture
def explorer(finished_study):
    made = Explorer("tiny")
    made.architectures.value = ("cnn",)
    return made


def shown(explorer: Explorer, panel=0) -> list[int]:
    """Gallery positions that a panel shows, in order."""
    found = explorer.panels[panel]
    cells = {id(cell.view): cell.position for cell in found.cells}
    return [cells[id(view)] for view in found.row.children]


def uploaded(content: bytes) -> tuple[dict]:
    return ({"name": "mine.png", "type": "image/png", "size": len(content),
             "content": memoryview(content), "last_modified": datetime(2026, 1, 1)},)  # fmt: skip


def test_first_query_is_answered_at_once_by_the_best_architecture(finished_study):
    made = Explorer("tiny")
    best = engine.best_architecture("tiny")
    assert made.architectures.value == (best,)
    result = read_run("tiny", best)
    assert shown(made) == result.rankings["unrestricted"][0].tolist()
    assert "predicted: " in made.panels[0].head.value
    assert made.status.value == ""


def test_results_follow_k_search_and_query(explorer):
    result = read_run("tiny", "cnn")
    explorer.k.value = 4
    assert shown(explorer) == result.rankings["unrestricted"][0, :4].tolist()
    explorer.search.value = "predicted_class"
    assert shown(explorer) == result.rankings["predicted_class"][0, :4].tolist()
    explorer.offered[5].button.click()
    assert shown(explorer) == result.rankings["predicted_class"][5, :4].tolist()


def test_architectures_stand_side_by_side(explorer):
    explorer.architectures.value = ("cnn", "whitened")
    assert len(explorer.found.children) == 2
    for place, name in enumerate(("cnn", "whitened")):
        assert f"<h4>{name}</h4>" in explorer.panels[place].head.value
        rankings = read_run("tiny", name).rankings["unrestricted"]
        assert shown(explorer, place) == rankings[0].tolist()
    explorer.architectures.value = ("whitened",)
    assert len(explorer.found.children) == 1


def test_queries_are_offered_by_class_by_worst_and_by_page(explorer):
    dataset = engine.open_engine("tiny", "cnn").embeddings.dataset
    explorer.queries.value = OF_CLASS
    explorer.label.value = "square"
    offered = [each.query for each in explorer.offered if each.query is not None]
    assert offered == np.flatnonzero(dataset.query_labels == 2)[: len(offered)].tolist()
    explorer.queries.value = WORST
    scores = tables.average_precision(read_run("tiny", "cnn"), "unrestricted", "closed")
    worst = [scores.loc[dataset.queries[each.query]] for each in explorer.offered]
    assert worst == sorted(worst)
    assert worst[0] == scores.min()
    explorer.queries.value = ALL
    assert [each.query for each in explorer.offered] == list(range(12))
    explorer.more.click()
    assert explorer.offered[0].query == 0  # twelve queries are one page, which follows itself


def test_marks_are_searched_with_taken_back_and_exported(explorer, finished_study):
    opened = explorer.engines[0]
    opened.__dict__["chosen_weights"] = Rocchio(positive=2.0, negative=0.5)
    before = shown(explorer)
    explorer.again.click()
    assert "mark some results first" in explorer.status.value
    explorer.panels[0].cells[3].marks.value = "✓"
    explorer.panels[0].cells[0].marks.value = "✗"
    assert explorer.marks == Marks(positive=(before[3],), negative=(before[0],))
    assert shown(explorer) == before  # until it is asked for
    explorer.again.click()
    vectors = opened.gallery.vectors
    wanted = answers.search(
        opened, opened.gallery, answers.picture_of_query(opened, 0), 10,
        positive=vectors[[before[3]]], negative=vectors[[before[0]]],
        left_out={before[3], before[0]},
    )  # fmt: skip
    assert shown(explorer) == [each.position for each in wanted.results]
    explorer.export.click()
    path = finished_study / re.match(r"(.*) written", explorer.status.value)[1]
    assert path == finished_study / "data" / "marks" / "001.json"
    told = json.loads(path.read_text("utf-8"))
    path.rename(path.with_name("007.json"))
    explorer.export.click()
    assert (path.parent / "008.json").exists()
    shutil.rmtree(path.parent)
    assert told["positive"] == [opened.gallery.names[before[3]]]
    assert told["weights"] == {"cnn": {"query": 1.0, "positive": 2.0, "negative": 0.5}}
    explorer.undo.click()
    assert explorer.marks == Marks(positive=(before[3],))
    explorer.undo.click()
    assert shown(explorer) == before
    assert {cell.marks.value for cell in explorer.panels[0].cells} == {"–"}
    explorer.undo.click()
    assert explorer.marks == Marks()


def test_another_query_forgets_the_marks(explorer):
    explorer.panels[0].cells[0].marks.value = "✓"
    explorer.offered[1].button.click()
    assert explorer.marks == Marks()


def test_picture_of_ones_own_is_searched_with(explorer, finished_study):
    explorer.queries.value = UPLOAD
    assert explorer.offers.layout.display == "none"
    content = (finished_study / "data/shapes/cross/cross-03.png").read_bytes()
    explorer.upload.value = uploaded(content)
    opened = explorer.engines[0]
    square = np.asarray(Image.open(io.BytesIO(content)).resize((32, 32), Image.BICUBIC))
    (picture,) = answers.embed_pictures(opened, {"by hand": square})
    wanted = answers.search(opened, opened.gallery, picture, 10)
    assert shown(explorer) == [each.position for each in wanted.results]
    assert "asked: mine.png" in explorer.query.value


def test_the_same_picture_can_be_asked_twice(explorer, finished_study):
    explorer.queries.value = UPLOAD
    content = uploaded((finished_study / "data/shapes/cross/cross-03.png").read_bytes())
    explorer.upload.value = content
    first = shown(explorer)
    explorer.queries.value = ALL
    explorer.offered[0].button.click()
    explorer.upload.value = content
    assert shown(explorer) == first
    assert "asked: mine.png" in explorer.query.value


def test_another_study_begins_anew_whatever_was_asked(finished_study):
    reports = finished_study / "reports"
    shutil.copytree(reports / "tiny", reports / "another")
    try:
        made = Explorer("tiny")
        made.queries.value = UPLOAD
        made.upload.value = uploaded((finished_study / QUERY).read_bytes())
        made.study.value = "another"
        assert made.queries.value == ALL
        assert made.engines[0].study == "another"
        rankings = read_run("another", made.engines[0].architecture).rankings["unrestricted"]
        assert shown(made) == rankings[0].tolist()
    finally:
        shutil.rmtree(reports / "another")


def test_what_goes_wrong_is_said(explorer, monkeypatch):
    monkeypatch.setattr(answers, "search", lambda *_, **__: 1 / 0)
    explorer.offered[1].button.click()
    assert "this could not be done: division by zero" in explorer.status.value


def test_the_first_finished_study_is_shown_where_that_asked_for_is_not(finished_study):
    assert engine.first_finished("nothing") == "tiny"
    assert Explorer("nothing").study.value == "tiny"


def test_picture_that_cannot_be_read_says_so_and_keeps_what_is_shown(explorer):
    before = shown(explorer)
    explorer.upload.value = uploaded(b"not a picture")
    assert "mine.png cannot be read" in explorer.status.value
    assert shown(explorer) == before


def test_maps_are_drawn_over_query_and_results(explorer):
    plain = [cell.image.value for cell in explorer.panels[0].cells]
    assert explorer.maps.options == (NO_MAPS, MAPS["similarity"])
    explorer.maps.value = MAPS["similarity"]
    drawn = [cell.image.value for cell in explorer.panels[0].cells]
    assert all(each.count("<img ") == 2 for each in drawn)
    assert explorer.status.value == ""
    assert "trusted was not measured" in explorer.panels[0].note.value
    explorer.maps.value = NO_MAPS
    assert [cell.image.value for cell in explorer.panels[0].cells] == plain
    assert explorer.panels[0].note.value == ""


def test_attention_pooling_shows_its_own_map(explorer):
    explorer.architectures.value = ("cnn", "whitened")
    explorer.maps.value = MAPS["attention"]
    cnn, attending = explorer.panels[:2]
    assert "no attention pooling" in cnn.note.value
    assert all(cell.image.value.count("<img ") == 1 for cell in cnn.cells)
    assert attending.note.value == ""
    opened = explorer.engines[1]
    answer = answers.search(opened, opened.gallery, answers.picture_of_query(opened, 0), 10)
    drawn = panels.overlays(opened, answer, "attention")
    for cell, (asked, found) in zip(attending.cells, drawn, strict=True):
        assert output.address(asked) in cell.image.value
        assert output.address(found) in cell.image.value
    # The first architecture has no such maps: what is chosen goes with the last that has.
    explorer.architectures.value = ("cnn",)
    assert explorer.maps.value == NO_MAPS


def test_how_far_maps_are_to_be_trusted_stands_under_them(explorer, finished_study):
    rows = [
        {"test": test, "against": against, "gain": gain, "p": p, "n_pairs": 40}
        for test, against, gain, p in (
            ("deletion", "random maps", 0.1, 0.001), ("deletion", "maps of other pairs", 0, 0.9),
            ("insertion", "random maps", 0.1, 0.8), ("insertion", "maps of other pairs", -1, 0),
        )
    ]  # fmt: skip
    path = finished_study / "reports" / "tiny" / explanations.FILE
    table = pd.DataFrame(rows).reindex(columns=explanations.COLUMNS)
    tidy.write_csv(table.assign(architecture="cnn"), path)
    explorer.maps.value = MAPS["similarity"]
    path.unlink()
    assert (
        "Tested on 40 pairs, such maps are better than random maps by deletion; not "
        "significantly different from random maps by insertion; worse than maps of other pairs by "
        "insertion; not significantly different from maps of other pairs by deletion."
    ) in explorer.panels[0].note.value


def test_without_a_finished_study_it_says_what_to_do(tmp_path, monkeypatch):
    for name in ("params", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert "run `make report` first" in explore("digits").value


def test_marks_are_one_thing_at_a_time():
    marks = Marks().mark(4, POSITIVE).mark(2, NEGATIVE).mark(4, NEGATIVE)
    assert marks == Marks(positive=(), negative=(2, 4))
    assert (marks.of(4), marks.of(3)) == (NEGATIVE, None)
    assert marks.mark(2, None).all == (4,)
    with pytest.raises(ValueError, match="as_what"):
        marks.mark(1, "perhaps")


def test_without_widgets_the_notebook_shows_an_example_that_does_not_move(finished_study):
    executed = finished_study / "explored.ipynb"
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "explore.ipynb"), str(executed), parameters={"study": "tiny"},
        kernel_name="python3", cwd=str(finished_study), progress_bar=False,
    )  # fmt: skip
    page = finished_study / "explored.html"
    write_page(executed, page, report="tiny", title="explore", links=[])
    assert page.read_text("utf-8").count("<figure") == 1
