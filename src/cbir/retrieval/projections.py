"""Embeddings of the queries in two dimensions, by PCA and, with enough queries, t-SNE.

A two-dimensional map of hundreds of dimensions is a picture, not a measurement: the distance and
the width of groups prove nothing. Therefore, each map states how well it preserves neighbourhoods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from cbir.cache import cached
from cbir.networks.embeddings import Embeddings

METHODS = ("pca", "tsne")
# More points would hide one another, and t-SNE would take more than about five seconds.
MOST_SHOWN = 1000
# t-SNE uses about 30 neighbours of each point. With few points, it shows groups that do not exist.
PERPLEXITY = 30
TSNE_FROM = 100
# t-SNE computes distances in this number of principal components, as in the work of its authors.
COMPONENTS = 50
NEIGHBOURS = 10
SEED = 0


@dataclass(frozen=True)
class Projection:
    """Queries in two dimensions.

    Attributes:
        method: a name in `METHODS`.
        queries: (n,) int positions of the queries that are shown, sorted.
        points: (n, 2) float32.
        trustworthiness: from 0 to 1; 1 if the ten nearest points on the map are also among the
            nearest in the embedding. NaN if there are too few points.
        variance: share of the embedding's variance along the two axes; NaN except for PCA.
    """

    method: str
    queries: np.ndarray
    points: np.ndarray
    trustworthiness: float
    variance: float


def project_queries(embeddings: Embeddings, method: str = "pca") -> Projection:
    """Project the embeddings of at most 1,000 queries; cached. ValueError as for `project`."""
    dataset = embeddings.dataset
    queries = spread(dataset.query_labels)

    def make(folder: Path) -> None:
        from sklearn import manifold

        vectors = embeddings.vectors[dataset.queries[queries]]
        points, variance = project(vectors, method)
        neighbours = min(NEIGHBOURS, (len(points) - 1) // 2)
        quality = {"variance": variance, "trustworthiness": np.nan}
        if neighbours:
            quality["trustworthiness"] = manifold.trustworthiness(
                vectors, points, n_neighbors=neighbours
            )
        np.savez(folder / "map.npz", points=points, **quality)

    reads = [embeddings.artifact.key, dataset.search_fingerprint]
    artifact = cached("map", make, parameters={"method": method}, reads=reads, package="retrieval")
    with np.load(artifact.folder / "map.npz") as stored:
        qualities = (float(stored[name]) for name in ("trustworthiness", "variance"))
        return Projection(method, queries, stored["points"], *qualities)


def project_all(runs: Mapping) -> dict[str, Projection]:
    """The queries of runs, by name, projected by t-SNE, or by PCA if they are too few for it.

    StudyError if the embeddings of a run are missing.
    """
    projections = {}
    for name, run in runs.items():
        method = "tsne" if len(run.dataset.queries) >= TSNE_FROM else "pca"
        projections[name] = project_queries(run.embeddings, method)
    return projections


def project(vectors: np.ndarray, method: str = "pca") -> tuple[np.ndarray, float]:
    """Project (n, d) vectors, n at least 2, to two dimensions by a method of `METHODS`.

    Returns (n, 2) float32 points, and the share of the variance that they preserve (NaN except for
    PCA; 0 if all vectors are equal). ValueError for an unknown method, or too few points for t-SNE.

    Sources: van der Maaten, Hinton, Visualizing Data using t-SNE (2008); the initialisation by
    PCA: Kobak, Berens, The art of using t-SNE for single-cell transcriptomics (2019).
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method == "tsne" and len(vectors) < TSNE_FROM:
        raise ValueError(
            f"{len(vectors)} points are too few for t-SNE, which needs at least {TSNE_FROM}"
        )
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = np.asarray(vectors, np.float32)
    components = min(COMPONENTS, *vectors.shape)
    # The number of threads changes the last digits of PCA. If all vectors are equal, scikit-learn
    # divides 0 by 0.
    with threadpool_limits(1), np.errstate(invalid="ignore"):
        fitted = PCA(components, random_state=SEED).fit(vectors)
        # Vectors with one dimension get a second axis of zeros.
        reduced = np.pad(fitted.transform(vectors), ((0, 0), (0, max(0, 2 - components))))
        if method == "pca":
            share = float(np.nan_to_num(fitted.explained_variance_ratio_[:2]).sum())
            return reduced[:, :2].astype(np.float32), share
        tsne = TSNE(2, perplexity=PERPLEXITY, init="pca", learning_rate="auto", random_state=SEED)
        return tsne.fit_transform(reduced).astype(np.float32), np.nan


def spread(labels: np.ndarray, most: int = MOST_SHOWN) -> np.ndarray:
    """Positions of at most `most` labels, spread evenly over and within the classes; sorted."""
    if len(labels) <= most:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, most).astype(int)])
