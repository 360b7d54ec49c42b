"""From a network's raw vectors to embeddings: unit length, and PCA whitening where it is asked."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap

from cbir import StudyError
from cbir.cache import Artifact, cached
from cbir.images.dataset import Dataset, take_rows
from cbir.networks import baselines, inference

if TYPE_CHECKING:  # the baselines need no Keras
    from cbir.networks.models import Network
    from cbir.networks.training import Training


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
    if not (fitted := read_whitening(folder)):
        return normalise
    return lambda raw: normalise((normalise(raw) - fitted["mean"]) @ fitted["axes"])


def read_whitening(folder: Path) -> dict[str, np.ndarray] | None:
    """What `fit_whitening` gave for the embeddings in a folder; None where there is none."""
    if not (path := folder / "whitening.npz").exists():
        return None
    with np.load(path) as fitted:
        return dict(fitted)


ROWS = 8192
# Images to embeddings and class probabilities.
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Embeddings:
    """A data set as vectors.

    Attributes:
        artifact: where they stand, and what they were made from.
        dataset: which of the images are gallery, and which are queries.
        vectors: (n, d) float32, of unit length, memory-mapped: all images, in their order.
        probabilities: (n, n_classes) float32, the classifier's word on each image; None for a
            baseline, which has no classifier.
    """

    artifact: Artifact
    dataset: Dataset
    vectors: np.ndarray
    probabilities: np.ndarray | None

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
        """(n_queries,) the class that the classifier predicts."""
        return self.query_probabilities.argmax(axis=1)

    def of(self, dataset: Dataset) -> "Embeddings":
        """The same vectors, with the gallery and the queries of another view."""
        return Embeddings(self.artifact, dataset, self.vectors, self.probabilities)

    def stored(self) -> pd.DataFrame:
        """How many vectors, how long, and what they take on disk."""
        parts = {"gallery": self.gallery, "queries": self.query}
        table = {
            part: {
                "images": len(vectors),
                "embedding size": vectors.shape[1],
                "dtype": str(vectors.dtype),
                "megabytes": vectors.nbytes / 1e6,
            }
            for part, vectors in parts.items()
        }
        return pd.DataFrame.from_dict(table, orient="index")


def frozen_features(
    network: "Network", dataset: Dataset, *, mirrored: bool = False
) -> Artifact | None:
    """What a frozen backbone makes of every image, computed once; None where it is trained.

    Heads, seeds and epochs share this array `features.npy`: (n, channels) float32 pooled features,
    or (n, h, w, channels) float16 maps where the head pools them. `mirrored` asks for those of
    every image's mirror image, an array of its own.
    """
    if not network.is_frozen:
        return None
    # Random weights follow from the seed, and from dropout, which draws from it too.
    drawn = () if network.weights.path else ("seed", "dropout")
    shape = ("backbone", "constructor", "pixels", "image_size", "input_size", "precision")
    shape += ("feature_maps",) if network.has_maps else ("pooling",)
    dtype = np.float16 if network.has_maps else np.float32

    def make(folder: Path) -> None:
        path = folder / "features.npy"
        backbone = inference.mirrored(network.backbone) if mirrored else network.backbone
        inference.predict(backbone, dataset.images, {path: dtype}, "features")

    return cached(
        "features",
        make,
        parameters={name: network.parameters[name] for name in (*shape, *drawn)}
        | {"mirrored": mirrored},
        reads=[dataset.fingerprint, network.weights.sha256],
        package="networks",
    )


def embed(
    network: "Network",
    training: "Training",
    dataset: Dataset,
    epoch: int | None = None,
    *,
    test_time_flips: bool = False,
    whitening: int = 0,
) -> Embeddings:
    """Embeddings and class probabilities of all images.

    Args:
        network: what was trained.
        training: where its weights stand.
        dataset: whose images, gallery and queries.
        epoch: one of the training's measured epochs; the final state by default.
        test_time_flips: average what the network makes of an image and of its mirror image. A
            frozen backbone sees each of the two once, whatever the number of heads.
        whitening: dimensions that PCA whitening, fitted on the training images, leaves; 0 for none.

    Raises:
        StudyError: more dimensions than `check_whitening` allows, an embedding that is not a
            number, or too little memory for a batch.
    """

    def make(folder: Path) -> None:
        network.model.load_weights(training.weights_path(epoch))
        outputs = {folder / "raw.npy": np.float32, folder / "probabilities.npy": np.float32}
        if training.features:
            found = [training.features]
            if test_time_flips:
                found.append(frozen_features(network, dataset, mirrored=True))
            inputs = [np.load(each.folder / "features.npy", mmap_mode="r") for each in found]
            inference.predict_means(network.head_encoder, inputs, outputs, "embeddings")
        else:
            encoder = inference.flipped(network.encoder) if test_time_flips else network.encoder
            inference.predict(encoder, dataset.images, outputs, "embeddings")
        raw = np.load(folder / "raw.npy", mmap_mode="r")
        if whitening:
            np.savez(folder / "whitening.npz", **fit_whitening(raw[dataset.train], whitening))
        finish = finisher(folder)
        shape = finish(raw[:1]).shape
        vectors = open_memmap(folder / "vectors.npy", "w+", np.float32, (len(raw), shape[1]))
        for start in range(0, len(raw), ROWS):
            vectors[start : start + ROWS] = finish(raw[start : start + ROWS])
        vectors.flush()
        del raw
        (folder / "raw.npy").unlink()
        network.model.load_weights(training.weights_path())

    artifact = cached(
        "embeddings",
        make,
        parameters={
            "epoch": epoch or training.best_epoch,
            "test_time_flips": test_time_flips,
            "whitening": whitening,
        },
        reads=[training.artifact.key, dataset.fingerprint, dataset.split_fingerprint],
        package="networks",
    )
    return Embeddings(
        artifact,
        dataset,
        np.load(artifact.folder / "vectors.npy", mmap_mode="r"),
        np.load(artifact.folder / "probabilities.npy", mmap_mode="r"),
    )


def make_encoder(network: "Network", embeddings: Embeddings) -> Encode:
    """(n, size, size, 3) uint8 images -> (n, d) float32 vectors and (n, n_classes) probabilities.

    Both are made as those of the embeddings were.
    """

    flips = embeddings.artifact.manifest["parameters"]["test_time_flips"]
    model = inference.flipped(network.encoder) if flips else network.encoder
    finish = finisher(embeddings.artifact.folder)

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, len(images), inference.BATCH_SIZE)
        parts = [
            inference.predict_batch(model, images[start : start + inference.BATCH_SIZE])
            for start in starts
        ]
        raw, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return finish(raw), probabilities

    return encode


def embed_baseline(baseline: str, dataset: Dataset, seed: int) -> Embeddings:
    """What a baseline makes of all images; it learns nothing and has no classifier.

    Args:
        baseline: a name in `baselines.BASELINES`.
        dataset: whose images, gallery and queries.
        seed: of what is random in it.
    """

    def make(folder: Path) -> None:
        vectors = baselines.describe_images(baseline, dataset.images, seed)
        np.save(folder / "vectors.npy", normalise(vectors))

    artifact = cached(
        "embeddings",
        make,
        parameters={"baseline": baseline, "seed": seed},
        reads=[dataset.fingerprint],
        package="networks",
    )
    vectors = np.load(artifact.folder / "vectors.npy", mmap_mode="r")
    return Embeddings(artifact, dataset, vectors, None)


def baseline_encoder(baseline: str, seed: int) -> Encode:
    """(n, size, size, 3) uint8 images -> (n, d) float32 vectors, and no probabilities.

    Args:
        baseline, seed: as for `embed_baseline`.
    """
    return lambda images: (normalise(baselines.describe_images(baseline, images, seed)), None)
