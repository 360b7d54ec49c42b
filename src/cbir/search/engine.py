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
from cbir.images import protocols
from cbir.images.dataset import Dataset, load_dataset
from cbir.networks import embeddings, training
from cbir.networks.embeddings import Embeddings, Encode
from cbir.reporting import feedback_gains, tidy
from cbir.retrieval import ranking, searches
from cbir.retrieval.feedback import Rocchio

if TYPE_CHECKING:  # Keras, which takes seconds to import
    from cbir.networks.models import Network


@dataclass(frozen=True)
class Gallery:
    """Embedded images that can be searched.

    Attributes:
        name: of the study, or of the gallery of a folder.
        vectors: (n, d) float32 of unit length.
        labels: (n,) int64 classes of the images; predicted classes where the folder has none.
        names: unique in the gallery, such as paths.
        image: position -> (size, size, 3) uint8.
        label_kind: what the labels are, "class" or "predicted class".
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    names: list[str]
    image: Callable[[int], np.ndarray]
    label_kind: str = "class"

    @functools.cached_property
    def first_of_equals(self) -> np.ndarray:
        """`ranking.first_of_equals` of the vectors, computed once."""
        return ranking.first_of_equals(self.vectors)

    def positions(self, paths: Iterable[Path]) -> set[int]:
        """Positions of the images in these files; files outside the gallery are ignored."""
        wanted = {path.resolve() for path in paths}
        root = project_root()
        # Resolves each folder once: resolving each file would read the disk for the whole gallery.
        resolve = functools.cache(lambda folder: folder.resolve())
        files = [root / name for name in self.names]
        return {at for at, file in enumerate(files) if resolve(file.parent) / file.name in wanted}

    def search(
        self, vectors: np.ndarray, k: int, searchable: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and similarities of the k nearest images of each query (`ranking.search`).

        Args:
            vectors: (n_queries, d) float32 of unit length.
            k: the number of results.
            searchable: (n_queries, n_classes) bool, the classes that each query may return;
                all by default.
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
    """One architecture of a finished study: its trained network and its embeddings.

    Attributes:
        study, architecture: names of the run's folders in reports/.
        summary: the run's summary.json.
        embeddings: of the study's images, with gallery and queries of its first protocol.
    """

    study: str
    architecture: str
    summary: dict
    embeddings: Embeddings

    @property
    def key(self) -> str:
        """Changes whenever the network embeds pictures differently."""
        return self.embeddings.artifact.key

    @property
    def dataset(self) -> Dataset:
        """The study's images, as its first protocol splits them."""
        return self.embeddings.dataset

    @property
    def classes(self) -> list[str]:
        """The classes that the network was trained to predict."""
        return self.dataset.classes

    @property
    def image_size(self) -> int:
        """Side of the squares that pictures are scaled to, in pixels."""
        return self.dataset.parameters["image_size"]

    @functools.cached_property
    def network(self) -> "Network":
        """The network with its final weights; built on first use, which takes seconds.

        Raises:
            StudyError: its weights are gone.
        """
        folder = project_root() / self.summary["artifacts"]["training"]
        if not (folder / training.FINAL).is_file():
            raise StudyError(
                f"the weights in {folder} are gone: {_make_again(self.study, self.architecture)}"
            )
        return training.open_network(folder)

    @functools.cached_property
    def encode(self) -> Encode:
        """(n, size, size, 3) uint8 images -> (n, d) vectors and (n, n_classes) probabilities."""
        return embeddings.make_encoder(self.network, self.embeddings)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The study's own gallery."""
        dataset = self.dataset
        return Gallery(
            self.study,
            self.embeddings.gallery,
            dataset.gallery_labels,
            _image_names(dataset, dataset.gallery),
            lambda position: dataset.images[dataset.gallery[position]],
        )

    @functools.cached_property
    def query_names(self) -> list[str]:
        """Names of the study's queries, in their order."""
        return _image_names(self.dataset, self.dataset.queries)

    @functools.cached_property
    def chosen_weights(self) -> Rocchio | None:
        """Rocchio weights that the study chose on its validation images; None if it chose none."""
        return feedback_gains.weights_of(self.study, self.architecture)

    @property
    def feedback_weights(self) -> Rocchio:
        """The study's Rocchio weights, or the default ones."""
        return self.chosen_weights or Rocchio()

    def describe_feedback_weights(self) -> str:
        """The Rocchio weights and their origin, as text."""
        if self.chosen_weights:
            return f"{self.chosen_weights} (chosen on validation images)"
        return f"{Rocchio()} (defaults: the study has not chosen any)"

    def searchable(self, probabilities: np.ndarray, search: str) -> np.ndarray | None:
        """(n, n_classes) bool classes that each query may return; None for all.

        Args:
            probabilities: (n, n_classes) predicted class probabilities of the queries.
            search: a way of searching, a name in `SEARCHES`.
        """
        if search == "predicted_class":
            return probabilities.argmax(axis=1)[:, None] == np.arange(len(self.classes))
        if search == "soft":
            # The stored network is that of the first seed.
            calibration = next(iter(self.summary["calibrations"].values()))
            return searches.probable(probabilities, calibration["temperature"], calibration["mass"])
        return None


