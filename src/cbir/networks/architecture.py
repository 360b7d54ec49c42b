"""An architecture as a study describes it: how to build it, train it and embed with it."""

from dataclasses import dataclass, field

import numpy as np

from cbir.images.dataset import Dataset
from cbir.networks import embeddings, models, training
from cbir.networks.embeddings import Embeddings, check_whitening
from cbir.networks.models import Network
from cbir.networks.training import Training


@dataclass(frozen=True)
class Architecture:
    """Everything that makes an architecture's embeddings but the images and the seed.

    Attributes:
        network: arguments of `models.build`, but for those that the images and the seed give.
        training: arguments of `training.train`, and `head_epochs`, `head_batch_size` and
            `head_learning_rate`: those of the head alone, which is trained first where there are
            any, on the features of the frozen backbone.
        embedding: `test_time_flips` and `whitening` of `embeddings.embed`.
    """

    network: dict
    training: dict
    embedding: dict
    _last: dict = field(default_factory=dict, repr=False)

    def build(self, dataset: Dataset, seed: int) -> Network:
        """The network, untrained.

        Raises:
            StudyError: as for `models.build`, and where the whitening that follows the training
                has more dimensions than the embedding or than there are training images.
        """
        shape = {"image_size": dataset.images.shape[1], "n_classes": len(dataset.classes)}
        shape |= {"seed": seed, "was_frozen": self.training["head_epochs"] > 0}
        network = models.build(**self.network | shape)
        if whitening := self.embedding["whitening"]:
            check_whitening(whitening, len(dataset.train), network.embedding_width)
        return network

    def train(self, dataset: Dataset, seed: int) -> tuple[Network, Training]:
        """The network, trained on a view of the data set; what is already done is not done again.

        A pretrained backbone is trained only after its head: gradients that come through a head of
        random weights would spoil it.
        """
        asked = (dataset.split_fingerprint, seed)
        if asked not in self._last:
            self._last.clear()
            print(f"seed {seed}, {_of(dataset)}", flush=True)
            self._last[asked] = self._train(dataset, seed)
        return self._last[asked]

    def embed(self, dataset: Dataset, seed: int, epoch: int | None = None) -> Embeddings:
        """What the network, trained on a view of the data set, makes of all its images."""
        network, trained = self.train(dataset, seed)
        return embeddings.embed(network, trained, dataset, epoch, **self.embedding)

    def _train(self, dataset: Dataset, seed: int) -> tuple[Network, Training]:
        settings = dict(self.training)
        names = ("epochs", "batch_size", "learning_rate")
        head_settings = {name: settings.pop(f"head_{name}") for name in names}
        head_settings = settings | head_settings | {"measured_epochs": [], "augmentation": []}
        head = None
        if head_settings["epochs"]:
            frozen = Architecture(self.network | {"train": "head"}, self.training, self.embedding)
            network = frozen.build(dataset, seed)
            features = embeddings.frozen_features(network, dataset)
            head = training.train(network, dataset, head_settings, seed=seed, features=features)
            if self.network["train"] == "head":
                return network, head
        network = self.build(dataset, seed)
        return network, training.train(network, dataset, settings, seed=seed, head=head)


def _of(dataset: Dataset) -> str:
    if dataset.draw is None:
        return f"protocol {dataset.protocol}"
    seen = np.isin(np.arange(len(dataset.classes)), dataset.labels[dataset.train])
    apart = [name for name, is_seen in zip(dataset.classes, seen, strict=True) if not is_seen]
    return f"protocol {dataset.protocol}, draw {dataset.draw}: without {', '.join(apart)}"
