"""From embeddings to scores: each way of searching, ranked and measured, query by query."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cbir import metrics, retrieval
from cbir.cache import Artifact, cached
from cbir.data import Dataset
from cbir.embeddings import BATCH_SIZE, Embeddings, embed, normalise, predict
from cbir.models import Network
from cbir.training import Training

# The report shows the first ten results, whatever the study's ks.
SHOWN = 10
SEARCHES = ("unrestricted", "predicted_class")


@dataclass(frozen=True)
class Evaluation:
    """One way of searching, measured.

    Attributes:
        artifact: where rankings and scores stand, and what they were made from.
        search: "unrestricted", or "predicted_class".
        rankings: (n_queries, k) int32 gallery positions, nearest first, -1 where there are none.
        similarities: (n_queries, k) float32 cosine similarities.
        per_query: a row per query: query, label, predicted, and the columns of
            `metrics.per_query`.
    """

    artifact: Artifact
    search: str
    rankings: np.ndarray
    similarities: np.ndarray
    per_query: pd.DataFrame

    @property
    def answers(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Rankings and similarities, as `plots.results` takes them."""
        return {self.search: (self.rankings, self.similarities)}


def evaluate(embeddings: Embeddings, search: str, ks: list[int]) -> Evaluation:
    """Rank the gallery for every query and score the rankings.

    Args:
        embeddings: of gallery and queries.
        search: "unrestricted" ranks the whole gallery; "predicted_class" only the images of the
            class that the classifier predicts for the query, as the paper does.
        ks: depths at which to measure, besides the ten results that a report shows.
    """
    ks = sorted({*ks, SHOWN})
    predicted = embeddings.query_predictions
    labels, gallery_labels = embeddings.query_labels, embeddings.gallery_labels
    allowed = {
        "unrestricted": None,
        "predicted_class": retrieval.within(predicted, gallery_labels),
    }[search]

    def make(folder: Path) -> None:
        k = max(SHOWN, *ks)
        rankings, similarities = retrieval.search(embeddings.query, embeddings.gallery, k, allowed)
        np.save(folder / "rankings.npy", rankings)
        np.save(folder / "similarities.npy", similarities)
        ranks = retrieval.relevant_ranks(
            embeddings.query, labels, embeddings.gallery, gallery_labels, allowed
        )
        queries = {"query": np.arange(len(labels)), "label": labels, "predicted": predicted}
        scores = pd.concat([pd.DataFrame(queries), metrics.per_query(ranks, ks)], axis=1)
        scores.to_parquet(folder / "per_query.parquet")

    artifact = cached(
        "rankings",
        make,
        parameters={"search": search, "ks": ks},
        reads=[embeddings.artifact.key],
        code=__name__,
    )
    return Evaluation(
        artifact,
        search,
        np.load(artifact.folder / "rankings.npy", mmap_mode="r"),
        np.load(artifact.folder / "similarities.npy", mmap_mode="r"),
        pd.read_parquet(artifact.folder / "per_query.parquet"),
    )


@dataclass(frozen=True)
class State:
    """A state of a network, measured: the final one (`epoch` None) or that after an epoch."""

    epoch: int | None
    embeddings: Embeddings
    evaluations: list[Evaluation]


def measure(
    network: Network,
    training: Training,
    dataset: Dataset,
    frozen: Artifact | None,
    *,
    ks: list[int],
    epochs: list[int | None],
) -> list[State]:
    """Embed and evaluate every way of searching, for each of the states named in `epochs`."""
    states = []
    for epoch in epochs:
        embedded = embed(network, training, dataset, frozen, epoch)
        states.append(State(epoch, embedded, [evaluate(embedded, each, ks) for each in SEARCHES]))
    return states


def classification(embeddings: Embeddings, classes: list[str]) -> pd.DataFrame:
    """How many queries of each class (rows) the classifier gets right, and the share."""
    right = embeddings.query_predictions == embeddings.query_labels
    table = pd.DataFrame({"queries": 1, "right": right})
    table = table.groupby(embeddings.query_labels).sum()
    table.index = pd.Index(classes, name="class")
    table.loc["all"] = table.sum()
    return table.assign(accuracy=table["right"] / table["queries"])


@dataclass(frozen=True)
class Speed:
    """What using a network costs on this machine.

    Attributes:
        images_per_second: embedding images that stand in memory, batch by batch.
        query_milliseconds: embedding one picture and searching the gallery with it, median.
    """

    images_per_second: float
    query_milliseconds: float


def measure_speed(
    network: Network, training: Training, embeddings: Embeddings, dataset: Dataset
) -> Speed:
    """Time the embedding of images and single queries, after a warm-up; measured once and kept."""

    def make(folder: Path) -> None:
        encoder, first = network.encoder, retrieval.first_of_equals(embeddings.gallery)
        images = np.asarray(dataset.train_images[: 4 * BATCH_SIZE])
        predict(encoder, images[: 2 * BATCH_SIZE], "warm-up")
        started = time.perf_counter()
        predict(encoder, images, "gallery")
        throughput = len(images) / (time.perf_counter() - started)
        seconds = []
        for image in np.asarray(dataset.test_images[:30]):
            started = time.perf_counter()
            vectors, _ = encoder.predict_on_batch(image[None].astype(np.float32))
            vectors = normalise(np.asarray(vectors))
            retrieval.search(vectors, embeddings.gallery, SHOWN, first=first)
            seconds.append(time.perf_counter() - started)
        # The first one pays for building the graph of a single picture.
        speed = Speed(throughput, 1000 * statistics.median(seconds[1:] or seconds))
        (folder / "speed.json").write_text(json.dumps(vars(speed)), encoding="utf-8")

    artifact = cached(
        "speed",
        make,
        parameters={},
        reads=[training.artifact.key, embeddings.artifact.key],
        code=__name__,
    )
    return Speed(**json.loads((artifact.folder / "speed.json").read_text("utf-8")))
