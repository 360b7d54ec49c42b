"""The explorer: it searches, shows results and writes the call that restores its state."""

import dataclasses
import io
import shutil
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

from cbir import StudyError
from cbir.reporting import explanations, measurements, tables
from cbir.reporting.notebook_html import write_page
from cbir.reporting.runs import Run, read_run
from cbir.retrieval.feedback import Rocchio
from cbir.search import answers, explorer
from cbir.search.answers import Result
from cbir.search.explorer import LARGE, WORST, Explorer, group_copies, image_url, map_overlays
from cbir.search.searchers import best_architecture, first_finished

QUERY = "data/shapes/circle/circle-00.png"


@pytest.fixture
def tiny(finished_study):
    return Explorer("tiny", architectures=["cnn"])


def change(widget: Explorer, **values) -> None:
    """Change a choice as the browser does."""
    widget.choice = widget.choice | values
    assert not widget.is_busy


def result_positions(widget: Explorer, panel=0) -> list[int]:
    """Gallery positions of the results of a panel, in order."""
    return [result["id"] for result in widget.panels[panel]["results"]]


def panel_text(widget: Explorer, panel=0) -> str:
    return " ".join(widget.panels[panel]["lines"])


def first_searcher(widget: Explorer):
    return widget.open(widget.choice["study"], widget.choice["architectures"][0])


