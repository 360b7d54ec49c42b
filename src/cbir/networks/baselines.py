"""Baselines: vectors of images without a network, with which networks are compared.

None is fitted to the data. `random` shows the score by chance, `raw_pixels` compares images pixel
by pixel, and `hand_crafted` uses the features that deep features replaced: colour histograms (Swain
and Ballard 1991, "Color indexing") and histograms of oriented gradients (HOG; Dalal and Triggs
2005, "Histograms of oriented gradients for human detection").
"""

import numpy as np

from cbir import StudyError
from cbir.progress import progress

# The number of images that are described at once.
BLOCK = 1024
RANDOM_DIMENSION = 128
# The number of levels of each channel, which gives 4 x 4 x 4 colours.
COLOUR_LEVELS = 4
# Dalal and Triggs use HOG with these numbers, except that here a cell is a quarter of the image's
# side: 8 of 32 pixels.
ORIENTATIONS = 9
CELLS = 4
CELLS_PER_BLOCK = 2


def describe_images(baseline: str, images: np.ndarray, seed: int) -> np.ndarray:
    """A baseline's vector for each image, (n, d) float32, finite, of any length.

    Args:
        images: (n, size, size, 3) uint8 RGB, 8 pixels or more; read in blocks.
        seed: of `random`. Random vectors depend on the position, not on the image, so describe
            gallery and queries in one call, or with two seeds.

    Raises:
        StudyError: the baseline is not in `BASELINES`.
    """
    if baseline not in BASELINES:
        raise StudyError(f"unknown baseline {baseline!r}: use {', '.join(BASELINES)}")
    if baseline == "random":
        generator = np.random.default_rng(seed)
        return generator.standard_normal((len(images), RANDOM_DIMENSION), np.float32)
    describe = BASELINES[baseline]
    length = describe(np.zeros((1, *images.shape[1:]), np.uint8)).shape[1]
    vectors = np.empty((len(images), length), np.float32)
    blocks = range(0, len(images), BLOCK)
    what = f"describing images by {baseline}, blocks of {BLOCK:,}"
    for start in progress(blocks, len(blocks), what):
        vectors[start : start + BLOCK] = describe(np.asarray(images[start : start + BLOCK]))
    return vectors


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """(n, size * size * 3) float32: pixel values minus their mean in the image.

    The cosine of two such vectors is the correlation of the pixels; without the subtraction, it
    would measure brightness. An image of a single grey level becomes a row of zeros.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat - flat.mean(axis=1, keepdims=True)


def hand_crafted(images: np.ndarray) -> np.ndarray:
    """(n, 64 + d) float32: colour histogram and HOG, each of length 1."""
    return np.concatenate([colour_histogram(images), oriented_gradients(images)], axis=1)


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """(n, 64) float32 of length 1: square roots of the shares of 4 x 4 x 4 RGB colours.

    The dot product of two rows is the Bhattacharyya coefficient.
    """
    levels = images.reshape(len(images), -1, 3) // (256 // COLOUR_LEVELS)
    colours = levels @ np.array([COLOUR_LEVELS**2, COLOUR_LEVELS, 1])
    shares = [np.bincount(row, minlength=COLOUR_LEVELS**3) / len(row) for row in colours]
    return np.sqrt(np.array(shares, np.float32))


def oriented_gradients(images: np.ndarray) -> np.ndarray:
    """(n, 324) float32 for most sizes: `skimage.feature.hog`, scaled to length 1 unless it is 0."""
    from skimage.feature import hog  # takes a second to import

    # One thread takes half a millisecond per image, and several threads were slower.
    cell, block = (images.shape[1] // CELLS,) * 2, (CELLS_PER_BLOCK,) * 2
    settings = {"pixels_per_cell": cell, "cells_per_block": block, "block_norm": "L2-Hys"}
    rows = [hog(image, ORIENTATIONS, channel_axis=-1, **settings) for image in images]
    gradients = np.array(rows, np.float32)
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients / np.where(lengths > 0, lengths, 1)


# A function from (n, size, size, 3) uint8 images to (n, d) float32 vectors; `random` needs none.
BASELINES = {"random": None, "raw_pixels": raw_pixels, "hand_crafted": hand_crafted}
