"""An architecture as a study describes it: how to build it, train it and embed with it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cbir import embeddings, models, training
from cbir.cache import Artifact
from cbir.data import Dataset
from cbir.models import Network
from cbir.training import Training


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a network but the images and the seed.

    Attributes:
        network: arguments of `models.build`.
        training: arguments of `training.train`.
    """

    network: dict
    training: dict
    _last: dict = field(default_factory=dict, repr=False)

    def build(self, dataset: Dataset, seed: int) -> Network:
        """The network, untrained."""
        return models.build(**self.network, n_classes=len(dataset.classes), seed=seed)

    def train(
        self, network: Network, dataset: Dataset, features: Artifact | None, seed: int
    ) -> Training:
        """The network, trained; `features` are those of a frozen backbone, or None."""
        return training.train(network, dataset, features=features, seed=seed, **self.training)

    def embed(self, dataset: Dataset, seed: int, epoch: int | None = None) -> embeddings.Embeddings:
        """What the network, trained on a view of the data set, makes of all its images.

        A training or an embedding that is already done is not done again.
        """
        asked = (dataset.split_fingerprint, seed)
        if asked not in self._last:
            self._last.clear()
            print(f"seed {seed}, {_of(dataset)}", flush=True)
            network = self.build(dataset, seed)
            features = embeddings.features(network, dataset)
            self._last[asked] = (network, self.train(network, dataset, features, seed), features)
        network, trained, features = self._last[asked]
        return embeddings.embed(network, trained, dataset, features, epoch)


def encoder(network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """(n, size, size, 3) uint8 images -> (n, d) vectors, as fast as the network goes."""

    def encode(images: np.ndarray) -> np.ndarray:
        if len(images) <= 1:
            return np.asarray(network.encoder.predict_on_batch(images.astype(np.float32))[0])
        return embeddings.predict(network.encoder, images, "embedding")[0]

    return encode


def _of(dataset: Dataset) -> str:
    if dataset.draw is None:
        return f"protocol {dataset.protocol}"
    seen = np.isin(np.arange(len(dataset.classes)), dataset.labels[dataset.train])
    apart = [name for name, is_seen in zip(dataset.classes, seen, strict=True) if not is_seen]
    return f"protocol {dataset.protocol}, draw {dataset.draw}: without {', '.join(apart)}"
