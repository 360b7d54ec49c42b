"""A finished study as a search engine: its trained network and the images that it can search.

It is opened from what the report left, as it stands: nothing is trained or embedded anew, and a
later change of code does not matter.
"""

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cbir import StudyError, project_root
from cbir.cache import read as read_artifact
from cbir.images import data, protocols
from cbir.images.data import Dataset
from cbir.networks import embeddings
from cbir.networks.embeddings import Embeddings, Encode
from cbir.networks.weights import OF_STUDY
from cbir.reporting import tidy
from cbir.retrieval import ranking, searches, simulation
from cbir.retrieval.feedback import Rocchio

if TYPE_CHECKING:  # Keras, which takes seconds to import
    from cbir.networks.models import Network


@dataclass(frozen=True)
class Gallery:
    """What is searched.

    Attributes:
        name: of the study, or of the gallery made of a folder.
        vectors: (n, d) float32 of unit length.
        labels: (n,) int64: the images' classes; of a folder without classes, those predicted.
        names: what tells an image from all others, such as its path.
        image: position -> (size, size, 3) uint8.
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    names: list[str]
    image: Callable[[int], np.ndarray]

    @functools.cached_property
    def first_of_equals(self) -> np.ndarray:
        """As `ranking.search` takes it; computed once."""
        return ranking.first_of_equals(self.vectors)

    def positions(self, paths: Iterable[Path]) -> set[int]:
        """Where the images of these files stand; files that are not of the gallery do not count."""
        wanted = {str(path.resolve()) for path in paths}
        root = project_root().resolve()
        # Joined, not resolved: that would look at the disk for every image of the gallery.
        return {at for at, name in enumerate(self.names) if str(root / name) in wanted}

    def search(
        self, vectors: np.ndarray, k: int, searchable: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each query: positions and similarities, as `ranking.search`.

        Args:
            vectors: (n_queries, d) float32 of unit length.
            k: how many.
            searchable: (n_queries, n_classes) bool, the classes that each may find; all by default.
        """
        return ranking.search(
            vectors,
            self.vectors,
            k,
            gallery_labels=self.labels,
            restrict_to=searchable,
            first=self.first_of_equals,
        )


@dataclass(frozen=True)
class Engine:
    """What a finished study left of an architecture: its embeddings, and its trained network.

    Attributes:
        study, architecture: whose.
        summary: of the run, as it left it.
        embeddings: of the study's images, as its first protocol sees them.
    """

    study: str
    architecture: str
    summary: dict
    embeddings: Embeddings

    @property
    def key(self) -> str:
        """What decides what it makes of a picture."""
        return self.embeddings.artifact.key

    @property
    def classes(self) -> list[str]:
        """The classes that it was taught."""
        return self.embeddings.dataset.classes

    @property
    def image_size(self) -> int:
        """Pixels of the squares that pictures become."""
        return self.embeddings.dataset.parameters["image_size"]

    @functools.cached_property
    def network(self) -> "Network":
        """The network with its final weights; built on first use, which takes seconds.

        Raises:
            StudyError: its weights are gone.
        """
        from cbir.networks import models, training

        shape = self.summary["parameters"]
        weights = project_root() / self.summary["artifacts"]["training"] / training.FINAL
        if not weights.is_file():
            raise StudyError(f"{weights} is gone: {_make_again(self.study, self.architecture)}")
        network = models.build(
            shape["backbone"],
            # Says what its pixels are; all its weights follow.
            weights=f"{OF_STUDY}{self.study}/{self.architecture}",
            mixed_precision=shape["precision"] != "float32",
            **{name: shape[name] for name in REBUILT},
        )
        network.model.load_weights(weights)
        return network

    @functools.cached_property
    def encode(self) -> Encode:
        """(n, size, size, 3) uint8 images -> (n, d) vectors and (n, n_classes) probabilities."""
        return embeddings.encoder(self.network, self.embeddings)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The study's own gallery."""
        dataset = self.embeddings.dataset
        return Gallery(
            self.study,
            self.embeddings.gallery,
            dataset.gallery_labels,
            [_place(dataset, position) for position in dataset.gallery],
            lambda position: dataset.images[dataset.gallery[position]],
        )

    @functools.cached_property
    def weights(self) -> Rocchio:
        """How much marks count, as chosen on the study's validation images."""
        return simulation.choose_weights(self.embeddings)

    def searchable(self, probabilities: np.ndarray, search: str) -> np.ndarray | None:
        """(n, n_classes) bool, which classes a way of searching may return; None for all.

        Args:
            probabilities: (n, n_classes) of the pictures that are asked for.
            search: a name in `SEARCHES`.
        """
        if search == "predicted_class":
            return probabilities.argmax(axis=1)[:, None] == np.arange(len(self.classes))
        if search == "soft":
            # Of the first seed, whose network this is.
            known = next(iter(self.summary["calibrations"].values()))
            return searches.probable(probabilities, known["temperature"], known["mass"])
        return None


