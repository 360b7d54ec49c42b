"""Leaks: pictures that stand among the queries and in the gallery too, looked for before training.

Two pictures leak where their pixels are identical, or where they are near-duplicates: one shot that
was compressed, brightened, recoloured or cropped anew. Near-duplicates are found by a difference
hash and confirmed by the distance of their pixels; both thresholds must hold:

- `HASH_BITS`: the hashes differ in at most 24 of 128 bits (two other pictures': in about 64).
- `PIXEL_DISTANCE`: the pictures, 32 pixels wide, less the mean of each colour channel, scaled to
  contrast 1 and moved by up to 2 pixels, differ by at most 0.42 in the root mean square. 0 is one
  picture in any light, 1.41 two that have nothing in common; 0.42 is a correlation of 0.91.

They were set by looking at pairs of CIFAR-10, so that nearly all are one shot. There they find no
identical pixels, and near-duplicates of 242 of the 10,000 queries (2.4 %); by eye, about 7 of these
merely look alike. Barz and Denzler ("Do we train on test data?", 2020), who searched by a network's
features and judged by eye, list 286 (2.9 %), some of them merely alike: what was cropped or
stretched by more than 2 pixels is missed here. Looser thresholds find ever more ships at sea.

Where other pictures are as near, as with digits, nearness proves little. There the second threshold
falls to the distance at which one query in a thousand (`CHANCE`) would find another picture by
chance, foretold from the distances to its 50th and 250th neighbours (10th and 50th in a small
gallery). It stays above `MIN_PIXEL_DISTANCE`, so that close copies are found even where a query has
hundreds. CIFAR-10 keeps 0.42; scikit-learn's digits get 0.06, and have no near-duplicates (the
nearest two differ by 0.09).
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from cbir.cache import cached
from cbir.images.dataset import Dataset, take_rows
from cbir.progress import progress

HASH_BITS = 24
PIXEL_DISTANCE = 0.42
MIN_PIXEL_DISTANCE = 0.05
CHANCE = 0.001
SHIFT = 2
# A picture of almost one colour has nothing to be told by: there only identical pixels count.
# CIFAR-10 has one in 60,000. In grey levels of 255, root mean square.
MIN_CONTRAST = 8.0
# Pictures shrunk to 8x8 and not moved may be this much further apart than the threshold: a sieve
# before the comparison pixel by pixel. On CIFAR-10 it loses none.
SIEVE = 2.0
WIDTH = 32
KINDS = ("identical", "near-duplicate")


def find_leaks(queries: np.ndarray, gallery: np.ndarray) -> pd.DataFrame:
    """Every pair of a query and a gallery image that are the same picture.

    Args:
        queries, gallery: (n, size, size, 3) uint8 RGB of one size; they may be memory-mapped, and
            are read in blocks.

    Returns:
        A row a pair, by query, then distance, then gallery image: `query`, `gallery` (positions,
        int64), `kind` ("identical" or "near-duplicate"), `hash_distance` (bits that differ of 128,
        int64), `pixel_distance` (float64, see above). `attrs["pixel_threshold"]` is what the
        distance was compared with.
    """
    asked, kept = _Signatures(queries, "queries"), _Signatures(gallery, "gallery")
    threshold = _pixel_threshold(asked, kept)
    pairs = pd.concat([_identical(asked, kept), _near(queries, gallery, asked, kept, threshold)])
    # Identical pictures are near, too: they are counted once.
    pairs = pairs.drop_duplicates(["query", "gallery"])
    pairs = pairs.sort_values(["query", "pixel_distance", "gallery"], ignore_index=True)
    pairs.attrs["pixel_threshold"] = threshold
    return pairs


def audit(dataset: Dataset) -> pd.DataFrame:
    """`find` for the queries and the gallery of a data set; looked for once and kept."""

    def make(folder: Path) -> None:
        images = dataset.images
        pairs = find_leaks(take_rows(images, dataset.queries), take_rows(images, dataset.gallery))
        # Where the queries are searched in themselves, each is excluded from its own search.
        is_itself = dataset.queries[pairs["query"]] == dataset.gallery[pairs["gallery"]]
        pairs[~is_itself].reset_index(drop=True).to_parquet(folder / "pairs.parquet")

    artifact = cached(
        "leaks", make, parameters={}, reads=[dataset.search_fingerprint], package="images"
    )
    return pd.read_parquet(artifact.folder / "pairs.parquet")


def describe(pairs: pd.DataFrame, n_queries: int) -> str:
    """What `find` found, as a sentence; a query with pairs of both kinds counts as identical."""
    leaking = pairs["query"].nunique()
    all_queries = f"{n_queries:,} {'query' if n_queries == 1 else 'queries'}"
    # Where look-alikes abound, only what is nearly the same counts.
    threshold = pairs.attrs.get("pixel_threshold", PIXEL_DISTANCE)
    looked = f"Looked for up to a pixel distance of {threshold:.2f} (0: the same, 1.41: unrelated)."
    if not leaking:
        return f"None of {all_queries} also stands in the gallery. {looked}"
    identical = pairs.loc[pairs["kind"] == "identical", "query"].nunique()
    near = leaking - identical
    parts = [f"{identical:,} as identical pixels"] * bool(identical)
    parts += [f"{near:,} as {'a near-duplicate' if near == 1 else 'near-duplicates'}"] * bool(near)
    share = 100 * leaking / n_queries
    percent = f"{share:.1f} %" if share >= 0.05 else "less than 0.1 %"
    stand = f"{'stands' if leaking == 1 else 'stand'} in the gallery"
    return f"{leaking:,} of {all_queries} ({percent}) also {stand}: {', '.join(parts)}. {looked}"


class _Signatures:
    """What is kept of each image to find its like, about 0.8 kB.

    Attributes:
        digests: n times 16 bytes that only equal pixels share.
        hashes: (n, 2) uint64, whether brightness rises to the right (64 bits), and downwards (64).
        sketches: (n, 192) float32, the picture as 8x8 pixels, centred, of length 1.
        has_contrast: (n,) bool.
    """

    def __init__(self, images: np.ndarray, what: str):
        self.digests: list[bytes] = []
        self.hashes = np.empty((len(images), 2), np.uint64)
        self.sketches = np.empty((len(images), 192), np.float32)
        self.has_contrast = np.empty(len(images), bool)
        # As many images as make about 1 MB, so that a block stays small at any size.
        step = max(1, 2**20 // max(1, images[:1].nbytes))
        blocks = range(0, len(images), step)
        for start in progress(blocks, len(blocks), f"looking for leaks: {what}, blocks"):
            block = np.ascontiguousarray(images[start : start + step])
            rows = slice(start, start + len(block))
            self.digests += [hashlib.blake2b(image, digest_size=16).digest() for image in block]
            pictures = _shrink(block, WIDTH)
            self.hashes[rows] = _difference_hash(pictures)
            centred = _centre(pictures)
            self.has_contrast[rows] = np.sqrt((centred**2).mean((1, 2, 3))) >= MIN_CONTRAST
            sketch = _centre(_area(WIDTH, 8) @ pictures @ _area(WIDTH, 8).T).reshape(len(block), -1)
            self.sketches[rows] = sketch / np.maximum(np.linalg.norm(sketch, axis=1), 1e-6)[:, None]


def _identical(asked: _Signatures, kept: _Signatures) -> pd.DataFrame:
    tables = [
        pd.DataFrame(
            {"digest": [bytes(each) for each in one.digests], name: range(len(one.hashes))}
        )
        for one, name in ((asked, "query"), (kept, "gallery"))
    ]
    both = tables[0].merge(tables[1], on="digest")
    zeros = np.zeros(len(both))
    return _table(both["query"], both["gallery"], KINDS[0], zeros, zeros)


def _pixel_threshold(asked: _Signatures, kept: _Signatures) -> float:
    """`PIXEL_DISTANCE`, or less where other pictures come that near by chance."""
    n_gallery = np.count_nonzero(kept.has_contrast)
    # Not the first neighbours: they may be leaks, of which a query may have dozens.
    close = min(max(10, n_gallery // 50), 50, n_gallery // 4)
    far = min(5 * close, n_gallery // 2)
    sample = asked.sketches[asked.has_contrast]
    sample = sample[:: max(1, len(sample) // 500)]
    if not close or not len(sample):
        return PIXEL_DISTANCE
    gallery, distances = kept.sketches[kept.has_contrast].T.copy(), []
    for start in range(0, len(sample), 64):
        similarity = sample[start : start + 64] @ gallery
        ordered = np.partition(similarity, [-far, -close], axis=1)
        distances.append(np.sqrt(np.maximum(2 - 2 * ordered[:, [-close, -far]], 1e-12)))
    near, further = np.median(np.concatenate(distances), axis=0)
    # Neighbours within a distance grow with its power d, d being the dimension of the data (Levina
    # and Bickel 2005, "Maximum likelihood estimation of intrinsic dimension").
    per_neighbour = np.log(further / near) / np.log(far / close)
    chance = near * (CHANCE / close) ** per_neighbour
    return float(np.clip(chance, MIN_PIXEL_DISTANCE, PIXEL_DISTANCE))


def _near(queries, gallery, asked, kept, threshold: float) -> pd.DataFrame:
    """Pairs under both thresholds, identical ones among them."""
    query_rows, gallery_rows = np.flatnonzero(asked.has_contrast), np.flatnonzero(kept.has_contrast)
    least_similarity = 1 - (SIEVE * threshold) ** 2 / 2
    hashes, sketches = kept.hashes[gallery_rows].T.copy(), kept.sketches[gallery_rows].T.copy()
    found = [_table([], [], KINDS[1], [], [])]
    # 64 queries against 50,000 gallery images take 26 MB an array.
    blocks = range(0, len(query_rows), 64)
    for start in progress(blocks, len(blocks), "looking for leaks: comparing, blocks of 64"):
        rows = query_rows[start : start + 64]
        bits = sum(
            np.bitwise_count(asked.hashes[rows, half, None] ^ hashes[half]) for half in (0, 1)
        )
        alike = asked.sketches[rows] @ sketches >= least_similarity
        left, right = np.nonzero((bits <= HASH_BITS) & alike)
        query, image = rows[left], gallery_rows[right]
        distance = np.empty(len(query))
        for piece in range(0, len(query), 64):
            part = slice(piece, piece + 64)
            distance[part] = _pixel_distance(queries[query[part]], gallery[image[part]])
        near = distance <= threshold
        bits = bits[left, right]
        found.append(_table(query[near], image[near], KINDS[1], bits[near], distance[near]))
    return pd.concat(found)


def _table(query, gallery, kind: str, hash_distance, pixel_distance) -> pd.DataFrame:
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
    """(cells, size) float32: what share of a cell's mean each of `size` pixels in a row has."""
    edges, pixels = np.linspace(0, size, cells + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * (cells / size)).astype(np.float32)


