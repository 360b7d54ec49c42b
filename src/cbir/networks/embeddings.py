"""Images to vectors: the layer under the classifier, L2-normalised, for every image of a study."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap

from cbir.cache import Artifact, cached, module_digest
from cbir.images.data import Dataset, take
from cbir.networks import controls
from cbir.networks.vectors import finisher, fit_whitening, normalise

if TYPE_CHECKING:  # the controls need no Keras
    from cbir.networks.models import Network
    from cbir.networks.training import Training

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


def features(network: "Network", dataset: Dataset, *, mirrored: bool = False) -> Artifact | None:
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

    from cbir.networks import inference

    def make(folder: Path) -> None:
        path = folder / "features.npy"
        backbone = inference.mirrored(network.backbone) if mirrored else network.backbone
        inference.predict(backbone, dataset.images, {path: dtype}, "features")

    return cached(
        "features",
        make,
        parameters={name: network.parameters[name] for name in (*shape, *drawn)}
        | {"mirrored": mirrored},
        reads=[dataset.fingerprint, network.weights.sha256, module_digest("cbir.networks.models")],
        code=__name__,
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

    from cbir.networks import inference

    def make(folder: Path) -> None:
        network.model.load_weights(training.weights_path(epoch))
        outputs = {folder / "raw.npy": np.float32, folder / "probabilities.npy": np.float32}
        if training.features:
            found = [training.features]
            if test_time_flips:
                found.append(features(network, dataset, mirrored=True))
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
        code=__name__,
    )
    return Embeddings(
        artifact,
        dataset,
        np.load(artifact.folder / "vectors.npy", mmap_mode="r"),
        np.load(artifact.folder / "probabilities.npy", mmap_mode="r"),
    )


def encoder(network: "Network", embeddings: Embeddings) -> Encode:
    """(n, size, size, 3) uint8 images -> (n, d) float32 vectors and (n, n_classes) probabilities.

    Both are made as those of the embeddings were.
    """
    from cbir.networks import inference

    flips = embeddings.artifact.manifest["parameters"]["test_time_flips"]
    model = inference.flipped(network.encoder) if flips else network.encoder
    finish = finisher(embeddings.artifact.folder)

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, len(images), inference.BATCH_SIZE)
        parts = [
            inference.batch(model, images[start : start + inference.BATCH_SIZE]) for start in starts
        ]
        raw, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return finish(raw), probabilities

    return encode


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


def control_encoder(control: str, seed: int) -> Encode:
    """(n, size, size, 3) uint8 images -> (n, d) float32 vectors, and no probabilities.

    Args:
        control, seed: as for `embed_control`.
    """
    return lambda images: (normalise(controls.describe_images(control, images, seed)), None)
