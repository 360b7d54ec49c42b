"""Embeddings of a data set: raw vectors, unit length, optional PCA whitening, and their storage.

A folder of embeddings contains `vectors.npy`, `probabilities.npy` if there is a classifier, and
`whitening.npz` if the vectors are whitened. This module does not import Keras, so stored embeddings
open quickly; `architecture.embed` makes those of a network.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cbir import StudyError
from cbir.cache import Artifact, cached, read
from cbir.images.dataset import Dataset, take_rows
from cbir.networks import baselines, vector_files

VECTORS, PROBABILITIES, WHITENING = "vectors.npy", "probabilities.npy", "whitening.npz"
# The number of images that a network processes at a time.
BATCH_SIZE = 256
# A function from images, (n, size, size, 3) uint8, to (n, d) float32 embeddings of unit length and
# (n, n_classes) float32 class probabilities.
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a data set: (n, d) float32 vectors of unit length, memory-mapped, in the
    order of the images, and (n, n_classes) float32 predicted class probabilities, if any.
    """

    artifact: Artifact
    dataset: Dataset
    vectors: np.ndarray
    probabilities: np.ndarray | None

    @classmethod
    def open(cls, folder: Path, dataset: Dataset) -> "Embeddings":
        """Open the finished embeddings of a data set in a folder; StudyError if there are none."""
        if (artifact := read(folder)) is None:
            raise StudyError(f"no embeddings in {folder}: run the study again")
        paths = [folder / name for name in (VECTORS, PROBABILITIES)]
        arrays = [np.load(path, mmap_mode="r") if path.exists() else None for path in paths]
        return cls(artifact, dataset, *arrays)

    @functools.cached_property
    def gallery(self) -> np.ndarray:
        """(n_gallery, d) float32."""
        return take_rows(self.vectors, self.dataset.gallery)

    @functools.cached_property
    def query(self) -> np.ndarray:
        """(n_queries, d) float32."""
        return take_rows(self.vectors, self.dataset.queries)

    @property
    def query_probabilities(self) -> np.ndarray:
        """(n_queries, n_classes) float32."""
        return take_rows(self.probabilities, self.dataset.queries)

    @property
    def query_predictions(self) -> np.ndarray:
        """(n_queries,) int, the predicted classes."""
        return self.query_probabilities.argmax(axis=1)

    @functools.cached_property
    def whitening(self) -> dict[str, np.ndarray] | None:
        """The result of `fit_whitening` for these embeddings; None if they are not whitened."""
        if not (path := self.artifact.folder / WHITENING).exists():
            return None
        with np.load(path) as arrays:
            return dict(arrays)

    def sizes(self) -> pd.DataFrame:
        """A row for gallery and queries: images, dimensions, dtype, megabytes."""
        parts = {"gallery": self.gallery, "queries": self.query}
        rows = [(*part.shape, str(part.dtype), part.nbytes / 1e6) for part in parts.values()]
        return pd.DataFrame(rows, [*parts], ["images", "dimensions", "dtype", "megabytes"])


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Divide each row of (n, d) by its Euclidean length, as float32.

    A row of zeros, which ReLU can produce, has no direction. It becomes the unit vector with equal
    angles to all axes, so that it can be ranked. StudyError if a value is NaN or infinite.
    """
    vectors = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise StudyError(
            "an embedding contains NaN or infinite values: train the network again with a lower "
            "learning_rate, or use other weights"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    diagonal = np.float32(1 / np.sqrt(vectors.shape[1]))
    return np.where(lengths > 0, vectors / np.where(lengths > 0, lengths, 1), diagonal)


def fit_whitening(vectors: np.ndarray, dimensions: int) -> dict[str, np.ndarray]:
    """Fit PCA whitening to (n, d) vectors of the training images, brought to unit length.

    Returns `mean` (d,) and `axes` (d, dimensions), those of the largest variance: (v - mean) @ axes
    has variance 1 in each dimension. StudyError as for `check_whitening`.
    """
    from sklearn.decomposition import PCA

    check_whitening(dimensions, *vectors.shape)
    pca = PCA(dimensions, random_state=0).fit(normalise(vectors))
    # A dimension without variance carries no information and must not be amplified.
    scale = 1 / np.sqrt(np.maximum(pca.explained_variance_, 1e-8))
    return {"mean": pca.mean_, "axes": pca.components_.T * scale}


def check_whitening(dimensions: int, n: int, width: int) -> None:
    """StudyError, before training, if PCA cannot keep so many dimensions of n embeddings."""
    if dimensions > min(n, width):
        raise StudyError(
            f"whitening: {dimensions} dimensions are too many for {width}-dimensional embeddings "
            f"of {n} training images: use at most {min(n, width)}"
        )


def finish(raw: np.ndarray, whitening: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Raw vectors, (n, width), as embeddings, (n, d) float32 of unit length, whitened or not."""
    vectors = normalise(raw)
    if whitening is None:
        return vectors
    return normalise((vectors - whitening["mean"]) @ whitening["axes"])


def batched(
    predict: Callable[[np.ndarray], list[np.ndarray]], whitening: dict[str, np.ndarray] | None
) -> Encode:
    """A function that embeds images; `predict` maps a batch to raw vectors and probabilities."""

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, len(images), BATCH_SIZE)
        batches = [predict(images[start : start + BATCH_SIZE]) for start in starts]
        raw, probabilities = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return finish(raw, whitening), probabilities

    return encode


def embed_baseline(baseline: str, dataset: Dataset, seed: int, vectors: str = "") -> Embeddings:
    """Embed all images by a rule of `baselines.BASELINES`, or with `vector_files.VECTORS` and the
    file `vectors`; StudyError as for `vector_files.read`.
    """

    def make(folder: Path) -> None:
        if vectors:
            raw, probabilities = vector_files.read(vectors, dataset)
            if probabilities is not None:
                np.save(folder / PROBABILITIES, probabilities)
        else:
            raw = baselines.describe_images(baseline, dataset.images, seed)
        np.save(folder / VECTORS, normalise(raw))

    parameters, reads = {"baseline": baseline, "seed": seed}, [dataset.fingerprint]
    if vectors:
        # The vectors are the same for all seeds.
        file, names = vector_files.fingerprints(vectors, dataset)
        parameters = {"baseline": baseline, "vectors": vectors, "sha256": file}
        reads += [names]
    artifact = cached("embeddings", make, parameters=parameters, reads=reads, package="networks")
    return Embeddings.open(artifact.folder, dataset)


def baseline_encoder(baseline: str, seed: int) -> Encode | None:
    """A function that embeds further images with a baseline; None for vectors made elsewhere."""
    if baseline == vector_files.VECTORS:
        return None
    return lambda images: (normalise(baselines.describe_images(baseline, images, seed)), None)
