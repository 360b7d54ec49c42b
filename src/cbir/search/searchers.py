"""A finished study that can be searched: its trained network and its gallery.

A searcher reads the files of a report. It neither trains networks nor embeds the study's images
again, and it still works after changes to the code.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cbir import StudyError, project_root, report_command
from cbir.cache import cached, find, read_manifest
from cbir.images.dataset import describe_changes
from cbir.images.folders import readable_name
from cbir.networks.embeddings import Encode, batched
from cbir.reporting import measurements
from cbir.reporting.runs import Run, read_run, read_summary, run_folder, trained_runs
from cbir.retrieval import engines, ranking, searches
from cbir.retrieval.feedback import Rocchio

# The largest number of embeddings that a search prepares at a time, so that its memory is bounded.
GROUP = 2**16
DEFAULT_STUDY = "digits"
# The searches that do not need the true class of the query.
SEARCHES = ("unrestricted", "predicted_class", "soft")
# With fewer validation images than this, even the lowest of their similarities is, with a chance of
# more than 5 %, above what 95 % of all images reach: 0.95 ** 59 < 0.05 (Wilks, "Determination of
# sample sizes for setting tolerance limits", 1941).
MIN_VALIDATION = 59
# The file of an exported network.
GRAPH = "graph.xml"


@dataclass(frozen=True)
class Gallery:
    """Embedded images that can be searched.

    Attributes:
        name: name of the study, or of the gallery of a folder.
        groups: a function that yields the (n, d) float32 embeddings of unit length in parts.
        labels: (n,) int64 classes of the images, or predicted classes if the folder has none.
        names: unique in the gallery, such as paths.
        image: position -> (size, size, 3) uint8.
        label_kind: the kind of the labels, "class" or "predicted class".
        ids: a function that computes (n,) int64, unique numbers of the embeddings for an engine.
        index: what finds the nearest images; None compares a query with all of them.
        engine: its choice, as for `engines.open_engine`.
    """

    name: str
    groups: Callable[[], Iterable[np.ndarray]]
    labels: np.ndarray
    names: list[str]
    image: Callable[[int], np.ndarray]
    ids: Callable[[], np.ndarray]
    label_kind: str = "class"
    index: engines.GalleryEngine | None = None
    engine: str = engines.EXACT

    def held_by(self, choice: str, name: str, key: str) -> "Gallery":
        """This gallery in an engine, which then finds the nearest images; it is loaded if needed.

        Args:
            choice, key: as for `engines.open_engine`; empty for `EXACT`.
            name: a unique name of this gallery in the engine.

        Raises:
            StudyError: as for `engines.open_engine` and `engines.GalleryEngine.load`.
        """
        choice, folder = engines.resolved(choice), project_root() / "artifacts" / "engines"
        if choice in ("", engines.EXACT):
            return self
        width = next(iter(self.groups())).shape[1]
        index = engines.open_engine(choice, width, name=name, key=key, folder=folder)
        index.load(_LateVectors(self), self.labels, self.ids())
        return replace(self, index=index, engine=choice)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """(n, d) float32 of unit length."""
        first, *others = self.groups()
        return np.concatenate([first, *others]) if others else first

    @functools.cached_property
    def prepared(self) -> ranking.PreparedGallery:
        """The vectors, prepared once for all searches."""
        return ranking.prepare(self.vectors)

    def positions(self, paths: Iterable[Path]) -> list[set[int]]:
        """For each path, the positions of the images in this file; empty if it is elsewhere."""
        paths = [readable_name(str(path.resolve())) for path in paths]
        file_names = {path.rpartition("/")[2] for path in paths}
        root = project_root()
        # Each folder is resolved only once, because resolving every file would read the disk.
        resolve = functools.cache(lambda folder: folder.resolve())
        positions = {path: set() for path in paths}
        for position, name in enumerate(self.names):
            if name.rpartition("/")[2] in file_names:
                file = root / name
                path = readable_name(str(resolve(file.parent) / file.name))
                positions.get(path, set()).add(position)
        return [positions[path] for path in paths]

    def search(
        self, vectors: np.ndarray, k: int, searchable: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and similarities of the k nearest images, by `index` or `ranking.search`.

        Args:
            vectors: (n_queries, d) float32 of unit length.
            k: the number of results.
            searchable: (n_queries, n_classes) bool, the classes that each query may return;
                all by default.
        """
        if self.index:
            return self.index.search(vectors, min(k, len(self.names)), searchable)
        search = functools.partial(ranking.search, vectors, k=k, restrict_to=searchable)
        if len(self.names) <= GROUP:
            return search(self.prepared, gallery_labels=self.labels)
        # The nearest images of each group are collected, and searched once more.
        start, positions, nearest = 0, [], []
        for group in self.groups():
            labels = self.labels[start : start + len(group)]
            rankings, _ = search(group, gallery_labels=labels)
            rows = np.unique(rankings[rankings >= 0])
            positions.append(rows + start)
            nearest.append(group[rows])
            start += len(group)
        positions = np.concatenate(positions)
        rankings, similarities = search(
            np.concatenate(nearest), gallery_labels=self.labels[positions]
        )
        # -1, which stands for no result, selects the appended -1.
        return np.append(positions, -1)[rankings], similarities


