"""Rankings: where the images of the gallery stand for each query, by cosine similarity.

Rows of embeddings are of unit length, so that a matrix product is the cosine similarity. Queries
are taken block by block: the full rankings of a study never stand in memory at once. All cores
work on one block, so that memory does not grow with their number. What they multiply does not
depend on their number either, and the same question is answered alike, bit for bit.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from threadpoolctl import ThreadpoolController

from cbir.progress import progress

# Queries a block; fewer where the gallery is so large that their similarities pass 64 MB.
BLOCK = 256
MOST_SIMILARITIES = 2**24
# Images of the gallery that a core multiplies a block with at a time.
PIECE = 4096
# The library that NumPy multiplies with: its threads wait busily for more, on cores that rank.
BLAS = ThreadpoolController().select(user_api="blas")
# What float32 keeps in its bits: the sign; that it is 2 or more, or NaN; how large it is if not.
SIGN, TOO_LARGE, SIZE = np.uint32(2**31), np.uint32(2**30), np.uint32(2**30 - 1)
# Of the radix sort: the values of a digit, and the key of what is not searched, not relevant then.
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
    """The k nearest gallery images of each query.

    Args:
        query, gallery: (n_queries, d) and (n_gallery, d) float32, rows of unit length.
        k: how many; all of the gallery where it has fewer.
        gallery_labels: (n_gallery,) int; only a restricted search needs them.
        restrict_to: the classes that a query's search may return: one, (n_queries,) int ids, or
            several, (n_queries, n_classes) bool; all by default.
        exclude: (n_queries,) int, the gallery position that is the query itself, which is not
            returned; -1 where there is none.
        first: `first_of_equals` of the gallery, where it is searched many times.

    Returns:
        Rankings, (n_queries, k) int32 gallery positions, nearest first, equals in gallery order,
        -1 where the search may return no more; and their similarities, float32, NaN there.

    Raises:
        ValueError: lengths or positions do not fit; a restricted search lacks `gallery_labels`.
    """
    if gallery_labels is None:
        if restrict_to is not None:
            raise ValueError("gallery_labels: a search restricted to classes needs them")
        gallery_labels = np.zeros(len(gallery), np.int32)
    _, codes, exclude, searchable = _limits(query, gallery, gallery_labels, restrict_to, exclude)
    first = first_of_equals(gallery) if first is None else first
    k = min(k, len(gallery))
    rankings = np.full((len(query), k), -1, np.int32)
    similarities = np.full((len(query), k), np.nan, np.float32)

    def nearest(rows: slice, similarity: np.ndarray) -> None:
        if restrict_to is not None:
            similarity[~searchable(rows)[:, codes]] = -np.inf
        for row, (values, itself) in enumerate(zip(similarity, exclude[rows], strict=True)):
            values[itself : itself + 1] = -np.inf  # -1: nothing, as -1:0 is empty.
            reachable = values[values > -np.inf]  # alike ones by the thousand slow the partition
            place = max(0, len(reachable) - k)
            least = np.partition(reachable, place)[place] if len(reachable) else np.inf
            candidates = np.flatnonzero(values >= least)
            best = candidates[np.argsort(-values[candidates], kind="stable")][:k]
            rankings[rows][row, : len(best)] = best
            similarities[rows][row, : len(best)] = values[best]

    for _ in _each_block(query, gallery, first, nearest):
        pass
    return rankings, similarities


def relevant_ranks(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    restrict_to: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each query's relevant images stand in its full ranking, block by block.

    Args:
        query, gallery, restrict_to, exclude: as for `search`; what is excluded is neither ranked
            nor relevant.
        query_labels, gallery_labels: (n_queries,) and (n_gallery,) int; an image is relevant to a
            query of its own class.

    Yields:
        A block's rows, in the order of the queries, and its (b, R) float32 ranks from 1 on,
        rising; R is the largest number of relevant images that any query has, so that all blocks
        are of one width. Infinite for a relevant image that the search may not return, NaN in the
        places that a query with fewer relevant images leaves over. Exact up to 2**24 images.

    Raises:
        ValueError: lengths or positions do not fit; while it runs, rows are not of unit length.

    Example: similarities 0.9, 0.8, 0.7 to images of classes 1, 0, 1 give a query of class 1 the
    ranks [1, 3]; restricted to class 0 it has [inf, inf]; with position 0 excluded [2, nan].
    """
    classes, codes, exclude, searchable = _limits(
        query, gallery, gallery_labels, restrict_to, exclude
    )
    _fits("query_labels", query_labels, query)
    known = np.isin(query_labels, classes)
    wanted = np.where(known, np.searchsorted(classes, query_labels), -1).astype(np.int32)
    # At -1, of no class and of nothing excluded, stands what is appended.
    n_relevant = np.append(np.bincount(codes), 0)[wanted]
    n_relevant -= np.append(codes, -2)[exclude] == wanted
    places = np.arange(n_relevant.max(initial=0))
    first = first_of_equals(gallery)

    def stand(rows: slice, similarity: np.ndarray) -> np.ndarray:
        missed = places < n_relevant[rows, None]
        ranks = np.where(missed, np.float32(np.inf), np.float32(np.nan))
        bits = similarity.view(np.uint32)
        if not _rank(bits, codes, searchable(rows), wanted[rows], exclude[rows], ranks):
            raise ValueError("query, gallery: rows are not of unit length")
        return ranks

    blocks = _each_block(query, gallery, first, stand)
    return ((rows, np.concatenate(ranks)) for rows, ranks in blocks)


