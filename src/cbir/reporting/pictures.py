"""Figures made of pictures: samples, queries with their results, images that leak."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cbir.images.data import Dataset
from cbir.reporting.plots import HIT, MISS, MOST_ROWS, NEUTRAL


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
        row[0].text(-0.15, 0.5, classes[label], transform=row[0].transAxes, ha="right", va="center")
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


def results(
    dataset: Dataset,
    queries: np.ndarray,
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    k: int = 10,
) -> Figure:
    """Queries (left) and what was found for them, hits and misses framed and signed.

    Args:
        queries: positions among the queries.
        answers: by name (of a way of searching, or of an architecture), the rankings and the
            similarities of all queries.
    """
    rows = [(query, name) for query in queries for name in answers]
    gallery_labels = dataset.gallery_labels
    figure, axes = plt.subplots(
        len(rows), k + 1, figsize=(0.85 * (k + 1) + 1.6, 0.98 * len(rows)), squeeze=False
    )
    for row, (query, name) in zip(axes, rows, strict=True):
        row[0].imshow(dataset.images[dataset.queries[query]])
        _frame(row[0], NEUTRAL, dataset.classes[dataset.query_labels[query]])
        if len(answers) > 1:
            row[0].text(
                -0.2, 0.5, name, transform=row[0].transAxes, ha="right", va="center", size=9
            )
        rankings, similarities = answers[name]
        found = rankings[query][:k]
        for axis, position, similarity in zip(row[1:], found, similarities[query], strict=False):
            if position < 0:
                axis.set_axis_off()
                continue
            axis.imshow(dataset.images[dataset.gallery[position]])
            is_hit = gallery_labels[position] == dataset.query_labels[query]
            sign = "✓" if is_hit else "✗"
            _frame(axis, HIT if is_hit else MISS, f"{sign} {similarity:.2f}")
        for axis in row[1 + len(found) :]:
            axis.set_axis_off()
    figure.subplots_adjust(wspace=0.12, hspace=0.42)
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
            _frame(axis, NEUTRAL, dataset.classes[dataset.labels[position]])
    figure.subplots_adjust(wspace=0.12, hspace=0.35)
    return figure


def _frame(axis: plt.Axes, colour: str, title: str) -> None:
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, size=8, color=colour, pad=2)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5, visible=True)
