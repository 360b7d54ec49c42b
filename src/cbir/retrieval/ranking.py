"""Rankings of the gallery for each query, by cosine similarity.

Similarities that differ by at most `TIE` = 1e-12, relative to the sum of the absolute products that
they consist of (which is 1 at most), are ties, and ties keep the order of the gallery. (Ties are
transitive.) A query's ranking depends on the query and the gallery alone; other queries, blocks,
threads and the BLAS library make no difference:

1. A float32 matrix product yields approximate similarities. Their last bits depend on all of these.
2. A radix sort orders them. Neighbours that are closer than the rounding errors, measured for every
   query (see `DEVIATIONS`), form a group; images of different groups are in their final order.
3. Within a group whose order matters, float64 dot products of the embeddings as given decide. Each
   depends on its two vectors alone, and is exact if they are integers, such as codes of 0 and 1 or
   of -1 and 1. Float32 products of small integers are exact already and are not computed again.

If many images are in groups (see `DENSE`), the matrix product is in float64 instead, since reading
their embeddings for each query would take longer. Its rounding errors are bounded by theory, and
only what they could change is computed again as in step 3: similarities that may be ties, and those
that are returned. The results are the same, bit for bit.

Queries are processed in blocks, so the full rankings of a study are never in memory at once. All
cores work on the same block: memory does not grow with their number.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import ThreadpoolController

from cbir.progress import progress

# It is above the rounding errors of a float64 dot product, even in many thousands of dimensions.
TIE = 1e-12
# Rounding errors of sums grow with the square root of the number of terms (Higham and Mary, "A new
# approach to probabilistic rounding error analysis", 2019). Those of an approximate similarity s
# are measured, in units of radius + sqrt(d) * abs(s), on `SAMPLES` images for each query. Their
# bound is `DEVIATIONS` times the root mean square plus `LEAST_ERROR`. If an error turns out to be
# larger, the bound is doubled.
SAMPLES, DEVIATIONS, LEAST_ERROR = 64, 6, 2.0**-25
# The relative rounding error of a float32.
ROUNDING = 2.0**-24
# Products of integers below 2**24 are exact in float32, whatever the order of their sums. They are
# if no vector is longer than this.
MAX_LENGTH = 2**12
# The number of queries per block, or fewer if the similarities to a large gallery would exceed
# 64 MB.
BLOCK = 256
MAX_SIMILARITIES = 2**24
# The number of gallery images that a core multiplies a block with at a time.
PIECE = 1024
# Products are in float64 if more than this share of the gallery is in groups, for `PROBE` queries
# on average. With fewer queries than `MANY`, it is not worth the time to find out.
DENSE, PROBE, MANY = 0.025, 4, 64
# The library that NumPy uses for products. Its idle threads would keep the cores busy, so it gets
# one thread, from one caller at a time: a second one would find 1 as the number to go back to.
BLAS, PRODUCT = ThreadpoolController().select(user_api="blas"), threading.Lock()
# The radix sort moves items of 64 bits: a key of two digits (`LAST` if the image is not searched),
# whether it is relevant, and its position.
BITS = 12
DIGIT, LAST = 2**BITS, 2 ** (2 * BITS) - 1
POSITION, RELEVANT = np.uint64(2**32 - 1), np.uint64(2**32)
KEY, UPPER_DIGIT = np.uint64(33), np.uint64(33 + BITS)
# The largest galleries whose ranks are exact in float32, and whose positions are int32.
MAX_FLOAT32, MAX_GALLERY = 2**24, 2**31 - 1


@dataclass(frozen=True)
class PreparedGallery:
    """A gallery that can be searched many times, from `prepare`.

    Attributes:
        rows: (n_gallery, d) float32 or float64, the embeddings.
        scales: (n_gallery,) float64, 1 / length of each embedding.
        mean: (d,) float64, about the mean of the embeddings at unit length.
        centred: (n_gallery, d) float32, the embeddings at unit length minus the mean. Without it,
            all similarities to a query differ by the same amount, and rounding errors are smaller.
        radius: the greatest length of a centred embedding.
        integers: (n_gallery, d) float32, the embeddings if they are small integers, or None.
    """

    rows: np.ndarray
    scales: np.ndarray
    mean: np.ndarray
    centred: np.ndarray
    radius: float
    integers: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)


def prepare(gallery_embeddings: np.ndarray) -> PreparedGallery:
    """Check and prepare a gallery, to save time if it is searched many times; as for `search`."""
    rows, scales = _rows("gallery_embeddings", gallery_embeddings)
    if len(rows) > MAX_GALLERY:
        raise ValueError(f"gallery_embeddings: {len(rows)} rows, but at most {MAX_GALLERY} fit")
    mean = (scales.astype(rows.dtype) @ rows / len(rows)).astype(np.float64)
    centred = np.empty(rows.shape, np.float32)
    radius = _centre(rows, scales, mean, centred)
    return PreparedGallery(rows, scales, mean, centred, radius, _integers(rows, scales))


def search(
    query_embeddings: np.ndarray,
    gallery_embeddings: np.ndarray | PreparedGallery,
    k: int,
    *,
    gallery_labels: np.ndarray | None = None,
    restrict_to: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest gallery images of each query.

    Args:
        query_embeddings, gallery_embeddings: (n_queries, d) and (n_gallery, d) numbers, rows of any
            length except zero; or the result of `prepare` for the gallery.
        k: number of results, 1 or greater, limited to the size of the gallery.
        gallery_labels: (n_gallery,) int, 0 or greater; only needed with `restrict_to`.
        restrict_to: the classes that a query's search may return: one, (n_queries,) int ids, or
            several, (n_queries, n_classes) bool with a column for each class of the gallery; all by
            default.
        exclude: (n_queries,) int, the gallery position of the query itself, which is not returned;
            -1 if it is not in the gallery.

    Returns:
        Rankings, (n_queries, k) int32 gallery positions, nearest first, ties in gallery order; and
        their cosine similarities, float32, equal for ties. If the search may return fewer than k
        images, the remaining places are -1 and NaN.

    Raises:
        ValueError: empty or masked arrays, shapes or types that do not fit, NaN, infinite or zero
            rows, ids out of range, or `gallery_labels` missing; the message names the argument and
            the first invalid row.
    """
    check_count("k", k, least=1)
    if gallery_labels is None:
        if restrict_to is not None:
            raise ValueError("gallery_labels: required with restrict_to")
        gallery_labels = np.zeros(len(gallery_embeddings), np.int32)
    blocks = relevant_ranks(
        query_embeddings, None, gallery_embeddings, gallery_labels,
        restrict_to=restrict_to, exclude=exclude, k=k,
    )  # fmt: skip
    _, rankings, similarities = zip(*blocks, strict=True)
    return np.concatenate(rankings), np.concatenate(similarities)


