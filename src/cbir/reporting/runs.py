"""The files of a run: written by an architecture's notebook, read by the comparison."""

import contextlib
import functools
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cbir import StudyError, project_root, report_command
from cbir.cache import MANIFEST, machine, package_digest, read, read_manifest, versions, write_text
from cbir.images import protocols
from cbir.images.dataset import Dataset, load_dataset, stored_dataset
from cbir.images.folders import PACKAGED, dataset_folder
from cbir.networks import weights
from cbir.networks.embeddings import Embeddings
from cbir.reporting import measurements, numbers

if TYPE_CHECKING:  # Keras and numba take seconds to import, and few callers need them
    from cbir.networks.models import Network
    from cbir.networks.training import Training
    from cbir.retrieval.evaluation import Speed, State

# The files of a run, and of a whole study, beside their pages.
RUN_FILES = ("metrics.csv", "per_query.parquet", "summary.json", "history.csv")
STUDY_FILES = ("metrics.csv", "per_query.parquet", MANIFEST)
# The keys that a study's manifest copies from a run's summary.
IN_MANIFEST = (
    "weights", "vectors", "variant", "size", "epochs", "head_epochs",
    "training_accuracy", "training_seconds", "trained_on", "machine", "speed", "peak_memory_bytes",
    "artifacts", "code",
)  # fmt: skip
# The paper's architectures.
PAPERS_BACKBONES = ("cnn", "resnet50", "vgg16")


