"""A finished study as a search engine: its trained network and the images that it can search.

It is opened from what the report left, as it stands: nothing is trained or embedded anew, and a
later change of code does not matter.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbir import StudyError, project_root
from cbir.cache import read as read_artifact
from cbir.images import data, protocols
from cbir.images.data import Dataset
from cbir.networks import embeddings, models
from cbir.networks.embeddings import Embeddings
from cbir.networks.models import Network
from cbir.networks.training import FINAL
from cbir.networks.weights import OF_STUDY
from cbir.reporting import tidy
from cbir.retrieval import ranking


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

    def search(
        self, vectors: np.ndarray, k: int, within: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each query: positions and similarities, as `ranking.search`.

        Args:
            vectors: (n_queries, d) float32 of unit length.
            k: how many.
            within: (n_queries,) the class that each may find; all by default.
        """
        return ranking.search(
            vectors,
            self.vectors,
            k,
            gallery_labels=self.labels,
            restrict_to=within,
            first=self.first_of_equals,
        )


@dataclass(frozen=True)
class Engine:
    """A trained network of a finished study.

    Attributes:
        study, architecture: whose.
        classes: that it was taught.
        image_size: pixels of the squares that pictures become.
        network: with its final weights.
        embeddings: of the study's images, as its first protocol sees them.
        key: what decides what it makes of a picture.
    """

    study: str
    architecture: str
    classes: list[str]
    image_size: int
    network: Network
    embeddings: Embeddings
    key: str

    @functools.cached_property
    def encode(self) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
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


def open_engine(study: str = "", architecture: str = "") -> Engine:
    """The network that a finished study trained, with its embeddings.

    Args:
        study: a folder in reports/; "digits" by default.
        architecture: a folder in there; by default the one of the highest mAP.

    Raises:
        StudyError: no such results, a control, or what the report was made from has changed.
    """
    study = study or "digits"
    architecture = architecture or best_architecture(study)
    summary = _summary(study, architecture)
    make_again = f'run `make report STUDY={study} ARCHITECTURES="{architecture}"` again'
    dataset = _dataset(summary, make_again)
    folders = {
        name: project_root() / summary["artifacts"][name] for name in ("training", "embeddings")
    }
    embedded = read_artifact(folders["embeddings"])
    if embedded is None or not (folders["training"] / FINAL).is_file():
        raise StudyError(f"artifacts of {architecture} in {study} are gone: {make_again}")
    shape = summary["parameters"]
    network = models.build(
        shape["backbone"],
        # Says what its pixels are; all its weights follow.
        weights=f"{OF_STUDY}{study}/{architecture}",
        mixed_precision=shape["precision"] != "float32",
        **{name: shape[name] for name in REBUILT},
    )
    network.model.load_weights(folders["training"] / FINAL)
    return Engine(
        study,
        architecture,
        dataset.classes,
        shape["image_size"],
        network,
        Embeddings(
            embedded,
            dataset,
            np.load(embedded.folder / "vectors.npy", mmap_mode="r"),
            np.load(embedded.folder / "probabilities.npy", mmap_mode="r"),
        ),
        embedded.key,
    )


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


def _dataset(summary: dict, make_again: str) -> Dataset:
    dataset = data.load(**summary["dataset"]["parameters"])
    if dataset.fingerprint != summary["dataset"]["fingerprint"]:
        raise StudyError(f"the study's pictures have changed since it was run: {make_again}")
    return protocols.view(dataset, summary["asked"]["protocols"][0])


def _place(dataset: Dataset, position: int) -> str:
    """Where an image stands: its path where it is a file, else its name."""
    folder = dataset.parameters["dataset"]
    folder = f"data/{folder}" if folder == "cifar10" else folder
    path = Path(folder, dataset.names[position])
    return path.as_posix() if (project_root() / folder).is_dir() else dataset.names[position]


def _how_to_make(study: str) -> str:
    root = project_root()
    is_known = (root / "params" / study).is_dir()
    return f"run `make report{f' STUDY={study}' if is_known else ' …'}` first"
