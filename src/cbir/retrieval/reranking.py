"""Re-ranking: better results from the neighbours of a query, without labels or training.

Three methods of the literature, each on top of a search by cosine similarity:

- Query expansion searches a second time, with the weighted mean of the query and its nearest
  images. Source: Radenović, Tolias, Chum, Fine-tuning CNN Image Retrieval with No Human Annotation
  (2018), 3.4, "alpha query expansion".
- Gallery augmentation replaces each gallery embedding by such a mean of it and its neighbours, once
  for all queries. Source: Arandjelović, Zisserman, Three things everyone should know to improve
  object retrieval (2012), 3.3; with the weights of query expansion.
- k-reciprocal re-ranking reorders the nearest images by the overlap of their neighbourhoods with
  that of the query. Source: Zhong, Zheng, Cao, Li, Re-ranking Person Re-identification with
  k-reciprocal Encoding (2017).

`measure_rerankings` chooses the settings of each on the validation images and measures the gain on
the queries.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from cbir.cache import cached
from cbir.networks.embeddings import Embeddings, normalise
from cbir.retrieval import metrics, ranking
from cbir.retrieval.feedback import sample_evenly

# The settings to choose from. The weight of a neighbour is its similarity to the power of `alpha`.
MEANS = [{"neighbours": n, "alpha": alpha} for n in (2, 5, 10, 20) for alpha in (0, 3)]
SETTINGS = {
    "query expansion": MEANS,
    "gallery augmentation": MEANS,
    "k-reciprocal": [
        {"k1": k1, "k2": k2, "share": share}
        for k1, k2 in ((10, 3), (20, 6), (40, 12))
        for share in (0.3, 0.7)
    ],
}
# The number of nearest images that the k-reciprocal method reorders.
DEPTH = 200
# The largest numbers of validation images and of queries that are measured, and their seed.
MAX_VALIDATION, MAX_QUERIES, SEED = 500, 1000, 0


def expand_queries(
    queries: np.ndarray, neighbours: np.ndarray, similarities: np.ndarray, alpha: float
) -> np.ndarray:
    """The weighted means of (n, d) queries, of weight 1, and their (n, k, d) neighbours.

    All are float32 of unit length. The neighbours have the weight similarity ** alpha; negative
    similarities count as 0.

    Example: the query [1, 0] with the neighbour [0.6, 0.8] and alpha 1 becomes [1.36, 0.48],
    divided by its length.
    """
    weights = np.maximum(similarities, 0) ** alpha
    return normalise(queries + np.einsum("nk,nkd->nd", weights, neighbours))


def augment_gallery(gallery: np.ndarray, neighbours: int, alpha: float) -> np.ndarray:
    """The gallery, (n, d) float32 of unit length, with each embedding replaced by `expand_queries`
    of it and so many neighbours.
    """
    rankings, similarities = ranking.search(
        gallery, gallery, neighbours, exclude=np.arange(len(gallery))
    )
    blocks = np.array_split(np.arange(len(gallery)), max(1, len(gallery) // 1000))
    near = ((gallery[rows], gallery[rankings[rows]], similarities[rows]) for rows in blocks)
    return np.concatenate([expand_queries(*block, alpha) for block in near])


@dataclass(frozen=True)
class Neighbourhoods:
    """The neighbourhoods of a gallery, for k-reciprocal re-ranking; from `find_neighbourhoods`.

    Attributes:
        gallery: (n, d) float32 of unit length.
        k1, k2: as in the source; k1 neighbours may be reciprocal, and codes are averaged over k2.
        reach: (n,) float32, the similarity of each image to its k1-th neighbour.
        half: (n, n) sparse, 1 at the reciprocal neighbours among the k1 / 2 nearest.
        codes: (n, n) sparse; row i weighs the neighbourhood of image i, with sum 1.
    """

    gallery: np.ndarray
    k1: int
    k2: int
    reach: np.ndarray
    half: sparse.csr_array
    codes: sparse.csr_array

    @property
    def n_bytes(self) -> int:
        """Their size in memory, without the embeddings."""
        matrices = (self.codes, self.half)
        parts = [part for x in matrices for part in (x.data, x.indices, x.indptr)]
        return self.reach.nbytes + sum(part.nbytes for part in parts)

    def rerank(
        self, queries: np.ndarray, rankings: np.ndarray, similarities: np.ndarray, share: float
    ) -> np.ndarray:
        """(n_queries, k) reordered rankings; equal distances keep their order.

        Args:
            queries: (n_queries, d) float32 of unit length, not in the gallery.
            rankings, similarities: (n_queries, k) from `ranking.search`; k is at least k1.
            share: of the original distance in the final one, from 0 to 1.
        """
        near = rankings[:, : self.k1]
        members = _members(near, similarities, self.reach, self.half)
        codes = _weigh(members, queries, self.gallery)
        # A query is the first of its own k2 nearest.
        others = _matrix(rankings[:, : self.k2 - 1], len(self.gallery))
        codes = ((codes + others @ self.codes) / self.k2).tocsr()
        reordered = np.empty_like(rankings)
        for row, positions in enumerate(rankings):
            code = codes[[row]].toarray()[0]
            candidates = self.codes[positions]
            candidates.data = np.minimum(candidates.data, code[candidates.indices])
            # The sum of each code is 1, so the sum of the maxima is 2 - the sum of the minima.
            minima = candidates.sum(axis=1)
            jaccard = 1 - minima / (2 - minima)
            distances = (1 - share) * jaccard + share * (1 - similarities[row].astype(np.float64))
            reordered[row] = positions[np.argsort(distances, kind="stable")]
        return reordered


def find_neighbourhoods(gallery: np.ndarray, k1: int, k2: int) -> Neighbourhoods:
    """Find the neighbourhoods of a gallery; arguments as in `Neighbourhoods`, k1 at most n - 1."""
    # An image is its own first neighbour, as in the source.
    near, similarities = ranking.search(gallery, gallery, k1 + 1)
    middle = round(k1 / 2)
    half = _reciprocal(near[:, : middle + 1], similarities, similarities[:, middle])
    reach = similarities[:, -1]
    codes = _weigh(_members(near, similarities, reach, half), gallery, gallery)
    nearest = _matrix(near[:, :k2], len(gallery)) / k2
    return Neighbourhoods(gallery, k1, k2, reach, half, (nearest @ codes).tocsr())


def _matrix(positions: np.ndarray, width: int) -> sparse.csr_array:
    """A sparse matrix with 1 at the positions of each row."""
    starts = np.arange(len(positions) + 1) * positions.shape[1]
    ones = np.ones(positions.size)
    return sparse.csr_array((ones, positions.ravel(), starts), (len(positions), width))


def _reciprocal(near: np.ndarray, similarities: np.ndarray, reach: np.ndarray) -> sparse.csr_array:
    """1 at those of the near images that are near to the image, too: within their own reach."""
    matrix = _matrix(near, len(reach))
    matrix.data *= (similarities[:, : near.shape[1]] >= reach[near]).ravel()
    matrix.eliminate_zeros()
    return matrix


def _members(
    near: np.ndarray, similarities: np.ndarray, reach: np.ndarray, half: sparse.csr_array
) -> sparse.csr_array:
    """1 at the neighbourhood of each image: its reciprocal neighbours, and the smaller
    neighbourhood of each of them if two thirds of it are neighbours already.
    """
    members = _reciprocal(near, similarities, reach)
    shared = (members @ half.T).multiply(members).tocsr()
    shared.data = (shared.data > 2 / 3 * half.sum(axis=1)[shared.indices]).astype(float)
    members = (members + shared @ half).tocsr()
    members.eliminate_zeros()
    members.data[:] = 1
    return members


def _weigh(members: sparse.csr_array, vectors: np.ndarray, gallery: np.ndarray) -> sparse.csr_array:
    """Weight each member by exp(-distance) to the row's vector; the weights have the sum 1."""
    rows = np.repeat(np.arange(len(vectors)), np.diff(members.indptr))
    weights = np.empty(len(rows))
    for start in range(0, len(rows), 2**16):
        part = slice(start, start + 2**16)
        products = vectors[rows[part]] * gallery[members.indices[part]]
        weights[part] = np.exp(products.sum(axis=1) - 1)
    # A query none of whose neighbours is reciprocal has no members, and an empty code.
    sums = np.bincount(rows, weights, len(vectors))
    members.data = weights / sums[rows]
    return members


