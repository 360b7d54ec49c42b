"""Figures of query embeddings in two dimensions, from `cbir.retrieval.projections`."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from cbir.images.dataset import Dataset
from cbir.reporting import charts, tables
from cbir.reporting.display import entry
from cbir.reporting.montages import shorten
from cbir.reporting.runs import Run
from cbir.retrieval.projections import METHODS, TSNE_FROM, Projection, project_queries

# Paul Tol's muted colours and a dark one, safe for colour-blind readers. Because ten colours are
# hard to distinguish, each class also has a marker.
CLASS_COLOURS = [
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933",
    "#AA4499", "#222222",
]  # fmt: skip
CLASS_MARKERS = "os^DvPX<>*"
OTHERS = "#BBBBBB"


def project_all(runs: Mapping[str, Run], method: str = "pca") -> dict[str, Projection]:
    """The projected queries of each run, for its first seed and first protocol.

    Empty if there are too few queries for t-SNE.

    Raises:
        StudyError: the embeddings of a run are missing.
    """
    return {
        name: project_queries(run.embeddings, method)
        for name, run in runs.items()
        if method != "tsne" or len(run.dataset.queries) >= TSNE_FROM
    }


def figure(
    dataset: Dataset, projections: Mapping[str, Projection], predicted: Mapping[str, np.ndarray]
) -> Figure | None:
    """Queries as points, coloured and marked by class; rings mark wrong predictions.

    If there are more than ten classes, those confused most often have colours; the others are grey.

    Args:
        projections: by architecture, from `project_all`; without any, there is no figure.
        predicted: by architecture, the predicted class of every query, -1 if there is none.
    """
    if not projections:
        return None
    labels, classes = dataset.query_labels, dataset.classes
    counts = [tables.confusion_counts(labels, predicted[name], classes) for name in projections]
    coloured_labels = charts.most_confused(sum(counts), len(CLASS_COLOURS))
    side = 9.6 / min(3, len(projections))
    figure, axes = charts.panels(len(projections), 3, (side, side + 0.35))
    for axis, (name, projection) in zip(axes, projections.items(), strict=True):
        shown_labels = labels[projection.queries]
        others = projection.points[~np.isin(shown_labels, coloured_labels)]
        guesses = predicted[name][projection.queries]
        wrong = projection.points[(guesses >= 0) & (guesses != shown_labels)]
        size = float(np.clip(14_000 / len(shown_labels), 14, 30))
        others_label = "other classes" if len(coloured_labels) < len(classes) else ""
        axis.scatter(*others.T, s=size / 3, color=OTHERS, marker=".", label=others_label)
        looks = zip(coloured_labels, CLASS_COLOURS, CLASS_MARKERS, strict=False)
        for label, colour, marker in looks:
            axis.scatter(
                *projection.points[shown_labels == label].T, s=size, color=colour, marker=marker,
                alpha=0.75, linewidths=0, label=entry(shorten(classes[label], 24)),
            )  # fmt: skip
        axis.scatter(
            *wrong.T, s=2.4 * size + 12, facecolors="none", edgecolors="black", linewidths=0.6,
            label="classified wrongly",
        )  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        axis.set_title(f"{name}, {METHODS[projection.method]}", size=10)
        axis.set_xlabel(_quality(projection), size=8.5)
    entries = axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", frameon=False, ncols=6, fontsize=9)
    return figure


def describe(projections: Mapping[str, Projection]) -> str:
    """Whose map preserves neighbourhoods best, in a sentence; empty without any.

    Args:
        projections: by architecture, from `project_all`.
    """
    kept = {name: one.kept for name, one in projections.items() if not np.isnan(one.kept)}
    if not kept:
        return ""
    name = max(kept, key=kept.get)
    return (
        f"The map of {name} has the highest trustworthiness, {kept[name]:.2f} (at most 1): the "
        "nearest points on it are most often nearest in the embedding, too."
    )


def _quality(projection: Projection) -> str:
    """What a projection preserves, in words."""
    parts = {
        f"{100 * projection.variance:.0f} % of the variance": projection.variance,
        f"trustworthiness {projection.kept:.2f}": projection.kept,
    }
    return ", ".join(text for text, value in parts.items() if not np.isnan(value))