def open_engine(study: str = "", architecture: str = "") -> Engine:
    """What a finished study left of an architecture.

    Args:
        study: a folder in reports/; "digits" by default.
        architecture: a folder in there; by default the one of the highest mAP.

    Raises:
        StudyError: no such results, a control, or what the report was made from has changed.
    """
    study = study or "digits"
    architecture = architecture or best_architecture(study)
    summary = _summary(study, architecture)
    again = _make_again(study, architecture)
    dataset = _dataset(summary, again)
    embedded = read_artifact(project_root() / summary["artifacts"]["embeddings"])
    if embedded is None:
        raise StudyError(f"the embeddings of {architecture} in {study} are gone: {again}")
    vectors, probabilities = (
        np.load(embedded.folder / f"{name}.npy", mmap_mode="r")
        for name in ("vectors", "probabilities")
    )
    found = Embeddings(embedded, dataset, vectors, probabilities)
    return Engine(study, architecture, summary, found)


# Ways of searching with a picture whose class nobody knows.
SEARCHES = ("unrestricted", "predicted_class", "soft")
# Arguments of `models.build` that a summary holds as they were given.
REBUILT = (
    "train", "image_size", "input_size", "pooling", "feature_maps", "embedding", "embedding_dim",
    "dropout", "n_classes", "seed", "was_frozen",
)  # fmt: skip


def architectures(study: str) -> list[str]:
    """The architectures that a study has finished, controls left out.

    Raises:
        StudyError: none.
    """
    folder = project_root() / "reports" / study
    found = [
        path.parent.name
        for path in sorted(folder.glob("*/summary.json"))
        if "weights" in json.loads(path.read_text("utf-8"))
    ]
    if not found:
        raise StudyError(f"no trained architecture in {folder}: {_how_to_make(study)}")
    return found


def best_architecture(study: str) -> str:
    """The architecture of the highest mAP in the unrestricted search, under the first protocol."""
    values = {}
    for name in architectures(study):
        asked = _summary(study, name)["asked"]
        rows = tidy.read_csv(project_root() / "reports" / study / name / "metrics.csv")
        wanted = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
        chosen = tidy.select(rows, protocol=asked["protocols"][0], **wanted)
        values[name] = chosen["value"].mean()
    return max(values, key=values.get)


def _summary(study: str, architecture: str) -> dict:
    known = architectures(study)
    if architecture not in known:
        raise StudyError(
            f"no trained architecture {architecture!r} in reports/{study}: "
            f"there are {', '.join(known)}"
        )
    path = project_root() / "reports" / study / architecture / "summary.json"
    return json.loads(path.read_text("utf-8"))


def _dataset(summary: dict, again: str) -> Dataset:
    dataset = data.load(**summary["dataset"]["parameters"])
    if dataset.fingerprint != summary["dataset"]["fingerprint"]:
        raise StudyError(f"the study's pictures have changed since it was run: {again}")
    return protocols.view(dataset, summary["asked"]["protocols"][0])


def _place(dataset: Dataset, position: int) -> str:
    """Where an image stands: its path where it is a file, else its name."""
    folder = dataset.parameters["dataset"]
    folder = f"data/{folder}" if folder == "cifar10" else folder
    path = Path(folder, dataset.names[position])
    return path.as_posix() if (project_root() / folder).is_dir() else dataset.names[position]


def _make_again(study: str, architecture: str) -> str:
    return f'run `make report STUDY={study} ARCHITECTURES="{architecture}"` again'


def _how_to_make(study: str) -> str:
    root = project_root()
    is_known = (root / "params" / study).is_dir()
    return f"run `make report{f' STUDY={study}' if is_known else ' …'}` first"
