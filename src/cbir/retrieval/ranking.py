"""Rankings of the gallery for each query, by cosine similarity.

Rows of embeddings have unit length, so a matrix product yields the cosine similarities. Queries are
processed in blocks, so the full rankings of a study are never in memory at once. All cores work on
the same block: memory does not grow with their number, and results do not depend on it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from threadpoolctl import ThreadpoolController

from cbir.progress import progress

# The number of queries per block, or fewer if the similarities to a large gallery would exceed
# 64 MB.
BLOCK = 256
MAX_SIMILARITIES = 2**24
# The number of gallery images that a core multiplies a block with at a time.
PIECE = 4096
# The library that NumPy uses for products. Its idle threads would keep the cores busy.
BLAS = ThreadpoolController().select(user_api="blas")
# The bits of a float32: `SIGN` is its sign, `TOO_LARGE` is set if it is 2 or more, or NaN, and
# `SIZE` is its size if not.
SIGN, TOO_LARGE, SIZE = np.uint32(2**31), np.uint32(2**30), np.uint32(2**30 - 1)
# The radix sort reads digits of `DIGIT` values. `LAST` is the key of an image that is not searched;
# its last bit says that it is not relevant.
DIGIT, LAST = 2**11, np.uint32(2**32 - 2)


def search(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    gallery_labels: np.ndarray | None = None,
    restrict_to: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest gallery images of each query.

    Args:
        query, gallery: (n_queries, d) and (n_gallery, d) float32, rows of unit length.
        k: number of results, limited to the size of the gallery.
        gallery_labels: (n_gallery,) int; only needed with `restrict_to`.
        restrict_to: the classes that a query's search may return: one, (n_queries,) int ids, or
            several, (n_queries, n_classes) bool; all by default.
        exclude: (n_queries,) int, the gallery position of the query itself, which is not returned;
            -1 if it is not in the gallery.
        first: `first_of_equals(gallery)`, to save time if a gallery is searched many times.

    Returns:
        Rankings, (n_queries, k) int32 gallery positions, nearest first, ties in gallery order; and
        their similarities, float32. If the search may return fewer than k images, the remaining
        places are -1 and NaN.

    Raises:
        ValueError: lengths or positions do not fit, or `gallery_labels` are missing.
    """
    if gallery_labels is None:
        if restrict_to is not None:
            raise ValueError("gallery_labels: required with restrict_to")
        gallery_labels = np.zeros(len(gallery), np.int32)
    _, codes, exclude, searchable = _limits(query, gallery, gallery_labels, restrict_to, exclude)
    first = first_of_equals(gallery) if first is None else first
    k = min(k, len(gallery))

    def rank(rows: slice, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if restrict_to is not None:
            similarity[~searchable(rows)[:, codes]] = -np.inf
        return _nearest(similarity, exclude[rows], k)

    empty = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
    rankings, similarities = zip(empty, *_blocks(query, gallery, first, rank), strict=True)
    return np.concatenate(rankings), np.concatenate(similarities)


def relevant_ranks(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    restrict_to: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    k: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The ranks of each query's relevant images in its full ranking, and its k nearest images.

    Args:
        query, gallery, restrict_to, exclude: as for `search`; an excluded image is neither ranked
            nor relevant.
        query_labels, gallery_labels: (n_queries,) and (n_gallery,) int; an image is relevant to a
            query of its own class.
        k: number of results, 0 or greater.

    Yields:
        For each block of queries, in their order:
        - (b, R) float32 ranks, starting at 1 and ascending, exact up to 2**24 images. R is the
          largest number of relevant images of any query, so all blocks have the same width. A rank
          is infinite for a relevant image that the search may not return, and NaN in the remaining
          places of a query with fewer relevant images.
        - Rankings and similarities, as from `search`, of the same similarity matrix.

    Raises:
        ValueError: lengths or positions do not fit, or (during iteration) rows are not of unit
            length.

    Example: a query of class 1 with similarities 0.9, 0.8, 0.7 to images of classes 1, 0, 1 has the
    ranks [1, 3]; restricted to class 0, it has [inf, inf]; with position 0 excluded, [2, nan].
    """
    classes, codes, exclude, searchable = _limits(
        query, gallery, gallery_labels, restrict_to, exclude
    )
    _check_length("query_labels", query_labels, query)
    is_known = np.isin(query_labels, classes)
    wanted = np.where(is_known, np.searchsorted(classes, query_labels), -1).astype(np.int32)
    # The appended values are at -1: the class of a query without one, and no excluded image.
    n_relevant = np.append(np.bincount(codes), 0)[wanted]
    n_relevant -= np.append(codes, -2)[exclude] == wanted
    places = np.arange(n_relevant.max(initial=0))
    k = min(k, len(gallery))

    def rank(rows: slice, similarity: np.ndarray) -> tuple[np.ndarray, ...]:
        is_relevant = places < n_relevant[rows, None]
        ranks = np.where(is_relevant, np.float32(np.inf), np.float32(np.nan))
        bits, may_return = similarity.view(np.uint32), searchable(rows)
        if not _write_ranks(bits, codes, may_return, wanted[rows], exclude[rows], ranks):
            raise ValueError("query, gallery: rows must have unit length")
        if k and restrict_to is not None:
            similarity[~may_return[:, codes]] = -np.inf
        return ranks, *_nearest(similarity, exclude[rows], k)

    return _blocks(query, gallery, first_of_equals(gallery), rank)


def first_of_equals(gallery: np.ndarray) -> np.ndarray:
    """(n_gallery,) int32, the position of the first row that equals each row in float32."""
    positions: dict[bytes, int] = {}
    first = np.empty(len(gallery), np.int32)
    for position, row in enumerate(np.asarray(gallery, np.float32)):
        # -0.0 and 0.0 are equal but have different bits; adding 0 gives them the same.
        digest = hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest()
        first[position] = positions.setdefault(digest, position)
    return first


def _nearest(similarity: np.ndarray, exclude: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rankings and similarities as from `search`; overwrites similarities of excluded images."""
    rankings = np.full((len(similarity), k), -1, np.int32)
    similarities = np.full((len(similarity), k), np.nan, np.float32)
    for row in range(len(similarity) if k else 0):
        values, excluded = similarity[row], exclude[row]
        values[excluded : excluded + 1] = -np.inf  # -1 excludes nothing: -1:0 is empty.
        # Thousands of equal values would slow down the partition.
        reachable = values[values > -np.inf]
        place = max(0, len(reachable) - k)
        least = np.partition(reachable, place)[place] if len(reachable) else np.inf
        candidates = np.flatnonzero(values >= least)
        best = candidates[np.argsort(-values[candidates], kind="stable")][:k]
        rankings[row, : len(best)] = best
        similarities[row, : len(best)] = values[best]
    return rankings, similarities


@njit(nogil=True, cache=True)
def _write_ranks(bits, codes, searchable, wanted, exclude, ranks):  # noqa: PLR0917
    """Write the ranks of each row's relevant images; False if a similarity is 2 or more.

    A radix sort takes the same time for any similarities and keeps ties in gallery order. A cosine
    needs only 31 of the 32 bits of a float32. The last bit of a key marks relevant images, so only
    keys need to be moved.

    Args:
        bits: (b, n_gallery) uint32, the bits of the float32 similarities.
        codes: (n_gallery,) int32, the class of each image.
        searchable: (b, n_classes) bool.
        wanted, exclude: (b,) int32, the relevant class and the position to leave out, or -1.
        ranks: (b, R) float32, written from the left.
    """
    n = len(codes)
    keys, moved = np.empty(n, np.uint32), np.empty(n, np.uint32)
    starts = np.empty((3, DIGIT), np.int32)
    for row in range(len(bits)):
        starts[:] = 0
        all_bits = np.uint32(0)
        for place in range(n):
            value = bits[row, place]
            all_bits |= value
            # A greater similarity has a smaller key; 0.0 and -0.0 have the same key.
            size = value & SIZE
            key = SIZE + size if value & SIGN else SIZE - size
            key = np.uint32(key << 1 | (codes[place] == wanted[row]))
            if not searchable[row, codes[place]] or place == exclude[row]:
                key = LAST
            keys[place] = key
            starts[0, (key >> 1) % DIGIT] += 1
            starts[1, (key >> 12) % DIGIT] += 1
            starts[2, key >> 23] += 1
        if all_bits & TOO_LARGE:
            return False
        for digit in range(3):
            start = starts[digit]
            total = 0
            for value in range(DIGIT):
                count = start[value]
                start[value] = total
                total += count
            for place in range(n):
                key = keys[place]
                value = (key >> (1 + 11 * digit)) % DIGIT
                moved[start[value]] = key
                start[value] += 1
            keys, moved = moved, keys
        n_relevant = 0
        for place in range(n):  # A branch would often be mispredicted, so there is none.
            moved[n_relevant] = place + 1
            n_relevant += keys[place] & 1
        for place in range(n_relevant):
            ranks[row, place] = moved[place]
    return True


def _limits(
    query: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    restrict_to: np.ndarray | None,
    exclude: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Callable[[slice], np.ndarray]]:
    """The images that the search of each query may return.

    Returns:
        The classes of the gallery, rising; (n_gallery,) int32, the position in them of each image's
        class; (n_queries,) int32, the excluded position or -1; and a function from a slice of the
        queries to (b, number of the gallery's classes) bool.
    """
    _check_length("gallery_labels", gallery_labels, gallery)
    restriction = None if restrict_to is None else np.asarray(restrict_to)
    if restriction is not None:
        _check_length("restrict_to", restriction, query)
    exclude = np.full(len(query), -1) if exclude is None else np.asarray(exclude)
    _check_length("exclude", exclude, query)
    if ((exclude < -1) | (exclude >= len(gallery))).any():
        raise ValueError(f"exclude: positions must be from -1 to {len(gallery) - 1}")
    classes, codes = np.unique(gallery_labels, return_inverse=True)

    def searchable(rows: slice) -> np.ndarray:
        if restriction is None:
            return np.ones((len(query[rows]), len(classes)), bool)
        if restriction.ndim == 1:
            return restriction[rows, None] == classes
        return restriction[rows][:, classes]

    return classes, codes.astype(np.int32), exclude.astype(np.int32), searchable


def _check_length(name: str, array: np.ndarray, rows: np.ndarray) -> None:
    if len(array) != len(rows):
        raise ValueError(f"{name}: {len(array)} values for {len(rows)} rows")


def _blocks(
    query: np.ndarray,
    gallery: np.ndarray,
    first: np.ndarray,
    rank: Callable[[slice, np.ndarray], tuple[np.ndarray, ...]],
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the arrays that `rank` returns for each block of queries.

    `rank` is called with a share of a block's rows at a time and their (b, n_gallery) float32
    similarities, which the next block overwrites.
    """
    gallery = np.asarray(gallery, np.float32)
    size = min(BLOCK, max(1, MAX_SIMILARITIES // len(gallery)))
    similarity = np.empty((min(size, len(query)), len(gallery)), np.float32)
    repeated = np.flatnonzero(first != np.arange(len(gallery)))

    def rank_share(rows: slice, part: np.ndarray) -> tuple[np.ndarray, ...]:
        # A blocked product may yield different last bits for equal rows. They are exact ties, so
        # all get the similarity of the first one.
        part[:, repeated] = part[:, first[repeated]]
        return rank(rows, part)

    starts = range(0, len(query), size)
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as threads:
        for start in progress(starts, len(starts), f"blocks of {size} queries"):
            rows = slice(start, min(start + size, len(query)))
            block = similarity[: rows.stop - start]
            _multiply(threads, np.asarray(query[rows], np.float32), gallery, block)
            # There are more shares than cores, since one core may be slower than another.
            share = -(-len(block) // (4 * cores))
            cuts = range(start, rows.stop, share)
            shares = [slice(cut, min(cut + share, rows.stop)) for cut in cuts]
            parts = [block[cut - start : cut - start + share] for cut in cuts]
            results = threads.map(rank_share, shares, parts)
            yield tuple(map(np.concatenate, zip(*results, strict=True)))


def _multiply(
    threads: ThreadPoolExecutor, block: np.ndarray, gallery: np.ndarray, out: np.ndarray
) -> None:
    """Write the similarities of a block of queries and the gallery into `out`."""

    def multiply(place: int) -> None:
        piece = slice(place, place + PIECE)
        np.matmul(block, gallery[piece].T, out=out[:, piece])

    with BLAS.limit(limits=1):
        list(threads.map(multiply, range(0, len(gallery), PIECE)))
