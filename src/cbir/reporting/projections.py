"""Embeddings of the queries in two dimensions, by PCA and, with enough queries, t-SNE.

A map of hundreds of dimensions on paper is a picture, not a measurement: how near two groups are
in it, or how wide, proves nothing. So each map says how much of the neighbourhoods it keeps.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from threadpoolctl import threadpool_limits

from cbir.cache import cached
from cbir.images.dataset import Dataset
from cbir.reporting.image_grids import shorten
from cbir.reporting.runs import Run

METHODS = {"pca": "PCA", "tsne": "t-SNE"}
# More points cover one another, and take t-SNE more than about five seconds.
MOST_SHOWN = 1000
# t-SNE places each point by about 30 neighbours, and needs three times as many to choose from: with
# fewer points it shows groups where there are none.
PERPLEXITY = 30
TSNE_FROM = 100
# t-SNE reads distances in so many principal components, as its authors do.
COMPONENTS = 50
NEIGHBOURS = 10
# Paul Tol's muted colours and a dark one, safe for colour-blind readers; as ten colours are hard to
# distinguish, each class has a marker too.
CLASS_COLOURS = [
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933",
    "#AA4499", "#222222",
]  # fmt: skip
CLASS_MARKERS = "os^DvPX<>*"
OTHERS = "#BBBBBB"


@dataclass(frozen=True)
class Projection:
    """Queries in two dimensions.

    Attributes:
        method: a name in `METHODS`.
        queries: (n,) int positions of the queries that are shown, sorted.
        points: (n, 2) float32.
        kept: trustworthiness, from 0 to 1: 1 where the ten nearest on the map are among the nearest
            of the embedding too. NaN with too few points to tell.
        variance: share of the embedding's variance that the two axes hold; None but for PCA.
    """

    method: str
    queries: np.ndarray
    points: np.ndarray
    kept: float
    variance: float | None


def project_all(runs: Mapping[str, Run], method: str = "pca") -> dict[str, Projection]:
    """`project_run` for each run; empty where there are too few queries for the method."""
    return {
        name: project_run(run, method)
        for name, run in runs.items()
        if method in methods(len(run.dataset.queries))
    }


def project_run(run: Run, method: str = "pca", seed: int = 0) -> Projection:
    """A run's query embeddings in two dimensions; cached.

    Args:
        run: its first seed under its first protocol is shown.
        method: a name in `METHODS`.
        seed: of all that is random.

    Raises:
        StudyError: the embeddings are gone.
        ValueError: as `project`.
    """
    embeddings, dataset = run.embeddings, run.dataset
    shown = spread(dataset.query_labels)

    def make(folder: Path) -> None:
        from sklearn.manifold import trustworthiness

        vectors = embeddings.vectors[dataset.queries[shown]]
        points, variance = project(vectors, method, seed)
        neighbours = min(NEIGHBOURS, (len(points) - 1) // 2)
        kept = trustworthiness(vectors, points, n_neighbors=neighbours) if neighbours else np.nan
        np.save(folder / "points.npy", points)
        about = {"kept": float(kept), "variance": variance}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    artifact = cached(
        "map",
        make,
        parameters={"method": method, "seed": seed},
        reads=[embeddings.artifact.key, dataset.search_fingerprint],
        package="reporting",
    )
    about = json.loads((artifact.folder / "about.json").read_text("utf-8"))
    return Projection(method, shown, np.load(artifact.folder / "points.npy"), **about)


def methods(n_queries: int) -> list[str]:
    """The methods for so many queries: PCA always, t-SNE from 100 on."""
    return [name for name in METHODS if name != "tsne" or n_queries >= TSNE_FROM]


def project(
    vectors: np.ndarray, method: str = "pca", seed: int = 0
) -> tuple[np.ndarray, float | None]:
    """Vectors in two dimensions.

    Sources: van der Maaten, Hinton, Visualizing Data using t-SNE (2008); the initialisation by
    PCA: Kobak, Berens, The art of using t-SNE for single-cell transcriptomics (2019).

    Args:
        vectors: (n, d), n at least 2, finite. Of one dimension, they lie on a line.
        method: a name in `METHODS`.
        seed: of all that is random.

    Returns:
        (n, 2) float32 points, and the share of the variance that they hold (None but for PCA; 0
        where all vectors are equal).

    Raises:
        ValueError: unknown method, or too few points for t-SNE.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
    if method not in methods(len(vectors)):
        raise ValueError(f"{len(vectors)} points are too few for t-SNE: {TSNE_FROM} at least")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = np.asarray(vectors, np.float32)
    components = min(COMPONENTS, *vectors.shape)
    # Where all vectors are equal, scikit-learn divides 0 by 0.
    with np.errstate(invalid="ignore"):
        fitted = PCA(components, random_state=seed).fit(vectors)
    reduced = fitted.transform(vectors)
    # A vector of one dimension has a second axis of zeros.
    reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - components))))
    if method == "pca":
        share = float(np.nan_to_num(fitted.explained_variance_ratio_[:2]).sum())
        return reduced[:, :2].astype(np.float32), share
    tsne = TSNE(2, perplexity=PERPLEXITY, init="pca", learning_rate="auto", random_state=seed)
    # On a busy machine, waiting threads cost more than they save here.
    with threadpool_limits(1):
        return tsne.fit_transform(reduced).astype(np.float32), None


