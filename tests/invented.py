"""Invented runs with given scores, and saved runs that need no training."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from conftest import load_shapes

from cbir.cache import Artifact, cached
from cbir.networks import embeddings
from cbir.networks.embeddings import Embeddings, normalise
from cbir.reporting import measurements
from cbir.reporting.runs import Run, save_run
from cbir.retrieval import evaluation

MEASUREMENT = {"seeds": [0], "protocols": ["closed"], "unseen": 1, "draws": 2, "ks": [1, 10]}


def rows(
    scores,
    *,
    architecture="cnn",
    variant=None,
    seed=0,
    draw=None,
    epoch=None,
    protocol="closed",
    search="unrestricted",
    queries=None,
    labels=None,
    **more,
) -> pd.DataFrame:
    """Rows of per_query.parquet with these average precisions."""
    n = len(scores)
    frame = pd.DataFrame(
        {
            "study": "tiny",
            "architecture": architecture,
            "variant": variant,
            "seed": seed,
            "draw": draw,
            "epoch": epoch,
            "protocol": protocol,
            "search": search,
            "query": range(n) if queries is None else queries,
            "label": [0] * n if labels is None else labels,
            "predicted": -1,
            "correct": np.nan,
            "searched": 1.0,
            "n_relevant": 10,
            "average_precision": np.asarray(scores, float),
        }
    )
    return frame.assign(**more).astype({"draw": "Int64", "epoch": "Int64"})


def result(*frames: pd.DataFrame, baseline=False, dataset="digits", **summary) -> Run:
    """A run with these rows of per_query.parquet and an invented summary."""
    frame = pd.concat(frames, ignore_index=True)
    measurement = MEASUREMENT | {
        "seeds": list(dict.fromkeys(frame["seed"])),
        "protocols": list(dict.fromkeys(frame["protocol"])),
    }
    summary_values = {
        "measurement": measurement,
        "variant": "",
        "searches": list(dict.fromkeys(frame["search"])),
        "calibrations": {"0": {"mass": 0.9}},
        "dataset": {
            "parameters": {"dataset": dataset},
            "classes": ["circle", "cross"],
            "gallery": 5000,
            "queries": frame["query"].nunique(),
        },
        "speed": {"images_per_second": 1000.0, "query_milliseconds": 2.5},
        "embedding_dim": 256,
        "index_bytes": 3_000_000,
    }
    if not baseline:
        summary_values |= {"weights": {"source": "none", "started from": "random"}}
        summary_values |= {"epochs": 3, "training_seconds": 70.0, "size": {"total": 4_000_000}}
        summary_values |= {"training_accuracy": {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}}
    history = None if baseline else pd.DataFrame({"loss": [0.5]})
    name = frame["architecture"].iloc[0]
    summary_values |= summary
    classes = summary_values["dataset"]["classes"]
    unnamed = map(str, range(len(classes), int(frame["label"].max()) + 1))
    metrics = measurements.metrics(frame, [*classes, *unnamed])
    return Run("tiny", name, summary_values, metrics, frame, history, {}, {})


def all_of_one(scores, name="cnn", **scores_by_search) -> Run:
    """A run with the same scores for each search, except those in `scores_by_search`."""
    frames = [
        rows(scores_by_search.get(search, scores), architecture=name, search=search, correct=1.0)
        for search in ("unrestricted", "predicted_class", "soft", "label_lookup")
    ]
    return result(*frames)


def save_baseline(name: str, **measurement) -> Run:
    """Run a baseline on the small pictures and save the run, without a notebook."""
    dataset, measurement = load_shapes(), MEASUREMENT | measurement
    states = evaluation.measure(
        dataset,
        embed_view=lambda view, seed: embeddings.embed_baseline(name, view, seed),
        measurement=measurement,
    )
    speed = evaluation.Speed(1000.0, 2.5)
    return save_run("tiny", name, measurement=measurement, states=states, speed=speed)


def blurred(view, blur: float, seed: int, epoch: int | None = None) -> np.ndarray:
    """(n, 8) vectors: three dimensions for the classes with noise, five of noise only."""
    random = np.random.default_rng([seed, epoch or 3, view.draw or 0])
    logits = 3 * np.eye(3)[view.labels] + blur * random.normal(size=(len(view.labels), 3))
    return np.hstack([logits, blur * random.normal(size=(len(view.labels), 5))])


def save_network(
    name: str, blur: float, *, epochs=(1,), variant="", weights=None, elsewhere=None, **measurement
):
    """Save the run of an invented network, whose embeddings are `blurred`.

    Args:
        weights: its `source` and `sha256`; random by default.
        elsewhere: entries of the training manifest of another machine.
    """
    dataset, measurement = load_shapes(), MEASUREMENT | measurement

    def embed_view(view, seed, epoch=None):
        def make(folder):
            vectors = blurred(view, blur, seed, epoch)
            np.save(folder / "vectors.npy", normalise(vectors))
            powers = np.exp(vectors[:, :3])
            np.save(folder / "probabilities.npy", powers / powers.sum(axis=1, keepdims=True))

        artifact = cached(
            "embeddings",
            make,
            parameters={"name": name, "seed": seed, "epoch": epoch, "draw": view.draw},
            reads=[view.fingerprint],
            package="networks",
        )
        return Embeddings.open(artifact.folder, view)

    states = evaluation.measure(
        dataset, embed_view=embed_view, measurement=measurement, epochs=list(epochs)
    )
    curve = {"accuracy": 0.5, "loss": 1.0, "val_accuracy": 0.4, "val_loss": 1.1, "seconds": 2.0}
    history = pd.DataFrame([curve] * 3, index=pd.RangeIndex(1, 4, name="epoch"))
    settings = {"name": name, "batch_size": 8, "optimizer": "adam", "schedule": "cosine"}
    artifact = cached(
        "training",
        lambda folder: None,
        parameters=settings | {"augmentation": []},
        package="networks",
    )
    artifact = Artifact(artifact.folder, artifact.manifest | (elsewhere or {}))
    shape = {"backbone": name, "train": "all", "input_size": 32, "pooling": "avg"}
    shape |= {"embedding": "penultimate", "precision": "float32", "pixels": "scaled"}
    return save_run(
        "tiny",
        name,
        measurement=measurement,
        states=states,
        speed=evaluation.Speed(1000.0, 2.5),
        variant=variant,
        network=SimpleNamespace(
            parameters=shape,
            weights=SimpleNamespace(**(weights or {"source": "none", "sha256": ""})),
            size={"total": 4_000_000},
        ),
        training=SimpleNamespace(
            artifact=artifact,
            artifacts={"training": artifact},
            history=history,
            stages=history.assign(stage="backbone and head"),
            best_epoch=3,
            features=None,
            head=None,
            seconds=6.0,
            fingerprint="f" * 64,
        ),
    )