def relevant_ranks(
    query_embeddings: np.ndarray,
    query_labels: np.ndarray | None,
    gallery_embeddings: np.ndarray | PreparedGallery,
    gallery_labels: np.ndarray,
    *,
    restrict_to: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    k: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The ranks of each query's relevant images in its full ranking, and its k nearest images.

    Args:
        query_embeddings, gallery_embeddings, restrict_to, exclude: as for `search`; an excluded
            image is neither ranked nor relevant.
        query_labels, gallery_labels: (n_queries,) and (n_gallery,) int, 0 or greater; an image is
            relevant to a query of its own class, and to none if `query_labels` is None.
        k: number of results, 0 or greater.

    Yields:
        For each block of queries, in their order:
        - (b, R) ranks, starting at 1 and ascending; float32, or float64 if the gallery has more
          than 2**24 images. R is the largest number of relevant images of any query, so all blocks
          have the same width. A rank is infinite for a relevant image that the search may not
          return, and NaN in the remaining places of a query with fewer relevant images.
        - Rankings and similarities, as from `search`.

    Raises:
        ValueError: as for `search`.

    Example: a query of class 1 with similarities 0.9, 0.8, 0.7 to images of classes 1, 0, 1 has the
    ranks [1, 3]; restricted to class 0, it has [inf, inf]; with position 0 excluded, [2, nan].
    """
    check_count("k", k, least=0)
    queries, query_scales = _rows("query_embeddings", query_embeddings)
    is_prepared = isinstance(gallery_embeddings, PreparedGallery)
    gallery = gallery_embeddings if is_prepared else prepare(gallery_embeddings)
    n_dimensions = gallery.rows.shape[1]
    if queries.shape[1] != n_dimensions:
        raise ValueError(
            f"query_embeddings: {queries.shape[1]} dimensions, gallery_embeddings: {n_dimensions}"
        )
    gallery_labels = _check_ids("gallery_labels", gallery_labels, len(gallery))
    classes, codes = np.unique(gallery_labels, return_inverse=True)
    codes = codes.astype(np.int32)
    searchable = _searchable(restrict_to, len(queries), classes)
    exclude = np.full(len(queries), -1) if exclude is None else exclude
    exclude = _check_ids("exclude", exclude, len(queries), least=-1, beyond=len(gallery))
    exclude = exclude.astype(np.int32)
    query_codes, n_relevant = np.full(len(queries), -1, np.int32), np.zeros(len(queries), np.int32)
    if query_labels is not None:
        query_labels = _check_ids("query_labels", query_labels, len(queries))
        is_known = np.isin(query_labels, classes)
        query_codes[is_known] = np.searchsorted(classes, query_labels[is_known])
        # The appended values are at -1: the class of a query without one, and no excluded image.
        n_relevant = np.append(np.bincount(codes), 0)[query_codes]
        n_relevant -= np.append(codes, -2)[exclude] == query_codes
    places = np.arange(n_relevant.max(initial=0))
    ranks_type = np.float32 if len(gallery) <= MAX_FLOAT32 else np.float64
    integers = None if gallery.integers is None else _integers(queries, query_scales)
    if integers is not None:
        operands = [(integers, gallery.integers)]
    else:
        centred = (queries * query_scales[:, None]).astype(np.float32), gallery.centred
        operands = [centred, (queries.astype(np.float64), gallery.rows)]

    def rank(part: slice | np.ndarray, products: np.ndarray) -> tuple[np.ndarray, ...]:
        is_relevant = places < n_relevant[part, None]
        ranks = np.where(is_relevant, ranks_type(np.inf), ranks_type(np.nan))
        rankings = np.full((len(ranks), min(k, len(gallery))), -1, np.int32)
        similarities = np.full(rankings.shape, np.nan, np.float32)
        vectors = queries[part].astype(np.float64)
        offsets = vectors @ gallery.mean
        n_doubtful, approximate, margin = np.zeros(len(ranks), np.int64), products, 0.0
        if products.dtype == np.float64:
            approximate = np.empty(products.shape, np.float32)
            # Two sums of d products differ by less than d * 2**-52, whatever their order.
            margin = (n_dimensions + 8) * 2.0**-50
        if is_exact := margin > 0 or integers is not None:
            errors = np.full((len(ranks), 2), (TIE + margin, ROUNDING))
        else:
            errors = _error_bounds(approximate, vectors, query_scales[part], gallery)
        _write_rankings(
            approximate, products.astype(np.float64, copy=False) if is_exact else np.empty((0, 0)),
            margin, errors, vectors, query_scales[part], offsets,
            _Gallery(gallery.rows, gallery.scales, codes),
            searchable[part], query_codes[part], exclude[part], ranks, rankings, similarities,
            n_doubtful,
        )  # fmt: skip
        return ranks, rankings, similarities, n_doubtful

    return _blocks(operands, rank)


def _error_bounds(
    approximate: np.ndarray, queries: np.ndarray, scales: np.ndarray, gallery: PreparedGallery
) -> np.ndarray:
    """(n, 2) float64, c and d of the bound c + d * abs(s) on the error of a similarity s."""
    n, root = len(gallery), np.sqrt(queries.shape[1])
    samples = np.arange(SAMPLES) * n // SAMPLES
    sampled = gallery.rows[samples] * gallery.scales[samples, None] - gallery.mean
    similarities = approximate[:, samples].astype(np.float64)
    errors = similarities - queries @ sampled.T * scales[:, None]
    errors /= gallery.radius + root * abs(similarities) + TIE
    bounds = LEAST_ERROR + DEVIATIONS * np.sqrt(np.square(errors).mean(axis=1))
    return np.column_stack([bounds * gallery.radius + TIE, bounds * root])


def _rows(name: str, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings as read-only float32 or float64, without rounding, and 1 / length of each row."""
    array = _array(name, embeddings)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name}: expected (rows, dimensions) of numbers, not empty; "
            f"got {array.shape} of {array.dtype}"
        )
    is_small = np.can_cast(array.dtype, np.float32)
    rows = _read_only(np.ascontiguousarray(array, np.float32 if is_small else np.float64))
    lengths = _lengths(rows)
    if not ((lengths > 1e-10) & (lengths < 1e10)).all():
        # Squares may be too large or too small. Scaling by powers of two is exact.
        exponents = np.frexp(np.abs(rows).max(axis=1, keepdims=True))[1]
        rows = _read_only(np.ldexp(rows, -exponents))
        lengths = _lengths(rows)
    bad = ~((lengths > 0) & (lengths < np.inf))
    if bad.any():
        row = bad.argmax()
        raise ValueError(
            f"{name}: row {row} is {'zero' if lengths[row] == 0 else 'NaN or infinite'}"
        )
    return rows, 1 / lengths