def first_of_equals(gallery: np.ndarray) -> np.ndarray:
    """(n_gallery,) int32, for each row the position of the first one that is equal in float32."""
    seen: dict[bytes, int] = {}
    first = np.empty(len(gallery), np.int32)
    for place, row in enumerate(np.asarray(gallery, np.float32)):
        # -0.0 equals 0.0 in other bits; adding 0 makes them the same.
        digest = hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest()
        first[place] = seen.setdefault(digest, place)
    return first


@njit(nogil=True)
def _rank(bits, codes, searchable, wanted, exclude, ranks):  # noqa: PLR0917
    """Write the ranks of each row's relevant images; False where a similarity is 2 or more.

    A radix sort: it takes the same time however the similarities lie, and leaves equals in the
    order of the gallery. A cosine leaves one of its 32 bits free, which carries whether the image
    is relevant, so that nothing else need be moved.

    Args:
        bits: (b, n_gallery) uint32, the bits of the float32 similarities.
        codes: (n_gallery,) int32, the class.
        searchable: (b, n_classes) bool.
        wanted, exclude: (b,) int32, class that is relevant and position to leave out, or -1.
        ranks: (b, R) float32, written from the left.
    """
    n = len(codes)
    keys, moved = np.empty(n, np.uint32), np.empty(n, np.uint32)
    starts = np.empty((3, DIGIT), np.int32)
    for row in range(len(bits)):
        starts[:] = 0
        seen = np.uint32(0)
        for place in range(n):
            value = bits[row, place]
            seen |= value
            # The greater the similarity, the smaller the key; 0.0 and -0.0 have the same.
            size = value & SIZE
            key = SIZE + size if value & SIGN else SIZE - size
            key = np.uint32(key << 1 | (codes[place] == wanted[row]))
            if not searchable[row, codes[place]] or place == exclude[row]:
                key = LAST
            keys[place] = key
            starts[0, (key >> 1) % DIGIT] += 1
            starts[1, (key >> 12) % DIGIT] += 1
            starts[2, key >> 23] += 1
        if seen & TOO_LARGE:
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
        found = 0
        for place in range(n):  # Without a branch, which would often be mispredicted.
            moved[found] = place + 1
            found += keys[place] & 1
        for place in range(found):
            ranks[row, place] = moved[place]
    return True


def _limits(
    query: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    restrict_to: np.ndarray | None,
    exclude: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Callable[[slice], np.ndarray]]:
    """What each query's search may return.

    Returns:
        The gallery's classes, rising; (n_gallery,) int32, which of them each image is of;
        (n_queries,) int32, the position that is excluded or -1; and, for a slice of the queries,
        a (b, number of the gallery's classes) bool.
    """
    _fits("gallery_labels", gallery_labels, gallery)
    restriction = None if restrict_to is None else np.asarray(restrict_to)
    if restriction is not None:
        _fits("restrict_to", restriction, query)
    exclude = np.full(len(query), -1) if exclude is None else np.asarray(exclude)
    _fits("exclude", exclude, query)
    if ((exclude < -1) | (exclude >= len(gallery))).any():
        raise ValueError(f"exclude: positions from -1 to {len(gallery) - 1}")
    classes, codes = np.unique(gallery_labels, return_inverse=True)

    def searchable(rows: slice) -> np.ndarray:
        if restriction is None:
            return np.ones((len(query[rows]), len(classes)), bool)
        if restriction.ndim == 1:
            return restriction[rows, None] == classes
        return restriction[rows][:, classes]

    return classes, codes.astype(np.int32), exclude.astype(np.int32), searchable


def _fits(name: str, array: np.ndarray, rows: np.ndarray) -> None:
    if len(array) != len(rows):
        raise ValueError(f"{name}: {len(array)} of them for {len(rows)} rows")


def _each_block(
    query: np.ndarray,
    gallery: np.ndarray,
    first: np.ndarray,
    rank: Callable[[slice, np.ndarray], object],
) -> Iterator[tuple[slice, list]]:
    """Each block's rows, and what `rank` makes of shares of them and their similarities.

    The (rows, n_gallery) float32 similarities are lent to `rank`; the next block overwrites them.
    """
    gallery = np.asarray(gallery, np.float32)
    size = min(BLOCK, max(1, MOST_SIMILARITIES // len(gallery)))
    similarity = np.empty((min(size, len(query)), len(gallery)), np.float32)
    repeated = np.flatnonzero(first != np.arange(len(gallery)))

    def settle(rows: slice, part: np.ndarray) -> object:
        # A blocked product gives equal rows different last bits. They are exact ties: the
        # similarity of the first one counts for all of them.
        part[:, repeated] = part[:, first[repeated]]
        return rank(rows, part)

    starts = range(0, len(query), size)
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as threads:
        for start in progress(starts, len(starts), f"blocks of {size} queries"):
            rows = slice(start, min(start + size, len(query)))
            block = similarity[: rows.stop - start]
            _multiply(threads, np.asarray(query[rows], np.float32), gallery, block)
            # Some more shares than cores, as one core may be slower than another.
            share = -(-len(block) // (4 * cores))
            cuts = range(start, rows.stop, share)
            shares = [slice(cut, min(cut + share, rows.stop)) for cut in cuts]
            parts = [block[cut - start : cut - start + share] for cut in cuts]
            yield rows, list(threads.map(settle, shares, parts))


def _multiply(
    threads: ThreadPoolExecutor, block: np.ndarray, gallery: np.ndarray, out: np.ndarray
) -> None:
    """The similarities of a block of queries and the gallery, into `out`."""

    def multiply(place: int) -> None:
        piece = slice(place, place + PIECE)
        np.matmul(block, gallery[piece].T, out=out[:, piece])

    with BLAS.limit(limits=1):
        list(threads.map(multiply, range(0, len(gallery), PIECE)))