def measure_rerankings(embeddings: Embeddings) -> pd.DataFrame:
    """Choose the settings of each method on the validation images, and measure it; cached.

    The queries must not be in the gallery. One row per query and method: query (its position among
    all images), reranking, settings (JSON), average_precision, average_precision_without,
    milliseconds (added per query) and bytes (added per gallery image).
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        chosen = sample_evenly(dataset.labels[dataset.validation], MAX_VALIDATION, SEED)
        validation = dataset.validation[chosen]
        trial = _Search(
            embeddings.vectors[validation], dataset.labels[validation],
            embeddings.vectors[dataset.train], dataset.labels[dataset.train],
        )  # fmt: skip
        rows = sample_evenly(dataset.query_labels, MAX_QUERIES, SEED)
        final = _Search(
            embeddings.query[rows], dataset.query_labels[rows],
            embeddings.gallery, dataset.gallery_labels,
        )  # fmt: skip
        without, frames = final.average_precision(), []
        for method, settings in SETTINGS.items():
            fitting = [point for point in settings if trial.fits(point) and final.fits(point)]
            if not fitting:
                continue
            scores = [np.nanmean(trial.rerank(method, point)[0]) for point in fitting]
            best = fitting[int(np.argmax(scores))]
            precisions, milliseconds, n_bytes = final.rerank(method, best)
            columns = {"query": dataset.queries[rows], "reranking": method}
            columns |= {"settings": json.dumps(best), "average_precision": precisions}
            columns |= {"average_precision_without": without, "milliseconds": milliseconds}
            frames.append(pd.DataFrame(columns | {"bytes": n_bytes}))
        pd.concat(frames).to_parquet(folder / "per_query.parquet", index=False)

    reads = [embeddings.artifact.key, dataset.search_fingerprint, dataset.split_fingerprint]
    artifact = cached("reranking", make, parameters={}, reads=reads, package="retrieval")
    return pd.read_parquet(artifact.folder / "per_query.parquet")


@dataclass(frozen=True)
class _Search:
    """Queries and a gallery with their labels, to be searched and re-ranked."""

    queries: np.ndarray
    labels: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray

    def fits(self, settings: dict) -> bool:
        """Whether the gallery has enough images for these settings."""
        return max(settings.get("k1", 0), settings.get("neighbours", 0)) < len(self.gallery)

    def average_precision(self, queries=None, gallery=None, reorder=None) -> np.ndarray:
        """Of each query; with other queries or another gallery, or the nearest images reordered."""
        blocks = ranking.relevant_ranks(
            self.queries if queries is None else queries, self.labels,
            self.gallery if gallery is None else gallery, self.gallery_labels,
            k=DEPTH if reorder else 0,
        )  # fmt: skip
        parts, start = [], 0
        for ranks, rankings, similarities in blocks:
            rows = slice(start, start := start + len(ranks))
            if reorder:
                nearest = reorder(self.queries[rows], rankings, similarities)
                is_hit = self.gallery_labels[nearest] == self.labels[rows, None]
                # Ranks ascend, so those of the nearest images come first; the others stay.
                for query, hits in enumerate(is_hit):
                    ranks[query, : hits.sum()] = 1 + np.flatnonzero(hits)
            parts.append(metrics.average_precision(ranks))
        return np.concatenate(parts)

    def rerank(self, method: str, settings: dict) -> tuple[np.ndarray, float, float]:
        """Average precision per query, and the milliseconds per query and bytes per image added."""
        if method == "gallery augmentation":
            gallery = augment_gallery(self.gallery, **settings)
            return self.average_precision(gallery=gallery), 0.0, 0.0
        if method == "query expansion":
            gallery = ranking.prepare(self.gallery)
            started = time.perf_counter()
            near, similarities = ranking.search(self.queries, gallery, settings["neighbours"])
            expanded = expand_queries(
                self.queries, self.gallery[near], similarities, settings["alpha"]
            )
            seconds = time.perf_counter() - started
            return self.average_precision(expanded), 1000 * seconds / len(near), 0.0
        near = find_neighbourhoods(self.gallery, settings["k1"], settings["k2"])
        seconds = 0.0

        def reorder(queries, rankings, similarities):
            nonlocal seconds
            started = time.perf_counter()
            rankings = near.rerank(queries, rankings, similarities, settings["share"])
            seconds += time.perf_counter() - started
            return rankings

        precisions = self.average_precision(reorder=reorder)
        return precisions, 1000 * seconds / len(self.queries), near.n_bytes / len(self.gallery)
