"""Rankings: where the images of the gallery stand for each query, by cosine similarity.

Rows of embeddings are of unit length, so that a matrix product is the cosine similarity. Queries
are taken in blocks: the full rankings of a study never stand in memory at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cbir.progress import progress

BLOCK = 64
# Each holds a block's similarities and their order: 100 MB on a gallery of 50,000.
MOST_THREADS = 8
Allowed = Callable[[slice], np.ndarray]


def search(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    allowed: Allowed | None = None,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery images of each query.

    Args:
        query: (n_queries, d) float32, of unit length.
        gallery: (n_gallery, d) float32, of unit length.
        k: how many; all of the gallery where it has fewer.
        allowed: (slice of queries) -> (b, n_gallery) bool, what the search may return, such as
            `within` gives; everything by default.
        first: `first_of_equals` of the gallery, where it is searched many times.

    Returns:
        Rankings, (n_queries, k) int32 gallery positions, nearest first, equals in gallery order,
        -1 where the search may return no more; and their similarities, float32, NaN there.
    """
    k = min(k, len(gallery))
    rankings = np.full((len(query), k), -1, np.int32)
    similarities = np.full((len(query), k), np.nan, np.float32)

    def nearest(rows: slice, similarity: np.ndarray) -> None:
        place = similarity.shape[1] - k
        least = np.partition(similarity, place, axis=1)[:, place]
        for row, values in enumerate(similarity):
            candidates = np.flatnonzero((values >= least[row]) & (values > -np.inf))
            best = candidates[np.argsort(-values[candidates], kind="stable")][:k]
            rankings[rows][row, : len(best)] = best
            similarities[rows][row, : len(best)] = values[best]

    _each_block(query, gallery, allowed, nearest, first)
    return rankings, similarities


def relevant_ranks(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    allowed: Allowed | None = None,
) -> np.ndarray:
    """Where each query's relevant images stand in its full ranking.

    Args:
        query, gallery, allowed: as for `search`.
        query_labels, gallery_labels: (n_queries,) and (n_gallery,) int; an image is relevant to a
            query of its own class.

    Returns:
        (n_queries, R) float32 ranks from 1 on, rising; R is the largest number of relevant images
        that a query has. Infinite for a relevant image that the search may not return, NaN in
        the places that a query with fewer relevant images leaves over.
    """
    n_relevant = np.bincount(gallery_labels, minlength=max(query_labels, default=0) + 1)
    width = int(n_relevant[query_labels].max(initial=0))
    ranks = np.full((len(query), width), np.nan, np.float32)

    def stand(rows: slice, similarity: np.ndarray) -> None:
        order = np.argsort(-similarity, axis=1, kind="stable")
        relevant = gallery_labels[order] == query_labels[rows, None]
        reachable = np.take_along_axis(similarity, order, axis=1) > -np.inf
        for row, columns in enumerate(relevant):
            place = np.flatnonzero(columns)
            ranks[rows][row, : len(place)] = np.where(reachable[row, place], place + 1, np.inf)

    _each_block(query, gallery, allowed, stand)
    return ranks


def within(labels: np.ndarray, gallery_labels: np.ndarray) -> Allowed:
    """What a search within one class a query may return, as `search` takes it.

    Args:
        labels: (n_queries,) the class to search in.
        gallery_labels: (n_gallery,) int.
    """
    return lambda rows: labels[rows, None] == gallery_labels


def _each_block(
    query: np.ndarray,
    gallery: np.ndarray,
    allowed: Allowed | None,
    use: Callable[[slice, np.ndarray], None],
    first: np.ndarray | None = None,
) -> None:
    """Hand each block's rows and its (b, n_gallery) similarities to `use`, on every core.

    What the search may not return has similarity -inf.
    """
    first = first_of_equals(gallery) if first is None else first
    repeated = np.flatnonzero(first != np.arange(len(gallery)))

    def block(start: int) -> None:
        rows = slice(start, start + BLOCK)
        similarity = np.asarray(query[rows]) @ gallery.T
        # A blocked product gives identical rows different last bits; they are exact ties.
        similarity[:, repeated] = similarity[:, first[repeated]]
        if allowed is not None:
            similarity[~allowed(rows)] = -np.inf
        use(rows, similarity)

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count())) as threads:
        starts = range(0, len(query), BLOCK)
        for _ in progress(threads.map(block, starts), len(starts), f"blocks of {BLOCK} queries"):
            pass


def first_of_equals(gallery: np.ndarray) -> np.ndarray:
    """(n_gallery,) for each row the position of the first row that is identical to it."""
    rows = np.ascontiguousarray(gallery).view(f"V{gallery.shape[1] * gallery.itemsize}").ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first[inverse]
