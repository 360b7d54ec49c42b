"""Embeddings in two dimensions: PCA always, t-SNE where it pays; each says what it keeps.

A map of hundreds of dimensions on paper is a picture, not a measurement: how near two groups stand
in it, or how wide they are, proves nothing. So each map says how much of every image's
neighbourhood it has kept.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from threadpoolctl import threadpool_limits

from cbir import project_root
from cbir.cache import cached
from cbir.images.dataset import Dataset
from cbir.networks.embeddings import Embeddings
from cbir.reporting.image_grids import shorten
from cbir.reporting.runs import Run

# Paul Tol's muted colours and a dark one, safe for colour-blind readers; each class has a marker
# too, since nobody tells ten colours apart at a glance.
CLASS_COLOURS = [
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933",
    "#AA4499", "#222222",
]  # fmt: skip
CLASS_MARKERS = "os^DvPX<>*"


@dataclass(frozen=True)
class Projection:
    """Queries in two dimensions.

    Attributes:
        method: a name in `METHODS`.
        queries: (n,) which of the queries are shown, by position, sorted.
        points: (n, 2) float32.
        kept: trustworthiness, from 0 to 1: 1 where the nearest ten on the map are among the nearest
            of the embedding too. NaN where there are too few points to tell.
        variance: share of the embedding's variance that the two axes hold; None but for PCA.
    """

    method: str
    queries: np.ndarray
    points: np.ndarray
    kept: float
    variance: float | None


def figure(
    dataset: Dataset, drawn: dict[str, Projection], predicted: dict[str, np.ndarray] | np.ndarray
) -> Figure:
    """Queries as points, coloured and marked by class, those that are classified wrongly ringed.

    Of many classes, those that most queries are wrongly classified of (of which there are most,
    where nothing is classified) are told apart; the others are grey dots.

    Args:
        drawn: by the panel's title, from `maps`.
        predicted: the predicted class of every query, -1 where there is none; by the same titles,
            or the same for all of them.
    """
    labels = dataset.query_labels
    if not isinstance(predicted, dict):
        predicted = dict.fromkeys(drawn, predicted)
    wrong = {name: (predicted[name] >= 0) & (predicted[name] != labels) for name in drawn}
    chosen = _most_confused(labels, wrong, len(dataset.classes))
    columns = min(3 if len(drawn) > 2 else 2, len(drawn))
    rows = -(-len(drawn) // columns)
    side = 9.6 / columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, (side + 0.35) * rows), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, map_) in zip(axes.flat, drawn.items(), strict=False):
        axis.set_axis_on()
        _draw_map(axis, map_, labels[map_.queries], wrong[name][map_.queries], chosen)
        method = METHODS[map_.method]
        axis.set_title(name if name == method else f"{name}, {method}", size=10)
        axis.set_xlabel(_about(map_), size=8.5)
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=shorten(name, 24))
        for name, colour, marker in (
            *(
                (dataset.classes[label], colour, marker)
                for label, colour, marker in zip(chosen, CLASS_COLOURS, CLASS_MARKERS, strict=False)
            ),
            *([("other classes", "#BBBBBB", ".")] if len(chosen) < len(dataset.classes) else []),
        )
    ]
    if any(each.any() for each in wrong.values()):
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor="black",
                label="classified wrongly",
            )  # fmt: skip
        )
    figure.tight_layout()
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, ncols=6,
        fontsize=9, handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _draw_map(
    axis: plt.Axes, map_: Projection, labels: np.ndarray, wrong: np.ndarray, chosen: list[int]
) -> None:
    size = float(np.clip(14_000 / len(labels), 14, 30))
    x, y = map_.points.T
    others = ~np.isin(labels, chosen)
    axis.scatter(x[others], y[others], s=size / 3, color="#BBBBBB", marker=".")
    for label, colour, marker in zip(chosen, CLASS_COLOURS, CLASS_MARKERS, strict=False):
        own = labels == label
        axis.scatter(x[own], y[own], s=size, color=colour, marker=marker, alpha=0.75, linewidths=0)
    axis.scatter(
        x[wrong], y[wrong], s=2.4 * size + 12, facecolors="none", edgecolors="black", linewidths=0.6
    )
    axis.set(xticks=[], yticks=[])
    axis.set_aspect("equal", adjustable="datalim")


def _about(map_: Projection) -> str:
    """What a map keeps, in words."""
    held = [] if map_.variance is None else [f"{100 * map_.variance:.0f} % of the variance"]
    kept = [] if np.isnan(map_.kept) else [f"trustworthiness {map_.kept:.2f}"]
    return ", ".join(held + kept)


def _most_confused(labels: np.ndarray, wrong: dict[str, np.ndarray], n_classes: int) -> list[int]:
    """The classes that are told apart on a map, in their order."""
    counts = np.bincount(labels, minlength=n_classes)
    wrongly = sum(np.bincount(labels[each], minlength=n_classes) for each in wrong.values())
    order = np.lexsort((-counts, -wrongly))
    return sorted(order[: len(CLASS_COLOURS)].tolist())


METHODS = {"pca": "PCA", "tsne": "t-SNE"}
# More points cover one another; so many take t-SNE about five seconds.
MOST_SHOWN = 1000
# t-SNE places each point by about 30 neighbours, and needs three times as many to choose from: with
# fewer than that it draws groups where there are none.
PERPLEXITY = 30
TSNE_FROM = 100
# t-SNE reads distances in so many principal components, as its authors do.
COMPONENTS = 50
NEIGHBOURS = 10


def methods(n_queries: int) -> list[str]:
    """What pays for so many queries: PCA always, t-SNE from 100 on."""
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
        seed: of everything that is drawn.

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
    # A plane has two axes, also where a vector has one.
    reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - components))))
    if method == "pca":
        share = float(np.nan_to_num(fitted.explained_variance_ratio_[:2]).sum())
        return reduced[:, :2].astype(np.float32), share
    tsne = TSNE(2, perplexity=PERPLEXITY, init="pca", learning_rate="auto", random_state=seed)
    # Threads that wait for one another on a busy machine cost more than they save here.
    with threadpool_limits(1):
        return tsne.fit_transform(reduced).astype(np.float32), None


def spread(labels: np.ndarray, most: int = MOST_SHOWN) -> np.ndarray:
    """At most so many positions, spread evenly over the classes and within them; sorted.

    Args:
        labels: (n,) a class each.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, most).astype(int)])


def project_queries(
    result: "Run", dataset: "Dataset", method: str = "pca", seed: int = 0
) -> Projection:
    """A map of a run's queries, drawn once and kept.

    Args:
        result: the embeddings of its first seed are drawn.
        dataset: as the first protocol sees it.
        method: a name in `METHODS`.
        seed: of everything that is drawn.

    Raises:
        StudyError: the embeddings are gone.
        ValueError: as `project`.
    """
    folder = project_root() / result.summary["artifacts"]["embeddings"]
    embeddings = Embeddings.open(folder, dataset)
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


def project_all(
    results: dict[str, "Run"], dataset: "Dataset", method: str = "pca"
) -> dict[str, Projection]:
    """A map of each run by one method, by the run's name; none where the method does not pay."""
    if method not in methods(len(dataset.queries)):
        return {}
    return {name: project_queries(result, dataset, method) for name, result in results.items()}


def by_every_method(result: "Run", dataset: "Dataset") -> dict[str, Projection]:
    """The maps of one run, by the method's name, as far as they pay."""
    return {
        METHODS[name]: project_queries(result, dataset, name)
        for name in methods(len(dataset.queries))
    }