def open_engine(study: str = "", architecture: str = "") -> Engine:
    """Open one architecture of a finished study.

    Args:
        study: a folder in reports/; "digits" by default.
        architecture: a folder in there; by default the one with the highest mAP.

    Raises:
        StudyError: there is no such run, it is a baseline, or its pictures or embeddings have
            changed since the report was made.
    """
    study = study or "digits"
    architecture = architecture or best_architecture(study)
    summary = _summary(study, architecture)
    again = _make_again(study, architecture)
    dataset = _dataset(summary, again)
    folder = project_root() / summary["artifacts"]["embeddings"]
    if not folder.is_dir():
        raise StudyError(f"the embeddings of {architecture} in {study} are gone: {again}")
    return Engine(study, architecture, summary, Embeddings.open(folder, dataset))


# Ways of searching that need not know the class of the query.
SEARCHES = ("unrestricted", "predicted_class", "soft")


def studies() -> list[str]:
    """Names of the finished studies that have a trained architecture.

    Raises:
        StudyError: there are none.
    """
    if not (names := _finished_studies()):
        folder = project_root() / "reports"
        raise StudyError(f"no finished study in {folder}: run `make report` first")
    return names


def first_finished(study: str) -> str:
    """The study if it is finished, else the first finished one.

    Raises:
        StudyError: no study is finished.
    """
    names = studies()
    return study if study in names else names[0]


def architectures(study: str) -> list[str]:
    """Names of the trained architectures of a study, without its baselines.

    Raises:
        StudyError: there are none.
    """
    if not (names := _trained(study)):
        folder = project_root() / "reports" / study
        others = ", ".join(_finished_studies())
        raise StudyError(
            f"no trained architecture in {folder}: {_how_to_make(study)}"
            + (f", or choose a finished study: {others}" if others else "")
        )
    return names


def best_architecture(study: str) -> str:
    """The architecture with the highest mAP (unrestricted search, first protocol)."""
    values = {}
    for name in architectures(study):
        measurement = _summary(study, name)["measurement"]
        rows = tidy.read_csv(project_root() / "reports" / study / name / "metrics.csv")
        wanted = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
        chosen = tidy.select(rows, protocol=measurement["protocols"][0], **wanted)
        values[name] = chosen["value"].mean()
    return max(values, key=values.get)


def _finished_studies() -> list[str]:
    folder = project_root() / "reports"
    names = sorted({path.parent.parent.name for path in folder.glob("*/*/summary.json")})
    return [name for name in names if _trained(name)]


def _trained(study: str) -> list[str]:
    return [
        path.parent.name
        for path in sorted((project_root() / "reports" / study).glob("*/summary.json"))
        if "weights" in json.loads(path.read_text("utf-8"))
    ]


def _summary(study: str, architecture: str) -> dict:
    names = architectures(study)
    if architecture not in names:
        raise StudyError(
            f"no trained architecture {architecture!r} in reports/{study}: "
            f"there are {', '.join(names)}"
        )
    path = project_root() / "reports" / study / architecture / "summary.json"
    return json.loads(path.read_text("utf-8"))


def _dataset(summary: dict, again: str) -> Dataset:
    dataset = load_dataset(**summary["dataset"]["parameters"])
    if dataset.fingerprint != summary["dataset"]["fingerprint"]:
        raise StudyError(f"the study's pictures have changed since it was run: {again}")
    return protocols.view(dataset, summary["measurement"]["protocols"][0])


def _image_names(dataset: Dataset, positions: np.ndarray) -> list[str]:
    """Paths of images that are files in the project; other images' names."""
    folder = dataset.parameters["dataset"]
    folder = f"data/{folder}" if folder == "cifar10" else folder
    names = [dataset.names[position] for position in positions]
    is_folder = (project_root() / folder).is_dir()
    return [f"{folder}/{name}" for name in names] if is_folder else names


def _make_again(study: str, architecture: str) -> str:
    return f'run `make report STUDY={study} ARCHITECTURES="{architecture}"` again'


def _how_to_make(study: str) -> str:
    root = project_root()
    is_known = (root / "params" / study).is_dir()
    return f"run `make report {f'STUDY={study}' if is_known else 'DATA=path/to/folder'}` first"
