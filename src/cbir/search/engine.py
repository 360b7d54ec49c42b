"""A finished study as a search engine: its trained network and its gallery.

An engine reads the files of a report. It neither trains networks nor embeds the study's images
again, and it still works after changes to the code.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbir import StudyError, project_root
from cbir.images.folders import readable_name
from cbir.networks.embeddings import Encode
from cbir.reporting import feedback, tidy
from cbir.reporting.runs import Run, read_run, read_summary, run_folder, trained_runs
from cbir.retrieval import ranking, searches
from cbir.retrieval.feedback import Rocchio

# The searches that do not need the true class of the query.
SEARCHES = ("unrestricted", "predicted_class", "soft")


@dataclass(frozen=True)
class Gallery:
    """Embedded images that can be searched.

    Attributes:
        name: name of the study, or of the gallery of a folder.
        vectors: (n, d) float32 of unit length.
        labels: (n,) int64 classes of the images, or predicted classes if the folder has none.
        names: unique in the gallery, such as paths.
        image: position -> (size, size, 3) uint8.
        label_kind: the kind of the labels, "class" or "predicted class".
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    names: list[str]
    image: Callable[[int], np.ndarray]
    label_kind: str = "class"

    @functools.cached_property
    def prepared(self) -> ranking.PreparedGallery:
        """The vectors, prepared once for all searches."""
        return ranking.prepare(self.vectors)

    def positions(self, paths: Iterable[Path]) -> set[int]:
        """Positions of the images in these files; files outside the gallery are ignored."""
        wanted = {readable_name(str(path.resolve())) for path in paths}
        root = project_root()
        # Each folder is resolved only once, because resolving every file would read the disk.
        resolve = functools.cache(lambda folder: folder.resolve())
        files = [root / name for name in self.names]
        files = [readable_name(str(resolve(file.parent) / file.name)) for file in files]
        return {at for at, file in enumerate(files) if file in wanted}

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
            vectors, self.prepared, k, gallery_labels=self.labels, restrict_to=searchable
        )


@dataclass(frozen=True)
class Engine:
    """One trained architecture of a finished study, which can embed and search further pictures.

    Attributes:
        run: the architecture's run in the study.
    """

    run: Run

    @property
    def key(self) -> str:
        """A key that changes whenever the network embeds pictures differently."""
        return self.run.embeddings.artifact.key

    @property
    def classes(self) -> list[str]:
        """The classes that the network was trained to predict."""
        return self.run.dataset.classes

    @property
    def image_size(self) -> int:
        """Side length in pixels to which pictures are resized."""
        return self.run.dataset.parameters["image_size"]

    @functools.cached_property
    def encode(self) -> Encode:
        """(n, size, size, 3) uint8 images -> (n, d) vectors and (n, n_classes) probabilities."""
        from cbir.networks.inference import make_encoder  # imports Keras, which takes seconds

        return make_encoder(self.run.network, self.run.embeddings)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The study's own gallery."""
        dataset = self.run.dataset
        return Gallery(
            self.run.study,
            self.run.embeddings.gallery,
            dataset.gallery_labels,
            [self.run.image_names[position] for position in dataset.gallery],
            lambda position: dataset.images[dataset.gallery[position]],
        )

    @functools.cached_property
    def chosen_weights(self) -> Rocchio | None:
        """Rocchio weights that the study chose on its validation images; None if it chose none."""
        return feedback.read_weights(self.run.study, self.run.architecture)

    @property
    def feedback_weights(self) -> Rocchio:
        """The study's Rocchio weights, or the default ones."""
        return self.chosen_weights or Rocchio()

    def describe_feedback_weights(self) -> str:
        """The Rocchio weights and their origin, as text."""
        if self.chosen_weights:
            return f"{self.chosen_weights} (chosen on validation images)"
        return f"{Rocchio()} (defaults, since the study has not chosen any)"

    def searchable(self, probabilities: np.ndarray, search: str) -> np.ndarray | None:
        """(n, n_classes) bool classes that each query may return; None for all.

        Args:
            probabilities: (n, n_classes) predicted class probabilities of the queries.
            search: a name in `SEARCHES`.
        """
        if search == "predicted_class":
            return probabilities.argmax(axis=1)[:, None] == np.arange(len(self.classes))
        if search == "soft":
            calibration = self.run.summary["calibrations"][str(self.run.seed)]
            return searches.probable(probabilities, calibration["temperature"], calibration["mass"])
        return None


def open_engine(study: str = "", architecture: str = "") -> Engine:
    """Open one trained architecture of a finished study.

    Args:
        study: a folder in reports/; "digits" by default.
        architecture: a folder in it; by default the one with the highest mAP.

    Raises:
        StudyError: the run does not exist, or has no network.
    """
    study = study or "digits"
    names = architectures(study)
    if architecture not in ("", *names):
        reason = f"no trained architecture {architecture!r} in reports/{study}"
        if (run_folder(study, architecture) / "summary.json").exists():
            reason = f"{architecture} in reports/{study} has no network that could embed pictures"
        raise StudyError(f"{reason}: choose from {', '.join(names)}")
    return Engine(read_run(study, architecture or best_architecture(study)))


def first_finished(study: str) -> str:
    """The study if it is finished, else the first finished one.

    Raises:
        StudyError: no study has a trained architecture.
    """
    if not (runs := trained_runs()):
        raise StudyError(f"no finished study in {run_folder('')}: run `make report` first")
    return study if study in runs else next(iter(runs))


def architectures(study: str) -> list[str]:
    """Names of the trained architectures of a study, without its baselines.

    Raises:
        StudyError: the study has none.
    """
    runs = trained_runs()
    if study not in runs:
        is_known = (project_root() / "params" / study).is_dir()
        command = f"make report {f'STUDY={study}' if is_known else 'DATA=path/to/folder'}"
        has_baselines = any(run_folder(study).glob("*/summary.json"))
        first = ", only baselines: add an architecture, and" if has_baselines else ":"
        raise StudyError(
            f"no trained architecture in {run_folder(study)}{first} run `{command}` first"
            + (f", or choose a finished study: {', '.join(runs)}" if runs else "")
        )
    return runs[study]


def best_architecture(study: str) -> str:
    """The architecture with the highest mAP (unrestricted search, first protocol)."""

    def mean_average_precision(name: str) -> float:
        rows = tidy.read_csv(run_folder(study, name) / "metrics.csv")
        selection = {"search": "unrestricted", "metric": "mean_average_precision", "k": None}
        selection["protocol"] = read_summary(study, name)["measurement"]["protocols"][0]
        return tidy.select(rows, **selection)["value"].mean()

    return max(architectures(study), key=mean_average_precision)
