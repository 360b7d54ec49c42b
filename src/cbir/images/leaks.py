"""Leaks: queries that are also in the gallery, which would make retrieval look too good.

Two images are copies if their pixels are identical, or if they are near-duplicates: the same
picture saved again, brighter, noisier, blurred, in grey, mirrored, turned by a multiple of 90
degrees, shifted by up to two pixels of 32, or cropped by up to a tenth. Most are found:

1. Images with identical pixels form a group, which is searched once.
2. Every image becomes a map of its details: 32x32 pixels of brightness, band-passed. Its descriptor
   is the low frequencies of the map's cosine transform, as in perceptual hashes (Zauner,
   "Implementation and benchmarking of perceptual image hash functions", 2010). Pairs whose
   descriptors have a cosine similarity of at least `CANDIDATE`, in one of eight orientations and 13
   shifts of the query, are candidates.
3. A candidate is a near-duplicate if its maps, as they are or blurred, correlate by at least
   `MIN_CORRELATION`, in the best of some shifts and crops, and by much more than those of unrelated
   pictures would: arctanh(r) >= `MIN_DEVIATIONS` * s, or `MIN_DEVIATIONS_IF_HIGH` * s if r is at
   least `HIGH_CORRELATION`. Here s is the standard deviation of the correlation over all shifts
   that the two power spectra imply: large if the maps show few details (the effective sample size
   of Clifford, Richardson and Hémon, "Assessing the significance of the correlation between two
   spatial processes", Biometrics 1989). An aeroplane in the sky resembles many others.
4. If both images are simple, which means blurred or of two tones, such as handwritten digits, they
   must correlate by at least `MIN_SIMPLE_CORRELATION`.

`tests/benchmarks/leaks.py` measures the share of copies found, by kind of change.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import as_strided
from scipy.fft import dct, fft2
from scipy.ndimage import gaussian_filter1d

from cbir.cache import cached
from cbir.images.dataset import Dataset
from cbir.progress import progress

KINDS = ("identical", "near-duplicate")
COLUMNS = ["query", "gallery", "copies", "kind", "correlation", "is_conflict"]
MIN_CORRELATION, MIN_DEVIATIONS, MIN_SIMPLE_CORRELATION = 0.9, 6.5, 0.995
HIGH_CORRELATION, MIN_DEVIATIONS_IF_HIGH = 0.95, 5.0
# Descriptors that are less similar are not compared pixel by pixel.
CANDIDATE, SIMPLE_CANDIDATE = 0.8, 0.95
# Maps are `WIDTH` pixels wide. `SHIFT` is the largest shift of a copy, in such pixels.
WIDTH, SHIFT = 32, 2
INNER = WIDTH - 2 * SHIFT
# The widths, in pixels, of the Gaussian filters whose difference passes the band of details.
FINE, COARSE = 0.7, 3.0
# Blur and smaller sizes remove the finest details, so pairs are also compared after this filter.
SMOOTH = 1.0
# A descriptor holds the cosines of fewer than this many half periods.
FREQUENCIES = 7
# Sides of the centre crops that are compared, as are shifts by half a pixel, if the whole images
# correlate by `MIN_WHOLE`.
CROPS, MIN_WHOLE = (0.95, 0.9), 0.6
# An image is blurred if less than this share of the power of its gradient has more than
# `BLURRED_ABOVE` half periods, and of two tones if its brightness has a bimodality coefficient
# (Sarle's; 1 for two values) above `TWO_TONES`.
BLURRED, BLURRED_ABOVE, TWO_TONES = 0.15, 10.5, 0.9
# The root mean square of a map, in grey levels of 255. Images of less contrast show too little, and
# are copies only if all pixels are identical.
MIN_CONTRAST = 3.0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The number of queries, gallery images and pairs that are compared at a time.
QUERIES, GALLERY, PAIRS = 512, 4096, 512


def find_leaks(
    queries: "np.ndarray | _Rows",
    query_labels: np.ndarray,
    gallery: "np.ndarray | _Rows",
    gallery_labels: np.ndarray,
    itself: np.ndarray | None = None,
) -> pd.DataFrame:
    """Find the queries that show the same picture as a gallery image.

    Args:
        queries, gallery: (n, size, size, 3) uint8 RGB of the same size; they are read in blocks and
            may be memory-mapped.
        query_labels, gallery_labels: (n,) int.
        itself: (n_queries,) int, the gallery position of the query itself, or -1.

    Returns:
        One row per query and group of gallery images with identical pixels and the same label,
        sorted by query, correlation (descending) and gallery image: `query`, `gallery` (positions,
        int64; the first image of the group), `copies` (int64, the size of the group), `kind` (a
        name in `KINDS`), `correlation` (float64, 1 if identical) and `is_conflict` (bool, whether
        the labels differ).
    """
    pictures = pd.factorize(np.array(_digests(queries) + _digests(gallery), object))[0]
    queried = pd.DataFrame({"picture": pictures[: len(queries)], "query_label": query_labels})
    queried = queried.rename_axis("query").reset_index()
    queried["itself"] = -1 if itself is None else itself
    stored = pd.DataFrame({"picture": pictures[len(queries) :], "label": gallery_labels})
    stored = stored.rename_axis("gallery").reset_index()
    groups = stored.groupby(["picture", "label"], as_index=False).agg(
        gallery=("gallery", "min"), last=("gallery", "max"), copies=("gallery", "size")
    )
    near = _near_duplicates(
        _Maps(queries, queried.drop_duplicates("picture"), "query", "queries"),
        _Maps(gallery, stored.drop_duplicates("picture"), "gallery", "gallery"),
    )
    identical = pd.DataFrame({"picture": pictures, "other": pictures}).drop_duplicates()
    identical = identical.assign(kind=KINDS[0], correlation=1.0)
    pairs = queried.merge(pd.concat([identical, near]), on="picture")
    pairs = pairs.drop(columns="picture").merge(groups, left_on="other", right_on="picture")
    # A query that is itself in the gallery is no copy of itself.
    has_itself = (
        (pairs["itself"] >= 0)
        & (pairs["kind"] == KINDS[0])
        & (pairs["label"] == pairs["query_label"])
    )
    pairs["copies"] -= has_itself
    pairs["gallery"] = pairs["gallery"].where(pairs["gallery"] != pairs["itself"], pairs["last"])
    pairs["is_conflict"] = pairs["label"] != pairs["query_label"]
    pairs = pairs.loc[pairs["copies"] > 0, COLUMNS].astype({"kind": object})
    order = {"query": True, "correlation": False, "gallery": True}
    return pairs.sort_values([*order], ascending=[*order.values()], ignore_index=True)


@dataclass(frozen=True)
class Audit:
    """The copies in a data set, from `find_leaks`: of queries in the gallery, and of validation
    images in the training images; and the number of images, in the whole data set, whose pixels are
    identical to those of an image with another label.
    """

    leaks: pd.DataFrame
    validation_copies: pd.DataFrame
    n_queries: int
    n_validation: int
    n_identical_conflicts: int


def audit(dataset: Dataset) -> Audit:
    """Search a data set for copies; cached."""

    def make(folder: Path) -> None:
        for name, left, right, itself in (
            ("leaks", dataset.queries, dataset.gallery, dataset.exclude),
            ("validation", dataset.validation, dataset.train, None),
        ):
            rows = [(_Rows(dataset.images, part), dataset.labels[part]) for part in (left, right)]
            pairs = find_leaks(*rows[0], *rows[1], itself)
            pairs.to_parquet(folder / f"{name}.parquet")
        pictures = pd.Series(dataset.labels).groupby(_digests(dataset.images))
        n_conflicts = int((pictures.transform("nunique") > 1).sum())
        (folder / "conflicts.json").write_text(json.dumps(n_conflicts), encoding="utf-8")

    reads = [dataset.search_fingerprint, dataset.split_fingerprint]
    folder = cached("leaks", make, parameters={}, reads=reads, package="images").folder
    return Audit(
        leaks=pd.read_parquet(folder / "leaks.parquet"),
        validation_copies=pd.read_parquet(folder / "validation.parquet"),
        n_queries=len(dataset.queries),
        n_validation=len(dataset.validation),
        n_identical_conflicts=json.loads((folder / "conflicts.json").read_text("utf-8")),
    )


class _Rows:
    """The images at some positions; they are read only when indexed."""

    def __init__(self, images: np.ndarray, positions: np.ndarray):
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, places) -> np.ndarray:
        return self.images[self.positions[places]]


def _digests(images: np.ndarray | _Rows) -> list[bytes]:
    """Digests of 16 bytes, equal only if all pixels are equal."""
    return [
        hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images
    ]


class _Maps:
    """The maps of details of the images to search; images without contrast are left out.

    `pictures`, (m,) int, are the numbers of the pictures, `maps`, (m, WIDTH, WIDTH) float16, their
    band-passed brightness in grey levels, and `is_simple`, (m,) bool, says which are blurred or of
    two tones. `rows` has the `picture` of each image, and its position in the column `column`.
    """

    def __init__(self, images: np.ndarray | _Rows, rows: pd.DataFrame, column: str, name: str):
        positions = rows[column].to_numpy()
        maps = np.empty((len(rows), WIDTH, WIDTH), np.float16)
        is_simple = np.empty(len(rows), bool)
        # A block of images has about 4 MB, whatever their size.
        step = max(1, 2**22 // max(1, images[:1].nbytes))
        starts = range(0, len(rows), step)
        for start in progress(starts, len(starts), f"looking for leaks: {name}, blocks"):
            part = slice(start, start + step)
            thumbnails = _thumbnails(images[positions[part]])
            maps[part] = _both_axes(FINE_FILTER, thumbnails) - _both_axes(COARSE_FILTER, thumbnails)
            is_simple[part] = _is_simple(thumbnails)
        contrast = np.sqrt(np.einsum("nyx,nyx->n", maps, maps, dtype=np.float32)) / WIDTH
        has_contrast = contrast >= MIN_CONTRAST
        self.pictures = rows["picture"].to_numpy()[has_contrast]
        self.maps, self.is_simple = maps[has_contrast], is_simple[has_contrast]


def _near_duplicates(queries: _Maps, gallery: _Maps) -> pd.DataFrame:
    """`picture`, `other`, `kind` and `correlation` of all pairs of two near-duplicates."""
    blocks = np.array_split(gallery.maps, len(gallery.maps) // GALLERY + 1)
    right = np.concatenate([_descriptors(maps, SHIFT, SHIFT) for maps in blocks])
    right = _with_simple(right, gallery.is_simple, 1)
    pairs = [pd.DataFrame({"picture": [], "other": [], "correlation": []}, dtype=np.int64)]
    starts, what = range(0, len(queries.maps), QUERIES), "looking for leaks: comparing, blocks of"
    for start in progress(starts, len(starts), f"{what} {QUERIES}"):
        maps = queries.maps[start : start + QUERIES].astype(np.float32)
        simple = queries.is_simple[start : start + QUERIES]
        for turned in _orientations(maps):
            left, image = _candidates(turned, simple, right)
            correlation = _confirmed_correlations(
                turned, left, gallery.maps, image, simple[left] & gallery.is_simple[image]
            )
            columns = {"picture": queries.pictures[start + left], "other": gallery.pictures[image]}
            rows = pd.DataFrame(columns | {"correlation": correlation})
            pairs.append(rows[correlation > 0])
    best = pd.concat(pairs).groupby(["picture", "other"], as_index=False)["correlation"].max()
    return best[best["picture"] != best["other"]].assign(kind=KINDS[1])


def _candidates(
    maps: np.ndarray, simple: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of pairs with similar descriptors, in one of 13 shifts of the first image.

    From every shift by up to `SHIFT` pixels, one of these is at most half as far along one axis.
    `right` are descriptors of the second images, as from `_with_simple`.
    """
    pairs = [np.empty(0, np.int64)]
    left = [
        _with_simple(_descriptors(maps, top, side), simple, CANDIDATE - SIMPLE_CANDIDATE)
        for starts in ((0, SHIFT, 2 * SHIFT), (SHIFT // 2, SHIFT + SHIFT // 2))
        for top in starts
        for side in starts
    ]
    for first in range(0, len(right), GALLERY):
        part = right[first : first + GALLERY].T
        for descriptors in left:
            places = np.flatnonzero(descriptors @ part >= CANDIDATE)
            row, column = np.divmod(places, part.shape[1])
            pairs.append(row * len(right) + column + first)
    return np.divmod(np.unique(np.concatenate(pairs)), max(1, len(right)))


def _with_simple(descriptors: np.ndarray, simple: np.ndarray, weight: float) -> np.ndarray:
    """Descriptors with a column that makes simple pairs of `SIMPLE_CANDIDATE` reach `CANDIDATE`."""
    return np.column_stack([descriptors, weight * simple]).astype(np.float32)


def _confirmed_correlations(
    maps: np.ndarray, left: np.ndarray, gallery: np.ndarray, right: np.ndarray, simple: np.ndarray
) -> np.ndarray:
    """(n_pairs,) float64, the correlations of near-duplicates, and 0 for all other pairs."""
    confirmed = np.zeros(len(left))
    for start in range(0, len(left), PAIRS):
        part = slice(start, start + PAIRS)
        query, image = maps[left[part]], gallery[right[part]].astype(np.float32)
        correlation = _confirm(query, image, simple[part])
        rows = np.flatnonzero(correlation == 0)
        query, image = (_both_axes(SMOOTH_FILTER, side[rows]) for side in (query, image))
        correlation[rows] = _confirm(query, image, simple[part][rows])
        confirmed[part] = correlation
    return confirmed


def _confirm(query: np.ndarray, image: np.ndarray, simple: np.ndarray) -> np.ndarray:
    """(n,) float64, the correlations of pairs of maps, 0 if they are not near-duplicates."""
    correlation = _correlate(query, image)
    is_near = _is_near(correlation, query, image, simple)
    # Only pairs that are not yet confirmed are resampled, which takes several times as long.
    rows = np.flatnonzero(~is_near & (correlation >= MIN_WHOLE))
    for left_rows, left_columns, right_rows, right_columns in RESAMPLINGS:
        left = left_rows @ query[rows] @ left_columns.T
        right = right_rows @ image[rows] @ right_columns.T
        correlation[rows] = np.maximum(correlation[rows], _correlate(left, right))
    is_near[rows] = _is_near(correlation[rows], query[rows], image[rows], simple[rows])
    return np.where(is_near, correlation, 0)


def _is_near(
    correlation: np.ndarray, left: np.ndarray, right: np.ndarray, simple: np.ndarray
) -> np.ndarray:
    """(n,) bool, whether pairs of maps with these correlations are near-duplicates."""
    is_near = correlation >= np.where(simple, MIN_SIMPLE_CORRELATION, MIN_CORRELATION)
    rows = np.flatnonzero(is_near)
    with np.errstate(divide="ignore"):  # A correlation of 1 is any number of deviations.
        deviations = np.arctanh(correlation[rows]) / _deviation(left[rows], right[rows])
    is_high = correlation[rows] >= HIGH_CORRELATION
    is_near[rows] = deviations >= np.where(is_high, MIN_DEVIATIONS_IF_HIGH, MIN_DEVIATIONS)
    return is_near


def _correlate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) float64, the largest cosine similarity of the inner part of `right` and any of `left`.

    Maps have a mean of about 0, so that their cosine similarity is their correlation.
    """
    inner = np.zeros_like(right)
    inner[:, SHIFT:-SHIFT, SHIFT:-SHIFT] = right[:, SHIFT:-SHIFT, SHIFT:-SHIFT]
    # With zeros around the inner part, a shift of the picture is a shift of its flattened pixels.
    first, last = (SHIFT * (WIDTH + 1), (WIDTH - SHIFT - 1) * (WIDTH + 1) + 1)
    inner = inner.reshape(len(inner), WIDTH**2)[:, first:last]
    left = np.ascontiguousarray(left)
    steps, shifts = left.strides, 2 * SHIFT + 1
    shifted = as_strided(
        left, (len(left), shifts, shifts, last - first), (*steps, steps[2]), writeable=False
    )
    common = np.einsum("nyxp,np->nyx", shifted, inner)
    power = _both_axes(WINDOWS, left**2) * np.einsum("np,np->n", inner, inner)[:, None, None]
    correlations = common / np.sqrt(np.maximum(power, 1e-6))
    return np.minimum(correlations.max((1, 2)), 1).astype(np.float64)


def _deviation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) the standard deviation of the correlation of unrelated maps like these.

    Over all circular shifts, the mean square of the correlation is the sum of the product of both
    power spectra. It assumes that details fill the maps. Where they fill a smaller part, the
    kurtosis of the maps is above 3, that of normal noise, and fewer values are independent.
    """
    spectra, kurtoses = [], []
    for maps in (left, right):
        inner = maps[:, SHIFT:-SHIFT, SHIFT:-SHIFT]
        inner = inner - inner.mean((1, 2), keepdims=True)
        power = np.abs(fft2(inner)) ** 2
        spectra.append(power / np.maximum(power.sum((1, 2), keepdims=True), 1e-6))
        squares = inner * inner
        mean_square = np.maximum(squares.mean((1, 2)), 1e-6)
        kurtoses.append((squares * squares).mean((1, 2)) / mean_square**2)
    variance = (spectra[0] * spectra[1]).sum((1, 2))
    return np.sqrt(variance * np.maximum(1, np.minimum(*kurtoses) / 3))


def _orientations(maps: np.ndarray) -> list[np.ndarray]:
    """Maps as they are and mirrored, each turned by 0, 90, 180 and 270 degrees."""
    return [
        np.rot90(side, turns, axes=(1, 2))
        for side in (maps, maps[:, :, ::-1])
        for turns in range(4)
    ]


def _descriptors(maps: np.ndarray, top: int, left: int) -> np.ndarray:
    """(n, d) float32 of length 1, the low frequencies of the part that begins at a pixel."""
    part = maps[:, top : top + INNER, left : left + INNER].astype(np.float32)
    low = _both_axes(COSINES[:FREQUENCIES], part)[:, IS_LOW]
    return low / np.maximum(np.linalg.norm(low, axis=1), 1e-6)[:, None]


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """(n, size, size, 3) uint8 to (n, WIDTH, WIDTH) float32, brightness in grey levels."""
    return _both_axes(_resizing(images.shape[1]), images.astype(np.float32) @ LUMA)


def _is_simple(thumbnails: np.ndarray) -> np.ndarray:
    inner = thumbnails[:, SHIFT:-SHIFT, SHIFT:-SHIFT]
    power = (_both_axes(COSINES, inner) * HALF_PERIODS) ** 2
    fine = power[:, HALF_PERIODS > BLURRED_ABOVE].sum(1)
    is_blurred = fine < BLURRED * power.sum((1, 2))
    pixels = thumbnails.reshape(len(thumbnails), -1)
    pixels = pixels - pixels.mean(1, keepdims=True)
    squares = pixels * pixels
    second, fourth = squares.mean(1), (squares * squares).mean(1)
    third = (squares * pixels).mean(1)
    bimodality = (third**2 / np.maximum(second, 1e-6) + second**2) / np.maximum(fourth, 1e-6)
    return is_blurred | (bimodality > TWO_TONES)


def _both_axes(matrix: np.ndarray, images: np.ndarray) -> np.ndarray:
    """A matrix applied to the rows and the columns of each image."""
    return matrix @ images @ matrix.T


def _resizing(size: int) -> np.ndarray:
    """(WIDTH, size) float32: the weights of pixels in the mean of each cell, or between pixels."""
    if size < WIDTH:
        return _sampling((np.arange(WIDTH) + 0.5) * size / WIDTH - 0.5, size)
    edges, pixels = np.linspace(0, size, WIDTH + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * (WIDTH / size)).astype(np.float32)


def _sampling(places: np.ndarray, size: int) -> np.ndarray:
    """(n, size) float32: the weights of linear interpolation between the pixels of a line."""
    distance = np.abs(np.clip(places, 0, size - 1)[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0).astype(np.float32)


def _gaussian(width: float) -> np.ndarray:
    return gaussian_filter1d(np.eye(WIDTH), width, axis=0, mode="nearest").astype(np.float32)


FINE_FILTER, COARSE_FILTER, SMOOTH_FILTER = map(_gaussian, (FINE, COARSE, SMOOTH))
CENTRE = (WIDTH - 1) / 2
WHOLE = np.eye(WIDTH, dtype=np.float32)
CROPPED = [_sampling((np.arange(WIDTH) - CENTRE) * crop + CENTRE, WIDTH) for crop in CROPS]
# Half a pixel between two images is a quarter for each, so that both are smoothed alike.
FORTH, BACK = (_sampling(np.arange(WIDTH) + shift, WIDTH) for shift in (0.25, -0.25))
# Pairs of maps are also compared after these resamplings of the rows and columns of both.
RESAMPLINGS = [
    *((crop, crop, WHOLE, WHOLE) for crop in CROPPED),
    *((WHOLE, WHOLE, crop, crop) for crop in CROPPED),
    (FORTH, WHOLE, BACK, WHOLE),
    (WHOLE, FORTH, WHOLE, BACK),
    (FORTH, FORTH, BACK, BACK),
]
COSINES = dct(np.eye(INNER), axis=0, norm="ortho").astype(np.float32)
HALF_PERIODS = np.hypot(*np.mgrid[:INNER, :INNER]).astype(np.float32)
IS_LOW = (HALF_PERIODS > 0) & (HALF_PERIODS < FREQUENCIES - 0.5)
IS_LOW = IS_LOW[:FREQUENCIES, :FREQUENCIES]
# Row s is 1 at the pixels of the window that begins at pixel s.
WINDOWS = np.array(
    [(np.arange(WIDTH) >= s) & (np.arange(WIDTH) < s + INNER) for s in range(2 * SHIFT + 1)]
).astype(np.float32)
