"""Figures show what they were given: hits as hits, misses as misses, numbers with intervals."""

import itertools
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


@pytest.fixture
def drawn(monkeypatch):
    """Figures of pictures are not drawn: each is the rows and the names that it is drawn from."""
    keep = lambda rows, names=(): SimpleNamespace(rows=rows, names=names)  # noqa: E731
    monkeypatch.setattr(image_grids, "grid", keep)


def position(picture) -> int | None:
    """Which of the pictures it is."""
    return int(picture.pixels[0, 0, 0]) // 20 if picture else None


def positions(figure) -> list[list]:
    return [[position(picture) for picture in row] for row in figure.rows]


def column(figure, name: str, row=0) -> list[str]:
    return [getattr(picture, name) for picture in figure.rows[row] if picture]


def test_results_stand_beside_their_query_hits_and_misses_told_by_frame_and_sign(dataset, drawn):
    rankings = np.array([[0, 3, 1], [5, 4, -1], [6, 7, 8]])
    similarities = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, np.nan], [0.4, 0.3, 0.2]])
    answers = {"cnn": (rankings, similarities)}
    figure = image_grids.retrieved(dataset, np.array([0, 1]), answers, k=3)
    # A search that finds no more shows no more.
    assert positions(figure) == [[9, 0, 3, 1], [10, 5, 4, None]]
    assert column(figure, "above") == ["query", "1 ✓ 0.900", "2 ✗ 0.800", "3 ✓ 0.700"]
    assert column(figure, "below") == ["circle", "circle", "cross", "circle"]
    assert column(figure, "colour")[1:] == [display.HIT, display.MISS, display.HIT]
    assert all(column(figure, "is_framed"))


def test_a_gallery_smaller_than_what_is_shown_leaves_places_empty(dataset, drawn):
    answers = {"cnn": (np.array([[0, 3]] * 3), np.array([[0.9, 0.8]] * 3))}
    figure = image_grids.retrieved(dataset, np.array([2]), answers, k=4)
    assert positions(figure) == [[11, 0, 3]]


def test_each_architecture_answers_in_a_row_of_its_own(dataset, drawn):
    one = (np.array([[0]] * 3), np.array([[0.9]] * 3))
    other = (np.array([[4]] * 3), np.array([[0.9]] * 3))
    figure = image_grids.retrieved(dataset, np.array([0, 1]), {"cnn": one, "vgg": other}, k=1)
    assert positions(figure) == [[9, 0], [9, 4], [10, 0], [10, 4]]
    assert figure.names == ["cnn", "vgg", "cnn", "vgg"]


def test_queries_are_chosen_by_their_place_alone(dataset):
    dataset.query_labels = np.array([2, 0, 0, 1, 2])
    assert image_grids.one_query_a_class(dataset).tolist() == [1, 3, 0]
    assert image_grids.one_query_a_class(dataset, most=2).tolist() == [1, 3]


def test_samples_are_training_images_by_class(dataset, drawn):
    figure = image_grids.samples(dataset, per_class=2)
    assert positions(figure) == [[0, 1], [3, 4], [6, 7]]
    assert figure.names == CLASSES


def test_each_query_stands_above_what_is_weighed_in_it(dataset, drawn):
    maps = np.stack([[[0, 0], [0, 1]], [[0.5, 0], [0, 0]]])
    figure = image_grids.attention(dataset, maps, np.array([2, 0]))
    assert [position(picture) for picture in figure.rows[0]] == [11, 9]
    assert column(figure, "above") == ["square", "circle"]
    # The position of most weight is the brightest, and the picture shines through the rest.
    for picture, brightest in zip(figure.rows[1], ((-1, -1), (0, 0)), strict=True):
        bright = picture.pixels.sum(axis=2)
        assert bright[brightest] == bright.max() > bright.min() > 0


@pytest.mark.parametrize("most", [1, 2, 3, 24])
def test_leaking_pairs_stand_one_above_the_other_the_nearest_of_each_query(most, dataset, drawn):
    pairs = pd.DataFrame({"query": [0, 0, 1, 2, 2, 2], "gallery": [4, 5, 6, 7, 8, 0]})
    figure = image_grids.leaking_pairs(dataset, pairs, most=most)
    spread = {1: [0], 2: [0, 2]}.get(most, [0, 1, 2])
    assert positions(figure) == [
        [9 + query for query in spread], [{0: 4, 1: 6, 2: 7}[query] for query in spread],
    ]  # fmt: skip


def test_many_leaking_pairs_stand_in_rows_of_twelve(dataset, drawn):
    dataset.queries = np.arange(9).repeat(4)
    pairs = pd.DataFrame({"query": np.arange(30), "gallery": np.arange(30) % 9})
    figure = image_grids.leaking_pairs(dataset, pairs, most=24)
    assert [len(row) for row in figure.rows] == [12] * 4
    assert position(figure.rows[2][11]) == dataset.queries[29]
    assert position(figure.rows[3][11]) == 29 % 9


def test_where_nothing_leaks_there_is_no_figure(dataset):
    assert image_grids.leaking_pairs(dataset, pd.DataFrame(columns=["query", "gallery"])) is None
    assert image_grids.retrieved(dataset, np.array([], int), {}) is None


def picture_of(grey: int, *texts: str, **changes) -> image_grids.Picture:
    return image_grids.Picture(np.full((8, 8, 3), grey, np.uint8), *texts, **changes)


