"""Montages show the expected images, and mark hits and misses."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cbir.reporting import display, montages

pytestmark = pytest.mark.usefixtures("closed_figures")

CLASSES = ["circle", "cross", "square"]


@pytest.fixture
def dataset():
    """Nine gallery images, then three queries, all of different greys."""
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
def montage_rows(monkeypatch):
    """Replaces montages by their rows and names, without drawing them."""
    record = lambda rows, names=(), inches=0: SimpleNamespace(rows=rows, names=names)  # noqa: E731
    monkeypatch.setattr(montages, "montage", record)


def position(tile) -> int | None:
    """The position in the data set of a tile's image."""
    return int(tile.pixels[0, 0, 0]) // 20 if tile else None


def positions(figure) -> list[list]:
    return [[position(tile) for tile in row] for row in figure.rows]


def column(figure, name: str, row=0) -> list[str]:
    return [getattr(tile, name) for tile in figure.rows[row] if tile]


def test_results_follow_their_query_with_hits_and_misses_marked(dataset, montage_rows):
    rankings = np.array([[0, 3, 1], [5, 4, -1], [6, 7, 8]])
    similarities = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, np.nan], [0.4, 0.3, 0.2]])
    neighbours = {"cnn": (rankings, similarities)}
    figure = montages.retrieved(dataset, np.array([0, 1]), neighbours)
    # A search with fewer results has fewer tiles.
    assert positions(figure) == [[9, 0, 3, 1], [10, 5, 4, None]]
    assert column(figure, "above") == ["query", "1: 0.900", "2: 0.800", "3: 0.700"]
    assert column(figure, "sign") == ["", "", "✗", ""]
    assert column(figure, "below") == ["circle", "circle", "cross", "circle"]
    assert column(figure, "colour")[1:] == [display.HIT, display.MISS, display.HIT]
    assert all(column(figure, "is_framed"))


def test_a_small_gallery_gives_fewer_tiles(dataset, montage_rows):
    neighbours = {"cnn": (np.array([[0, 3]] * 3), np.array([[0.9, 0.8]] * 3))}
    figure = montages.retrieved(dataset, np.array([2]), neighbours)
    assert positions(figure) == [[11, 0, 3]]


def test_every_architecture_has_a_row_per_query(dataset, montage_rows):
    cnn = (np.array([[0]] * 3), np.array([[0.9]] * 3))
    vgg = (np.array([[4]] * 3), np.array([[0.9]] * 3))
    figure = montages.retrieved(dataset, np.array([0, 1]), {"cnn": cnn, "vgg": vgg})
    # Each query is shown once.
    assert positions(figure) == [[9, 0], [None, 4], [10, 0], [None, 4]]
    assert figure.names == ["cnn", "vgg", "cnn", "vgg"]


def test_several_queries_are_shown_side_by_side(dataset, montage_rows):
    cnn = (np.array([[0, 3, 4]] * 3), np.array([[0.9, 0.8, 0.7]] * 3))
    vgg = (np.array([[4, -1, -1]] * 3), np.array([[0.9, np.nan, np.nan]] * 3))
    queries = {"easy": 0, "hard": 2}
    figure = montages.side_by_side(dataset, queries, {"cnn": cnn, "vgg": vgg}, most=2)
    assert positions(figure) == [[9, 0, 3, 11, 0, 3], [None, 4, None, None, 4, None]]
    assert column(figure, "above") == ["easy", "", "", "hard", "", ""]
    assert column(figure, "sign") == ["", "", "✗", "", "✗", "✗"]
    assert column(figure, "sign", row=1) == ["✗", "✗"]
    assert figure.names == ["cnn", "vgg"]


def test_large_images_are_reduced_to_the_largest_side():
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    figure = montages.montage([[montages.Tile(noise), tile_of(20)]])
    canvas = figure.axes[0].images[0].get_array()
    assert len(canvas) < 1.2 * montages.MOST_SIDE
    assert np.count_nonzero((canvas[..., :3] == 20).all(axis=2)) >= montages.MOST_SIDE**2


def test_the_first_query_of_every_class_is_chosen(dataset):
    dataset.query_labels = np.array([2, 0, 0, 1, 2])
    assert montages.one_query_a_class(dataset).tolist() == [1, 3, 0]
    assert montages.one_query_a_class(dataset, most=2).tolist() == [1, 3]


def test_samples_are_training_images_by_class(dataset, montage_rows):
    figure = montages.samples(dataset, per_class=2)
    assert positions(figure) == [[0, 1], [3, 4], [6, 7]]
    assert figure.names == CLASSES


@pytest.mark.parametrize("most", [1, 2, 3, 24])
def test_leaking_pairs_show_queries_above_their_nearest_images(most, dataset, montage_rows):
    pairs = pd.DataFrame({"query": [0, 0, 1, 2, 2, 2], "gallery": [4, 5, 6, 7, 8, 0]})
    figure = montages.leaking_pairs(dataset, pairs, most=most)
    spread = {1: [0], 2: [0, 2]}.get(most, [0, 1, 2])
    assert positions(figure) == [
        [9 + query for query in spread], [{0: 4, 1: 6, 2: 7}[query] for query in spread],
    ]  # fmt: skip


