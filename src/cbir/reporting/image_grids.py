"""Figures made of pictures, or of a point a picture: samples, results, hubs, leaks, maps."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cbir.images.dataset import Dataset
from cbir.reporting.display import HIT, MISS, MOST_ROWS, NEUTRAL

# A thumbnail is as wide as about so many letters.
MOST_LETTERS = 12


def samples(dataset: Dataset, per_class: int = 10) -> Figure:
    """The first training images of each class, a row a class."""
    classes = dataset.classes[:MOST_ROWS]
    figure, axes = plt.subplots(
        len(classes),
        per_class,
        figsize=(0.62 * per_class + 1.2, 0.62 * len(classes)),
        squeeze=False,
    )
    labels = dataset.labels[dataset.train]
    for label, row in enumerate(axes):
        members = dataset.train[np.flatnonzero(labels == label)[:per_class]]
        for axis in row:
            axis.set_axis_off()
        for axis, position in zip(row, members, strict=False):
            axis.imshow(dataset.images[position])
        name = shorten(classes[label], 24)
        row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center")
    figure.subplots_adjust(wspace=0.06, hspace=0.06)
    return figure


def attention(dataset: Dataset, weights: np.ndarray, queries: np.ndarray) -> Figure:
    """Queries (above) and what an attention pooling weighs in them (below): bright is much.

    Args:
        weights: (n, h, w) for each of these queries, from `Network.attention`.
        queries: positions among the queries.
    """
    figure, axes = plt.subplots(2, len(queries), figsize=(1.1 * len(queries), 2.6), squeeze=False)
    for above, below, query, map_ in zip(*axes, queries, weights, strict=True):
        image = dataset.images[dataset.queries[query]]
        above.imshow(image)
        below.imshow(image)
        below.imshow(
            map_, cmap="magma", alpha=0.6, interpolation="bilinear",
            extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
        )  # fmt: skip
        above.set_title(dataset.classes[dataset.query_labels[query]], size=9)
        for axis in (above, below):
            axis.set_axis_off()
    figure.tight_layout()
    return figure


def retrieved(
    dataset: Dataset,
    queries: np.ndarray,
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    k: int = 10,
    notes: Sequence[str | dict[str, str]] = (),
) -> Figure:
    """Queries (left) and what was found for them, hits and misses framed and signed.

    Above each result stand its place, its sign and its similarity, below it its class.

    Args:
        queries: positions among the queries.
        answers: by name (of a way of searching, or of an architecture), the rankings and the
            similarities of all queries.
        notes: what is said of each query at the left of its first row, or, by the names of
            `answers`, of each of its rows; nothing by default.
    """
    notes = list(notes)
    rows = [(place, query, name) for place, query in enumerate(queries) for name in answers]
    figure, axes = plt.subplots(
        len(rows), k + 1, figsize=(0.85 * (k + 1) + 1.6, 1.16 * len(rows)), squeeze=False
    )
    for row, (place, query, name) in zip(axes, rows, strict=True):
        label = dataset.query_labels[query]
        row[0].imshow(dataset.images[dataset.queries[query]])
        _frame(row[0], NEUTRAL, "query", shorten(dataset.classes[label]))
        said = [name] if len(answers) > 1 else []
        if notes and isinstance(notes[place], dict):
            said.append(notes[place][name])
        elif notes and name == next(iter(answers)):
            said.append(notes[place])
        row[0].text(
            -0.2, 0.5, "\n".join(said), transform=row[0].transAxes, ha="right", va="center", size=9
        )
        rankings, similarities = answers[name]
        found = rankings[query][:k]
        for number, (axis, position) in enumerate(zip(row[1:], found, strict=False), start=1):
            if position < 0:
                axis.set_axis_off()
                continue
            axis.imshow(dataset.images[dataset.gallery[position]])
            returned = dataset.gallery_labels[position]
            sign, colour = ("✓", HIT) if returned == label else ("✗", MISS)
            above = f"{number} {sign} {similarities[query][number - 1]:.3f}"
            _frame(axis, colour, above, shorten(dataset.classes[returned]))
        for axis in row[1 + len(found) :]:
            axis.set_axis_off()
    figure.subplots_adjust(wspace=0.12, hspace=0.6)
    return figure


def one_query_a_class(dataset: Dataset, most: int = 6) -> np.ndarray:
    """Positions of the first query of each of the first classes: chosen by nothing else."""
    classes = range(min(most, len(dataset.classes)))
    return np.array([np.flatnonzero(dataset.query_labels == label)[0] for label in classes])


def leaking_pairs(dataset: Dataset, pairs: pd.DataFrame, most: int = 24) -> Figure:
    """Queries (above) and the gallery images that they are found again in (below).

    Args:
        pairs: from `leaks.of`.
        most: pairs shown: the nearest of each of so many queries, evenly spread over all that leak.
    """
    nearest = pairs.drop_duplicates("query")
    spread = np.unique(np.linspace(0, len(nearest) - 1, min(most, len(nearest))).astype(int))
    shown = nearest.iloc[spread]
    columns = min(12, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(0.9 * columns, 1.9 * rows), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, pair in enumerate(shown.itertuples()):
        row, column = divmod(number, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        for axis, position in (
            (above, dataset.queries[pair.query]),
            (below, dataset.gallery[pair.gallery]),
        ):
            axis.set_axis_on()
            axis.imshow(dataset.images[position])
            _frame(axis, NEUTRAL, shorten(dataset.classes[dataset.labels[position]]))
    figure.subplots_adjust(wspace=0.12, hspace=0.35)
    return figure


def hubs(dataset: Dataset, counts: dict[str, pd.DataFrame], most: int = 10) -> Figure:
    """The gallery images that are returned most often, a row for each architecture.

    Above each stand its place and how often it is among the first ten, below it its class and the
    share of these times that it is a miss; the frame is that of a miss where it is one more often
    than not.

    Args:
        counts: by name, from `cases.hubs`.
        most: how many of each; equals by position.
    """
    figure, axes = plt.subplots(
        len(counts), most, figsize=(0.95 * most + 1.6, 1.35 * len(counts)), squeeze=False
    )
    for row, (name, found) in zip(axes, counts.items(), strict=True):
        row[0].text(-0.2, 0.5, name, transform=row[0].transAxes, ha="right", va="center", size=9)
        top = found[found["returned"] > 0].sort_values("returned", ascending=False, kind="stable")
        shown = zip(row, top[:most].itertuples(), strict=False)
        for place, (axis, image) in enumerate(shown, start=1):
            position = dataset.gallery[image.Index]
            axis.imshow(dataset.images[position])
            wrongly = image.wrongly / image.returned
            below = f"{shorten(dataset.classes[dataset.labels[position]])}\n✗ {100 * wrongly:.0f} %"
            _frame(axis, MISS if wrongly > 0.5 else HIT, f"{place}: × {image.returned:,}", below)
        for axis in row[len(top) :]:
            axis.set_axis_off()
    figure.subplots_adjust(wspace=0.12, hspace=0.75)
    return figure


def shorten(name: str, most: int = MOST_LETTERS) -> str:
    """A name of at most so many letters; what is left out shows as an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"


def _frame(axis: plt.Axes, colour: str, above: str, below: str = "") -> None:
    axis.set(xticks=[], yticks=[])
    axis.set_title(above, size=8, color=colour, pad=3.5)
    if below:
        axis.set_xlabel(below, size=7.5, color=colour, labelpad=3)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5, visible=True)