def _integers(rows: np.ndarray, scales: np.ndarray) -> np.ndarray | None:
    """The rows in float32 if they are integers whose products are exact in it (`MAX_LENGTH`)."""
    # The first row alone rules out most embeddings.
    for part in (rows[:1], rows):
        if scales.min() * MAX_LENGTH < 1 or not (part == np.rint(part)).all():
            return None
    return rows.astype(np.float32, copy=False)


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view; Numba compiles one version of each function if no array can be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def _array(name: str, values: np.ndarray) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: masked arrays are not supported; leave the masked rows out")
    return np.asarray(values)


def _check_ids(
    name: str, values: np.ndarray, n: int, least: int = 0, beyond: int = 2**63
) -> np.ndarray:
    """(n,) int64, each at least `least` and below `beyond`."""
    values = _array(name, values)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected ({n},) of int, got {values.shape} of {values.dtype}")
    bad = (values < least) | (values >= beyond)
    if bad.any():
        row = bad.argmax()
        limit = f"below {least}" if values[row] < least else f"beyond {beyond - 1}"
        raise ValueError(f"{name}: row {row} is {values[row]}, {limit}")
    return values.astype(np.int64)


def _searchable(restrict_to: np.ndarray | None, n: int, classes: np.ndarray) -> np.ndarray:
    """(n, number of the gallery's classes) bool, whether a query's search may return the class;
    without `restrict_to` (n, 0), and all may be returned.
    """
    if restrict_to is None:
        return np.empty((n, 0), bool)
    restrict_to = _array("restrict_to", restrict_to)
    if restrict_to.ndim == 1:
        return _check_ids("restrict_to", restrict_to, n)[:, None] == classes
    if restrict_to.ndim != 2 or len(restrict_to) != n or restrict_to.dtype != bool:
        raise ValueError(
            f"restrict_to: expected ({n},) of int or ({n}, n_classes) of bool, "
            f"got {restrict_to.shape} of {restrict_to.dtype}"
        )
    if classes[-1] >= restrict_to.shape[1]:
        raise ValueError(
            f"restrict_to: {restrict_to.shape[1]} classes, but gallery_labels has {classes[-1]}"
        )
    return restrict_to[:, classes]


