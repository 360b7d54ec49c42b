"""Montages: figures made of images, such as samples, results, hubs and leaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cbir.images.dataset import Dataset
from cbir.images.pictures import enlarge_map
from cbir.reporting.display import HIT, MISS, NEUTRAL

# The maximum number of classes of which samples are shown, as many as the paper's figure has.
MOST_CLASSES = 10
# The approximate number of letters that fit below a thumbnail.
MOST_LETTERS = 12
# The side of a tile and the height of a line of text, in inches.
SIDE, LINE = 0.7, 0.145
# The maximum number of pixels per side of a tile, about twice the size at which it is shown.
MOST_SIDE = 112
# The distance between tiles, as a share of their side.
APART = 0.14
# The minimum number of pixels per side of a heat map, whatever the size of its image.
MAP_SIDE, OPACITY, HEAT = 96, 0.6, "magma"


@dataclass(frozen=True)
class Tile:
    """An image in a montage.

    Attributes:
        pixels: (side, side, 3) uint8.
        above, below: lines of text.
        colour: colour of the texts.
        is_framed: whether the tile has a frame of this colour.
        sign: a letter in its upper left corner.
    """

    pixels: np.ndarray
    above: str = ""
    below: str = ""
    colour: str = NEUTRAL
    is_framed: bool = False
    sign: str = ""


def montage(
    rows: Sequence[Sequence[Tile | None]], names: Sequence[str] = (), inches: float = SIDE
) -> Figure | None:
    """Pictures in rows, drawn as one image with lines of text between them; None without tiles.

    Args:
        rows: may differ in length; None leaves a place empty. All tiles get the side of the
            largest one, but at most `MOST_SIDE`; it is the unit of the axis.
        names: the text at the left of each row; none by default.
        inches: the side of a tile.
    """
    tiles = [tile for row in rows for tile in row if tile]
    if not tiles:
        return None
    side = min(MOST_SIDE, max(len(tile.pixels) for tile in tiles))
    inch = side / inches
    # The distances from the top of the figure to the tiles of each row and to its end.
    tops, end = [], 0
    for row in rows:
        tops.append(end + round(_lines(row, "above") * LINE * inch))
        end = tops[-1] + side + round(_lines(row, "below") * LINE * inch + APART * side)
    width = round((1 + APART) * side)
    # Between the tiles it is transparent.
    canvas = np.zeros((end, max(map(len, rows)) * width, 4), np.uint8)
    figure = plt.figure(figsize=(canvas.shape[1] / inch, canvas.shape[0] / inch))
    axis = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])
    frames, gap = [], 0.035 * inch
    for row, name, top in zip_longest(rows, names, tops, fillvalue=""):
        axis.text(-3 * gap, top + side / 2, name, ha="right", va="center", size=11)
        for column, tile in enumerate(row):
            if tile is None:
                continue
            left = column * width
            canvas[top : top + side, left : left + side, :3] = _resize(tile.pixels, side)
            canvas[top : top + side, left : left + side, 3] = 255
            middle = left + side / 2
            style = {"ha": "center", "color": tile.colour, "linespacing": 1.1}
            axis.text(middle, top - 1.5 * gap, tile.above, va="baseline", size=8.8, **style)
            axis.text(middle, top + side + gap, tile.below, va="top", size=8.5, **style)
            if tile.sign:
                box = {"facecolor": tile.colour, "edgecolor": "none", "pad": 1.2}
                corner = {"ha": "left", "va": "top", "color": "white", "weight": "bold"}
                axis.text(left + gap, top + gap, tile.sign, size=8, bbox=box, **corner)
            if tile.is_framed:
                frame = Rectangle((left - 0.5, top - 0.5), side, side)
                frame.set(edgecolor=tile.colour, facecolor="none", linewidth=2.5)
                frames.append(frame)
    axis.imshow(canvas, aspect="auto")
    axis.add_collection(PatchCollection(frames, match_original=True))
    return figure


def _lines(row: Sequence[Tile | None], place: str) -> int:
    """The number of lines of text above or below the tiles of a row."""
    texts = [getattr(tile, place) for tile in row if tile]
    return max((text.count("\n") + bool(text) for text in texts), default=0)


def framed(
    dataset: Dataset, position: int, above: str = "", colour: str = NEUTRAL, note: str = ""
) -> Tile:
    """An image of a data set, framed, with its class below, and a note below that."""
    name = shorten(dataset.classes[dataset.labels[position]])
    below = f"{name}\n{note}" if note else name
    return Tile(dataset.images[position], above, below, colour, is_framed=True)


def query_tile(dataset: Dataset, query: int) -> Tile:
    """The query at a position among the queries, framed, with its class below."""
    return framed(dataset, dataset.queries[query], "query")


def result_tile(
    dataset: Dataset, query: int, result: int, similarity: float, rank: int = 1
) -> Tile | None:
    """A result of a query, framed as a hit or a miss; None if there is no result (-1).

    `query` and `result` are positions among the queries and in the gallery; `rank` starts at 1.
    """
    if result < 0:
        return None
    is_hit = dataset.gallery_labels[result] == dataset.query_labels[query]
    sign, colour = ("", HIT) if is_hit else ("✗", MISS)
    tile = framed(dataset, dataset.gallery[result], f"{rank}: {similarity:.3f}", colour)
    return replace(tile, sign=sign)


def samples(dataset: Dataset, per_class: int = 10) -> Figure:
    """The first training images of each of the first classes, one row per class."""
    names = dataset.classes[:MOST_CLASSES]
    labels = dataset.labels[dataset.train]
    rows = [
        [Tile(dataset.images[position]) for position in dataset.train[labels == label][:per_class]]
        for label in range(len(names))
    ]
    return montage(rows, [shorten(name, 24) for name in names], inches=0.45)


def retrieved(
    dataset: Dataset,
    queries: np.ndarray,
    neighbours: dict[str, tuple[np.ndarray, np.ndarray]],
    notes: Sequence[str | dict[str, str]] = (),
) -> Figure | None:
    """Queries (left, once) and their results, with hits and misses framed, and misses marked.

    Rank and similarity are printed above each result, its class below.

    Args:
        queries: positions among the queries.
        neighbours: by name (of a search or of an architecture), the rankings and similarities of
            all queries.
        notes: the text at the left of the first row of each query or, by some of the names in
            `neighbours`, the rows that a query has and the text of each; none by default.
    """
    rows, names = [], []
    for query, note in zip_longest(queries, notes, fillvalue=""):
        first_note = dict.fromkeys(neighbours, "") | dict.fromkeys([*neighbours][:1], note)
        by_name = note if isinstance(note, dict) else first_note
        for place, (name, text) in enumerate(by_name.items()):
            rankings, similarities = neighbours[name]
            results = enumerate(zip(rankings[query], similarities[query], strict=True), start=1)
            tiles = [result_tile(dataset, query, *result, rank) for rank, result in results]
            rows.append([None if place else query_tile(dataset, query), *tiles])
            names.append("\n".join(filter(None, [name if len(neighbours) > 1 else "", text])))
    return montage(rows, names)


def side_by_side(
    dataset: Dataset,
    queries: Mapping[str, int],
    neighbours: Mapping[str, tuple[np.ndarray, np.ndarray]],
    most: int = 4,
) -> Figure | None:
    """Queries beside each other, each once, and their results by each architecture in rows.

    `queries` are positions by the text above them; `neighbours` are those of `retrieved`; `most`
    results are shown.
    """
    rows = []
    for rankings, similarities in neighbours.values():
        row = []
        for text, query in queries.items():
            row.append(None if rows else replace(query_tile(dataset, query), above=text))
            results = zip(rankings[query][:most], similarities[query], strict=False)
            tiles = [result_tile(dataset, query, *result) for result in results]
            row += [tile and replace(tile, above="", below="") for tile in tiles]
        rows.append(row)
    return montage(rows, list(neighbours))


def one_query_a_class(dataset: Dataset, most: int = 6) -> np.ndarray:
    """Positions of the first query of each of the first classes."""
    return np.unique(dataset.query_labels, return_index=True)[1][:most]


def leaking_pairs(dataset: Dataset, pairs: pd.DataFrame, most: int = 24) -> Figure | None:
    """Queries (above) and their copies in the gallery (below), twelve pairs in a row.

    From `leaks.find_leaks`, the nearest copies of at most `most` queries, spread evenly over all
    leaks.
    """
    nearest = pairs.drop_duplicates("query")
    spread = np.unique(np.linspace(0, len(nearest) - 1, min(most, len(nearest))).astype(int))
    shown_pairs, rows = nearest.iloc[spread], []
    for start in range(0, len(shown_pairs), 12):
        part = shown_pairs.iloc[start : start + 12]
        for positions in (dataset.queries[part["query"]], dataset.gallery[part["gallery"]]):
            rows.append([framed(dataset, position) for position in positions])
    return montage(rows)


def hubs(dataset: Dataset, counts: dict[str, pd.DataFrame], most: int = 10) -> Figure | None:
    """The `most` gallery images of `examples.hubs` returned most often, one row per architecture.

    Above each image are its place and how often it is among the first ten results; below it are its
    class and the share of misses. Images that are mostly misses have the frame of a miss.
    """
    rows = []
    for table in counts.values():
        top = table[table["returned"] > 0].sort_values("returned", ascending=False, kind="stable")
        row = []
        for place, image in enumerate(top[:most].itertuples(), start=1):
            misses = image.wrongly / image.returned
            above, note = f"{place}: × {image.returned:,}", f"✗ {100 * misses:.0f} %"
            colour = MISS if misses > 0.5 else HIT
            row.append(framed(dataset, dataset.gallery[image.Index], above, colour, note))
        rows.append(row)
    return montage(rows, list(counts))


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    """An image with this side: its pixels repeated if possible, otherwise resampled."""
    if side % len(image) == 0:
        return _enlarge(image, side)
    return np.asarray(Image.fromarray(image).resize((side, side)))


def _enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """An image with each pixel repeated until its side has at least `side` pixels."""
    times = -(-side // len(image))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def overlay(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """An image, enlarged, under a (h, w) heat map of values from 0 to 1."""
    image = _enlarge(image, MAP_SIDE)
    colours = 255 * plt.get_cmap(HEAT)(enlarge_map(map_, len(image)))[..., :3]
    return (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)


def shorten(name: str, most: int = MOST_LETTERS) -> str:
    """A name on one line, shortened to at most `most` letters, with an ellipsis."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"
