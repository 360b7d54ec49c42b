"""Figures show what they were given: hits as hits, misses as misses, numbers with intervals."""

import itertools
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from invented import result, rows
from matplotlib.colors import to_hex

from cbir.reporting import charts, display, image_grids, projections, tables, tidy
from cbir.retrieval import uncertainty

CLASSES = ["circle", "cross", "square"]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def dataset():
    """Nine gallery pictures, each of a grey that tells it, then three queries."""
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2])
    greys = np.arange(12, dtype=np.uint8) * 20
    return SimpleNamespace(
        classes=CLASSES,
        images=np.broadcast_to(greys[:, None, None, None], (12, 8, 8, 3)),
        labels=labels,
        train=np.arange(9),
        gallery=np.arange(9),
        gallery_labels=labels[:9],
        queries=np.arange(9, 12),
        query_labels=labels[9:],
    )


def shown_in(axis) -> int | None:
    """Position of the picture that an axis shows."""
    return int(axis.images[0].get_array()[0, 0, 0]) // 20 if axis.images else None


def frame_of(axis) -> str:
    return to_hex(axis.spines["left"].get_edgecolor()).upper()


def test_results_stand_beside_their_query_hits_and_misses_told_by_frame_and_sign(dataset):
    rankings = np.array([[0, 3, 1], [5, 4, -1], [6, 7, 8]])
    similarities = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, np.nan], [0.4, 0.3, 0.2]])
    answers = {"cnn": (rankings, similarities)}
    figure = image_grids.retrieved(dataset, np.array([0, 1]), answers, k=3)
    one, other = np.array(figure.axes).reshape(2, 4)
    assert [shown_in(axis) for axis in one] == [9, 0, 3, 1]
    assert [axis.get_title() for axis in one] == ["query", "1 ✓ 0.900", "2 ✗ 0.800", "3 ✓ 0.700"]
    assert [axis.get_xlabel() for axis in one] == ["circle", "circle", "cross", "circle"]
    assert [frame_of(axis) for axis in one[1:]] == [display.HIT, display.MISS, display.HIT]
    # A search that finds no more shows no more.
    assert [shown_in(axis) for axis in other] == [10, 5, 4, None]
    assert not other[3].axison


def test_a_gallery_smaller_than_what_is_shown_leaves_places_empty(dataset):
    answers = {"cnn": (np.array([[0, 3]] * 3), np.array([[0.9, 0.8]] * 3))}
    figure = image_grids.retrieved(dataset, np.array([2]), answers, k=4)
    assert [shown_in(axis) for axis in figure.axes] == [11, 0, 3, None, None]


def test_each_architecture_answers_in_a_row_of_its_own(dataset):
    one = (np.array([[0]] * 3), np.array([[0.9]] * 3))
    other = (np.array([[4]] * 3), np.array([[0.9]] * 3))
    figure = image_grids.retrieved(dataset, np.array([0, 1]), {"cnn": one, "vgg": other}, k=1)
    table = np.array(figure.axes).reshape(4, 2)
    assert [[shown_in(axis) for axis in row] for row in table] == [[9, 0], [9, 4], [10, 0], [10, 4]]
    assert [row[0].texts[0].get_text() for row in table] == ["cnn", "vgg", "cnn", "vgg"]


def test_queries_are_chosen_by_their_place_alone(dataset):
    dataset.query_labels = np.array([2, 0, 0, 1, 2])
    assert image_grids.one_query_a_class(dataset).tolist() == [1, 3, 0]
    assert image_grids.one_query_a_class(dataset, most=2).tolist() == [1, 3]


def test_samples_are_training_images_by_class(dataset):
    figure = image_grids.samples(dataset, per_class=4)
    table = np.array(figure.axes).reshape(3, 4)
    expected = [[0, 1, 2, None], [3, 4, 5, None], [6, 7, 8, None]]
    assert [[shown_in(axis) for axis in row] for row in table] == expected
    assert [row[0].texts[0].get_text() for row in table] == CLASSES


def test_each_query_stands_above_what_is_weighed_in_it(dataset):
    maps = np.arange(8).reshape(2, 2, 2) / 28
    figure = image_grids.attention(dataset, maps, np.array([2, 0]))
    above, below = np.array(figure.axes).reshape(2, 2)
    assert [shown_in(axis) for axis in above] == [11, 9]
    assert [axis.get_title() for axis in above] == ["square", "circle"]
    assert [shown_in(axis) for axis in below] == [11, 9]
    for axis, map_ in zip(below, maps, strict=True):
        image, weights = axis.images
        assert np.array_equal(weights.get_array(), map_)
        # Each position lies over its part of the image, which shines through.
        assert weights.get_extent() == image.get_extent()
        assert 0 < weights.get_alpha() < 1
        assert weights.get_cmap()(1.0)[:3] > weights.get_cmap()(0.0)[:3]


