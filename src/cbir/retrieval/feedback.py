"""Relevance feedback: move a query by positive and negative examples, and measure the gain.

Rocchio's formula moves the query towards the mean of the examples that a user marks as positive and
away from the mean of the negative ones, and the search is repeated. Sources: Rocchio, Relevance
Feedback in Information Retrieval, in Salton (ed.), The SMART Retrieval System (1971); Manning,
Raghavan, Schütze, Introduction to Information Retrieval (2008), 9.1.1.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cbir.cache import cached
from cbir.images.dataset import stratified_share
from cbir.networks.embeddings import Embeddings
from cbir.progress import progress
from cbir.retrieval import metrics, ranking

# The weights to choose from; the query has a weight of 1. None is 0, so that an example always
# counts.
POSITIVE = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
NEGATIVE_SHARES = (0.1, 0.25, 0.5, 0.75)
# Among weights whose mAP is within this distance of the highest, the smallest are chosen.
MAP_TOLERANCE = 0.002
# The number of images that the simulated user marks per round.
MARKED = 10
# The largest number of validation images that are queries to choose the weights, and their seed.
MAX_VALIDATION, VALIDATION_SEED = 500, 0
# The number of queries per block, and the largest number of places in its rankings (16 MB).
BLOCK, MAX_PLACES = 64, 2**22
# If a refined query is shorter than this, its parts have cancelled out, and its direction is a
# rounding error.
MIN_LENGTH = 1e-6


@dataclass(frozen=True)
class Rocchio:
    """The weights of Rocchio's formula, each 0 or greater, else ValueError; only ratios matter.

    Manning et al. (2008), 9.1.1, call the defaults reasonable.
    """

    query: float = 1.0
    positive: float = 0.75
    negative: float = 0.15

    def __post_init__(self):
        for name, weight in asdict(self).items():
            if not 0 <= weight < np.inf:
                raise ValueError(
                    f"{name}: a weight must be finite and 0 or greater, not {weight!r}"
                )


def refine(
    query: np.ndarray, positive: np.ndarray, negative: np.ndarray, weights: Rocchio
) -> np.ndarray:
    """Move a query by Rocchio's formula; without examples, it stays the same.

    Args:
        query: (d,) of unit length, the original query.
        positive, negative: (n, d) of unit length, all examples marked so far; either may be empty.

    Returns:
        (d,) float32 of unit length: weights.query · query + weights.positive · mean(positive) −
        weights.negative · mean(negative), divided by its length; the query if the parts cancel out.

    Raises:
        ValueError: dimensions do not fit.

    Example: with all weights 1, query [1, 0] and the positive example [0, 1] give [1, 1] / √2. With
    the additional negative example [0.6, 0.8], they give [0.4, 0.2] / √0.2.
    """
    query = np.asarray(query)
    examples = {"positive": np.asarray(positive), "negative": np.asarray(negative)}
    if query.ndim != 1:
        raise ValueError(f"query: expected a single vector, not an array of shape {query.shape}")
    for name, vectors in examples.items():
        if vectors.size and vectors.shape != (len(vectors), len(query)):
            raise ValueError(
                f"{name}: shape {vectors.shape} does not fit a query of {len(query)} dimensions"
            )
    marked = np.concatenate([vectors.reshape(-1, len(query)) for vectors in examples.values()])
    is_positive = np.arange(len(marked)) < examples["positive"].size // len(query)
    return refine_queries(
        query[None], marked[None], is_positive[None], ~is_positive[None], weights
    )[0]


def refine_queries(
    query: np.ndarray,
    marked: np.ndarray,
    is_positive: np.ndarray,
    is_negative: np.ndarray,
    weights: Rocchio,
) -> np.ndarray:
    """`refine` for (n, d) queries at once, with (n, m, d) images, of which (n, m) bool are positive
    or negative examples; an image that is neither does not count.
    """
    query, marked = np.asarray(query, np.float64), np.asarray(marked, np.float64)
    shares = weights.positive * _mean_shares(is_positive)
    shares = shares - weights.negative * _mean_shares(is_negative)
    refined = weights.query * query + (shares[:, None] @ marked)[:, 0]
    lengths = np.linalg.norm(refined, axis=1, keepdims=True)
    # A query without examples stays the same to the last bit, and so does its ranking.
    is_moved = shares.any(axis=1, keepdims=True) & (lengths > MIN_LENGTH)
    unit = np.where(is_moved, refined / np.where(is_moved, lengths, 1), query)
    return unit.astype(np.float32)


def _mean_shares(is_chosen: np.ndarray) -> np.ndarray:
    """(n, m) share of each image in the mean of the chosen ones; 0 if none is chosen."""
    return is_chosen / np.maximum(is_chosen.sum(axis=1, keepdims=True), 1)


def measure_feedback(embeddings: Embeddings) -> pd.DataFrame:
    """`simulate_feedback` with weights chosen on validation images; columns weight_… hold them."""
    weights = choose_weights(embeddings)
    columns = {f"weight_{name}": weight for name, weight in asdict(weights).items()}
    return simulate_feedback(embeddings, weights).assign(**columns)


def choose_weights(embeddings: Embeddings) -> Rocchio:
    """The smallest weights with an mAP in `score_weights` within `MAP_TOLERANCE` of the highest."""
    scores = score_weights(embeddings)
    means = scores["mean_average_precision"].fillna(0)
    good_enough = scores[means >= means.max() - MAP_TOLERANCE]
    best = good_enough.sort_values(["positive", "negative"])[["positive", "negative"]].iloc[0]
    return Rocchio(**best.astype(float))


def score_weights(embeddings: Embeddings) -> pd.DataFrame:
    """Score each pair of weights on the validation images, with the training images as gallery.

    Cached. One row per pair of `POSITIVE` and `NEGATIVE_SHARES`: positive, negative,
    mean_average_precision (after one round, on the images not yet marked; NaN if none is relevant).
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        labels = dataset.labels[dataset.validation]
        rows = sample_evenly(labels, MAX_VALIDATION, VALIDATION_SEED)
        pairs = [(one, share * one) for one, share in itertools.product(POSITIVE, NEGATIVE_SHARES)]
        scores = [[] for _ in pairs]
        queries = embeddings.vectors[dataset.validation[rows]], labels[rows], np.full(len(rows), -1)
        gallery = embeddings.vectors[dataset.train], dataset.labels[dataset.train]
        for block in _query_blocks(*queries, *gallery):
            original = block.rank(block.query)
            for (positive, negative), precisions in zip(pairs, scores, strict=True):
                weights = Rocchio(positive=positive, negative=negative)
                *_, (unmarked, _) = _rounds(block, original, weights, 1, MARKED)
                precisions.append(metrics.average_precision(block.relevant_ranks(unmarked)))
        table = pd.DataFrame(pairs, columns=["positive", "negative"])
        means = pd.DataFrame([np.concatenate(precisions) for precisions in scores]).mean(axis=1)
        table.assign(mean_average_precision=means).to_parquet(folder / "scores.parquet")

    reads = [embeddings.artifact.key, dataset.split_fingerprint]
    artifact = cached("feedback-weights", make, parameters={}, reads=reads, package="retrieval")
    return pd.read_parquet(artifact.folder / "scores.parquet")


