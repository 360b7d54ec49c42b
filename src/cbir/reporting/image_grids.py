"""Figures made of pictures: samples, results, hubs, leaks, attention. Each is one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cbir.images.dataset import Dataset
from cbir.reporting.display import HIT, MISS, MOST_ROWS, NEUTRAL

# A thumbnail is as wide as about so many letters.
MOST_LETTERS = 12
# Of a picture on paper, in inches: its side, and the heights of a line of text.
SIDE, LINE = 0.7, 0.135
# Between pictures, as shares of their side.
APART = 0.14
# A heat map is drawn on at least so many pixels a side, whatever the size of its picture.
MAP_SIDE, OPACITY, HEAT = 96, 0.6, "magma"


@dataclass(frozen=True)
class Picture:
    """A picture in a grid.

    Attributes:
        pixels: (side, side, 3) uint8; all of a grid have the same side.
        above, below: lines of text.
        colour: of the texts.
        is_framed: whether a frame of this colour stands around it.
    """

    pixels: np.ndarray
    above: str = ""
    below: str = ""
    colour: str = NEUTRAL
    is_framed: bool = False


def grid(rows: Sequence[Sequence[Picture | None]], names: Sequence[str] = ()) -> Figure | None:
    """Pictures in rows, drawn as one image with lines of text between them.

    Args:
        rows: may differ in length; None leaves a place empty.
        names: what stands at the left of each row; nothing by default.

    Returns:
        None where there is no picture. The axis' units are pixels of the pictures.
    """
    pictures = [picture for row in rows for picture in row if picture]
    if not pictures:
        return None
    side = len(pictures[0].pixels)
    inch = side / SIDE
    # From the top of the figure to that of each row's pictures, and to the end of the row.
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
            canvas[top : top + side, left : left + side] = picture.pixels
            middle = left + side / 2
            style = {"ha": "center", "color": picture.colour, "linespacing": 1.1}
            axis.text(middle, top - 1.5 * gap, picture.above, va="baseline", size=8, **style)
            axis.text(middle, top + side + gap, picture.below, va="top", size=7.5, **style)
            if picture.is_framed:
                place = left - 0.5, top - 0.5
                frames.append(Rectangle(place, side, side, edgecolor=picture.colour))
    axis.imshow(canvas, aspect="auto")
    axis.add_collection(
        PatchCollection(
            frames,
            facecolors="none",
            edgecolors=[frame.get_edgecolor() for frame in frames],
            linewidths=2.5,
        )  # fmt: skip
    )
    return figure


def _lines(row: Sequence[Picture | None], place: str) -> int:
    """How many lines of text stand above or below the pictures of a row."""
    texts = [getattr(picture, place) for picture in row if picture]
    return max((text.count("\n") + bool(text) for text in texts), default=0)


def samples(dataset: Dataset, per_class: int = 10) -> Figure:
    """The first training images of each class, one row per class."""
    classes = dataset.classes[:MOST_ROWS]
    labels = dataset.labels[dataset.train]
    rows = [
        [
            Picture(dataset.images[position])
            for position in dataset.train[np.flatnonzero(labels == label)[:per_class]]
        ]
        for label in range(len(classes))
    ]
    return grid(rows, [shorten(name, 24) for name in classes])


def attention(dataset: Dataset, weights: np.ndarray, queries: np.ndarray) -> Figure:
    """Queries (above) and what an attention pooling weighs in them (below): bright is much.

    Args:
        weights: (n, h, w) for each of these queries, from `Network.attention`.
        queries: positions among the queries.
    """
    images = dataset.images[dataset.queries[queries]]
    names = [dataset.classes[label] for label in dataset.query_labels[queries]]
    low, high = np.min(weights, axis=(1, 2)), np.max(weights, axis=(1, 2))
    scaled = (weights - low[:, None, None]) / np.maximum(high - low, 1e-12)[:, None, None]
    above = [
        Picture(enlarge(image), shorten(name)) for image, name in zip(images, names, strict=True)
    ]
    below = [Picture(overlay(image, map_)) for image, map_ in zip(images, scaled, strict=True)]
    return grid([above, below])


def retrieved(
    dataset: Dataset,
    queries: np.ndarray,
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    k: int = 10,
    notes: Sequence[str | dict[str, str]] = (),
) -> Figure | None:
    """Queries (left) and their results, hits and misses framed and signed.

    Place, sign and similarity stand above each result, its class below.

    Args:
        queries: positions among the queries.
        answers: by name (of a way of searching, or of an architecture), the rankings and the
            similarities of all queries.
        notes: what stands at the left of the first row of each query, or, by the names of
            `answers`, of each of its rows; nothing by default.
    """
    rows, names = [], []
    for query, note in zip_longest(queries, notes, fillvalue=""):
        label = dataset.query_labels[query]
        image = dataset.images[dataset.queries[query]]
        first = Picture(image, "query", shorten(dataset.classes[label]), is_framed=True)
        for name, (rankings, similarities) in answers.items():
            results = zip(rankings[query][:k], similarities[query][:k], strict=True)
            rows.append(
                [first]
                + [
                    _result(dataset, position, f"{place} {{}} {similarity:.3f}", label)
                    for place, (position, similarity) in enumerate(results, start=1)
                ]
            )
            is_first = name == next(iter(answers))
            own_note = note[name] if isinstance(note, dict) else note if is_first else ""
            names.append("\n".join(filter(None, [name if len(answers) > 1 else "", own_note])))
    return grid(rows, names)


def _result(dataset: Dataset, position: int, above: str, label: int) -> Picture | None:
    """A gallery image as a result of a query of this class; None where nothing was found."""
    if position < 0:
        return None
    returned = dataset.gallery_labels[position]
    sign, colour = ("✓", HIT) if returned == label else ("✗", MISS)
    image, name = dataset.images[dataset.gallery[position]], dataset.classes[returned]
    return Picture(image, above.format(sign), shorten(name), colour, is_framed=True)


def one_query_a_class(dataset: Dataset, most: int = 6) -> np.ndarray:
    """Positions of the first query of each of the first classes: chosen by nothing else."""
    classes = range(min(most, len(dataset.classes)))
    return np.array([np.flatnonzero(dataset.query_labels == label)[0] for label in classes])


def leaking_pairs(dataset: Dataset, pairs: pd.DataFrame, most: int = 24) -> Figure | None:
    """Queries (above) and their copies in the gallery (below), twelve pairs in a row.

    Args:
        pairs: from `leaks.audit`; without any, there is no figure.
        most: pairs shown: the nearest of each of so many queries, evenly spread over all that leak.
    """
    nearest = pairs.drop_duplicates("query")
    spread = np.unique(np.linspace(0, len(nearest) - 1, min(most, len(nearest))).astype(int))
    shown, rows = nearest.iloc[spread], []
    for start in range(0, len(shown), 12):
        part = shown.iloc[start : start + 12]
        for positions in (dataset.queries[part["query"]], dataset.gallery[part["gallery"]]):
            names = [dataset.classes[label] for label in dataset.labels[positions]]
            rows.append(
                [
                    Picture(dataset.images[position], shorten(name), is_framed=True)
                    for position, name in zip(positions, names, strict=True)
                ]
            )
    return grid(rows)


def hubs(dataset: Dataset, counts: dict[str, pd.DataFrame], most: int = 10) -> Figure | None:
    """The gallery images that are returned most often, one row per architecture.

    Place and how often it is among the first ten results stand above each, its class and the share
    of these times that it is a miss below; the frame is that of a miss where it mostly is one.

    Args:
        counts: by architecture, from `examples.hubs`.
        most: how many of each; equals by position.
    """
    rows = []
    for table in counts.values():
        top = table[table["returned"] > 0].sort_values("returned", ascending=False, kind="stable")
        row = []
        for place, image in enumerate(top[:most].itertuples(), start=1):
            position, misses = dataset.gallery[image.Index], image.wrongly / image.returned
            name = shorten(dataset.classes[dataset.labels[position]])
            row.append(
                Picture(
                    dataset.images[position],
                    f"{place}: × {image.returned:,}",
                    f"{name}\n✗ {100 * misses:.0f} %",
                    MISS if misses > 0.5 else HIT,
                    is_framed=True,
                )
            )
        rows.append(row)
    return grid(rows, list(counts))


def enlarge(image: np.ndarray) -> np.ndarray:
    """An image, each pixel repeated until a side has `MAP_SIDE` pixels at least."""
    times = -(-MAP_SIDE // len(image))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def overlay(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """An image, enlarged, under a (h, w) heat map of values from 0 to 1."""
    image = enlarge(image)
    cells = Image.fromarray(np.asarray(map_, np.float32))
    smooth = np.asarray(cells.resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    colours = 255 * plt.get_cmap(HEAT)(smooth)[..., :3]
    return (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)


def shorten(name: str, most: int = MOST_LETTERS) -> str:
    """A name of at most so many letters; what is left out shows as an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"