@pytest.mark.parametrize("most", [1, 2, 3, 24])
def test_leaking_pairs_stand_one_above_the_other_the_nearest_of_each_query(most, dataset):
    pairs = pd.DataFrame({"query": [0, 0, 1, 2, 2, 2], "gallery": [4, 5, 6, 7, 8, 0]})
    figure = image_grids.leaking_pairs(dataset, pairs, most=most)
    spread = {1: [0], 2: [0, 2]}.get(most, [0, 1, 2])
    above, below = np.array(figure.axes).reshape(2, len(spread))
    assert [shown_in(axis) for axis in above] == [9 + query for query in spread]
    assert [shown_in(axis) for axis in below] == [{0: 4, 1: 6, 2: 7}[query] for query in spread]


def test_many_leaking_pairs_stand_in_rows_of_twelve(dataset):
    dataset.queries = np.arange(9).repeat(4)
    pairs = pd.DataFrame({"query": np.arange(30), "gallery": np.arange(30) % 9})
    figure = image_grids.leaking_pairs(dataset, pairs, most=24)
    table = np.array(figure.axes).reshape(4, 12)
    assert all(axis.images for axis in table.ravel())
    assert shown_in(table[2, 11]) == dataset.queries[29]
    assert shown_in(table[3, 11]) == 29 % 9


