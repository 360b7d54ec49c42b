"""Images to vectors: the layer under the classifier, L2-normalised, for every image of a study."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cbir import StudyError, controls
from cbir.cache import Artifact, cached
from cbir.data import Dataset, take

if TYPE_CHECKING:  # the controls need no Keras
    import keras

    from cbir.models import Network
    from cbir.training import Training

BATCH_SIZE = 256


@dataclass(frozen=True)
class Embeddings:
    """A data set as vectors.

    Attributes:
        artifact: where they stand, and what they were made from.
        dataset: which of the images are gallery, and which are queries.
        vectors: (n, d) float32, of unit length, memory-mapped: all images, in their order.
        probabilities: (n, n_classes) float32, the classifier's word on each image; None for a
            control, which has no classifier.
    """

    artifact: Artifact
    dataset: Dataset
    vectors: np.ndarray
    probabilities: np.ndarray | None

    @functools.cached_property
    def gallery(self) -> np.ndarray:
        """(n_gallery, d) float32."""
        return take(self.vectors, self.dataset.gallery)

    @functools.cached_property
    def query(self) -> np.ndarray:
        """(n_queries, d) float32."""
        return take(self.vectors, self.dataset.queries)

    @property
    def query_probabilities(self) -> np.ndarray:
        """(n_queries, n_classes) float32."""
        return take(self.probabilities, self.dataset.queries)

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


def features(network: "Network", dataset: Dataset) -> Artifact | None:
    """What a frozen backbone makes of every image, computed once; None where it is trained.

    Heads, seeds and epochs share this (n, d) float32 array `features.npy`.
    """
    if network.train == "all":
        return None
    # Random weights follow from the seed, and from dropout, which draws from it too.
    drawn = () if network.weights else ("seed", "dropout")

    def make(folder: Path) -> None:
        np.save(folder / "features.npy", predict(network.backbone, dataset.images, "features"))

    return cached(
        "features",
        make,
        parameters={
            name: network.parameters[name]
            for name in ("backbone", "image_size", "input_size", *drawn)
        },
        reads=[dataset.fingerprint, network.weights],
        code=__name__,
    )


def embed(
    network: "Network",
    training: "Training",
    dataset: Dataset,
    frozen: Artifact | None = None,
    epoch: int | None = None,
) -> Embeddings:
    """Embeddings and class probabilities of all images.

    Args:
        network: what was trained.
        training: where its weights stand.
        dataset: whose images, gallery and queries.
        frozen: `features`, where the backbone is frozen.
        epoch: one of the training's measured epochs; the final state by default.
    """

    def make(folder: Path) -> None:
        network.model.load_weights(training.weights_path(epoch))
        encoder = network.head_encoder if frozen else network.encoder
        inputs = dataset.images
        if frozen:
            inputs = np.load(frozen.folder / "features.npy", mmap_mode="r")
        vectors, probabilities = predict(encoder, inputs, "embeddings")
        np.save(folder / "vectors.npy", normalise(vectors))
        np.save(folder / "probabilities.npy", probabilities)
        network.model.load_weights(training.weights_path())

    artifact = cached(
        "embeddings",
        make,
        parameters={"epoch": epoch or len(training.history)},
        reads=[training.artifact.key, dataset.fingerprint],
        code=__name__,
    )
    return Embeddings(
        artifact,
        dataset,
        np.load(artifact.folder / "vectors.npy", mmap_mode="r"),
        np.load(artifact.folder / "probabilities.npy", mmap_mode="r"),
    )


def embed_control(control: str, dataset: Dataset, seed: int) -> Embeddings:
    """What a control makes of all images; it learns nothing and has no classifier.

    Args:
        control: a name in `controls.CONTROLS`.
        dataset: whose images, gallery and queries.
        seed: of what is random in it.
    """

    def make(folder: Path) -> None:
        vectors = controls.describe_images(control, dataset.images, seed)
        np.save(folder / "vectors.npy", normalise(vectors))

    artifact = cached(
        "embeddings",
        make,
        parameters={"control": control, "seed": seed},
        reads=[dataset.fingerprint],
        code=__name__,
    )
    vectors = np.load(artifact.folder / "vectors.npy", mmap_mode="r")
    return Embeddings(artifact, dataset, vectors, None)


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


def predict(model: "keras.Model", inputs: np.ndarray, what: str):
    """The model's output for all inputs, in their order."""
    from cbir.training import Batches, Progress

    batches = Batches(inputs, np.zeros(len(inputs)), np.arange(len(inputs)), BATCH_SIZE)
    said = Progress(len(batches), f"{what}, batches of {BATCH_SIZE}")
    return model.predict(batches, verbose=0, callbacks=[said])
