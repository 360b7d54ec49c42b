"""Images to vectors: the layer under the classifier, L2-normalised, for gallery and queries."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from cbir import StudyError
from cbir.cache import Artifact, cached
from cbir.data import Dataset
from cbir.models import Network
from cbir.training import Batches, Progress, Training

BATCH_SIZE = 256


@dataclass(frozen=True)
class Embeddings:
    """A data set as vectors.

    Attributes:
        artifact: where they stand, and what they were made from.
        gallery, query: (n, d) float32, of unit length, memory-mapped.
        gallery_labels, query_labels: (n,) int64.
        query_probabilities: (n_queries, n_classes) float32, the classifier's word on each query.
    """

    artifact: Artifact
    gallery: np.ndarray
    gallery_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    query_probabilities: np.ndarray

    @property
    def query_predictions(self) -> np.ndarray:
        """(n_queries,) the class that the classifier predicts."""
        return self.query_probabilities.argmax(axis=1)

    def stored(self) -> pd.DataFrame:
        """How many vectors, how long, and what they take on disk."""
        parts = {"gallery": self.gallery, "queries": self.query}
        rows = {
            part: {
                "images": len(vectors),
                "embedding size": vectors.shape[1],
                "dtype": str(vectors.dtype),
                "megabytes": vectors.nbytes / 1e6,
            }
            for part, vectors in parts.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def features(network: Network, dataset: Dataset) -> Artifact | None:
    """What a frozen backbone makes of every image, computed once; None where it is trained.

    Heads, seeds and epochs share these (n, d) float32 arrays `gallery.npy` and `query.npy`.
    """
    if network.train == "all":
        return None
    # Random weights follow from the seed, and from dropout, which draws from it too.
    drawn = () if network.weights else ("seed", "dropout")

    def make(folder: Path) -> None:
        for part, images in (("gallery", dataset.train_images), ("query", dataset.test_images)):
            np.save(folder / f"{part}.npy", predict(network.backbone, images, part))

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
    network: Network,
    training: Training,
    dataset: Dataset,
    frozen: Artifact | None = None,
    epoch: int | None = None,
) -> Embeddings:
    """Embeddings and class probabilities of gallery and queries.

    Args:
        network: what was trained.
        training: where its weights stand.
        dataset: gallery = `train_images`, queries = `test_images`.
        frozen: `features`, where the backbone is frozen.
        epoch: one of the training's measured epochs; the final state by default.
    """

    def make(folder: Path) -> None:
        network.model.load_weights(training.weights_path(epoch))
        encoder = network.head_encoder if frozen else network.encoder
        for part, images in (("gallery", dataset.train_images), ("query", dataset.test_images)):
            inputs = np.load(frozen.folder / f"{part}.npy", mmap_mode="r") if frozen else images
            embedding, probabilities = predict(encoder, inputs, part)
            np.save(folder / f"{part}_embeddings.npy", normalise(embedding))
            np.save(folder / f"{part}_probabilities.npy", probabilities)
        np.save(folder / "gallery_labels.npy", dataset.train_labels)
        np.save(folder / "query_labels.npy", dataset.test_labels)
        network.model.load_weights(training.weights_path())

    artifact = cached(
        "embeddings",
        make,
        parameters={"epoch": epoch or len(training.history)},
        reads=[training.artifact.key, dataset.fingerprint],
        code=__name__,
    )
    load = {"mmap_mode": "r"}
    return Embeddings(
        artifact=artifact,
        gallery=np.load(artifact.folder / "gallery_embeddings.npy", **load),
        gallery_labels=np.load(artifact.folder / "gallery_labels.npy"),
        query=np.load(artifact.folder / "query_embeddings.npy", **load),
        query_labels=np.load(artifact.folder / "query_labels.npy"),
        query_probabilities=np.load(artifact.folder / "query_probabilities.npy", **load),
    )


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


def predict(model: keras.Model, inputs: np.ndarray, part: str):
    """The model's output for all inputs, in their order."""
    batches = Batches(inputs, np.zeros(len(inputs)), np.arange(len(inputs)), BATCH_SIZE)
    what = f"embedding the {part}, batches of {BATCH_SIZE}"
    return model.predict(batches, verbose=0, callbacks=[Progress(len(batches), what)])