@dataclass(frozen=True)
class Run:
    """The files of a run. Images, embeddings and the network are opened on first use.

    Attributes:
        study, architecture: its folders in reports/.
        summary: parameters, sizes, speeds, seconds by step, fingerprints.
        metrics: rows of metrics.csv.
        per_query: rows of per_query.parquet: each query, seed, protocol and search.
        history: a row per epoch; None for a baseline, which is not trained.
        rankings, similarities: by search, (n_queries, k), of the first seed under the first
            protocol.
    """

    study: str
    architecture: str
    summary: dict
    metrics: pd.DataFrame
    per_query: pd.DataFrame
    history: pd.DataFrame | None
    rankings: dict[str, np.ndarray]
    similarities: dict[str, np.ndarray]

    @property
    def is_baseline(self) -> bool:
        """Whether it is a baseline, which has no network."""
        return self.history is None

    @property
    def backbone(self) -> str:
        """The backbone of its network; empty for a baseline."""
        return "" if self.is_baseline else self.summary["parameters"]["backbone"]

    @property
    def protocol(self) -> str:
        """The study's first protocol, under which the architectures are compared."""
        return self.summary["measurement"]["protocols"][0]

    @property
    def seed(self) -> int:
        """The study's first seed, whose rankings are shown."""
        return self.summary["measurement"]["seeds"][0]

    @functools.cached_property
    def averaged(self) -> pd.DataFrame:
        """Rows as in metrics.csv, with each query's scores averaged over the seeds first."""
        if len(self.summary["measurement"]["seeds"]) == 1:
            return self.metrics.assign(seed=None).astype(measurements.INTEGERS)
        classes = self.summary["dataset"]["classes"]
        return measurements.metrics(measurements.average_seeds(self.per_query), classes)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Its images, under the first protocol; StudyError if they are gone and have changed."""
        fingerprint = self.summary["dataset"]["fingerprint"]
        parameters = self.summary["dataset"]["parameters"]
        dataset = stored_dataset(fingerprint, **parameters) or load_dataset(**parameters)
        if dataset.fingerprint != fingerprint:
            raise self._error("the pictures have changed since the run")
        return protocols.view(dataset, self.protocol)

    @functools.cached_property
    def image_names(self) -> list[str]:
        """Paths of the images, relative to the project, if they are files, else their names."""
        name, names = self.summary["dataset"]["parameters"]["dataset"], self.dataset.names
        folder = dataset_folder(name)
        if name in PACKAGED and not (project_root() / folder).is_dir():
            return names
        return [(folder / name).as_posix() for name in names]

    @functools.cached_property
    def embeddings(self) -> Embeddings:
        """The embeddings of all images with the first seed; StudyError if missing or damaged."""
        folder = project_root() / self.summary["artifacts"]["embeddings"]
        if read(folder) is None:
            raise self._error("the embeddings are missing or damaged")
        return Embeddings.open(folder, self.dataset)

    @functools.cached_property
    def network(self) -> "Network":
        """The network of the first seed; StudyError if its weights are missing or damaged."""
        from cbir.networks import training

        folder = project_root() / self.summary["artifacts"]["training"]
        if read(folder) is None:
            raise self._error("the weights are missing or damaged")
        return training.open_network(folder)

    def first_rows(self) -> pd.DataFrame:
        """Rows of metrics.csv for the first seed and protocol, which its page shows."""
        is_first = self.metrics["seed"] == self.seed
        return self.metrics[is_first & (self.metrics["protocol"] == self.protocol)]

    def _error(self, reason: str) -> StudyError:
        command = report_command(self.study, self.architecture)
        return StudyError(
            f"{self.architecture} in reports/{self.study}: {reason}: run `{command}` again"
        )


def run_folder(study: str, architecture: str = "") -> Path:
    """The folder of a study's results, or of one architecture's."""
    return project_root() / "reports" / study / architecture


def save_run(
    study: str,
    architecture: str,
    *,
    measurement: dict,
    states: "list[State]",
    speed: "Speed",
    variant: str = "",
    network: "Network | None" = None,
    training: "Training | None" = None,
) -> Run:
    """Write a run's files to reports/<study>/<architecture>/, and read them back.

    Args:
        measurement: `seeds`, `protocols`, `unseen`, `draws` and `ks` of the study.
        states: from `evaluation.measure`; the page shows the first, of `network` and `training`.
        variant: the point of a grid; empty if there is none.

    Raises:
        StudyError: a class probability or a score is NaN or infinite.
    """
    from cbir.retrieval import evaluation, searches

    for state in states:
        _check_finite(state)
    folder = run_folder(study, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    # A notebook executed without `make report` invalidates the finished run that it overwrites.
    (folder / MANIFEST).unlink(missing_ok=True)
    embeddings, evaluations = states[0].embeddings, states[0].evaluations
    dataset = embeddings.dataset
    scores = measurements.per_query(study, architecture, states, variant)
    measurements.write_parquet(scores, folder / "per_query.parquet")
    measurements.write_csv(measurements.metrics(scores, dataset.classes), folder / "metrics.csv")
    steps = {
        **(training.artifacts if training else {}),
        "embeddings": embeddings.artifact,
        **{result.search: result.artifact for result in evaluations},
    }
    folders = {name: step.folder.relative_to(project_root()) for name, step in steps.items()}
    summary = {
        "measurement": measurement,
        "variant": variant,
        "dataset": {
            "parameters": dataset.parameters,
            "classes": dataset.classes,
            "gallery": len(dataset.gallery),
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "queries": len(dataset.queries),
            "left_out": sum(one.files for one in dataset.left_out),
            "layout": dataset.layout,
            "fingerprint": dataset.fingerprint,
        },
        # The code that computed the numbers, so that no table mixes results of different code.
        "code": package_digest("retrieval"),
        "mean_similarity": max(
            _mean_similarity(state.embeddings) for state in states if state.epoch is None
        ),
        "embedding_dim": int(embeddings.gallery.shape[1]),
        "index_bytes": int(embeddings.gallery.nbytes),
        "speed": asdict(speed),
        "seconds": {name: step.seconds for name, step in steps.items()},
        "artifacts": {name: path.as_posix() for name, path in folders.items()},
        "searches": [result.search for result in evaluations],
        "machine": machine(),
        "peak_memory_bytes": max(step.manifest["peak_memory_bytes"] for step in steps.values()),
    }
    if "soft" in summary["searches"]:
        summary["calibrations"] = {
            state.seed: asdict(searches.calibrate(state.embeddings))
            for state in states
            if state.epoch is None and state.embeddings.dataset.protocol == dataset.protocol
        }
    embedding_parameters = embeddings.artifact.manifest["parameters"]
    if vectors := embedding_parameters.get("vectors"):
        summary["vectors"] = {"source": vectors, "sha256": embedding_parameters["sha256"]}
    if network:
        weights.register_backbone(study, architecture, network.parameters, training.artifact.folder)
        # The artifact of a resumed training records only its last part.
        summary["seconds"]["training"] = float(training.history["seconds"].sum())
        summary |= {
            "parameters": network.parameters
            | {"training": training.artifact.manifest["parameters"]},
            "weights": {
                "source": network.weights.source,
                "started from": network.weights.sha256 or "random",
                "trained": training.fingerprint,
            },
            "size": network.size,
            "epochs": training.best_epoch,
            "head_epochs": training.head.best_epoch if training.head else 0,
            "training_seconds": training.seconds,
            "trained_on": _elsewhere(training.artifact.manifest),
            "training_accuracy": evaluation.training_accuracy(states, measurement),
        }
        write_text(
            folder / "history.csv",
            numbers.csv_text(training.stages, index=True, float_format="%.6g"),
        )
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return read_run(study, architecture)


def read_run(study: str, architecture: str) -> Run:
    """Read the files of a run; StudyError if it does not exist or its artifacts are missing."""
    folder, summary = run_folder(study, architecture), read_summary(study, architecture)
    steps = {name: project_root() / summary["artifacts"][name] for name in summary["searches"]}
    if gone := [path for path in steps.values() if read(path) is None]:
        command = report_command(study, architecture)
        raise StudyError(f"{gone[0]} is missing or damaged: run `{command}` again")

    is_trained = "epochs" in summary
    history = pd.read_csv(folder / "history.csv", index_col="epoch") if is_trained else None
    metrics = measurements.read_csv(folder / "metrics.csv")
    per_query = pd.read_parquet(folder / "per_query.parquet")
    arrays = [
        {name: np.load(path / file, "r") for name, path in steps.items()}
        for file in ("rankings.npy", "similarities.npy")
    ]
    return Run(study, architecture, summary, metrics, per_query, history, *arrays)


def find_runs(names: list[str]) -> dict[str, Run]:
    """Runs by name, "study/architecture", without those that `read_run` cannot read."""
    runs = {}
    for name in names:
        with contextlib.suppress(StudyError):
            runs[name] = read_run(*name.split("/"))
    return runs


def read_summary(study: str, architecture: str) -> dict:
    """A run's summary.json; StudyError if it is missing or an earlier version wrote it."""
    path = run_folder(study, architecture) / "summary.json"
    summary = _read_json(path) if path.exists() else {}
    if "measurement" not in summary:
        fault = "results of an earlier version" if summary else "no results"
        raise StudyError(f"{fault} in {path.parent}: run `{report_command(study)}` first")
    return summary


