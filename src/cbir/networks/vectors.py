"""From a network's raw vectors to embeddings: unit length, and PCA whitening where it is asked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cbir import StudyError


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean length, as float32.

    A row of zeros, as ReLU can leave one, has no direction: it gets the one that makes equal
    angles with all axes, so that it can be ranked.
    """
    vectors = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise StudyError("an embedding is not a finite number: the network's weights are broken")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = np.float32(1 / np.sqrt(vectors.shape[1]))
    return np.where(lengths > 0, vectors / np.where(lengths > 0, lengths, 1), flat)


def fit_whitening(vectors: np.ndarray, dimensions: int) -> dict[str, np.ndarray]:
    """PCA whitening of vectors of unit length.

    All of them are in memory at once, unlike the images that they come from: 45,000 training images
    in 2,048 dimensions take 370 MB, and the fit more.

    Args:
        vectors: (n, d) of the training images, of any length.
        dimensions: how many to keep, the widest.

    Returns:
        `mean` (d,) and `axes` (d, dimensions): (v - mean) @ axes has variance 1 in each dimension.

    Raises:
        StudyError: more dimensions than there are.
    """
    from sklearn.decomposition import PCA

    check_whitening(dimensions, *vectors.shape)
    fitted = PCA(dimensions, random_state=0).fit(normalise(vectors))
    # A dimension without variance tells nothing, and must not be blown up.
    scale = 1 / np.sqrt(np.maximum(fitted.explained_variance_, 1e-8))
    return {"mean": fitted.mean_, "axes": fitted.components_.T * scale}


def check_whitening(dimensions: int, n: int, width: int) -> None:
    """Whether PCA leaves so many dimensions of n embeddings; known before anything is trained.

    Raises:
        StudyError: it does not.
    """
    if dimensions > min(n, width):
        raise StudyError(
            f"whitening: {dimensions} dimensions of {width}-dimensional embeddings of {n} training "
            f"images: at most {min(n, width)}"
        )


def finisher(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What makes embeddings of a network's raw vectors: unit length, whitened where it was."""
    if not (fitted := whitening_of(folder)):
        return normalise
    return lambda raw: normalise((normalise(raw) - fitted["mean"]) @ fitted["axes"])


def whitening_of(folder: Path) -> dict[str, np.ndarray] | None:
    """What `fit_whitening` gave for the embeddings in a folder; None where there is none."""
    if not (path := folder / "whitening.npz").exists():
        return None
    with np.load(path) as fitted:
        return dict(fitted)