def test_a_grid_is_one_image_with_texts_around_each_of_its_pictures():
    one = picture_of(10, "above", "below", colour=display.HIT, is_framed=True)
    figure = image_grids.grid([[one, picture_of(20)], [None, picture_of(30, "third")]], ["a", "b"])
    (axis,) = figure.axes
    (image,) = axis.images
    canvas = image.get_array()[..., 0]
    places = {grey: np.argwhere(canvas == grey) for grey in (10, 20, 30)}
    assert all(len(place) == 64 for place in places.values())
    top, left = places[10].min(axis=0)
    assert places[20].min(axis=0).tolist() == [top, places[30].min(axis=0)[1]]
    texts = {text.get_text(): text for text in axis.texts if text.get_text()}
    assert set(texts) == {"above", "below", "third", "a", "b"}
    assert to_hex(texts["above"].get_color()).upper() == display.HIT
    heights = [texts[name].get_position()[1] for name in ("above", "below", "third")]
    assert heights[0] < top < top + 8 < heights[1] < heights[2]
    assert texts["above"].get_position()[0] == left + 4
    (frames,) = axis.collections
    assert [to_hex(colour).upper() for colour in frames.get_edgecolors()] == [display.HIT]
    assert image_grids.grid([[], [None]]) is None


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
    figure = charts.pair_matrix(uncertainty.pair_outcomes(pairs, list(scores)), pairs)
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
    run = SimpleNamespace(first_rows=lambda: tidy.metrics(both, CLASSES))
    table = tables.scores(run)
    assert list(table.columns) == ["metric", "k", "unrestricted", "predicted_class"]
    assert list(zip(table["metric"], table["k"], strict=True)) == [
        ("mean_average_precision", "all"), ("precision", "5"), ("precision", "10"),
        ("gallery_searched", "all"),
    ]  # fmt: skip
    assert str(table["unrestricted"].iloc[0]) == "0.30 [0.20,\u00a00.40]"
    assert str(table["predicted_class"].iloc[3]) == "0.500 [0.500,\u00a00.500]"


def test_each_thumbnail_says_its_place_and_its_class(dataset, drawn):
    dataset.classes = ["circle", "a class with a long name", "square"]
    answers = {"cnn": (np.array([[0, 3, -1]] * 3), np.array([[0.9, 0.8, np.nan]] * 3))}
    figure = image_grids.retrieved(dataset, np.array([0]), answers, k=3)
    assert column(figure, "above") == ["query", "1 ✓ 0.900", "2 ✗ 0.800"]
    assert column(figure, "below") == ["circle", "circle", "a class wit…"]


def test_places_and_similarities_fit_over_their_thumbnails(dataset):
    rankings, similarities = np.array([[*range(9), 0]] * 3), np.full((3, 10), 0.99951)
    figure = image_grids.retrieved(dataset, np.array([0]), {"cnn": (rankings, similarities)})
    titles = [text for text in figure.axes[0].texts if text.get_text().endswith("1.000")]
    assert titles[-1].get_text() == "10 ✓ 1.000"
    boxes = [title.get_window_extent() for title in titles]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_notes_stand_beside_their_queries(dataset, drawn):
    one = np.array([[0]] * 3), np.array([[0.9]] * 3)
    answers = {"cnn": one, "vgg": one}
    by_query = image_grids.retrieved(dataset, np.array([2, 0]), answers, 1, ["best", "worst"])
    assert by_query.names == ["cnn\nbest", "vgg", "cnn\nworst", "vgg"]
    notes = [{"cnn": "0.1", "vgg": "0.2"}] * 2
    by_row = image_grids.retrieved(dataset, np.array([2, 0]), answers, 1, notes)
    assert by_row.names == ["cnn\n0.1", "vgg\n0.2", "cnn\n0.1", "vgg\n0.2"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("cat", "cat"), ("twelve chars", "twelve chars"), ("thirteen char", "thirteen ch…")],
)
def test_long_names_are_shortened(name, shown):
    assert image_grids.shorten(name) == shown
    assert len(shown) <= image_grids.MOST_LETTERS


def test_hubs_stand_in_order_of_how_often_they_are_returned(dataset, drawn):
    counts = pd.DataFrame(
        {"returned": [0, 5, 0, 2, 5, 0, 0, 0, 0], "wrongly": [0, 1, 0, 2, 4] + [0] * 4}
    )
    figure = image_grids.hubs(dataset, {"cnn": counts}, most=4)
    assert positions(figure) == [[1, 4, 3]]
    assert column(figure, "above") == ["1: × 5", "2: × 5", "3: × 2"]
    assert column(figure, "below")[2] == "cross\n✗ 100 %"
    assert column(figure, "colour") == [display.HIT, display.MISS, display.MISS]
    assert figure.names == ["cnn"]


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
    (row,) = tables.quality_and_cost({"cnn": run}).itertuples()
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
            assert looks == {display.looks(names)[name]}
            assert lines[name, "training"].get_linestyle() == "-"
            assert lines[name, "validation"].get_linestyle() == "--"
            shown = range(epochs)[:: lines[name, "training"].get_markevery()]
            assert min(epochs, 6) <= len(shown) <= charts.MOST_MARKERS


def test_an_architecture_looks_the_same_in_every_figure_and_like_no_other():
    names = [f"architecture {number}" for number in range(len(display.LOOKS))]
    names = [*display.KNOWN, *names][: len(display.LOOKS)]
    all_looks = display.looks(names)
    assert len(set(display.LOOKS)) == len(set(all_looks.values())) == len(names)
    assert display.looks(reversed(names)) == all_looks
    assert all_looks["cnn"] == display.looks(["mine", "cnn"])["cnn"] == display.LOOKS[0]
    assert display.looks(["mine"])["mine"] == display.looks(["mine", "cnn", "other"])["mine"]
    # More than there are looks still have one each.
    assert len(display.looks(map(str, range(60)))) == 60


def test_a_run_without_epochs_has_no_curve_and_breaks_none():
    figure = charts.training_curves({"cnn": history_of(0), "vgg16": history_of(2)})
    figure.canvas.draw()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [0, 0, 2, 2]
