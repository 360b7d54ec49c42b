"""Figures made of pictures: samples, results, hubs, leaks. Each is one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cbir.images.dataset import Dataset
from cbir.images.pictures import enlarge_map
from cbir.reporting.display import HIT, MISS, MOST_ROWS, NEUTRAL

# The approximate number of letters that fit below a thumbnail.
MOST_LETTERS = 12
# The side of a picture and the height of a line of text, in inches.
SIDE, LINE = 0.7, 0.135
# The distance between pictures, as a share of their side.
APART = 0.14
# The minimum number of pixels per side of a heat map, whatever the size of its picture.
MAP_SIDE, OPACITY, HEAT = 96, 0.6, "magma"


@dataclass(frozen=True)
class Picture:
    """A picture in a grid.

    Attributes:
        pixels: (side, side, 3) uint8.
        above, below: lines of text.
        colour: colour of the texts.
        is_framed: whether the picture has a frame of this colour.
    """

    pixels: np.ndarray
    above: str = ""
    below: str = ""
    colour: str = NEUTRAL
    is_framed: bool = False


def grid(rows: Sequence[Sequence[Picture | None]], names: Sequence[str] = ()) -> Figure | None:
    """Pictures in rows, drawn as one image with lines of text between them.

    Args:
        rows: may differ in length; None leaves a place empty. The largest picture's side is a
            multiple of that of each other one, which is enlarged to it.
        names: the text at the left of each row; none by default.

    Returns:
        None if there is no picture. The units of the axis are pixels of the pictures.
    """
    pictures = [picture for row in rows for picture in row if picture]
    if not pictures:
        return None
    side = max(len(picture.pixels) for picture in pictures)
    inch = side / SIDE
    # The distances from the top of the figure to the pictures of each row and to its end.
    tops, end = [], 0
    for row in rows:
        tops.append(end + round(_lines(row, "above") * LINE * inch))
        end = tops[-1] + side + round(_lines(row, "below") * LINE * inch + APART * side)
    width = round((1 + APART) * side)
    canvas = np.full((end, max(map(len, rows)) * width, 3), 255, np.uint8)
    figure = plt.figure(figsize=(canvas.shape[1] / inch, canvas.shape[0] / inch))
    axis = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])
    frames, gap = [], 0.035 * inch
    for row, name, top in zip_longest(rows, names, tops, fillvalue=""):
        axis.text(-3 * gap, top + side / 2, name, ha="right", va="center", size=9)
        for column, picture in enumerate(row):
            if picture is None:
                continue
            left = column * width
            canvas[top : top + side, left : left + side] = enlarge(picture.pixels, side)
            middle = left + side / 2
            style = {"ha": "center", "color": picture.colour, "linespacing": 1.1}
            axis.text(middle, top - 1.5 * gap, picture.above, va="baseline", size=8, **style)
            axis.text(middle, top + side + gap, picture.below, va="top", size=7.5, **style)
            if picture.is_framed:
                frame = Rectangle((left - 0.5, top - 0.5), side, side)
                frame.set(edgecolor=picture.colour, facecolor="none", linewidth=2.5)
                frames.append(frame)
    axis.imshow(canvas, aspect="auto")
    axis.add_collection(PatchCollection(frames, match_original=True))
    return figure


def _lines(row: Sequence[Picture | None], place: str) -> int:
    """The number of lines of text above or below the pictures of a row."""
    texts = [getattr(picture, place) for picture in row if picture]
    return max((text.count("\n") + bool(text) for text in texts), default=0)


def framed(
    dataset: Dataset, position: int, above: str = "", colour: str = NEUTRAL, note: str = ""
) -> Picture:
    """An image of a data set, framed, with its class below, and a note below that."""
    name = shorten(dataset.classes[dataset.labels[position]])
    below = f"{name}\n{note}" if note else name
    return Picture(dataset.images[position], above, below, colour, is_framed=True)


def query_picture(dataset: Dataset, query: int) -> Picture:
    """A query, framed, with its class below.

    Args:
        query: its position among the queries.
    """
    return framed(dataset, dataset.queries[query], "query")


def result_picture(
    dataset: Dataset, query: int, result: int, similarity: float, rank: int = 1
) -> Picture | None:
    """A result of a query, framed as a hit or a miss; None if there is no result.

    Args:
        query, result: positions among the queries and in the gallery; -1 for no result.
        rank: rank of the result, starting at 1.
    """
    if result < 0:
        return None
    is_hit = dataset.gallery_labels[result] == dataset.query_labels[query]
    sign, colour = ("✓", HIT) if is_hit else ("✗", MISS)
    above = f"{rank} {sign} {similarity:.3f}"
    return framed(dataset, dataset.gallery[result], above, colour)


def samples(dataset: Dataset, per_class: int = 10) -> Figure:
    """The first training images of each class, one row per class."""
    names = dataset.classes[:MOST_ROWS]
    labels = dataset.labels[dataset.train]
    places = [np.flatnonzero(labels == label)[:per_class] for label in range(len(names))]
    rows = [[Picture(dataset.images[at]) for at in dataset.train[shown]] for shown in places]
    return grid(rows, [shorten(name, 24) for name in names])


def retrieved(
    dataset: Dataset,
    queries: np.ndarray,
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    notes: Sequence[str | dict[str, str]] = (),
) -> Figure | None:
    """Queries (left) and their results, with hits and misses framed and marked.

    Rank, sign and similarity are printed above each result, its class below.

    Args:
        queries: positions among the queries.
        answers: by name (of a search or of an architecture), the rankings and the similarities of
            all queries.
        notes: the text at the left of the first row of each query or, by the names in
            `answers`, of each of its rows; none by default.
    """
    rows, names = [], []
    for query, note in zip_longest(queries, notes, fillvalue=""):
        by_name = note if isinstance(note, dict) else dict.fromkeys([*answers][:1], note)
        for name, (rankings, similarities) in answers.items():
            row = [query_picture(dataset, query)]
            results = zip(rankings[query], similarities[query], strict=True)
            for rank, result in enumerate(results, start=1):
                row.append(result_picture(dataset, query, *result, rank))
            rows.append(row)
            lines = name if len(answers) > 1 else "", by_name.get(name, "")
            names.append("\n".join(filter(None, lines)))
    return grid(rows, names)


def one_query_a_class(dataset: Dataset, most: int = 6) -> np.ndarray:
    """Positions of the first query of each of the first classes."""
    classes = range(min(most, len(dataset.classes)))
    return np.array([np.flatnonzero(dataset.query_labels == label)[0] for label in classes])


def leaking_pairs(dataset: Dataset, pairs: pd.DataFrame, most: int = 24) -> Figure | None:
    """Queries (above) and their copies in the gallery (below), twelve pairs in a row.

    Args:
        pairs: from `leaks.audit`; without any, there is no figure.
        most: maximum number of pairs: the nearest ones of queries spread evenly over all leaks.
    """
    nearest = pairs.drop_duplicates("query")
    spread = np.unique(np.linspace(0, len(nearest) - 1, min(most, len(nearest))).astype(int))
    shown, rows = nearest.iloc[spread], []
    for start in range(0, len(shown), 12):
        part = shown.iloc[start : start + 12]
        for positions in (dataset.queries[part["query"]], dataset.gallery[part["gallery"]]):
            rows.append([framed(dataset, position) for position in positions])
    return grid(rows)


def hubs(dataset: Dataset, counts: dict[str, pd.DataFrame], most: int = 10) -> Figure | None:
    """The gallery images that are returned most often, one row per architecture.

    Printed above each image are its place and how often it is among the first ten results; below it
    are its class and the share of misses. Images that are mostly misses have the frame of a miss.

    Args:
        counts: by architecture, from `examples.hubs`.
        most: number of images per architecture; ties are broken by position.
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
    return grid(rows, list(counts))


def enlarge(image: np.ndarray, side: int = MAP_SIDE) -> np.ndarray:
    """An image with each pixel repeated until its side has at least `side` pixels."""
    times = -(-side // len(image))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def under_maps(dataset: Dataset, positions: np.ndarray, maps: np.ndarray) -> list[Picture]:
    """Images of a data set, each under its heat map."""
    images = dataset.images[positions]
    return [Picture(overlay(image, map_)) for image, map_ in zip(images, maps, strict=True)]


def overlay(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """An image, enlarged, under a (h, w) heat map of values from 0 to 1."""
    image = enlarge(image)
    colours = 255 * plt.get_cmap(HEAT)(enlarge_map(map_, len(image)))[..., :3]
    return (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)


def shorten(name: str, most: int = MOST_LETTERS) -> str:
    """A name shortened to at most `most` letters, with an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"