def simulate_feedback(
    embeddings: Embeddings,
    weights: Rocchio,
    *,
    rounds: int = 3,
    marked: int = MARKED,
    max_queries: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Simulate a user who marks the nearest images by their class, query by query; cached.

    Args:
        rounds: number of rounds of marking.
        marked: images marked per round, the nearest that are not yet marked.
        max_queries: approximate number of queries, in equal shares of all classes; 0 for all.
        seed: seed of the choice of queries.

    Returns:
        One row per query and round; round 0 is before any marking. Columns: query (its position
        among all images), label, round, average_precision (of the refined query, on the images not
        yet marked), average_precision_without (of the original query, on the same images; both NaN
        if none of them is relevant), n_relevant (among these images), n_marked and n_positive (so
        far).

    Raises:
        ValueError: `rounds` is below 0, or `marked` below 1.
    """
    if rounds < 0 or marked < 1:
        raise ValueError(
            f"rounds must be 0 or more and marked 1 or more, not {rounds} and {marked}"
        )
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        rows = sample_evenly(dataset.query_labels, max_queries, seed)
        queries = embeddings.query[rows], dataset.query_labels[rows], dataset.exclude[rows]
        blocks = _query_blocks(*queries, embeddings.gallery, dataset.gallery_labels)
        frames = [_simulate_block(block, weights, rounds, marked) for block in blocks]
        table = pd.concat(frames, ignore_index=True)
        table.insert(0, "query", dataset.queries[rows[table.pop("row")]])
        table.sort_values(["query", "round"]).to_parquet(folder / "per_query.parquet", index=False)

    parameters = {"weights": asdict(weights), "rounds": rounds, "marked": marked}
    parameters |= {"max_queries": max_queries, "seed": seed}
    reads = [embeddings.artifact.key, dataset.search_fingerprint]
    artifact = cached("feedback", make, parameters=parameters, reads=reads, package="retrieval")
    return pd.read_parquet(artifact.folder / "per_query.parquet")


@dataclass(frozen=True)
class _QueryBlock:
    """A block of b queries, the rows of all queries that they are, and the gallery to search.

    `gallery_labels` has one more label, at -1, which stands for no image.
    """

    rows: slice
    query: np.ndarray
    labels: np.ndarray
    exclude: np.ndarray
    gallery: ranking.PreparedGallery
    gallery_labels: np.ndarray

    def rank(self, query: np.ndarray) -> np.ndarray:
        """(b, n_gallery) int32 gallery positions, nearest first, -1 for excluded images."""
        rankings, _ = ranking.search(query, self.gallery, len(self.gallery), exclude=self.exclude)
        return rankings

    def is_positive(self, marks: np.ndarray) -> np.ndarray:
        """(b, m) bool, which of (b, m) marked gallery positions are of the query's class."""
        return self.gallery_labels[marks] == self.labels[:, None]

    def unmarked(self, rankings: np.ndarray, marks: np.ndarray) -> list[np.ndarray]:
        """Each (b, n_gallery) ranking without its (b, m) marks."""
        remaining = []
        for positions, marked in zip(rankings, marks, strict=True):
            is_left = np.ones(len(self.gallery_labels), bool)
            is_left[marked] = is_left[-1] = False
            remaining.append(positions[is_left[positions]])
        return remaining

    def relevant_ranks(self, rankings: list[np.ndarray]) -> np.ndarray:
        """(b, R) ranks of the relevant images in these rankings, as in `metrics`."""
        ranks_by_query = [
            1 + np.flatnonzero(self.gallery_labels[positions] == label)
            for positions, label in zip(rankings, self.labels, strict=True)
        ]
        ranks = np.full((len(rankings), max(map(len, ranks_by_query))), np.nan)
        for row, query_ranks in zip(ranks, ranks_by_query, strict=True):
            row[: len(query_ranks)] = query_ranks
        return ranks


def _query_blocks(
    query: np.ndarray,
    labels: np.ndarray,
    exclude: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
) -> Iterator[_QueryBlock]:
    """Yield the queries block by block, so that few full rankings are in memory at once."""
    searched = ranking.prepare(gallery), np.append(gallery_labels, -1)
    size = min(BLOCK, max(1, MAX_PLACES // len(gallery)))
    starts = range(0, len(query), size)
    for start in progress(starts, len(starts), f"relevance feedback: blocks of {size} queries"):
        rows = slice(start, min(start + size, len(query)))
        yield _QueryBlock(rows, query[rows], labels[rows], exclude[rows], *searched)


def _rounds(
    block: _QueryBlock, original: np.ndarray, weights: Rocchio, rounds: int, marked: int
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Yield, after 0, 1 and more rounds, each query's ranking of the images not yet marked, and
    (b, marked * round) the marked positions, -1 if there was no image left to mark.
    """
    marks = np.empty((len(original), 0), np.int64)
    unmarked = block.unmarked(original, marks)
    yield unmarked, marks
    for _ in range(rounds):
        nearest = np.full((len(unmarked), marked), -1)
        for row, positions in zip(nearest, unmarked, strict=True):
            row[: len(positions)] = positions[:marked]
        marks = np.hstack([marks, nearest])
        is_positive = block.is_positive(marks)
        is_negative = (marks >= 0) & ~is_positive
        refined = refine_queries(
            block.query, block.gallery.rows[marks], is_positive, is_negative, weights
        )
        unmarked = block.unmarked(block.rank(refined), marks)
        yield unmarked, marks


def _simulate_block(block: _QueryBlock, weights: Rocchio, rounds: int, marked: int) -> pd.DataFrame:
    """The rows of `simulate_feedback` for a block; `row` is a query's row among all."""
    original, frames = block.rank(block.query), []
    for number, (unmarked, marks) in enumerate(_rounds(block, original, weights, rounds, marked)):
        ranks = block.relevant_ranks(unmarked)
        without = block.relevant_ranks(block.unmarked(original, marks))
        columns = {
            "row": np.arange(block.rows.start, block.rows.stop),
            "label": block.labels,
            "round": number,
            "average_precision": metrics.average_precision(ranks),
            "average_precision_without": metrics.average_precision(without),
            "n_relevant": metrics.n_relevant(ranks),
            "n_marked": (marks >= 0).sum(axis=1),
            "n_positive": block.is_positive(marks).sum(axis=1),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames)


def sample_evenly(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of about `size` labels, sorted, in equal shares of all classes; 0 for all."""
    return stratified_share(np.arange(len(labels)), size / max(1, len(labels)), labels, seed)
