"""An architecture as a study describes it: builds and trains its network, and embeds images."""

from dataclasses import dataclass, field

from cbir.images import protocols
from cbir.images.dataset import Dataset
from cbir.networks import embeddings, models, training
from cbir.networks.embeddings import Embeddings, check_whitening
from cbir.networks.models import Network
from cbir.networks.training import Training


@dataclass(frozen=True)
class Architecture:
    """The settings of an architecture, which together with images and a seed yield embeddings.

    Attributes:
        network: arguments of `models.build`, except those determined by images and seed.
        training: settings of `training.train`, and `head_epochs`, `head_batch_size` and
            `head_learning_rate`. With `head_epochs` the head is trained first, on the features of
            the frozen backbone.
        embedding: `test_time_flips` and `whitening` of `embeddings.embed`.
    """

    network: dict
    training: dict
    embedding: dict
    _last: dict = field(default_factory=dict, repr=False)

    def build(self, dataset: Dataset, seed: int) -> Network:
        """Build the untrained network.

        Raises:
            StudyError: as for `models.build`; or the whitening has more dimensions than the
                embedding or than there are training images.
        """
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
        """Train the network on a protocol's view of the data set, or load the cached training.

        The head is trained before the backbone, since gradients through an untrained head would
        spoil a pretrained backbone.
        """
        key = (dataset.split_fingerprint, seed)
        if key not in self._last:
            self._last.clear()
            print(f"seed {seed}, {_describe_view(dataset)}", flush=True)
            self._last[key] = self._train(dataset, seed)
        return self._last[key]

    def embed(self, dataset: Dataset, seed: int, epoch: int | None = None) -> Embeddings:
        """Embed all images with the network that was trained on a protocol's view of them.

        Args:
            epoch: a measured epoch; the final state by default.
        """
        network, trained = self.train(dataset, seed)
        return embeddings.embed(network, trained, dataset, epoch, **self.embedding)

    def _train(self, dataset: Dataset, seed: int) -> tuple[Network, Training]:
        settings = dict(self.training)
        head_settings = {
            name.removeprefix("head_"): settings.pop(name)
            for name in self.training
            if name.startswith("head_")
        }
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


def _describe_view(dataset: Dataset) -> str:
    if dataset.draw is None:
        return f"protocol {dataset.protocol}"
    names = ", ".join(dataset.classes[label] for label in protocols.unseen_labels(dataset))
    return f"protocol {dataset.protocol}, draw {dataset.draw}: without {names}"