def send(widget: Explorer, content: bytes, parts=1) -> None:
    """Send a file in parts, as the browser does."""
    step = -(-len(content) // parts)
    for start in range(0, len(content), step):
        message = {"name": "mine; 1.png", "is_first": not start}
        message["is_last"] = start + step >= len(content)
        widget._handle_custom_msg(message, [memoryview(content[start : start + step])])


def test_the_explorer_opens_with_the_first_query_and_the_best_architecture(finished_study):
    widget, best = Explorer("tiny"), best_architecture("tiny")
    assert widget.choice["architectures"] == [best]
    assert result_positions(widget) == read_run("tiny", best).rankings["unrestricted"][0].tolist()
    assert "Predicted: " in panel_text(widget)
    assert (widget.status, widget.is_busy) == ("", False)


def test_results_depend_on_k_search_and_query(tiny):
    run = read_run("tiny", "cnn")
    change(tiny, k=4)
    assert result_positions(tiny) == run.rankings["unrestricted"][0, :4].tolist()
    change(tiny, search="predicted_class")
    assert result_positions(tiny) == run.rankings["predicted_class"][0, :4].tolist()
    change(tiny, query=5)
    assert result_positions(tiny) == run.rankings["predicted_class"][5, :4].tolist()
    label = run.dataset.classes[run.dataset.query_labels[5]]
    labels = [result["label"] for result in tiny.panels[0]["results"]]
    assert f"{labels.count(label)} of 4 results are of its class, {label}." in panel_text(tiny)
    assert [result["is_hit"] for result in tiny.panels[0]["results"]] == [
        result_label == label for result_label in labels
    ]


def test_architectures_are_shown_side_by_side(tiny):
    change(tiny, architectures=["cnn", "whitened"])
    assert [panel["architecture"] for panel in tiny.panels] == ["cnn", "whitened"]
    for panel, name in enumerate(("cnn", "whitened")):
        rankings = read_run("tiny", name).rankings["unrestricted"]
        assert result_positions(tiny, panel) == rankings[0].tolist()


def test_queries_can_be_chosen_by_class_by_score_and_by_page(tiny, monkeypatch):
    dataset = first_searcher(tiny).run.dataset

    def choices() -> list[int]:
        return [picture["id"] for picture in tiny.queries["pictures"]]

    assert choices() == list(range(12))
    change(tiny, label="square")
    assert choices() == np.flatnonzero(dataset.query_labels == 2).tolist()
    scores = tables.average_precision_by_seed(read_run("tiny", "cnn")).mean(axis=1)
    change(tiny, label="", order=WORST)
    worst = [scores.loc[dataset.queries[query]] for query in choices()]
    assert worst == sorted(worst)
    assert len(worst) == 12
    monkeypatch.setattr(explorer, "QUERIES_PER_PAGE", 5)
    change(tiny, order="in order", page=1)
    assert (tiny.queries["start"], tiny.queries["total"], choices()) == (6, 12, [5, 6, 7, 8, 9])


def test_used_marks_change_the_query_and_are_not_returned(tiny):
    searcher = first_searcher(tiny)
    searcher.__dict__["chosen_weights"] = Rocchio(1.0, 2.0, 0.5)
    before = result_positions(tiny)
    change(tiny, positive=[before[3]], negative=[before[0]])
    assert result_positions(tiny) == before  # until the next search
    assert [(mark["id"], mark["sign"]) for mark in tiny.marked] == [
        (before[3], "positive"), (before[0], "negative"),
    ]  # fmt: skip
    change(tiny, used=[[before[3]], [before[0]]])
    vectors = searcher.gallery.vectors
    (answer,) = answers.search_all(
        searcher, searcher.gallery, [answers.picture_of_query(searcher, 0)], 10,
        positive=vectors[[before[3]]], negative=vectors[[before[0]]],
        left_out=[{before[3], before[0]}],
    )  # fmt: skip
    assert result_positions(tiny) == [result.position for result in answer.results]
    assert "0.5 negative" in panel_text(tiny)


def test_copies_of_a_picture_share_one_rank_and_its_mark(tiny):
    searcher = first_searcher(tiny)
    searcher.__dict__["chosen_weights"] = Rocchio(1.0, 0.0, 0.0)  # the ranking stays
    before, gallery = searcher.run.rankings["unrestricted"][0].tolist(), searcher.gallery
    copies, labels = before[:8], gallery.labels.copy()
    labels[copies] = 0
    searcher.__dict__["gallery"] = dataclasses.replace(
        gallery,
        labels=labels,
        image=lambda position: gallery.image(copies[0] if position in copies else position),
    )
    change(tiny, k=9)
    assert result_positions(tiny)[:3] == [before[0], *before[8:]]
    assert len(result_positions(tiny)) == 9
    assert tiny.panels[0]["results"][0]["copies"] == copies[1:]
    assert [result["rank"] for result in tiny.panels[0]["results"]] == list(range(1, 10))
    change(tiny, positive=[copies[2]], used=[[copies[2]], []])
    assert result_positions(tiny)[:2] == before[8:]


def test_copies_are_grouped_within_one_class():
    random = np.random.default_rng(0)
    pictures = random.integers(0, 200, (3, 32, 32, 3), dtype=np.uint8)
    brighter = pictures[1] + 20
    images = [pictures[0], pictures[1], pictures[0], brighter, pictures[2], pictures[0]]
    gallery = SimpleNamespace(image=lambda position: images[position])
    results = [
        Result(rank, 0.9, label, str(rank), rank, gallery) for rank, label in enumerate("aaaaab")
    ]
    groups = [[result.rank for result in group] for group in group_copies(results)]
    assert groups == [[0, 2], [1, 3], [4], [5]]
    assert group_copies([]) == []


def test_an_uploaded_picture_is_searched(tiny, finished_study):
    content = (finished_study / "data/shapes/cross/cross-03.png").read_bytes()
    change(tiny, positive=result_positions(tiny)[:1])
    send(tiny, content, parts=3)
    searcher = first_searcher(tiny)
    square = np.asarray(Image.open(io.BytesIO(content)).resize((32, 32), Image.BICUBIC))
    (picture,) = answers.embed_pictures(searcher, {"mine": square})
    (answer,) = answers.search_all(searcher, searcher.gallery, [picture], 10)
    assert result_positions(tiny) == [result.position for result in answer.results]
    assert (tiny.query["name"], tiny.query["label"], tiny.marked) == ("mine  1.png", "", [])
    assert {result["is_hit"] for result in tiny.panels[0]["results"]} == {None}
    change(tiny, query=0)
    assert (
        tiny.query["name"] == first_searcher(tiny).run.image_names[searcher.run.dataset.queries[0]]
    )
    send(tiny, content)
    assert result_positions(tiny) == [result.position for result in answer.results]
    change(tiny, architectures=["whitened"])
    assert tiny.panels[0]["architecture"] == "whitened"


def test_an_unreadable_upload_is_reported_and_keeps_the_results(tiny):
    before = tiny.panels
    send(tiny, b"not a picture")
    assert "mine; 1.png cannot be read" in tiny.status
    assert (tiny.panels, tiny.is_busy) == (before, False)
    # An incompletely copied call.
    change(tiny, query="data:image/png;name=mine;base64,aGVsbG8=")
    assert "failed" not in tiny.status
    assert tiny.status


def restore(widget: Explorer) -> Explorer:
    return eval(widget.code, {"explorer": explorer})  # as a notebook cell


def test_the_call_restores_the_explorer(tiny, finished_study):
    change(tiny, k=5, query=3, architectures=["whitened", "cnn"], search="soft", order=WORST)
    positive, negative = result_positions(tiny)[:2]
    marks = {"positive": [positive], "negative": [negative]}
    change(tiny, **marks, used=[[positive], [negative]])
    assert first_searcher(tiny).gallery.names[positive] in tiny.code
    restored_widget = restore(tiny)
    assert restored_widget.choice == tiny.choice
    assert restored_widget.panels == tiny.panels
    send(tiny, (finished_study / QUERY).read_bytes())
    restored_widget = restore(tiny)
    assert (restored_widget.panels, restored_widget.query) == (tiny.panels, tiny.query)


def test_a_query_can_be_given_by_its_path(tiny, finished_study):
    send(tiny, (finished_study / QUERY).read_bytes())
    opened_by_path = Explorer("tiny", architectures=["cnn"], query=QUERY)
    assert result_positions(opened_by_path) == result_positions(tiny)
    assert opened_by_path.query["name"] == "circle-00.png"


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (
            {"query": "nothing.png"},
            "nothing.png is neither a query of the study nor a file: correct",
        ),
        ({"query": "reports/tiny/cnn/summary.json"}, "summary.json cannot be read: not a picture"),
        ({"positive": ["nothing.png"]}, "no picture 'nothing.png' in the gallery"),
        ({"architectures": ["nothing"]}, "no trained architecture 'nothing'"),
    ],
)
def test_missing_pictures_and_architectures_are_reported(finished_study, choice, reason):
    widget = Explorer("tiny", **choice)
    assert reason in widget.status
    assert not widget.is_busy


