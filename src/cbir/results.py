"""The files of a run: written by an architecture's notebook, read by the comparison."""

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
from cbir.cache import MANIFEST, Artifact, write_text

if TYPE_CHECKING:  # the comparison reads results without Keras
    from cbir.data import Dataset
    from cbir.evaluation import Speed, State
    from cbir.models import Network
    from cbir.training import Training

COLUMNS = [
    "study", "architecture", "variant", "seed", "draw", "epoch", "protocol", "search", "metric",
    "k", "class", "value",
]  # fmt: skip
PROTOCOL = "closed"
# Means over queries have names of their own.
MEANS = {
    "average_precision": "mean_average_precision",
    "reciprocal_rank": "mean_reciprocal_rank",
}


@dataclass(frozen=True)
class Result:
    """What a run left, as the comparison reads it.

    Attributes:
        summary: parameters, sizes, speeds, seconds by step, fingerprints.
        metrics: rows of metrics.csv.
        history: a row per epoch.
        per_query: by way of searching, a row per query.
        rankings, similarities: by way of searching, (n_queries, k).
    """

    summary: dict
    metrics: pd.DataFrame
    history: pd.DataFrame
    per_query: dict[str, pd.DataFrame]
    rankings: dict[str, np.ndarray]
    similarities: dict[str, np.ndarray]


def folder_of(study: str, architecture: str = "") -> Path:
    """Where a study's results stand, or one architecture's."""
    return project_root() / "reports" / study / architecture


