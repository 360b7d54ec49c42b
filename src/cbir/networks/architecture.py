"""An architecture as a study describes it: builds and trains its network, and embeds images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from cbir import StudyError
from cbir.cache import SCRATCH, cached, create_array
from cbir.images import protocols
from cbir.images.dataset import Dataset
from cbir.networks import inference, models, training
from cbir.networks.choices import HEAD_PATIENCE
from cbir.networks.embeddings import (
    PROBABILITIES,
    VECTORS,
    WHITENING,
    Embeddings,
    check_whitening,
    finish,
    fit_whitening,
)
from cbir.networks.models import Network, broken_layer
from cbir.networks.training import Training

# The number of rows that are normalised and whitened at once.
BLOCK = 8192


@dataclass(frozen=True)
class Architecture:
    """The settings of an architecture, which together with images and a seed yield embeddings.

    Attributes:
        network: arguments of `models.build`, except those determined by images and seed.
        training: settings of `training.train`, and `head_epochs`, `head_batch_size` and
            `head_learning_rate`, with which the head is trained first, on features of the frozen
            backbone.
        embedding: `test_time_flips` and `whitening` of `embed`.
    """

    network: dict
    training: dict
    embedding: dict
    _last: dict = field(default_factory=dict, repr=False)

    def build(self, dataset: Dataset, seed: int) -> Network:
        """Build the untrained network; StudyError as for `models.build` and `check_whitening`."""
        network = models.build(
            **self.network,
            image_size=dataset.images.shape[1],
            n_classes=len(dataset.classes),
            seed=seed,
            was_frozen=self.training["head_epochs"] > 0,
        )
        if whitening := self.embedding["whitening"]:
            check_whitening(whitening, len(dataset.train), network.embedding_width)
        return network

    def train(self, dataset: Dataset, seed: int) -> tuple[Network, Training]:
        """Train the network on a protocol's view of the data set, or load the cached training."""
        key = (dataset.split_fingerprint, seed)
        if key not in self._last:
            self._last.clear()
            view = f"protocol {dataset.protocol}"
            if dataset.draw is not None:
                names = [dataset.classes[label] for label in protocols.unseen_labels(dataset)]
                view += f", draw {dataset.draw}: without {', '.join(names)}"
            print(f"seed {seed}, {view}", flush=True)
            self._last[key] = self._train(dataset, seed)
        return self._last[key]

    def embed(self, dataset: Dataset, seed: int, epoch: int | None = None) -> Embeddings:
        """Embed all images of a view, after a measured epoch of its training or the last one."""
        network, trained = self.train(dataset, seed)
        return embed(network, trained, dataset, epoch, **self.embedding)

    def _train(self, dataset: Dataset, seed: int) -> tuple[Network, Training]:
        settings = dict(self.training)
        names = [name for name in self.training if name.startswith("head_")]
        head_settings = {name.removeprefix("head_"): settings.pop(name) for name in names}
        head_settings = settings | head_settings | {"measured_epochs": [], "augmentation": []}
        head_settings["early_stopping"] = settings["early_stopping"] or HEAD_PATIENCE
        head = None
        # Gradients through an untrained head would spoil a pretrained backbone.
        if head_settings["epochs"]:
            frozen = Architecture(self.network | {"train": "head"}, self.training, self.embedding)
            network = frozen.build(dataset, seed)
            features = inference.frozen_features(network, dataset)
            head = training.train(network, dataset, head_settings, seed=seed, features=features)
            if self.network["train"] == "head":
                return network, head
        network = self.build(dataset, seed)
        return network, training.train(network, dataset, settings, seed=seed, head=head)


def embed(
    network: Network,
    training: Training,
    dataset: Dataset,
    epoch: int | None = None,
    *,
    test_time_flips: bool = False,
    whitening: int = 0,
) -> Embeddings:
    """Embed all images with a trained network, and predict their class probabilities.

    Args:
        epoch: one of the training's measured epochs; the final state by default.
        test_time_flips: whether to average the outputs for an image and its mirror image. A frozen
            backbone processes each of the two once, whatever the number of heads.
        whitening: the dimensions that PCA, fitted on the training images, keeps; 0 for no
            whitening.

    Raises:
        StudyError: `whitening` exceeds what `check_whitening` allows, an embedding contains NaN or
            infinite values, or one image does not fit in memory.
    """

    def make(folder: Path) -> None:
        network.model.load_weights(training.weights_path(epoch))
        raw_path = folder / SCRATCH / "raw.npy"
        raw_path.parent.mkdir(exist_ok=True)
        outputs = {raw_path: np.float32, folder / PROBABILITIES: np.float32}
        if training.features:
            features = [training.features]
            if test_time_flips:
                features.append(inference.frozen_features(network, dataset, mirrored=True))
            inputs = [inference.open_features(artifact) for artifact in features]
            encoder = network.head_encoder
        else:
            inputs = [dataset.images]
            encoder = inference.flipped(network.encoder) if test_time_flips else network.encoder
        inference.predict(encoder, inputs, outputs, "embeddings")
        raw = np.load(raw_path, mmap_mode="r")
        state = f"after epoch {epoch or training.best_epoch}"
        if not np.isfinite(np.min(raw) + np.max(raw)):
            layer = broken_layer(network.model) or "embedding"
            raise StudyError(
                f"{state}, the layer {layer} has NaN or infinite values: lower learning_rate "
                "(head_learning_rate if train is head)"
            )
        shape = len(raw), whitening or raw.shape[1]
        vectors = create_array(folder / VECTORS, np.float32, shape)
        # The number of threads changes the last digits of PCA and of products with its axes.
        with threadpool_limits(1):
            fitted = fit_whitening(raw[dataset.train], whitening) if whitening else None
            for start in range(0, len(raw), BLOCK):
                vectors[start : start + BLOCK] = finish(raw[start : start + BLOCK], fitted)
        if fitted:
            np.savez(folder / WHITENING, **fitted)
        vectors.flush()
        network.model.load_weights(training.weights_path())

    parameters = {"epoch": epoch or training.best_epoch}
    parameters |= {"test_time_flips": test_time_flips, "whitening": whitening}
    reads = [training.artifact.key, dataset.fingerprint, dataset.split_fingerprint]
    artifact = cached("embeddings", make, parameters=parameters, reads=reads, package="networks")
    return Embeddings.open(artifact.folder, dataset)
