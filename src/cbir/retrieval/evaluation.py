"""From embeddings to metrics: rank the gallery with each search, and score each query."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cbir.cache import Artifact, cached
from cbir.images import protocols
from cbir.images.dataset import Dataset
from cbir.networks.embeddings import Embeddings, Encode
from cbir.retrieval import metrics, ranking, searches, uncertainty

# The number of results that are kept for each query and shown in reports, whatever the study's ks.
N_RESULTS = 10
# The numbers of embedded images and of searched queries in the measurement of speed.
TIMED_IMAGES, TIMED_QUERIES = 1024, 30
# The depths that the literature of a protocol reports.
PROTOCOL_KS = {"hashing_1k": (1000,)}


@dataclass(frozen=True)
class Evaluation:
    """The rankings and scores of one search.

    Attributes:
        search: a name in `searches.SEARCHES`.
        rankings: (n_queries, k) int32 gallery positions, nearest first, -1 for missing results.
        similarities: (n_queries, k) float32 cosine similarities, NaN for missing results.
        per_query: one row per query: query (its position among all images), label, predicted (-1
            without a classifier), correct (1 or 0; NaN if no classifier was trained on the query's
            class), searched (share of the gallery), and the columns of
            `metrics.evaluate_retrieval`.
    """

    artifact: Artifact
    search: str
    rankings: np.ndarray
    similarities: np.ndarray
    per_query: pd.DataFrame

    @property
    def neighbours(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{search: (rankings, similarities)}, as for `montages.retrieved`."""
        return {self.search: (self.rankings, self.similarities)}


def evaluate(embeddings: Embeddings, search: str, ks: list[int]) -> Evaluation:
    """Rank the gallery for every query by a search of `searches.SEARCHES`, and score it; cached.

    It measures at the depths `ks`, at `N_RESULTS` and at those of the protocol.
    """
    dataset = embeddings.dataset
    ks = sorted({*ks, N_RESULTS, *PROTOCOL_KS.get(dataset.protocol, ())})

    def make(folder: Path) -> None:
        inputs = searches.search_input(embeddings, search)
        labels, gallery_labels = dataset.query_labels, dataset.gallery_labels[inputs.order]
        # A search may reorder the gallery, and the queries in it have other positions then.
        place = np.argsort(inputs.order)
        exclude = np.where(dataset.exclude < 0, -1, place[dataset.exclude])
        scores, rankings, similarities = metrics.search_and_evaluate(
            inputs.query, labels, inputs.gallery, gallery_labels,
            k=N_RESULTS, ks=ks, restrict_to=inputs.restrict_to, exclude=exclude,
        )  # fmt: skip
        np.save(folder / "rankings.npy", np.where(rankings < 0, -1, inputs.order[rankings]))
        np.save(folder / "similarities.npy", similarities)
        queries = {"query": dataset.queries, "label": labels}
        queries |= {"predicted": -1, "correct": np.nan, "searched": 1.0}
        if embeddings.probabilities is not None:
            queries["predicted"] = embeddings.query_predictions
        if len(searches.available(embeddings)) > 1:
            queries["correct"] = (embeddings.query_predictions == labels).astype(float)
        if inputs.restrict_to is not None:
            counts = np.bincount(gallery_labels, minlength=len(dataset.classes))
            queries["searched"] = inputs.restrict_to @ counts / len(gallery_labels)
        per_query = pd.concat([pd.DataFrame(queries), scores], axis=1)
        per_query.to_parquet(folder / "per_query.parquet")

    parameters = {"search": search, "ks": ks}
    reads = [embeddings.artifact.key, dataset.search_fingerprint, dataset.split_fingerprint]
    artifact = cached("rankings", make, parameters=parameters, reads=reads, package="retrieval")
    names = ("rankings.npy", "similarities.npy")
    arrays = [np.load(artifact.folder / name, mmap_mode="r") for name in names]
    per_query = pd.read_parquet(artifact.folder / "per_query.parquet")
    return Evaluation(artifact, search, *arrays, per_query)


def first_view(dataset: Dataset, measurement: dict) -> Dataset:
    """The data set as the study's first protocol uses it, which the pages show."""
    return protocols.view(dataset, measurement["protocols"][0])


@dataclass(frozen=True)
class State:
    """A network after an epoch (None for the final one) under a protocol, whose view is the data
    set of the embeddings, measured with every search, `unrestricted` first.
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
        embed_view: (view, seed) -> embeddings, of a network or of a baseline; for an earlier state
            of a network, (view, seed, epoch=epoch).
        measurement: the study's parameters of this group.
        epochs: states to measure under the first protocol, in addition to the final one.
    """
    states, seeds, ks = [], measurement["seeds"], measurement["ks"]
    first_protocol = measurement["protocols"][0]
    settings = {name: measurement[name] for name in ("protocols", "unseen", "draws")}
    views = list(protocols.views(dataset, **settings))
    for seed in seeds:
        for view in views:
            # Draws already repeat the training, so they are not repeated for further seeds.
            if view.draw is not None and seed != seeds[0]:
                continue
            earlier = sorted(epochs) if view.protocol == first_protocol else []
            for epoch in [None, *earlier]:
                embeddings = embed_view(view, seed, **({"epoch": epoch} if epoch else {}))
                evaluations = [
                    evaluate(embeddings, search, ks) for search in searches.available(embeddings)
                ]
                states.append(State(seed, epoch, embeddings, evaluations))
    return states


def training_accuracy(states: list[State], measurement: dict) -> dict[str, float]:
    """Accuracy on the training images of the first protocol: value, ci_low, ci_high.

    Unlike the accuracy in the history, it is measured with the final state, without dropout and
    augmentation, and averaged over the seeds.
    """
    is_correct = {}
    for state in states:
        dataset = state.embeddings.dataset
        if state.epoch is None and dataset.protocol == measurement["protocols"][0]:
            predicted = state.embeddings.probabilities[dataset.train].argmax(axis=1)
            is_correct[state.seed] = predicted == dataset.labels[dataset.train]
    mean = pd.DataFrame(is_correct).mean(axis=1).to_frame("value")
    return uncertainty.intervals(mean)[["value", "ci_low", "ci_high"]].iloc[0].to_dict()


@dataclass(frozen=True)
class Speed:
    """The speed on this machine of embedding images in batches, and the median time to embed one
    and search the gallery with it; None if images cannot be embedded here.
    """

    images_per_second: float | None
    query_milliseconds: float | None


def measure_speed(embeddings: Embeddings, encode: Encode | None) -> Speed:
    """Time the embedding of images in memory, and single queries, after a warm-up; cached."""
    if encode is None:
        return Speed(None, None)
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        gallery = ranking.prepare(embeddings.gallery)
        images = np.asarray(dataset.images[:TIMED_IMAGES])
        encode(images)
        started = time.perf_counter()
        encode(images)
        throughput = len(images) / (time.perf_counter() - started)
        seconds = []
        for position in dataset.queries[:TIMED_QUERIES]:
            started = time.perf_counter()
            vector, _ = encode(dataset.images[position][None])
            ranking.search(vector, gallery, N_RESULTS)
            seconds.append(time.perf_counter() - started)
        # The first query includes the time to compile the network for a single image.
        speed = Speed(throughput, 1000 * statistics.median(seconds[1:] or seconds))
        (folder / "speed.json").write_text(json.dumps(asdict(speed)), encoding="utf-8")

    reads = [embeddings.artifact.key, dataset.search_fingerprint]
    artifact = cached("speed", make, parameters={}, reads=reads, package="retrieval")
    return Speed(**json.loads((artifact.folder / "speed.json").read_text("utf-8")))