def table_of(**scores) -> pd.DataFrame:
    """Rows of metrics.csv from average precisions by architecture."""
    frames = [
        tidy.metrics(rows(each, architecture=name, labels=[0, 0, 1, 1]), CLASSES)
        for name, each in scores.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_the_heat_map_says_each_class_with_its_interval():
    table = table_of(cnn=[0.2, 0.4, 0.9, 0.9], vgg=[0.1, 0.1, 0.5, 0.7])
    figure = charts.per_class(table, "mean_average_precision", "unrestricted")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [
        "0.30\n[0.20,\u00a00.40]", "0.100\n[0.100,\u00a00.100]",
        "0.900\n[0.900,\u00a00.900]", "0.60\n[0.50,\u00a00.70]",
    ]  # fmt: skip
    assert [each.get_text() for each in figure.axes[0].get_yticklabels()] == CLASSES[:2]


def test_the_heat_map_says_no_interval_of_a_single_query():
    table = tidy.metrics(rows([0.5, 0.25], labels=[0, 1]), CLASSES)
    figure = charts.per_class(table, "mean_average_precision", "unrestricted")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.500", "0.250"]


def test_of_very_many_classes_the_hardest_are_shown():
    names = [f"class {label:02d}" for label in range(50)]
    scores = np.random.default_rng(0).permutation(50) / 50
    frame = rows(np.repeat(scores, 2), labels=np.repeat(np.arange(50), 2))
    figure = charts.per_class(tidy.metrics(frame, names), "mean_average_precision", "unrestricted")
    shown = {each.get_text() for each in figure.axes[0].get_yticklabels()}
    assert shown == {names[label] for label in np.argsort(scores)[: display.MOST_ROWS]}


@pytest.mark.parametrize("score", [0.0, 1.0, 0.11779448621553884, 0.017543859649122806])
@pytest.mark.parametrize("n_queries", [1, 2, 3, 97])
def test_queries_that_all_score_alike_can_be_drawn(score, n_queries):
    table = tidy.metrics(rows([score] * n_queries), CLASSES)
    (axis,) = charts.by_search(table).axes
    assert axis.get_legend_handles_labels()[1] == ["unrestricted"]


def test_the_matrix_says_who_is_ahead_and_by_how_much():
    scores = {"cnn": [0.1] * 6, "vgg": [0.5, 0.4] * 3, "pixels": [0.1, 0.2] * 3}
    pairs = uncertainty.compare(pd.DataFrame(scores))
    pairs["is_significant"] = pairs["behind"] == "cnn"
    figure = charts.pair_matrix(uncertainty.outcomes(pairs, list(scores)), pairs)
    # By row and column; the diagonal stays empty.
    texts = [text.get_text().split("\n") for text in figure.axes[0].texts]
    assert [" ".join(text[:2]) for text in texts] == [
        "loss -0.350", "loss -0.050", "win +0.350", "tie +0.30", "win +0.050", "tie -0.30",
    ]  # fmt: skip
    # Seen from the other side, an interval is turned round.
    there, back = (
        np.array(texts[place][2].strip("[]").split(",\u00a0"), float) for place in (0, 2)
    )
    assert there.tolist() == (-back[::-1]).tolist()
    assert there[0] < -0.35 < there[1] < 0


def test_lost_queries_stand_beside_those_won_back():
    counts = {"right": 90, "won back": 3, "lost": 7.5, "queries": 100, "searched": 0.125}
    (axis,) = charts.lost_and_won_back({"cnn": counts, "vgg": counts | {"lost": 0}}).axes
    bars = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
    assert bars == [(0, 3), (3, 7.5), (0, 3), (3, 0)]
    assert [each.get_text() for each in axis.get_yticklabels()] == ["cnn", "vgg"]
    assert axis.texts[0].get_text() == " 10.5 of 100; 12.5 % searched"
    assert axis.get_legend_handles_labels()[1] == ["won back", "lost"]


def test_scores_are_a_row_a_metric_and_a_column_a_search():
    both = pd.concat([rows([0.2, 0.4]), rows([0.0, 1.0], search="predicted_class", searched=0.5)])
    both["precision@5"] = both["precision@10"] = 0.25
    table = tables.scores(tidy.metrics(both, CLASSES))
    assert list(table.columns) == ["metric", "k", "unrestricted", "predicted_class"]
    assert list(zip(table["metric"], table["k"], strict=True)) == [
        ("mean_average_precision", "all"), ("precision", "5"), ("precision", "10"),
        ("gallery_searched", "all"),
    ]  # fmt: skip
    assert str(table["unrestricted"].iloc[0]) == "0.30 [0.20,\u00a00.40]"
    assert str(table["predicted_class"].iloc[3]) == "0.500 [0.500,\u00a00.500]"


def test_numbers_with_intervals_stand_to_the_right_and_texts_to_the_left():
    frame = pd.DataFrame({"cnn": ["0.1 [0.0,\u00a00.2]", "–"], "said": ["yes", "no"], "k": [1, 2]})
    html = display.table(frame, "A caption.").to_html()
    left = re.findall(r"(#T_\w+ (?:th|td)\.col\d|\.col\d)[^{]*\{\s*text-align: left", html)
    assert "A caption." in html
    assert {each[-1] for each in left} == {"1"}
    assert "0.1 [0.0,\u00a00.2]" in html


def test_nothing_is_said_where_there_is_nothing_to_say(monkeypatch):
    said = []
    monkeypatch.setattr(display, "display", said.append)
    display.say("")
    assert said == []
    display.say("**a** is ahead of b")
    assert said[0].data == "**a** is ahead of b"


def test_a_figure_is_shown_once_with_the_text_that_stands_for_it(monkeypatch):
    shown = []
    monkeypatch.setattr(display, "display", lambda figure, metadata: shown.append(metadata))
    figure, _ = plt.subplots(figsize=(4, 2))
    display.show(figure, "Loss by epoch.")
    ((about,),) = [each.values() for each in shown]
    assert about["alt"] == "Loss by epoch."
    assert 250 < about["width"] < 400
    assert not plt.fignum_exists(figure.number)


def test_each_thumbnail_says_its_place_and_its_class(dataset):
    dataset.classes = ["circle", "a class with a long name", "square"]
    answers = {"cnn": (np.array([[0, 3, -1]] * 3), np.array([[0.9, 0.8, np.nan]] * 3))}
    figure = image_grids.retrieved(dataset, np.array([0]), answers, k=3)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["query", "1 ✓ 0.900", "2 ✗ 0.800"]
    assert [axis.get_xlabel() for axis in figure.axes[:3]] == ["circle", "circle", "a class wit…"]


def test_places_and_similarities_fit_over_their_thumbnails(dataset):
    rankings, similarities = np.array([[*range(9), 0]] * 3), np.full((3, 10), 0.99951)
    figure = image_grids.retrieved(dataset, np.array([0]), {"cnn": (rankings, similarities)})
    titles = [axis.title for axis in figure.axes]
    assert titles[10].get_text() == "10 ✓ 1.000"
    boxes = [title.get_window_extent() for title in titles]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_notes_stand_beside_their_queries(dataset):
    one = np.array([[0]] * 3), np.array([[0.9]] * 3)
    answers = {"cnn": one, "vgg": one}
    said = [
        [row[0].texts[0].get_text() for row in np.array(figure.axes).reshape(4, 2)]
        for figure in (
            image_grids.retrieved(dataset, np.array([2, 0]), answers, k=1, notes=["best", "worst"]),
            image_grids.retrieved(
                dataset, [2, 0], answers, 1, notes=[{"cnn": "0.1", "vgg": "0.2"}] * 2
            ),
        )
    ]
    assert said[0] == ["cnn\nbest", "vgg", "cnn\nworst", "vgg"]
    assert said[1] == ["cnn\n0.1", "vgg\n0.2", "cnn\n0.1", "vgg\n0.2"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("cat", "cat"), ("twelve chars", "twelve chars"), ("thirteen char", "thirteen ch…")],
)
def test_long_names_are_shortened(name, shown):
    assert image_grids.shorten(name) == shown
    assert len(shown) <= image_grids.MOST_LETTERS