def test_many_leaking_pairs_form_rows_of_twelve(dataset, montage_rows):
    dataset.queries = np.arange(9).repeat(4)
    pairs = pd.DataFrame({"query": np.arange(30), "gallery": np.arange(30) % 9})
    figure = montages.leaking_pairs(dataset, pairs, most=24)
    assert [len(row) for row in figure.rows] == [12] * 4
    assert position(figure.rows[2][11]) == dataset.queries[29]
    assert position(figure.rows[3][11]) == 29 % 9


def test_montages_without_images_have_no_figure(dataset):
    assert montages.leaking_pairs(dataset, pd.DataFrame(columns=["query", "gallery"])) is None
    assert montages.retrieved(dataset, np.array([], int), {}) is None
    assert montages.retrieved(dataset, np.array([0]), {}) is None


def tile_of(grey: int, *texts: str, **changes) -> montages.Tile:
    return montages.Tile(np.full((8, 8, 3), grey, np.uint8), *texts, **changes)


def test_a_montage_is_one_image_with_texts_around_every_tile():
    first_tile = tile_of(10, "above", "below", colour=display.HIT, is_framed=True)
    figure = montages.montage([[first_tile, tile_of(20)], [None, tile_of(30, "third")]], ["a", "b"])
    (axis,) = figure.axes
    (image,) = axis.images
    canvas = image.get_array()[..., 0]
    pixels_of = {grey: np.argwhere(canvas == grey) for grey in (10, 20, 30)}
    assert all(len(pixels) == 64 for pixels in pixels_of.values())
    top, left = pixels_of[10].min(axis=0)
    assert pixels_of[20].min(axis=0).tolist() == [top, pixels_of[30].min(axis=0)[1]]
    texts = {text.get_text(): text for text in axis.texts if text.get_text()}
    assert set(texts) == {"above", "below", "third", "a", "b"}
    assert to_hex(texts["above"].get_color()).upper() == display.HIT
    heights = [texts[name].get_position()[1] for name in ("above", "below", "third")]
    assert heights[0] < top < top + 8 < heights[1] < heights[2]
    assert texts["above"].get_position()[0] == left + 4
    (frames,) = axis.collections
    assert [to_hex(colour).upper() for colour in frames.get_edgecolors()] == [display.HIT]
    assert montages.montage([[], [None]]) is None


def test_tiles_show_rank_similarity_and_class(dataset, montage_rows):
    dataset.classes = ["circle", "a class with a long name", "square"]
    neighbours = {"cnn": (np.array([[0, 3, -1]] * 3), np.array([[0.9, 0.8, np.nan]] * 3))}
    figure = montages.retrieved(dataset, np.array([0]), neighbours)
    assert column(figure, "above") == ["query", "1: 0.900", "2: 0.800"]
    assert column(figure, "below") == ["circle", "circle", "a class wit…"]


def test_ranks_and_similarities_do_not_overlap(dataset):
    rankings, similarities = np.array([[*range(9), 0]] * 3), np.full((3, 10), 0.99951)
    figure = montages.retrieved(dataset, np.array([0]), {"cnn": (rankings, similarities)})
    titles = [text for text in figure.axes[0].texts if text.get_text().endswith("1.000")]
    assert titles[-1].get_text() == "10: 1.000"
    boxes = [title.get_window_extent() for title in titles]
    assert not any(box.overlaps(next_box) for box, next_box in itertools.pairwise(boxes))


def test_notes_are_shown_with_their_queries(dataset, montage_rows):
    ranking = np.array([[0]] * 3), np.array([[0.9]] * 3)
    neighbours = {"cnn": ranking, "vgg": ranking}
    by_architecture = montages.retrieved(
        dataset, np.array([2, 0]), neighbours, [{"vgg": ""}, {"cnn": "x"}]
    )
    assert by_architecture.names == ["vgg", "cnn\nx"]
    assert positions(by_architecture) == [[11, 0], [9, 0]]
    by_query = montages.retrieved(dataset, np.array([2, 0]), neighbours, ["best", "worst"])
    assert by_query.names == ["cnn\nbest", "vgg", "cnn\nworst", "vgg"]
    notes = [{"cnn": "0.1", "vgg": "0.2"}] * 2
    by_row = montages.retrieved(dataset, np.array([2, 0]), neighbours, notes)
    assert by_row.names == ["cnn\n0.1", "vgg\n0.2", "cnn\n0.1", "vgg\n0.2"]


@pytest.mark.parametrize(
    ("name", "shortened"),
    [("cat", "cat"), ("twelve chars", "twelve chars"), ("thirteen char", "thirteen ch…")],
)
def test_long_names_are_shortened(name, shortened):
    assert montages.shorten(name) == shortened
    assert len(shortened) <= montages.MOST_LETTERS


def test_hubs_are_ordered_by_how_often_they_are_returned(dataset, montage_rows):
    counts = pd.DataFrame(
        {"returned": [0, 5, 0, 2, 5, 0, 0, 0, 0], "wrongly": [0, 1, 0, 2, 4] + [0] * 4}
    )
    figure = montages.hubs(dataset, {"cnn": counts}, most=4)
    assert positions(figure) == [[1, 4, 3]]
    assert column(figure, "above") == ["1: × 5", "2: × 5", "3: × 2"]
    assert column(figure, "below")[2] == "cross\n✗ 100 %"
    assert column(figure, "colour") == [display.HIT, display.MISS, display.MISS]
    assert figure.names == ["cnn"]
