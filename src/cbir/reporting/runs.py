"""The files of a run: written by an architecture's notebook, read by the comparison."""

import functools
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cbir import StudyError, project_root
from cbir.cache import MANIFEST, write_text
from cbir.reporting import tidy

if TYPE_CHECKING:  # the comparison reads results without Keras
    from cbir.images.dataset import Dataset
    from cbir.networks.models import Network
    from cbir.networks.training import Training
    from cbir.retrieval.evaluation import Speed, State

# Of a whole study, beside its pages.
STUDY_FILES = ("metrics.csv", "per_query.parquet", MANIFEST)


@dataclass(frozen=True)
class Run:
    """What a run left, as the comparison reads it.

    Attributes:
        summary: parameters, sizes, speeds, seconds by step, fingerprints.
        metrics: rows of metrics.csv.
        per_query: rows of per_query.parquet: each query, seed, protocol and way of searching.
        history: a row per epoch; None for a baseline, which learns nothing.
        rankings, similarities: by way of searching, (n_queries, k), of the first seed under the
            first protocol.
    """

    summary: dict
    metrics: pd.DataFrame
    per_query: pd.DataFrame
    history: pd.DataFrame | None
    rankings: dict[str, np.ndarray]
    similarities: dict[str, np.ndarray]

    @property
    def is_baseline(self) -> bool:
        """Whether it stands in the place of an architecture, without a network."""
        return self.history is None

    @property
    def protocol(self) -> str:
        """The study's first protocol, under which the architectures are compared."""
        return self.summary["measurement"]["protocols"][0]

    @functools.cached_property
    def averaged(self) -> pd.DataFrame:
        """Rows as in metrics.csv, the seeds averaged for each query."""
        classes = self.summary["dataset"]["classes"]
        return tidy.metrics(tidy.average_seeds(self.per_query), classes)

    def first_rows(self) -> pd.DataFrame:
        """Rows of metrics.csv of the first seed under the first protocol: what its page shows."""
        is_first = self.metrics["seed"] == self.summary["measurement"]["seeds"][0]
        return self.metrics[is_first & (self.metrics["protocol"] == self.protocol)]


def run_folder(study: str, architecture: str = "") -> Path:
    """Where a study's results stand, or one architecture's."""
    return project_root() / "reports" / study / architecture


def save_run(
    study: str,
    architecture: str,
    *,
    measurement: dict,
    dataset: "Dataset",
    states: list["State"],
    speed: "Speed",
    variant: str = "",
    network: "Network | None" = None,
    training: "Training | None" = None,
) -> Run:
    """Write a run's files into reports/<study>/<architecture>/, and read them back.

    Args:
        measurement: `seeds`, `protocols`, `unseen`, `draws` and `ks` of the study.
        dataset: as the first protocol sees it.
        states: from `evaluation.measure`; the first is the one that the page shows.
        network, training: of that state; None for a baseline.
        variant: the point of a grid; empty where there is none.
    """
    folder = run_folder(study, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever writes here by hand takes the mark of the run that stood here away.
    (folder / MANIFEST).unlink(missing_ok=True)
    scores = tidy.per_query(study, architecture, states, variant)
    tidy.write_parquet(scores, folder / "per_query.parquet")
    tidy.write_csv(tidy.metrics(scores, dataset.classes), folder / "metrics.csv")
    final = states[0]
    steps = training.artifacts if training else {}
    steps["embeddings"] = final.embeddings.artifact
    steps |= {each.search: each.artifact for each in final.evaluations}
    seconds = {name: artifact.seconds for name, artifact in steps.items()}
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
            "skipped": dataset.skipped,
            "fingerprint": dataset.fingerprint,
        },
        "embedding_dim": int(final.embeddings.gallery.shape[1]),
        "index_bytes": int(final.embeddings.gallery.nbytes),
        "speed": asdict(speed),
        "seconds": seconds,
        "artifacts": {
            name: artifact.folder.relative_to(project_root()).as_posix()
            for name, artifact in steps.items()
        },
        "searches": [each.search for each in final.evaluations],
        "machine": machine(),
        "peak_memory_bytes": max(each.manifest["peak_memory_bytes"] for each in steps.values()),
    }
    if "soft" in summary["searches"]:
        from cbir.retrieval import searches

        summary["calibrations"] = {
            state.seed: asdict(searches.calibrate(state.embeddings))
            for state in states
            if state.epoch is None
            and state.embeddings.dataset.protocol == measurement["protocols"][0]
        }
    if network:
        from cbir.retrieval import evaluation  # brings numba along, as above

        training.stages.to_csv(folder / "history.csv", float_format="%.6g")
        # Of a training that was resumed, the artifact knows the last part alone.
        seconds["training"] = float(training.history["seconds"].sum())
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
            "training_accuracy": evaluation.training_accuracy(states, measurement),
            "training_seconds": training.seconds,
        }
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return read_run(study, architecture)