@dataclass(frozen=True)
class _LateVectors:
    """The vectors of a gallery, which are read only if an engine asks for rows of them."""

    gallery: Gallery

    def __len__(self) -> int:
        return len(self.gallery.names)

    def __getitem__(self, rows) -> np.ndarray:
        return self.gallery.vectors[rows]


def numbers_of(texts: Iterable[str]) -> np.ndarray:
    """(n,) int64 hashes of texts; equal texts have equal hashes."""
    digests = (hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), np.int64)


@dataclass(frozen=True)
class Searcher:
    """One trained architecture of a finished study, which can embed and search further pictures."""

    run: Run

    @property
    def key(self) -> str:
        """A key that changes whenever the network embeds pictures differently."""
        return self.run.embeddings.artifact.key

    @property
    def classes(self) -> list[str]:
        """The classes that the network was trained to predict."""
        return self.run.summary["dataset"]["classes"]

    @property
    def image_size(self) -> int:
        """Side length in pixels to which pictures are resized."""
        return self.run.summary["dataset"]["parameters"]["image_size"]

    @property
    def reading(self) -> dict:
        """How the study read its pictures: the arguments of `pictures.read_picture`."""
        parameters = self.run.summary["dataset"]["parameters"]
        names = {"damaged", "max_megapixels"} & parameters.keys()
        return {"size": self.image_size} | {name: parameters[name] for name in names}

    @functools.cached_property
    def encode(self) -> Encode:
        """(n, size, size, 3) uint8 images -> (n, d) vectors and (n, n_classes) probabilities."""
        if encode := graph_encoder(self.run):
            return encode
        from cbir.networks.inference import make_encoder  # imports Keras, which takes seconds

        return make_encoder(self.run.network, self.run.embeddings)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The study's own gallery."""
        dataset = self.run.dataset
        return Gallery(
            self.run.study,
            lambda: [self.run.embeddings.gallery],
            dataset.gallery_labels,
            [self.run.image_names[position] for position in dataset.gallery],
            lambda position: dataset.images[dataset.gallery[position]],
            lambda: numbers_of(dataset.names[position] for position in dataset.gallery),
        )

    @property
    def usual_similarity(self) -> float | None:
        """The similarity to the nearest training image that 95 % of validation images reach.

        None if the study has not measured it, or on fewer than `MIN_VALIDATION` images.
        """
        if self.run.summary["dataset"]["validation"] < MIN_VALIDATION:
            return None
        calibrations = self.run.summary.get("calibrations", {})
        return calibrations.get(str(self.run.seed), {}).get("usual_similarity")

    def describe_changes(self) -> str:
        """What has changed in the study's pictures since it read them; empty if nothing."""
        if not (changes := describe_changes(self.run.dataset)):
            return ""
        return (
            f"The pictures have changed since the study: {changes}. These are the images of the "
            f"study, until you run `{report_command(self.run.study)}`"
        )

    @functools.cached_property
    def chosen_weights(self) -> Rocchio | None:
        """Rocchio weights that the study chose on its validation images; None if it chose none."""
        from cbir.reporting import feedback  # imports Seaborn, which takes seconds

        return feedback.read_weights(self.run.study, self.run.architecture)

    @property
    def feedback_weights(self) -> Rocchio:
        """The study's Rocchio weights, or the default ones."""
        return self.chosen_weights or Rocchio()

    def describe_feedback_weights(self) -> str:
        """The Rocchio weights and their origin, as text."""
        from cbir.reporting.feedback import describe_weights  # imports Seaborn, as above

        origin = "chosen on validation images"
        if self.chosen_weights is None:
            origin = "defaults, since the study has not chosen any"
        return f"{describe_weights(self.feedback_weights)} ({origin})"

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