def test_unknown_choices_are_refused(finished_study):
    with pytest.raises(TypeError, match="unknown: kk; known: study, "):
        Explorer("tiny", kk=3)


def test_an_unreadable_study_is_reported_and_another_can_be_chosen(finished_study, monkeypatch):
    reports = finished_study / "reports"
    shutil.copytree(reports / "tiny", reports / "another")
    dataset = Run.dataset.func

    def moved(run):
        if run.study == "another":
            raise StudyError("no folder data/shapes")
        return dataset(run)

    try:
        monkeypatch.setattr(Run, "dataset", property(moved))
        widget = Explorer("another")
        assert widget.status == "no folder data/shapes"
        assert (widget.panels, widget.queries, widget.is_busy) == ([], {}, False)
        widget.choice = {"study": "tiny"}
        assert widget.status == ""
        assert len(result_positions(widget)) == 10
        widget.choice = {"study": "another"}
        assert (widget.panels, widget.query, widget.is_busy) == ([], {}, False)
    finally:
        shutil.rmtree(reports / "another")


def test_errors_are_shown(tiny, monkeypatch):
    monkeypatch.setattr(answers, "search_all", lambda *_, **__: 1 / 0)
    change(tiny, query=1)
    assert "The search failed: ZeroDivisionError" in tiny.status
    assert tiny.panels == []


def test_first_finished_study_replaces_an_unfinished_one(finished_study):
    assert first_finished("nothing") == "tiny"
    assert Explorer("nothing").choice["study"] == "tiny"


def test_without_a_finished_study_the_status_says_what_to_run(tmp_path, monkeypatch):
    for name in ("params", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert "run `make report` first" in Explorer("digits").status


def test_similarity_maps_are_drawn_over_each_result_and_the_query(tiny):
    assert list(tiny.options["maps"]) == ["", "similarity"]
    change(tiny, k=3, heat_maps="similarity")
    searcher = first_searcher(tiny)
    query = answers.picture_of_query(searcher, 0)
    (answer,) = answers.search_all(searcher, searcher.gallery, [query], 3)
    pairs = map_overlays(searcher, answer, answer.results)
    assert tiny.panels[0]["overlays"] == [
        [image_url(image, LARGE) for image in pair] for pair in pairs
    ]
    assert tiny.panels[0]["note"] == "These maps have not been tested."
    change(tiny, heat_maps="")
    assert not {"overlays", "note"} & tiny.panels[0].keys()


def test_attention_maps_require_attention_pooling(tiny):
    change(tiny, architectures=["cnn", "whitened"], heat_maps="attention", k=3)
    first, second = tiny.panels
    assert "overlays" not in first
    assert "No attention pooling" in first["note"]
    assert (len(second["overlays"]), second["note"]) == (3, "")
    change(tiny, architectures=["cnn"], heat_maps="")
    assert list(tiny.options["maps"]) == ["", "similarity"]


def test_the_reliability_of_maps_is_shown_below_them(tiny, finished_study):
    rows = [
        {"test": test, "against": against, "gain": gain, "p": p, "n_queries": 40}
        for test, against, gain, p in (
            ("deletion", "random maps", 0.1, 0.001), ("deletion", "maps of other pairs", 0, 0.9),
            ("insertion", "random maps", 0.1, 0.8), ("insertion", "maps of other pairs", -1, 0),
        )
    ]  # fmt: skip
    path = finished_study / "reports" / "tiny" / explanations.FILE
    measurements.write_csv(pd.DataFrame(rows).assign(architecture="cnn"), path)
    text = explanations.trust("tiny", "cnn")
    change(tiny, k=1, heat_maps="similarity")
    path.unlink()
    assert text.startswith("Tested on 40 pairs")
    assert text == tiny.panels[0]["note"]


def test_the_map_has_a_point_for_every_query(tiny):
    assert tiny.points == {}
    change(tiny, is_map=True)
    points = np.array(tiny.points["points"])
    assert tiny.points["ids"] == list(range(12))
    assert points.min(axis=0).tolist() == [0, 0]
    assert points.max(axis=0).tolist() == [100, 100]
    assert tiny.points["labels"] == first_searcher(tiny).run.dataset.query_labels.tolist()
    assert tiny.points["caption"] == "cnn: PCA of 12 queries"
    assert tiny.status == ""


def test_the_notebook_shows_an_example_without_widgets(finished_study):
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
