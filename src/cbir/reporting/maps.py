"""Embeddings in two dimensions: PCA always, t-SNE where it pays; each says what it keeps.

A map of hundreds of dimensions on paper is a picture, not a measurement: how near two groups stand
in it, or how wide they are, proves nothing. So each map says how much of every image's
neighbourhood it has kept.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from cbir import StudyError, project_root
from cbir.cache import cached, read

if TYPE_CHECKING:  # an edit there draws no map anew
    from cbir.images.data import Dataset
    from cbir.reporting.results import Result

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


@dataclass(frozen=True)
class Map:
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


def of(result: "Result", dataset: "Dataset", method: str = "pca", seed: int = 0) -> Map:
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
    if (embeddings := read(folder)) is None:
        raise StudyError(f"{folder} is gone: delete the run's folder in reports/ and run it again")
    shown = spread(dataset.query_labels)

    def make(folder: Path) -> None:
        from sklearn.manifold import trustworthiness

        every = np.load(embeddings.folder / "vectors.npy", mmap_mode="r")
        vectors = every[dataset.queries[shown]]
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
        reads=[embeddings.key, dataset.search_fingerprint],
        code=__name__,
    )
    about = json.loads((artifact.folder / "about.json").read_text("utf-8"))
    return Map(method, shown, np.load(artifact.folder / "points.npy"), **about)


def of_all(results: dict[str, "Result"], dataset: "Dataset", method: str = "pca") -> dict[str, Map]:
    """A map of each run by one method, by the run's name; none where the method does not pay."""
    if method not in methods(len(dataset.queries)):
        return {}
    return {name: of(result, dataset, method) for name, result in results.items()}


def by_every_method(result: "Result", dataset: "Dataset") -> dict[str, Map]:
    """The maps of one run, by the method's name, as far as they pay."""
    return {METHODS[name]: of(result, dataset, name) for name in methods(len(dataset.queries))}