def graph_encoder(run: Run) -> Encode | None:
    """As `inference.make_encoder`, run by OpenVINO without Keras and TensorFlow.

    TensorFlow takes seconds to start, far longer than embedding a few pictures. The first search
    with a network exports it, and later ones only read the graph. Components of embeddings differ
    from those of Keras by less than 1e-5, or 1e-4 with whitening. None if the optional package
    `openvino` is missing or cannot run the network.
    """
    try:
        version = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None

    def make(folder: Path) -> None:
        from cbir.networks.inference import encoder_of

        print("exporting the network, so that later searches start faster (only once)", flush=True)
        model = encoder_of(run.network, run.embeddings)
        model.export(str(folder / GRAPH), format="openvino", verbose=False)

    step = {"parameters": {"openvino": version}, "reads": [run.embeddings.artifact.key]}
    step |= {"step": "graph", "package": "networks"}
    try:
        graph = find(**step) or cached(make=make, **step)
    except StudyError:  # the folder cannot be written
        return None
    except Exception as error:  # OpenVINO does not document what it raises for unknown layers
        reason = " ".join(str(error).split())[:200]
        print(f"the network cannot be exported ({reason}): searching with Keras", flush=True)
        return None

    import openvino

    model = openvino.Core().compile_model(
        graph.folder / GRAPH, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def predict(images: np.ndarray) -> list[np.ndarray]:
        outputs = model(np.asarray(images, np.float32))
        return [outputs[0], outputs[1]]

    return batched(predict, run.embeddings.whitening)


def open_searcher(study: str = "", architecture: str = "") -> Searcher:
    """Open one trained architecture of a finished study.

    Args:
        study: a folder in reports/; "digits" by default.
        architecture: a folder in it; by default the one with the highest mAP.

    Raises:
        StudyError: the run does not exist, or has no network.
    """
    study = study or DEFAULT_STUDY
    names = architectures(study)
    if architecture not in ("", *names):
        reason = f"no trained architecture {architecture!r} in reports/{study}"
        if (run_folder(study, architecture) / "summary.json").exists():
            reason = f"{architecture} in reports/{study} has no network that could embed pictures"
        raise StudyError(f"{reason}: choose from {', '.join(names)}")
    return Searcher(read_run(study, architecture or best_architecture(study)))


def first_finished(study: str) -> str:
    """The study if it is finished, else the first finished one; StudyError if there is none."""
    if not (runs := trained_runs()):
        raise StudyError(f"no finished study in {run_folder('')}: run `make report` first")
    return study if study in runs else next(iter(runs))


def architectures(study: str) -> list[str]:
    """The trained architectures of a study, without its baselines; StudyError if it has none."""
    runs = trained_runs()
    if study not in runs:
        # The recorded command may name only baselines.
        command = report_command(study).partition(" ARCHITECTURES=")[0]
        folder = run_folder(study)
        has_baselines = any(folder.glob("*/summary.json"))
        advice = ", only baselines: add an architecture, and" if has_baselines else ":"
        reason = f"no trained architecture in {folder}{advice} run `{command}` first"
        is_named = (project_root() / "params" / study).is_dir() or read_manifest(folder)
        if not (has_baselines or is_named):
            reason = f"no study {study!r}: `{command}` makes one"
            if folder.exists():
                reason = f"the report in {folder} is not finished: run its command again"
        raise StudyError(
            reason + (f", or choose a finished study: {', '.join(runs)}" if runs else "")
        )
    return runs[study]


def best_architecture(study: str) -> str:
    """The architecture with the highest mAP (unrestricted search, first protocol)."""

    def mean_average_precision(name: str) -> float:
        rows = measurements.read_csv(run_folder(study, name) / "metrics.csv")
        selection = {"search": "unrestricted", "metric": "mean_average_precision", "k": None}
        selection["protocol"] = read_summary(study, name)["measurement"]["protocols"][0]
        return measurements.select(rows, **selection)["value"].mean()

    return max(architectures(study), key=mean_average_precision)
