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
    """What is searched.

    Attributes:
        name: of the study, or of the gallery made of a folder.
        vectors: (n, d) float32 of unit length.
        labels: (n,) int64: the images' classes; of a folder without classes, those predicted.
        kind: what the labels are, "class" or "predicted class".
        names: what tells an image from all others, such as its path.
        image: position -> (size, size, 3) uint8.
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    names: list[str]
    image: Callable[[int], np.ndarray]
    kind: str = "class"

    @functools.cached_property
    def first_of_equals(self) -> np.ndarray:
        """As `ranking.search` takes it; computed once."""
        return ranking.first_of_equals(self.vectors)

    def positions(self, paths: Iterable[Path]) -> set[int]:
        """Where the images of these files stand; files that are not of the gallery do not count."""
        wanted = {path.resolve() for path in paths}
        root = project_root()
        # Folder by folder: to resolve each file would ask the disk for all of the gallery.
        resolved = functools.cache(lambda folder: folder.resolve())
        places = [root / name for name in self.names]
        return {at for at, each in enumerate(places) if resolved(each.parent) / each.name in wanted}

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
        dataset = self.embeddings.dataset
        return Gallery(
            self.study,
            self.embeddings.gallery,
            dataset.gallery_labels,
            _places(dataset, dataset.gallery),
            lambda position: dataset.images[dataset.gallery[position]],
        )

    @functools.cached_property
    def chosen_weights(self) -> Rocchio | None:
        """How much marks count, as the study chose on its validation images; None where it did not.

        A run that has not measured what marks bring has chosen nothing.
        """

        return feedback_gains.weights_of(self.study, self.architecture)

    @property
    def weights(self) -> Rocchio:
        """How much marks count: as the study chose, else those that `Rocchio` has by default."""
        return self.chosen_weights or Rocchio()

    @property
    def told_weights(self) -> str:
        """The weights in words, and where they come from."""
        origin = "chosen on validation images"
        if not self.chosen_weights:
            origin = "the usual ones, since the study has chosen none"
        return f"{self.weights} ({origin})"

    @functools.cached_property
    def query_names(self) -> list[str]:
        """What tells the study's queries apart, in their order."""
        return _places(self.embeddings.dataset, self.embeddings.dataset.queries)

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
        StudyError: no such results, a baseline, or what the report was made from has changed.
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


# Ways of searching with a picture whose class nobody knows.
SEARCHES = ("unrestricted", "predicted_class", "soft")


def studies() -> list[str]:
    """The studies that have a trained architecture, by name.

    Raises:
        StudyError: none.
    """
    if not (trained := _finished()):
        folder = project_root() / "reports"
        raise StudyError(f"no finished study in {folder}: run `make report` first")
    return trained


def first_finished(study: str) -> str:
    """This study where it is finished, else the first one that is.

    Raises:
        StudyError: none is.
    """
    known = studies()
    return study if study in known else known[0]


def architectures(study: str) -> list[str]:
    """The architectures that a study has finished, baselines left out.

    Raises:
        StudyError: none.
    """
    if not (found := _trained(study)):
        folder = project_root() / "reports" / study
        others = ", ".join(_finished())
        raise StudyError(
            f"no trained architecture in {folder}: {_how_to_make(study)}"
            + (f", or choose a finished study: {others}" if others else "")
        )
    return found


def best_architecture(study: str) -> str:
    """The architecture of the highest mAP in the unrestricted search, under the first protocol."""
    values = {}
    for name in architectures(study):
        measurement = _summary(study, name)["measurement"]
        rows = tidy.read_csv(project_root() / "reports" / study / name / "metrics.csv")
        wanted = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
        chosen = tidy.select(rows, protocol=measurement["protocols"][0], **wanted)
        values[name] = chosen["value"].mean()
    return max(values, key=values.get)


def _finished() -> list[str]:
    folder = project_root() / "reports"
    found = sorted({path.parent.parent.name for path in folder.glob("*/*/summary.json")})
    return [study for study in found if _trained(study)]


def _trained(study: str) -> list[str]:
    return [
        path.parent.name
        for path in sorted((project_root() / "reports" / study).glob("*/summary.json"))
        if "weights" in json.loads(path.read_text("utf-8"))
    ]


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
    dataset = load_dataset(**summary["dataset"]["parameters"])
    if dataset.fingerprint != summary["dataset"]["fingerprint"]:
        raise StudyError(f"the study's pictures have changed since it was run: {again}")
    return protocols.view(dataset, summary["measurement"]["protocols"][0])


def _places(dataset: Dataset, positions: np.ndarray) -> list[str]:
    """Where images stand: their paths where they are files, else their names."""
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