def test_hubs_stand_in_order_of_how_often_they_are_returned(dataset):
    counts = pd.DataFrame(
        {"returned": [0, 5, 0, 2, 5, 0, 0, 0, 0], "wrongly": [0, 1, 0, 2, 4] + [0] * 4}
    )
    figure = image_grids.hubs(dataset, {"cnn": counts}, most=4)
    assert [shown_in(axis) for axis in figure.axes] == [1, 4, 3, None]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["1: × 5", "2: × 5", "3: × 2"]
    assert figure.axes[2].get_xlabel() == "cross\n✗ 100 %"
    assert [frame_of(axis) for axis in figure.axes[:3]] == [display.HIT, display.MISS, display.MISS]


def map_of(labels, method="pca", **changes) -> projections.Projection:
    """A map whose points lie where their labels are."""
    shown = np.arange(len(labels))
    points = np.stack([labels, shown], axis=1).astype(np.float32)
    given = {"queries": shown, "points": points, "kept": 0.5, "variance": 0.25} | changes
    return projections.Projection(method, **given)


def points_of(axis) -> list[list]:
    return [np.asarray(each.get_offsets()).tolist() for each in axis.collections]


def test_a_map_has_a_colour_and_a_marker_a_class_and_rings_the_wrong(dataset):
    labels = dataset.query_labels = np.array([2, 0, 1, 1])
    predicted = {"cnn": np.array([2, 1, 1, 0]), "random": np.full(4, -1)}
    drawn = {"cnn": map_of(labels), "random": map_of(labels, "tsne", variance=None)}
    figure = projections.figure(dataset, drawn, predicted)
    one, other = figure.axes
    # Others (none), the three classes, then the rings.
    assert points_of(one) == [[], [[0, 1]], [[1, 2], [1, 3]], [[2, 0]], [[0, 1], [1, 3]]]
    assert points_of(other)[-1] == []
    assert (one.get_title(), one.get_xlabel()) == (
        "cnn, PCA", "25 % of the variance, trustworthiness 0.50",
    )  # fmt: skip
    assert (other.get_title(), other.get_xlabel()) == ("random, t-SNE", "trustworthiness 0.50")
    handles = figure.legends[0].legend_handles
    assert [each.get_label() for each in handles] == [*CLASSES, "classified wrongly"]
    looks = {(each.get_color(), each.get_marker()) for each in handles[:3]}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 3


def test_a_map_shows_a_part_of_the_queries_with_their_own_classes(dataset):
    dataset.query_labels = np.array([0, 1, 2, 0, 1, 2])
    part = map_of(np.array([1, 2]), queries=np.array([1, 5]))
    (axis,) = projections.figure(dataset, {"PCA": part}, np.array([0, 0, 0, 0, 0, 2])).axes
    assert points_of(axis) == [[], [], [[1, 0]], [[2, 1]], [[1, 0]]]
    assert axis.get_title() == "PCA"


def test_of_many_classes_the_most_confused_are_told_apart(dataset):
    dataset.classes = [f"class {label}" for label in range(14)]
    labels = dataset.query_labels = np.tile(np.arange(14), 3)
    wrong = np.isin(labels, [3, 13])
    figure = projections.figure(dataset, {"cnn": map_of(labels)}, np.where(wrong, 0, labels))
    named = [each.get_label() for each in figure.legends[0].legend_handles]
    assert named[-2:] == ["other classes", "classified wrongly"]
    assert len(named) == len(projections.CLASS_COLOURS) + 2
    assert {"class 3", "class 13"} < {*named}
    others = figure.axes[0].collections[0]
    assert len(others.get_offsets()) == 4 * 3