def data_of(study: str) -> str:
    """The parameter `dataset` of a study's results; empty without results."""
    for path in sorted(run_folder(study).glob("*/summary.json")):
        return _read_json(path)["dataset"]["parameters"]["dataset"]
    return ""


def trained_runs() -> dict[str, list[str]]:
    """Names of the architectures that have been trained, by study; baselines are left out."""
    names = {}
    for path in sorted(run_folder("").glob("*/*/summary.json")):
        if "weights" in _read_json(path):
            names.setdefault(path.parent.parent.name, []).append(path.parent.name)
    return names


def is_whole(study: str, architecture: str) -> bool:
    """Whether the artifacts that a run's pages and searches need exist, by a quick check."""
    try:
        summary = read_summary(study, architecture)
    except StudyError:
        return False
    needed = {"training", "embeddings", *summary["searches"]} & summary["artifacts"].keys()
    paths = [project_root() / summary["artifacts"][name] for name in needed]
    return all(read(path, thorough=False) for path in paths)


def read_runs(study: str, architectures: list[str], missing: list[str]) -> dict[str, Run]:
    """The runs of a study by architecture, without the `missing` ones ("name: reason").

    StudyError if they differ in more than their architectures.
    """
    names_missing = {line.partition(":")[0] for line in missing}
    runs = {name: read_run(study, name) for name in architectures if name not in names_missing}
    shared = {
        "images": lambda run: run.summary["dataset"]["fingerprint"],
        "splits": lambda run: run.summary["dataset"]["parameters"],
        "first protocol": lambda run: run.protocol,
        "code": lambda run: run.summary.get("code"),
    }
    for first, second in itertools.pairwise(runs.values()):
        differences = [name for name, value in shared.items() if value(first) != value(second)]
        if differences:
            raise StudyError(
                f"{second.architecture} and {first.architecture} in reports/{study} have different "
                f"{', '.join(differences)} and cannot be compared: run `{report_command(study)}` "
                "again"
            )
    return runs


