"""From embeddings to scores: each way of searching, ranked and measured, query by query."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cbir.cache import Artifact, cached
from cbir.images import protocols
from cbir.images.dataset import Dataset
from cbir.networks.embeddings import Embeddings, Encode, normalise
from cbir.retrieval import metrics, ranking, searches, uncertainty

# The report shows the first ten results, whatever the study's ks.
SHOWN = 10
# How many images are embedded to measure how fast that goes.
TIMED = 1024
# What a protocol's own literature reports.
PROTOCOL_KS = {"hashing_1k": (1000,)}


@dataclass(frozen=True)
class Evaluation:
    """One way of searching, measured.

    Attributes:
        artifact: where rankings and scores stand, and what they were made from.
        search: a name in `searches.SEARCHES`.
        rankings: (n_queries, k) int32 gallery positions, nearest first, -1 where there are none.
        similarities: (n_queries, k) float32 cosine similarities.
        per_query: a row per query: query (its position among all images), label, predicted (-1
            without a classifier), correct (1 or 0, NaN without a classifier of the query's class),
            searched (the share of the gallery that was), and the columns of
            `metrics.evaluate_retrieval`.
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
        search: a name in `searches.SEARCHES`.
        ks: depths at which to measure, besides the ten results that a report shows.
    """
    dataset = embeddings.dataset
    ks = sorted({*ks, SHOWN, *PROTOCOL_KS.get(dataset.protocol, ())})

    def make(folder: Path) -> None:
        asked = searches.question(embeddings, search)
        labels, gallery_labels = dataset.query_labels, dataset.gallery_labels[asked.order]
        # Where each gallery position has gone, so that a query is still found in it.
        place = np.argsort(asked.order)
        exclude = np.where(dataset.exclude < 0, -1, place[dataset.exclude])
        limits = {"restrict_to": asked.restrict_to, "exclude": exclude}
        rankings, similarities = ranking.search(
            normalise(asked.query), asked.gallery, SHOWN, gallery_labels=gallery_labels, **limits
        )
        np.save(folder / "rankings.npy", np.where(rankings < 0, -1, asked.order[rankings]))
        np.save(folder / "similarities.npy", similarities)
        scores = metrics.evaluate_retrieval(
            asked.query, labels, asked.gallery, gallery_labels, ks=ks, **limits
        )
        queries = {"query": dataset.queries, "label": labels}
        queries |= {"predicted": -1, "correct": np.nan, "searched": 1.0}
        if embeddings.probabilities is not None:
            queries["predicted"] = embeddings.query_predictions
        if len(searches.of(embeddings)) > 1:
            queries["correct"] = (embeddings.query_predictions == labels).astype(float)
        if asked.restrict_to is not None:
            counts = np.bincount(gallery_labels, minlength=len(dataset.classes))
            queries["searched"] = asked.restrict_to @ counts / len(gallery_labels)
        scores = pd.concat([pd.DataFrame(queries), scores], axis=1)
        scores.to_parquet(folder / "per_query.parquet")

    artifact = cached(
        "rankings",
        make,
        parameters={"search": search, "ks": ks},
        reads=[embeddings.artifact.key, dataset.search_fingerprint, dataset.split_fingerprint],
        package="retrieval",
    )
    return Evaluation(
        artifact,
        search,
        np.load(artifact.folder / "rankings.npy", mmap_mode="r"),
        np.load(artifact.folder / "similarities.npy", mmap_mode="r"),
        pd.read_parquet(artifact.folder / "per_query.parquet"),
    )


def first_view(dataset: Dataset, measurement: dict) -> Dataset:
    """The data set as the study's first protocol sees it: what its pages show."""
    return protocols.view(dataset, measurement["protocols"][0])


@dataclass(frozen=True)
class State:
    """What was measured at once: a state of a network, under a protocol, in every way of searching.

    Attributes:
        seed: that the network was trained with.
        epoch: after which the network was in this state; None for the final one.
        embeddings: of the images of that state, as the protocol (and its draw) sees them.
        evaluations: one for each way of searching, `unrestricted` first.
    """

    seed: int
    epoch: int | None
    embeddings: Embeddings
    evaluations: list[Evaluation]


def measure(
    dataset: Dataset,
    *,
    embed_view: Callable[..., Embeddings],
    measurement: dict,
    epochs: list[int] = (),
) -> list[State]:
    """Measure every seed under every protocol; the study's first seed and protocol come first.

    Args:
        dataset: as `data.load` gives it.
        embed_view: (view, seed) -> embeddings, from a network or from a baseline; `epoch` says
            which state of a network, where it is not the final one.
        measurement: `seeds`, `protocols`, `unseen`, `draws` and `ks` of the study.
        epochs: states to measure besides the final one, under the first protocol.
    """
    states = []
    first_seed, first_protocol = measurement["seeds"][0], measurement["protocols"][0]
    views = list(
        protocols.views(
            dataset,
            measurement["protocols"],
            unseen=measurement["unseen"],
            draws=measurement["draws"],
        )
    )
    for seed in measurement["seeds"]:
        for view in views:
            # Draws are repetitions already, and each is a training of its own.
            if view.draw is not None and seed != first_seed:
                continue
            is_first = view.protocol == first_protocol
            for epoch in [None, *(sorted(epochs) if is_first else ())]:
                embedded = embed_view(view, seed, **({"epoch": epoch} if epoch else {}))
                ways = [
                    evaluate(embedded, each, measurement["ks"]) for each in searches.of(embedded)
                ]
                states.append(State(seed, epoch, embedded, ways))
    return states


def training_accuracy(states: list[State], measurement: dict) -> dict[str, float]:
    """On the images learnt from, under the first protocol: value, ci_low, ci_high.

    Unlike the history's, it is that of the final state, without dropout or augmentation, and a
    mean over the seeds.

    Args:
        states: of a network, from `measure`.
        measurement: as for `measure`.
    """
    right = {}
    for state in states:
        dataset = state.embeddings.dataset
        if state.epoch is None and dataset.protocol == measurement["protocols"][0]:
            found = state.embeddings.probabilities[dataset.train].argmax(axis=1)
            right[state.seed] = found == dataset.labels[dataset.train]
    mean = pd.DataFrame(right).mean(axis=1).to_frame("value")
    return uncertainty.intervals(mean)[["value", "ci_low", "ci_high"]].iloc[0].to_dict()


@dataclass(frozen=True)
class Speed:
    """What embedding costs on this machine.

    Attributes:
        images_per_second: embedding images that stand in memory, batch by batch.
        query_milliseconds: embedding one picture and searching the gallery with it, median.
    """

    images_per_second: float
    query_milliseconds: float


def measure_speed(embeddings: Embeddings, encode: Encode) -> Speed:
    """Time the embedding of images and single queries, after a warm-up; measured once and kept.

    Args:
        embeddings: whose gallery is searched.
        encode: images -> vectors and probabilities, from `embeddings.encoder`.
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        first = ranking.first_of_equals(embeddings.gallery)
        images = np.asarray(dataset.images[:TIMED])
        encode(images)
        started = time.perf_counter()
        encode(images)
        throughput = len(images) / (time.perf_counter() - started)
        seconds = []
        for position in dataset.queries[:30]:
            started = time.perf_counter()
            vector, _ = encode(dataset.images[position][None])
            ranking.search(vector, embeddings.gallery, SHOWN, first=first)
            seconds.append(time.perf_counter() - started)
        # The first one pays for building the graph of a single picture.
        speed = Speed(throughput, 1000 * statistics.median(seconds[1:] or seconds))
        (folder / "speed.json").write_text(json.dumps(vars(speed)), encoding="utf-8")

    artifact = cached(
        "speed",
        make,
        parameters={},
        reads=[embeddings.artifact.key, dataset.search_fingerprint],
        package="retrieval",
    )
    return Speed(**json.loads((artifact.folder / "speed.json").read_text("utf-8")))