def _shrink(images: np.ndarray, width: int) -> np.ndarray:
    """(n, size, size, 3) uint8 as (n, 3, width, width) float32, each pixel the mean of its area."""
    area = _area(images.shape[1], width)
    return area @ images.transpose(0, 3, 1, 2).astype(np.float32) @ area.T


def _difference_hash(pictures: np.ndarray) -> np.ndarray:
    """(n, 2) uint64 of (n, 3, WIDTH, WIDTH): which of two neighbouring cells is the brighter."""
    grey, eight, nine = pictures.mean(1), _area(WIDTH, 8), _area(WIDTH, 9)
    rightwards = np.diff(eight @ grey @ nine.T, axis=2) > 0
    downwards = np.diff(nine @ grey @ eight.T, axis=1) > 0
    bits = np.stack([rightwards, downwards], axis=1).reshape(len(pictures), 2, 64)
    return np.packbits(bits, axis=2).view(np.uint64)[..., 0]


def _centre(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, 3, height, width) less the mean of each channel."""
    return pictures - pictures.mean((2, 3), keepdims=True)


def _pixel_distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) root mean square difference at contrast 1, the least over all shifts."""
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
    # Of vectors of one length the distance follows from the correlation.
    return np.sqrt(np.maximum(2 - 2 * best, 0))