def write_study(folder: Path, architectures: list[str], about: dict) -> None:
    """Write a study's metrics.csv, per_query.parquet and manifest.json from those of its runs.

    Without runs, they are empty, so that nothing of an earlier report remains. `about` is further
    content of the manifest.
    """
    metrics = [pd.DataFrame(columns=measurements.COLUMNS)]
    scores = [pd.DataFrame(columns=[*measurements.PLACE, *measurements.QUERY])]
    if architectures:
        folders = [folder / name for name in architectures]
        metrics = [measurements.read_csv(path / "metrics.csv") for path in folders]
        scores = [pd.read_parquet(path / "per_query.parquet") for path in folders]
    measurements.write_csv(measurements.sort(pd.concat(metrics)), folder / "metrics.csv")
    measurements.write_parquet(pd.concat(scores), folder / "per_query.parquet")
    manifest = {**about, "data": None, "machine": None, "architectures": {}}
    for name in architectures:
        summary = _read_json(folder / name / "summary.json")
        run_manifest = read_manifest(folder / name)
        manifest |= {"data": summary["dataset"], "machine": summary["machine"]}
        manifest["architectures"][name] = {
            "parameters": run_manifest["parameters"],
            **{key: summary.get(key) for key in IN_MANIFEST},
            "seconds": summary["seconds"] | {"notebook": run_manifest["seconds"]},
            "git": run_manifest.get("git"),
            "versions": run_manifest.get("versions"),
        }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def parse_point(run: str, variant: str) -> tuple[str, dict[str, str]]:
    """The architecture and the point of a grid's run: its name has a word per parameter.

    Example: `cnn-64-head`, `input_size=64 train=head`.
    """
    point = dict(word.partition("=")[::2] for word in variant.split() if "=" in word)
    return run.rsplit("-", len(point))[0], point


def _read_json(path: Path) -> dict:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(content := json.loads(path.read_text("utf-8")), dict):
            return content
    raise StudyError(f"{path} is damaged: run `{report_command(path.parent.parent.name)}` again")


def _check_finite(state: "State") -> None:
    """StudyError if a class probability or a score is NaN or infinite."""
    # Embeddings were checked when they were made.
    values = {"the class probabilities": state.embeddings.probabilities}
    for result in state.evaluations:
        # Other queries have no scores, and some classes no classifier.
        scores = result.per_query[result.per_query["n_relevant"] > 0].drop(columns="correct")
        values |= {f"{name} of the search {result.search}": scores[name] for name in scores}
    for name, array in values.items():
        if array is not None and not np.isfinite(array).all():
            when = f"epoch {state.epoch}" if state.epoch else "the last epoch"
            protocol = state.embeddings.dataset.protocol
            raise StudyError(
                f"NaN or infinite values in {name} after {when} (protocol {protocol}, "
                f"seed {state.seed}): lower learning_rate (head_learning_rate if train is head)"
            )


def _mean_similarity(embeddings: Embeddings) -> float:
    """The mean cosine similarity of two gallery images: 1 if all embeddings are alike."""
    return float(np.sum(embeddings.gallery.mean(axis=0, dtype=np.float64) ** 2))


def machine_name(machine: dict) -> str:
    """The GPUs of a machine, or its processor if it has none."""
    return ", ".join(dict.fromkeys(machine["gpus"])) or machine["cpu"]


def training_place(summary: dict) -> str:
    """` (on <GPU>)` if a summary's network was trained elsewhere than it was measured, else ""."""
    place = (summary.get("trained_on") or {}).get("machine")
    return f" (on {machine_name(place)})" if place else ""


def _elsewhere(manifest: dict) -> dict:
    """The commit of a training, and in what its machine and versions differ from those of its run.

    machine is None if it is the same or unknown; versions are those that differ; commit is None if
    an earlier version of the project, which did not record it, trained the network.
    """
    place, this_machine = manifest.get("machine"), machine()
    is_here = not place or all(
        this_machine[key] == place.get(key) for key in ("cpu", "cores", "gpus")
    )
    trained_with = manifest.get("versions", {}).items()
    differing = {name: value for name, value in trained_with if value != versions().get(name)}
    commit = manifest.get("git", {}).get("commit")
    return {"machine": None if is_here else place, "versions": differing, "commit": commit}


def shared_dataset(runs: dict[str, Run]) -> Dataset:
    """The images of a study, as its first protocol uses them: the same for all its runs."""
    return next(iter(runs.values())).dataset


def networks(runs: dict[str, Run]) -> dict[str, Run]:
    """The runs that are not baselines."""
    return {name: run for name, run in runs.items() if not run.is_baseline}


def papers_networks(runs: dict[str, Run]) -> dict[str, Run]:
    """The runs of the paper's three networks, whatever they are called."""
    return {name: run for name, run in runs.items() if run.backbone in PAPERS_BACKBONES}