def test_ten_classes_differ_in_colour_and_in_marker():
    assert len({*projections.CLASS_COLOURS}) == len({*projections.CLASS_MARKERS}) == 10


def costs_of(**values) -> pd.DataFrame:
    """mAP, milliseconds and bytes by name; the last one is a baseline."""
    table = pd.DataFrame(values, index=["value", "milliseconds", "bytes"]).T
    table = table.assign(ci_low=table["value"] - 0.01, ci_high=table["value"] + 0.01)
    return table.assign(is_baseline=[False] * (len(table) - 1) + [True])


def test_each_point_stands_at_its_cost_with_its_name():
    table = costs_of(cnn=[0.5, 2, 1024], vgg=[0.51, 40, 2048], random=[0.1, 0.001, 512])
    figure = charts.against_cost(table)
    for axis, cost in zip(figure.axes, ("milliseconds", "bytes"), strict=True):
        marks = [each.lines[0] for each in axis.containers]
        assert [each.get_xdata()[0] for each in marks] == table[cost].tolist()
        assert [each.get_ydata()[0] for each in marks] == table["value"].tolist()
        assert [each.get_markerfacecolor() == "none" for each in marks] == [False, False, True]
        assert len({each.get_marker() for each in marks}) == 3
        assert {each.get_text(): each.xy[0] for each in axis.texts} == table[cost].to_dict()
        boxes = [each.get_window_extent() for each in axis.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert axis.get_xscale() == "log"


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.5, 0.52, 0.54], [0.42, 0.52, 0.62]),
        ([0.3, 0.35, 0.38], [0.243333, 0.343333, 0.443333]),
    ],
)
def test_heights_are_moved_apart_around_their_mean(heights, expected):
    spread = charts.spread_out(pd.Series(heights), 0.1)
    assert spread.sort_index().tolist() == pytest.approx(expected, abs=1e-5)


def test_what_a_run_costs_is_told_for_an_image():
    run = result(rows([0.25, 0.75]), index_bytes=5_120_000)
    found = {"cnn": run}
    (row,) = tables.quality_and_cost(run.averaged, found).itertuples()
    # 1,000 images a second; 5,000 images in the gallery.
    assert (row.value, row.milliseconds, row.bytes, row.is_baseline) == (0.5, 1, 1024, False)


def history_of(epochs: int) -> pd.DataFrame:
    columns = ["accuracy", "loss", "val_accuracy", "val_loss"]
    return pd.DataFrame(0.5, index=range(1, epochs + 1), columns=columns)


@pytest.mark.parametrize("epochs", [1, 3, 12, 13, 200])
def test_curves_are_told_apart_by_marker_and_parts_by_their_line(epochs):
    names = ["cnn", "resnet50", "vgg16"]
    figure = charts.training_curves({name: history_of(epochs) for name in names})
    for axis in figure.axes:
        lines = {tuple(line.get_label().split(", ")): line for line in axis.lines}
        assert list(lines) == [
            (name, part) for name in names for part in ("training", "validation")
        ]
        for name in names:
            looks = {
                (lines[name, part].get_color(), lines[name, part].get_marker())
                for part in ("training", "validation")
            }
            assert looks == {display.look(name)}
            assert lines[name, "training"].get_linestyle() == "-"
            assert lines[name, "validation"].get_linestyle() == "--"
            shown = range(epochs)[:: lines[name, "training"].get_markevery()]
            assert min(epochs, 6) <= len(shown) <= charts.MOST_MARKERS


def test_an_architecture_looks_the_same_in_every_figure_and_like_no_other(monkeypatch):
    monkeypatch.setattr(display, "_places", {})
    names = [f"architecture {number}" for number in range(12)]
    looks = {name: display.look(name) for name in names}
    assert looks["architecture 0"] == (display.PALETTE[0], display.MARKERS[0])
    assert len(set(looks.values())) == len(names)
    assert {name: display.look(name) for name in reversed(names)} == looks


def test_a_run_without_epochs_has_no_curve_and_breaks_none():
    figure = charts.training_curves({"cnn": history_of(0), "vgg16": history_of(2)})
    figure.canvas.draw()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [0, 0, 2, 2]