def read_run(study: str, architecture: str) -> Run:
    """What an architecture's run left in reports/.

    Raises:
        StudyError: nothing, or its artifacts are gone.
    """
    folder = run_folder(study, architecture)
    if not (folder / "summary.json").exists():
        raise StudyError(f"no results in {folder}: run `make report STUDY={study}` first")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    steps = {name: project_root() / summary["artifacts"][name] for name in summary["searches"]}
    if gone := [path for path in steps.values() if not path.is_dir()]:
        raise StudyError(f"{gone[0]} is gone: delete {folder} and run `make report` again")
    history = folder / "history.csv"
    return Run(
        summary=summary,
        metrics=tidy.read_csv(folder / "metrics.csv"),
        per_query=pd.read_parquet(folder / "per_query.parquet"),
        history=pd.read_csv(history, index_col="epoch") if "epochs" in summary else None,
        rankings={name: np.load(path / "rankings.npy", "r") for name, path in steps.items()},
        similarities={
            name: np.load(path / "similarities.npy", "r") for name, path in steps.items()
        },
    )


def is_whole(study: str, architecture: str) -> bool:
    """Whether a run's files and the artifacts that they point to are all there."""
    try:
        read_run(study, architecture)
    except (StudyError, OSError):
        return False
    return True


def read_runs(study: str, architectures: list[str], missing: list[str]) -> dict[str, Run]:
    """The results of a study by architecture; `missing` ("name: reason") are left out."""
    without = {each.partition(":")[0] for each in missing}
    return {name: read_run(study, name) for name in architectures if name not in without}


def write_study(folder: Path, architectures: list[str], about: dict) -> None:
    """Write a study's metrics.csv, per_query.parquet and manifest.json from its runs' own.

    Args:
        folder: reports/<study>.
        architectures: those whose results are up to date.
        about: what else the manifest says of the study.
    """
    rows = [tidy.read_csv(folder / name / "metrics.csv") for name in architectures]
    table = pd.concat(rows) if rows else pd.DataFrame(columns=tidy.COLUMNS)
    tidy.write_csv(tidy.sort(table), folder / "metrics.csv")
    scores = [pd.read_parquet(folder / name / "per_query.parquet") for name in architectures]
    # Without any, too: what earlier results left does not stay.
    empty = pd.DataFrame(columns=[*tidy.PLACE, *tidy.QUERY])
    queries = pd.concat(scores, ignore_index=True) if scores else empty
    tidy.write_parquet(queries, folder / "per_query.parquet")
    manifest = {**about, "data": None, "machine": None, "architectures": {}}
    for name in architectures:
        summary = json.loads((folder / name / "summary.json").read_text("utf-8"))
        run = json.loads((folder / name / MANIFEST).read_text("utf-8"))
        manifest["data"], manifest["machine"] = summary["dataset"], summary["machine"]
        manifest["architectures"][name] = {
            "parameters": run["parameters"],
            "weights": summary.get("weights"),
            "variant": summary["variant"],
            "size": summary.get("size"),
            "epochs": summary.get("epochs"),
            "head_epochs": summary.get("head_epochs"),
            "training_accuracy": summary.get("training_accuracy"),
            "training_seconds": summary.get("training_seconds"),
            "speed": summary["speed"],
            "seconds": summary["seconds"] | {"notebook": run["seconds"]},
            "peak_memory_bytes": summary["peak_memory_bytes"],
            "artifacts": summary["artifacts"],
            "git": run.get("git"),
        }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def machine() -> dict:
    """Processor, cores, and GPUs by the name that their driver gives them."""
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20)
        gpus = told.stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        gpus = []
    return {
        "system": platform.system(),
        "cpu": name or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


# The paper's first architecture; its figures 3 to 6 are of it.
CNN = "cnn"


def networks(results: dict[str, Run]) -> dict[str, Run]:
    """The runs that are no baselines."""
    return {name: each for name, each in results.items() if not each.is_baseline}


def plain_cnns(results: dict[str, Run]) -> dict[str, Run]:
    """The runs of the paper's plain CNN, whatever they are called."""
    return {name: each for name, each in networks(results).items() if _backbone(each) == CNN}


def other_networks(results: dict[str, Run]) -> dict[str, Run]:
    """The runs of all other networks, ResNet-50 and VGG16 among them."""
    return {name: each for name, each in networks(results).items() if _backbone(each) != CNN}


def _backbone(result: Run) -> str:
    return result.summary["parameters"]["backbone"]
