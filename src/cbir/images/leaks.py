"""Leaks: queries that are also in the gallery, which would make retrieval look too good.

A pair of images leaks if their pixels are identical, or if they are near-duplicates: the same
picture saved again, brighter, or shifted by one pixel of 32. A near-duplicate passes both
thresholds:

- `HASH_BITS`: the difference hashes (is a cell brighter than its neighbour?) differ in at most 24
  of 128 bits; those of unrelated pictures differ in about 64.
- `PIXEL_DISTANCE`: the root mean square difference of the pixels is at most 0.08. The images are
  scaled to a width of 32 pixels, centred in each colour channel, scaled to contrast 1, and shifted
  by up to 2 pixels. The same picture in any brightness has distance 0, two unrelated pictures 1.41.

The hashes are computed on pictures that are not shifted. Therefore, most copies shifted by one
pixel are found, but only some of those shifted by two.

The threshold is the same for all data sets. The two most similar of scikit-learn's digits have a
distance of 0.09, so no digit is a near-duplicate of another. Photographs differ more, and a larger
threshold would find more copies among them, such as those with strong compression, another tint or
another crop: Barz and Denzler ("Do we train on test data?", 2020), who judged pairs by eye, list
286 of the 10,000 test images of CIFAR-10.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from cbir.cache import cached
from cbir.images.dataset import Dataset, take_rows
from cbir.progress import progress

HASH_BITS = 24
PIXEL_DISTANCE = 0.08
# `SHIFT` is the largest shift between two images, in pixels of images that are `WIDTH` wide.
WIDTH, SHIFT = 32, 2
# The root mean square contrast, in grey levels of 255. Images of less contrast show too little, and
# leak only if all pixels are identical.
MIN_CONTRAST = 8.0
# Pairs whose 8x8 sketches differ by more are not compared pixel by pixel. Sketches are not shifted,
# and a shift by one pixel changes them by up to about 0.4.
SKETCH_DISTANCE = 0.5
# The number of queries, or of pairs, compared at a time. 64 queries and a gallery of 50,000 take
# 26 MB per array.
BLOCK = 64
KINDS = ("identical", "near-duplicate")


def find_leaks(queries: np.ndarray, gallery: np.ndarray) -> pd.DataFrame:
    """Find every pair of a query and a gallery image that show the same picture.

    Args:
        queries, gallery: (n, size, size, 3) uint8 RGB of the same size; they are read in blocks and
            may be memory-mapped.

    Returns:
        One row per pair, sorted by query, pixel distance and gallery image: `query`, `gallery`
        (positions, int64), `kind` (a name in `KINDS`), `hash_distance` (int64, of 128 bits) and
        `pixel_distance` (float64).
    """
    query_signatures = _Signatures(queries, "queries")
    gallery_signatures = _Signatures(gallery, "gallery")
    identical = _find_identical(query_signatures, gallery_signatures)
    similar = _find_similar(queries, gallery, query_signatures, gallery_signatures)
    # Identical images also pass the thresholds of near-duplicates, and are counted once.
    pairs = pd.concat([identical, similar]).drop_duplicates(["query", "gallery"])
    return pairs.sort_values(["query", "pixel_distance", "gallery"], ignore_index=True)


def audit(dataset: Dataset) -> pd.DataFrame:
    """The leaks of a data set, as from `find_leaks`; cached."""

    def make(folder: Path) -> None:
        images = dataset.images
        pairs = find_leaks(take_rows(images, dataset.queries), take_rows(images, dataset.gallery))
        # If the queries form the gallery, a query is no leak of itself.
        is_itself = dataset.queries[pairs["query"]] == dataset.gallery[pairs["gallery"]]
        pairs[~is_itself].reset_index(drop=True).to_parquet(folder / "pairs.parquet")

    artifact = cached(
        "leaks", make, parameters={}, reads=[dataset.search_fingerprint], package="images"
    )
    return pd.read_parquet(artifact.folder / "pairs.parquet")


class _Signatures:
    """Signatures of images that help to find their copies, about 0.8 kB per image.

    Attributes:
        digests: n digests of 16 bytes, equal only if all pixels are equal.
        hashes: (n, 2) uint64, whether brightness rises to the right (64 bits) and downwards (64).
        sketches: (n, 192) float32, the image as 8x8 pixels, centred, of length 1.
        has_contrast: (n,) bool.
    """

    def __init__(self, images: np.ndarray, name: str):
        self.digests: list[bytes] = []
        self.hashes = np.empty((len(images), 2), np.uint64)
        self.sketches = np.empty((len(images), 192), np.float32)
        self.has_contrast = np.empty(len(images), bool)
        # A block of images has about 1 MB, whatever their size.
        step = max(1, 2**20 // max(1, images[:1].nbytes))
        starts = range(0, len(images), step)
        for start in progress(starts, len(starts), f"looking for leaks: {name}, blocks"):
            block = np.ascontiguousarray(images[start : start + step])
            rows = slice(start, start + len(block))
            self.digests += [hashlib.blake2b(image, digest_size=16).digest() for image in block]
            pictures = _shrink(block, WIDTH)
            self.hashes[rows] = _difference_hash(pictures)
            centred = _centre(pictures)
            self.has_contrast[rows] = np.sqrt((centred**2).mean((1, 2, 3))) >= MIN_CONTRAST
            sketch = _centre(_area(WIDTH, 8) @ pictures @ _area(WIDTH, 8).T).reshape(len(block), -1)
            self.sketches[rows] = sketch / np.maximum(np.linalg.norm(sketch, axis=1), 1e-6)[:, None]


def _find_identical(query_signatures: _Signatures, gallery_signatures: _Signatures) -> pd.DataFrame:
    queries, gallery = (
        pd.DataFrame({"digest": signatures.digests, name: range(len(signatures.digests))})
        for name, signatures in (("query", query_signatures), ("gallery", gallery_signatures))
    )
    pairs = queries.merge(gallery, on="digest")
    zeros = np.zeros(len(pairs))
    return _pairs(pairs["query"], pairs["gallery"], KINDS[0], zeros, zeros)


def _find_similar(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_signatures: _Signatures,
    gallery_signatures: _Signatures,
) -> pd.DataFrame:
    """Pairs that pass the thresholds of near-duplicates, identical ones among them."""
    query_rows = np.flatnonzero(query_signatures.has_contrast)
    gallery_rows = np.flatnonzero(gallery_signatures.has_contrast)
    hashes = gallery_signatures.hashes[gallery_rows].T.copy()
    sketches = gallery_signatures.sketches[gallery_rows].T.copy()
    # The dot product of two vectors of length 1 follows from their distance.
    min_similarity = 1 - SKETCH_DISTANCE**2 / 2
    pairs = [_pairs([], [], KINDS[1], [], [])]
    starts = range(0, len(query_rows), BLOCK)
    for start in progress(starts, len(starts), f"looking for leaks: comparing, blocks of {BLOCK}"):
        rows = query_rows[start : start + BLOCK]
        bits = sum(
            np.bitwise_count(query_signatures.hashes[rows, half, None] ^ hashes[half])
            for half in (0, 1)
        )
        is_similar = query_signatures.sketches[rows] @ sketches >= min_similarity
        left, right = np.nonzero((bits <= HASH_BITS) & is_similar)
        query, image = rows[left], gallery_rows[right]
        distance = np.empty(len(query))
        for first in range(0, len(query), BLOCK):
            part = slice(first, first + BLOCK)
            distance[part] = _pixel_distance(queries[query[part]], gallery[image[part]])
        is_near = distance <= PIXEL_DISTANCE
        bits = bits[left, right]
        pairs.append(
            _pairs(query[is_near], image[is_near], KINDS[1], bits[is_near], distance[is_near])
        )
    return pd.concat(pairs)


def _pairs(query, gallery, kind: str, hash_distance, pixel_distance) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "query": np.asarray(query, np.int64),
            "gallery": np.asarray(gallery, np.int64),
            "kind": np.full(len(query), kind, object),
            "hash_distance": np.asarray(hash_distance, np.int64),
            "pixel_distance": np.asarray(pixel_distance, np.float64),
        }
    )


def _area(size: int, cells: int) -> np.ndarray:
    """(cells, size) float32: the weight of each of `size` pixels in the mean of each cell."""
    edges, pixels = np.linspace(0, size, cells + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * (cells / size)).astype(np.float32)


def _shrink(images: np.ndarray, width: int) -> np.ndarray:
    """(n, size, size, 3) uint8 to (n, 3, width, width) float32, by the mean over each area."""
    area = _area(images.shape[1], width)
    return area @ images.transpose(0, 3, 1, 2).astype(np.float32) @ area.T


def _difference_hash(pictures: np.ndarray) -> np.ndarray:
    """(n, 3, WIDTH, WIDTH) to (n, 2) uint64: which of two neighbouring cells is brighter."""
    grey, eight, nine = pictures.mean(1), _area(WIDTH, 8), _area(WIDTH, 9)
    rightwards = np.diff(eight @ grey @ nine.T, axis=2) > 0
    downwards = np.diff(nine @ grey @ eight.T, axis=1) > 0
    bits = np.stack([rightwards, downwards], axis=1).reshape(len(pictures), 2, 64)
    return np.packbits(bits, axis=2).view(np.uint64)[..., 0]


def _centre(pictures: np.ndarray) -> np.ndarray:
    """(n, 3, height, width), minus the mean of each channel."""
    return pictures - pictures.mean((2, 3), keepdims=True)


def _pixel_distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) root mean square difference at contrast 1, the smallest over all shifts."""
    left, right = _shrink(left, WIDTH), _shrink(right, WIDTH)
    inner = WIDTH - 2 * SHIFT
    right = _centre(right[..., SHIFT:-SHIFT, SHIFT:-SHIFT])
    right_power = np.einsum("nchw,nchw->n", right, right)
    best = np.full(len(left), -1.0)
    for down in range(2 * SHIFT + 1):
        for across in range(2 * SHIFT + 1):
            moved = _centre(left[..., down : down + inner, across : across + inner])
            power = np.einsum("nchw,nchw->n", moved, moved) * right_power
            common = np.einsum("nchw,nchw->n", moved, right)
            best = np.maximum(best, common / np.sqrt(np.maximum(power, 1e-6)))
    # The distance of two images at contrast 1 follows from their correlation.
    return np.sqrt(np.maximum(2 - 2 * best, 0))