def spread(labels: np.ndarray, most: int = MOST_SHOWN) -> np.ndarray:
    """Positions of at most so many labels, spread evenly over and within the classes; sorted.

    Args:
        labels: (n,) int.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, most).astype(int)])


def figure(
    dataset: Dataset,
    projections: Mapping[str, Projection],
    predicted: Mapping[str, np.ndarray] | np.ndarray,
) -> Figure | None:
    """Queries as points, coloured and marked by class; rings mark wrong predictions.

    Of more than ten classes, those with the most wrongly classified queries (else the largest) have
    colours; the others are grey dots.

    Args:
        projections: by the panel's title, from `project_all`; without any, there is no figure.
        predicted: the predicted class of every query, -1 where there is none; by the same titles,
            or the same for all of them.
    """
    if not projections:
        return None
    labels = dataset.query_labels
    if not isinstance(predicted, Mapping):
        predicted = dict.fromkeys(projections, predicted)
    wrong = {name: (predicted[name] >= 0) & (predicted[name] != labels) for name in projections}
    chosen = _most_confused(labels, wrong, len(dataset.classes))
    columns = min(3 if len(projections) > 2 else 2, len(projections))
    rows = -(-len(projections) // columns)
    side = 9.6 / columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, (side + 0.35) * rows), squeeze=False
    )
    for axis in axes.flat[len(projections) :]:
        axis.set_axis_off()
    for axis, (name, projection) in zip(axes.flat, projections.items(), strict=False):
        shown = projection.queries
        _draw_points(axis, projection.points, labels[shown], wrong[name][shown], chosen)
        method = METHODS[projection.method]
        axis.set_title(name if name == method else f"{name}, {method}", size=10)
        axis.set_xlabel(_quality(projection), size=8.5)
    figure.tight_layout()
    names = [dataset.classes[label] for label in chosen]
    looks = list(zip(names, CLASS_MARKERS, CLASS_COLOURS, strict=False))
    if len(chosen) < len(dataset.classes):
        looks.append(("other classes", ".", OTHERS))
    entries = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=shorten(name, 24))
        for name, marker, colour in looks
    ]
    if any(is_wrong.any() for is_wrong in wrong.values()):
        ring = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": "black"}
        entries.append(Line2D([], [], linestyle="", marker="o", label="classified wrongly", **ring))
    figure.legend(
        handles=entries, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, ncols=6,
        fontsize=9, handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _draw_points(
    axis: plt.Axes, points: np.ndarray, labels: np.ndarray, wrong: np.ndarray, chosen: list[int]
) -> None:
    """The points of one panel: other classes, the chosen ones, rings around the wrong ones."""
    size = float(np.clip(14_000 / len(labels), 14, 30))
    x, y = points.T
    others = ~np.isin(labels, chosen)
    axis.scatter(x[others], y[others], s=size / 3, color=OTHERS, marker=".")
    for label, colour, marker in zip(chosen, CLASS_COLOURS, CLASS_MARKERS, strict=False):
        of_class = labels == label
        axis.scatter(
            x[of_class], y[of_class], s=size, color=colour, marker=marker, alpha=0.75, linewidths=0
        )
    axis.scatter(
        x[wrong], y[wrong], s=2.4 * size + 12, facecolors="none", edgecolors="black", linewidths=0.6
    )
    axis.set(xticks=[], yticks=[])
    axis.set_aspect("equal", adjustable="datalim")


def _quality(projection: Projection) -> str:
    """What a projection keeps, in words."""
    parts = []
    if projection.variance is not None:
        parts.append(f"{100 * projection.variance:.0f} % of the variance")
    if not np.isnan(projection.kept):
        parts.append(f"trustworthiness {projection.kept:.2f}")
    return ", ".join(parts)


def _most_confused(labels: np.ndarray, wrong: dict[str, np.ndarray], n_classes: int) -> list[int]:
    """The classes that have colours, sorted."""
    counts = np.bincount(labels, minlength=n_classes)
    n_wrong = sum(np.bincount(labels[is_wrong], minlength=n_classes) for is_wrong in wrong.values())
    order = np.lexsort((-counts, -n_wrong))
    return sorted(order[: len(CLASS_COLOURS)].tolist())
