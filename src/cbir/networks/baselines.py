"""Baselines: what takes an architecture's place to say what its score is worth.

A network that finds no better than `random` has learnt nothing, one that finds no better than
`raw_pixels` did not need to, and `hand_crafted` is what deep features replaced: colour histograms
(Swain and Ballard 1991, "Color indexing") and histograms of oriented gradients (HOG; Dalal and
Triggs 2005, "Histograms of oriented gradients for human detection"). None is fitted to the data.
"""

from collections.abc import Callable

import numpy as np
from skimage.feature import hog

from cbir import StudyError
from cbir.progress import progress

BASELINES = {
    "random": "A vector of chance for each picture, whatever it shows.",
    "raw_pixels": "The pixel values themselves, less the picture's mean.",
    "hand_crafted": "A colour histogram and histograms of oriented gradients (HOG), half each.",
}
BLOCK = 1024
RANDOM_DIMENSION = 128
# Values a channel is divided into: 4 x 4 x 4 colours.
COLOUR_LEVELS = 4
# HOG as Dalal and Triggs have it, but for the cells: a quarter of the picture, 8 pixels of 32.
ORIENTATIONS = 9
CELLS = 4
CELLS_PER_BLOCK = 2


def describe_images(baseline: str, images: np.ndarray, seed: int) -> np.ndarray:
    """A vector for each image, in the order of the images.

    Args:
        baseline: a name of `BASELINES`.
        images: (n, size, size, 3) uint8 RGB, of 8 pixels or more; may be memory-mapped, and is read
            in blocks.
        seed: of `random`; the others do without. The vector belongs to the place, not the picture:
            describe gallery and queries in one call, or with two seeds.

    Returns:
        (n, d) float32, finite, of any length. d is 128 for `random`, size * size * 3 for
        `raw_pixels`, and for `hand_crafted` 64 colours and 324 of HOG (more where a picture below
        16 pixels has more than 4 x 4 cells).

    Raises:
        StudyError: no such baseline.
    """
    if baseline == "random":
        draws = np.random.default_rng(seed)
        return draws.standard_normal((len(images), RANDOM_DIMENSION), np.float32)
    describers: dict[str, Callable] = {"raw_pixels": raw_pixels, "hand_crafted": hand_crafted}
    if baseline not in describers:
        raise StudyError(f"baseline: no {baseline}: use {', '.join(BASELINES)}")
    describe = describers[baseline]
    length = describe(np.zeros((1, *images.shape[1:]), np.uint8)).shape[1]
    vectors = np.empty((len(images), length), np.float32)
    blocks = range(0, len(images), BLOCK)
    what = f"describing images by {baseline}, blocks of {BLOCK:,}"
    for start in progress(blocks, len(blocks), what):
        vectors[start : start + BLOCK] = describe(np.asarray(images[start : start + BLOCK]))
    return vectors


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """(n, size * size * 3) float32: pixel values less the mean of them all in the picture.

    With brightness left in, all values are positive and every angle is small: the cosine says
    mostly which picture is evenly bright. Without it, the cosine is the correlation of the pixels.
    A picture of one grey has no direction; it becomes a row of zeros.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat - flat.mean(axis=1, keepdims=True)


def hand_crafted(images: np.ndarray) -> np.ndarray:
    """(n, 64 + d) float32: a colour histogram and HOG, each of length 1, so that both count alike.

    HOG takes at each pixel the colour channel that changes most. Where nothing changes, in a
    picture of one colour, it is zeros, and the colour decides alone.
    """
    return np.concatenate([colour_histogram(images), oriented_gradients(images)], axis=1)


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """(n, 64) float32, each of length 1: roots of the shares of 4 x 4 x 4 colours (RGB).

    The dot product of two such rows is the Bhattacharyya coefficient, from 0 (no colour in common)
    to 1 (the same shares); with shares themselves the commonest colour would outweigh the others.
    """
    levels = images.reshape(len(images), -1, 3) // (256 // COLOUR_LEVELS)
    colours = levels @ np.array([COLOUR_LEVELS**2, COLOUR_LEVELS, 1])
    shares = [np.bincount(each, minlength=COLOUR_LEVELS**3) / len(each) for each in colours]
    return np.sqrt(np.array(shares, np.float32))


def oriented_gradients(images: np.ndarray) -> np.ndarray:
    """(n, 324) float32 for most sizes: `skimage.feature.hog`, scaled to length 1."""
    # One by one on one thread: half a millisecond a picture, and threads made it slower.
    rows = [
        hog(
            image,
            orientations=ORIENTATIONS,
            pixels_per_cell=(image.shape[0] // CELLS,) * 2,
            cells_per_block=(CELLS_PER_BLOCK,) * 2,
            block_norm="L2-Hys",
            channel_axis=-1,
        )
        for image in images
    ]
    gradients = np.array(rows, np.float32)
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients / np.where(lengths > 0, lengths, 1)