def check_count(name: str, count: int, least: int) -> int:
    """A count as int; ValueError if it is not an integer of at least `least`."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < least:
        raise ValueError(f"{name}: expected an integer of {least} or more, got {count!r}")
    return int(count)


def _blocks(
    operands: list[tuple[np.ndarray, np.ndarray]],
    rank: Callable[[slice | np.ndarray, np.ndarray], tuple],
) -> Iterator[tuple[np.ndarray, ...]]:
    """The results of `rank`, which gets a part of the queries and its products, by block.

    Operands are queries and gallery; the second ones are for dense similarities.
    """
    queries, gallery = operands[0]
    n, n_gallery = len(queries), len(gallery)
    size = min(BLOCK, max(1, MAX_SIMILARITIES // n_gallery))
    starts, cores = range(0, n, size), os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as threads:
        if len(operands) > 1 and n >= MANY:
            # Not a slice: Numba would compile another version for arrays with gaps.
            probe = np.arange(0, n, n // PROBE)
            products = np.empty((len(queries[probe]), n_gallery), np.float32)
            _multiply(threads, queries[probe], gallery, products)
            *_, n_doubtful = rank(probe, products)
            if n_doubtful.mean() > DENSE * n_gallery:
                queries, gallery = operands[1]
        products = np.empty((min(size, n), n_gallery), queries.dtype)
        for start in progress(starts, len(starts), f"blocks of {size} queries"):
            block = products[: len(queries[start : start + size])]
            _multiply(threads, queries[start : start + size], gallery, block)
            # There are more parts than cores, since one core may be slower than another.
            step = -(-len(block) // (4 * cores))
            cuts = range(0, len(block), step)
            parts = [slice(start + cut, start + min(cut + step, len(block))) for cut in cuts]
            lent = [block[cut : cut + step] for cut in cuts]
            *results, _ = zip(*threads.map(rank, parts, lent), strict=True)
            yield tuple(map(np.concatenate, results))


def _multiply(
    threads: ThreadPoolExecutor, block: np.ndarray, gallery: np.ndarray, out: np.ndarray
) -> None:
    """Write the products of a block of queries and the gallery into `out`, in its type."""

    def multiply(place: int) -> None:
        piece = slice(place, place + PIECE)
        np.matmul(block, gallery[piece].T.astype(out.dtype, copy=False), out=out[:, piece])

    with PRODUCT, BLAS.limit(limits=1):
        list(threads.map(multiply, range(0, len(gallery), PIECE)))


class _Gallery(NamedTuple):
    """What compiled functions need of a gallery: see `PreparedGallery`; `codes` are its classes."""

    rows: np.ndarray
    scales: np.ndarray
    codes: np.ndarray


class _Query(NamedTuple):
    """A query as given, 1 / length, and the similarity that the mean of the gallery adds."""

    vector: np.ndarray
    scale: float
    offset: float


@njit(nogil=True, cache=True)
def _write_rankings(  # noqa: PLR0917
    approximate, products, margin, errors, queries, query_scales, offsets, gallery, searchable,
    query_codes, exclude, ranks, rankings, similarities, n_doubtful,
):  # fmt: skip
    """Write the ranks of each query's relevant images, its nearest images and their similarities.

    Args:
        approximate: (b, n_gallery) float32, the products of the queries at unit length and the
            centred gallery. If there are `products`, it is overwritten.
        products: (b, n_gallery) float64, those of queries and gallery as given, or (0, 0).
        margin: how much the difference of two similarities may be off because of `products`.
        errors: (b, 2) float64, from `_error_bounds`.
        offsets: (b,) float64, the products of `queries` and the mean of the gallery.
        query_codes, exclude: (b,) int32, the relevant class and the position to leave out, or -1.
        ranks, rankings, similarities: (b, R) and twice (b, k), written from the left.
        n_doubtful: (b,) int64, the number of images beyond the first k places in groups is added.
    """
    n, k = len(gallery.codes), rankings.shape[1]
    keys, items, moved = np.empty(n, np.uint32), np.empty(n, np.uint64), np.empty(n, np.uint64)
    values, positions, groups = np.empty(n), np.empty(n, np.int32), np.empty((n, 2), np.int32)
    exact, is_needed, gaps = np.empty(n), np.zeros(n, np.bool_), np.empty(DIGIT, np.uint64)
    is_exact, again = len(products) > 0, np.empty(n, np.int32)
    for row in range(len(queries)):
        query = _Query(queries[row], query_scales[row], offsets[row] * query_scales[row])
        if is_exact:
            for place in range(n):
                exact[place] = products[row, place] * (gallery.scales[place] * query.scale)
                approximate[row, place] = exact[place]
        top, bottom = _extremes(approximate[row])
        scale = (LAST - 1) / max(top - bottom, TIE)
        n_ranked = _sort_approximately(
            approximate[row], top, scale, gallery.codes, searchable[row], query_codes[row],
            exclude[row], keys, items, moved,
        )  # fmt: skip
        error, growth = errors[row]
        while True:
            bound = (error, growth)
            n_groups = _find_groups(items[:n_ranked], top, scale, bound, k, gaps, groups)
            if is_exact or _write_exact(
                groups[:n_groups], items, approximate[row], bound, query, gallery, is_needed,
                positions, exact,
            ):  # fmt: skip
                break
            error, growth = 2 * error, 2 * growth
        for start, end in groups[:n_groups]:
            _sort_group(
                items[start:end], exact, query, gallery, query_codes[row], values[start:end],
                positions[start:end], margin, k - start, again,
            )  # fmt: skip
            n_doubtful[row] += max(0, end - max(start, k))
        for place in range(min(k, n_ranked)):
            rankings[row, place] = items[place] & POSITION
            similarities[row, place] = values[place]
        n_relevant = 0
        for place in range(n_ranked):  # A branch would often be mispredicted, so there is none.
            moved[n_relevant] = place + 1
            n_relevant += items[place] // RELEVANT & np.uint64(1)
        for place in range(n_relevant):
            ranks[row, place] = moved[place]


@njit(nogil=True, cache=True)
def _sort_approximately(  # noqa: PLR0917
    approximate, top, scale, codes, searchable, query_code, exclude, keys, items, moved
):
    """Sort the gallery by keys that count down the similarity from `top` in equal steps.

    Returns the number of images that are searched; they are the first of the sorted `items`.
    """
    n, query_code = len(codes), np.int32(query_code)
    one, low_bits, shift = np.uint32(1), np.uint32(DIGIT - 1), np.uint32(1 + BITS)
    for place in range(n):
        step = np.uint32((top - approximate[place]) * scale)
        keys[place] = step << one | np.uint32(codes[place] == query_code)
    if len(searchable):
        for place in range(n):
            if not searchable[codes[place]]:
                keys[place] = 2 * LAST
    if exclude >= 0:
        keys[exclude] = 2 * LAST
    low, high = np.zeros(DIGIT, np.int32), np.zeros(DIGIT, np.int32)
    for place in range(n):
        low[keys[place] >> one & low_bits] += 1
        high[keys[place] >> shift] += 1
    low_start = high_start = 0
    for digit in range(DIGIT):
        low_count, high_count = low[digit], high[digit]
        low[digit], high[digit] = low_start, high_start
        low_start += low_count
        high_start += high_count
    for place in range(n):
        digit = keys[place] >> one & low_bits
        start = low[digit]
        moved[start] = np.uint64(keys[place]) * RELEVANT | np.uint64(place)
        low[digit] = start + 1
    for place in range(n):
        digit = moved[place] >> UPPER_DIGIT
        start = high[digit]
        items[start] = moved[place]
        high[digit] = start + 1
    while n and items[n - 1] >> KEY == LAST:
        n -= 1
    return n


@njit(nogil=True, cache=True)
def _find_groups(items, top, scale, errors, k, gaps, groups):  # noqa: PLR0917
    """Find groups of neighbours that may have been mixed up, if their order matters.

    Beyond the first k places, only the order of relevant images and others matters. All of the
    first k places are in a group. Returns the number of `groups`: first places, and ends.
    """
    # The difference of keys from which on their order is certain, by upper digit. Keys are rounded
    # down.
    for digit in range(DIGIT):
        size = abs(top - digit * DIGIT / scale) + 2 * DIGIT / scale
        gap = np.ceil(2 * (errors[0] + errors[1] * size) * scale) + 2
        gaps[digit] = min(gap, LAST)
    n_ranked, n_groups, start = len(items), 0, 0
    while start < n_ranked:
        end = start + 1
        if start >= k:
            while end < n_ranked and not (
                ((items[end] ^ items[end - 1]) & RELEVANT != 0) & _is_near(items, end, gaps)
            ):
                end += 1
            if end >= n_ranked:
                break
            first = end - 1
            while first > start and _is_near(items, first, gaps):
                first -= 1
            start = first
        while end < n_ranked and _is_near(items, end, gaps):
            end += 1
        # Numba compiles this faster than the assignment of a tuple.
        groups[n_groups, 0], groups[n_groups, 1] = start, end
        n_groups += 1
        start = end
    return n_groups


@njit(nogil=True, cache=True)
def _is_near(items, place, gaps):
    """Whether the images at `place` and before it may have been mixed up."""
    return (items[place] >> KEY) - (items[place - 1] >> KEY) < gaps[items[place] >> UPPER_DIGIT]


@njit(nogil=True, cache=True)
def _write_exact(  # noqa: PLR0917
    groups, items, approximate, errors, query, gallery, is_needed, positions, exact
):
    """Write the exact similarities in the groups; False if an error exceeds its bound."""
    for start, end in groups:
        for place in range(start, end):
            is_needed[items[place] & POSITION] = True
    n_needed = 0
    for position in range(len(is_needed)):  # Memory is read faster in its order.
        positions[n_needed] = position
        n_needed += is_needed[position]
        is_needed[position] = False
    _write_similarities(query, gallery, positions[:n_needed], exact)
    is_bounded = True
    for position in positions[:n_needed]:
        error = abs(approximate[position] + query.offset - exact[position])
        is_bounded &= error <= errors[0] + errors[1] * abs(approximate[position])
    return is_bounded


@njit(nogil=True, cache=True)
def _sort_group(  # noqa: PLR0917
    items, exact, query, gallery, query_code, values, positions, margin, k, again
):
    """Sort the items of a group by exact similarity, with ties in the order of the gallery.

    Their similarities are in `values` then; those of ties are equal. With a margin, the first k and
    all that may be ties are computed again, so that they depend on the query and the image alone.
    """
    n, first = len(items), 0
    for place in range(n):
        positions[place] = items[place] & POSITION
        values[place] = exact[positions[place]]
    _sort(values, positions)
    n_again, is_near = 0, False
    for place in range(n if margin else 0):
        was_near = is_near
        is_near = place + 1 < n and values[place] - values[place + 1] <= TIE + margin
        if was_near or is_near or place < k:
            again[n_again] = positions[place]
            n_again += 1
    if n_again:
        _write_similarities(query, gallery, again[:n_again], exact)
        for place in range(n):
            values[place] = exact[positions[place]]
        _sort(values, positions)
    for place in range(1, n + 1):
        if place < n:
            difference, tolerance = values[place - 1] - values[place], TIE
            if 0 < difference <= TIE:  # No sum of absolute products is above 1.
                one, other = positions[place - 1], positions[place]
                tolerance *= max(_size(query, gallery, one), _size(query, gallery, other))
            if difference <= tolerance:
                continue
        if place - first > 1:
            for tie in range(first, place):
                values[tie] = values[first]
            _sort(values[first:place], positions[first:place])
        first = place
    for place in range(n):
        is_relevant = np.uint64(gallery.codes[positions[place]] == query_code)
        key = items[place] >> KEY << KEY
        items[place] = key | is_relevant * RELEVANT | np.uint64(positions[place])


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _write_similarities(query, gallery, positions, exact):
    """Write the similarities of the images at these positions in float64.

    The order of the sums is fixed when this is compiled. Four rows are read at once, which memory
    serves faster.
    """
    rows, scales, last = gallery.rows, gallery.scales, len(positions) - 1
    for first in range(0, len(positions), 4):
        a, b = positions[first], positions[min(first + 1, last)]
        c, d = positions[min(first + 2, last)], positions[min(first + 3, last)]
        sum_a = sum_b = sum_c = sum_d = 0.0
        for axis in range(len(query.vector)):
            value = query.vector[axis]
            sum_a += value * rows[a, axis]
            sum_b += value * rows[b, axis]
            sum_c += value * rows[c, axis]
            sum_d += value * rows[d, axis]
        exact[a], exact[b] = sum_a * (scales[a] * query.scale), sum_b * (scales[b] * query.scale)
        exact[c], exact[d] = sum_c * (scales[c] * query.scale), sum_d * (scales[d] * query.scale)


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _size(query, gallery, position):
    """The sum of the absolute products that the similarity consists of."""
    total = 0.0
    for place in range(len(query.vector)):
        total += abs(query.vector[place] * gallery.rows[position, place])
    return total * (gallery.scales[position] * query.scale)


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _extremes(values):
    top = bottom = values[0]
    for value in values:
        top = value if value > top else top
        bottom = value if value < bottom else bottom
    return np.float64(top), np.float64(bottom)  # float32 keys would be off by a few steps


@njit(nogil=True, cache=True)
def _sort(values, positions):
    """Sort both arrays by falling values, and by positions where values are equal.

    Shell sort: the arrays are nearly sorted, and NumPy's sorts take Numba seconds to compile.
    """
    gap = 1
    while 3 * gap < len(values):
        gap = 3 * gap + 1
    while gap:
        for end in range(gap, len(values)):
            value, position, place = values[end], positions[end], end
            while place >= gap and (
                values[place - gap] < value
                or (values[place - gap] == value and positions[place - gap] > position)
            ):
                values[place], positions[place] = values[place - gap], positions[place - gap]
                place -= gap
            values[place], positions[place] = value, position
        gap //= 3


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _lengths(rows):
    """(n,) float64, the Euclidean length of each row."""
    lengths = np.empty(len(rows))
    for place in range(len(rows)):
        total = 0.0
        for axis in range(rows.shape[1]):
            total += np.float64(rows[place, axis]) * rows[place, axis]
        lengths[place] = np.sqrt(total)
    return lengths


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _centre(rows, scales, mean, centred):
    """Write `PreparedGallery.centred`, and return the radius."""
    largest = 0.0
    for place in range(len(rows)):
        total, scale = 0.0, scales[place]
        for axis in range(len(mean)):
            value = rows[place, axis] * scale - mean[axis]
            centred[place, axis] = value
            total += value * value
        largest = max(largest, total)
    return np.sqrt(largest)