def save(
    study: str,
    architecture: str,
    *,
    seed: int,
    dataset: "Dataset",
    network: "Network",
    features: Artifact | None,
    training: "Training",
    states: list["State"],
    speed: "Speed",
) -> Result:
    """Write a run's files into reports/<study>/<architecture>/, and read them back.

    Args:
        features: of a frozen backbone; None where it is trained.
        states: the final state first.
    """
    folder = folder_of(study, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever writes here by hand takes the mark of the run that stood here away.
    (folder / MANIFEST).unlink(missing_ok=True)
    rows = tidy(study, architecture, seed, states, dataset.classes)
    write_csv(rows, folder / "metrics.csv")
    training.history.to_csv(folder / "history.csv", float_format="%.6g")
    final = states[0]
    steps = {"features": features} if features else {}
    steps |= {
        "training": training.artifact,
        "embeddings": final.embeddings.artifact,
        **{each.search: each.artifact for each in final.evaluations},
    }
    fitting = float(training.history["seconds"].sum())
    summary = {
        "parameters": network.parameters | {"training": training.artifact.manifest["parameters"]},
        "dataset": {
            "parameters": dataset.parameters,
            "classes": dataset.classes,
            "gallery": len(dataset.train_labels),
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "queries": len(dataset.test_labels),
            "skipped": dataset.skipped,
            "fingerprint": dataset.fingerprint,
        },
        "weights": {
            "started from": network.weights or "random",
            "trained": training.fingerprint,
        },
        "size": network.size,
        "embedding_dim": int(final.embeddings.gallery.shape[1]),
        "index_bytes": int(final.embeddings.gallery.nbytes),
        "speed": asdict(speed),
        "epochs": len(training.history),
        # A frozen backbone's features are what its training consists of, for the most part.
        "training_seconds": fitting + (features.seconds if features else 0),
        # Of a training that was resumed, the artifact knows the last part alone.
        "seconds": {name: artifact.seconds for name, artifact in steps.items()}
        | {"training": fitting},
        "artifacts": {
            name: artifact.folder.relative_to(project_root()).as_posix()
            for name, artifact in steps.items()
        },
        "searches": [each.search for each in final.evaluations],
        "machine": machine(),
        "peak_memory_bytes": max(each.manifest["peak_memory_bytes"] for each in steps.values()),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return read(study, architecture)


def tidy(
    study: str, architecture: str, seed: int, states: list["State"], classes: list[str]
) -> pd.DataFrame:
    """A run's numbers, one a row: over all queries (`class` empty) and by the query's class."""
    rows = []
    for state in states:
        place = {"epoch": state.epoch, "protocol": PROTOCOL}
        scores = state.evaluations[0].per_query
        right = (scores["label"] == scores["predicted"]).rename("accuracy").to_frame()
        measured = [(None, right)]
        measured += [
            (
                each.search,
                each.per_query.drop(columns=["query", "label", "predicted", "n_relevant"]),
            )
            for each in state.evaluations
        ]
        for search, values in measured:
            groups = [(None, values.mean())]
            groups += [
                (classes[label], group.mean()) for label, group in values.groupby(scores["label"])
            ]
            for name, means in groups:
                for column, value in means.items():
                    metric, _, k = column.partition("@")
                    rows.append(
                        place
                        | {"search": search, "metric": MEANS.get(metric, metric)}
                        | {"k": int(k) if k else None, "class": name, "value": value}
                    )
    frame = pd.DataFrame(rows).assign(study=study, architecture=architecture, seed=seed)
    return sort(frame.reindex(columns=COLUMNS))


def sort(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv in their one order; what does not apply stands first."""
    whole = {"seed": "Int64", "draw": "Int64", "epoch": "Int64", "k": "Int64"}
    return rows.astype(whole).sort_values(COLUMNS[:-1], na_position="first", ignore_index=True)


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    """metrics.csv, the same bytes for the same numbers."""
    write_text(path, rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_csv(path: Path) -> pd.DataFrame:
    """Rows of a metrics.csv; names stay text, also where they look like numbers."""
    named = ["study", "architecture", "variant", "protocol", "search", "metric", "class"]
    # A class may be called NA: only an empty field is empty.
    return pd.read_csv(
        path, dtype=dict.fromkeys(named, "str"), keep_default_na=False, na_values=[""]
    )


def read(study: str, architecture: str) -> Result:
    """What an architecture's run left in reports/.

    Raises:
        StudyError: nothing, or its artifacts are gone.
    """
    folder = folder_of(study, architecture)
    if not (folder / "summary.json").exists():
        raise StudyError(f"no results in {folder}: run `make report STUDY={study}` first")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    steps = {name: project_root() / summary["artifacts"][name] for name in summary["searches"]}
    if gone := [path for path in steps.values() if not path.is_dir()]:
        raise StudyError(f"{gone[0]} is gone: delete {folder} and run `make report` again")
    return Result(
        summary=summary,
        metrics=read_csv(folder / "metrics.csv"),
        history=pd.read_csv(folder / "history.csv", index_col="epoch"),
        per_query={
            name: pd.read_parquet(path / "per_query.parquet") for name, path in steps.items()
        },
        rankings={name: np.load(path / "rankings.npy", "r") for name, path in steps.items()},
        similarities={
            name: np.load(path / "similarities.npy", "r") for name, path in steps.items()
        },
    )


def is_whole(study: str, architecture: str) -> bool:
    """Whether a run's files and the artifacts that they point to are all there."""
    try:
        read(study, architecture)
    except (StudyError, OSError):
        return False
    return True


def read_all(study: str, architectures: list[str], missing: list[str]) -> dict[str, Result]:
    """The results of a study by architecture; `missing` ("name: reason") are left out."""
    without = {each.partition(":")[0] for each in missing}
    return {name: read(study, name) for name in architectures if name not in without}


def write_study(folder: Path, architectures: list[str], about: dict) -> None:
    """Write a study's metrics.csv and manifest.json from what its architectures left.

    Args:
        folder: reports/<study>.
        architectures: those whose results are up to date.
        about: what else the manifest says of the study.
    """
    rows = [read_csv(folder / name / "metrics.csv") for name in architectures]
    table = pd.concat(rows) if rows else pd.DataFrame(columns=COLUMNS)
    write_csv(sort(table), folder / "metrics.csv")
    manifest = {**about, "data": None, "machine": None, "architectures": {}}
    for name in architectures:
        summary = json.loads((folder / name / "summary.json").read_text("utf-8"))
        run = json.loads((folder / name / MANIFEST).read_text("utf-8"))
        manifest["data"], manifest["machine"] = summary["dataset"], summary["machine"]
        manifest["architectures"][name] = {
            "parameters": run["parameters"],
            "weights": summary["weights"],
            "seconds": summary["seconds"] | {"notebook": run["seconds"]},
            "peak_memory_bytes": summary["peak_memory_bytes"],
            "artifacts": summary["artifacts"],
            "git": run.get("git"),
        }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def value(
    rows: pd.DataFrame,
    metric: str,
    search: str | None = None,
    k: int | None = None,
    epoch: int | None = None,
) -> float:
    """One number over all queries from rows of metrics.csv; NaN where it was not measured."""
    chosen = rows[rows["class"].isna() & (rows["metric"] == metric)]
    for column, wanted in (("search", search), ("k", k), ("epoch", epoch)):
        is_it = chosen[column].isna() if wanted is None else chosen[column] == wanted
        chosen = chosen[is_it.fillna(False)]
    return float(chosen["value"].iloc[0]) if len(chosen) else float("nan")


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
