"""What did the person mean? A query moved by what is marked as positive and as negative.

A picture says more than its person wanted to say: the class, but the colours and the pose too.
Whoever marks a few results tells which of it was meant. Rocchio's formula takes the query towards
the mean of what is meant and away from the mean of what is not; the search is then repeated with
it. Source: Rocchio, Relevance Feedback in Information Retrieval, in Salton (ed.), The SMART
Retrieval System (1971); Manning, Raghavan, Schütze, Introduction to Information Retrieval (2008),
9.1.1. `simulation` chooses the weights and measures what marking brings.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cbir.cache import cached
from cbir.images.dataset import stratified_share
from cbir.progress import progress
from cbir.retrieval import metrics, ranking

if TYPE_CHECKING:  # the vectors are there; how they were made does not matter here
    from cbir.networks.embeddings import Embeddings

# Unit vectors that add up to less than this cancel out: what is left is rounding.
NOTHING = 1e-6


@dataclass(frozen=True)
class Rocchio:
    """How much the query and the marks count, each from 0 on; only their ratios matter.

    Where nobody has chosen them for an embedding, they are those that Manning et al. (2008), 9.1.1,
    hold reasonable: what is meant counts for more than what is not.

    Attributes:
        query: of the query as it was asked.
        positive: of the mean of the images that are marked as positive.
        negative: of the mean of those marked as negative, which is taken away.

    Raises:
        ValueError: a weight is below 0 or not finite.
    """

    query: float = 1.0
    positive: float = 0.75
    negative: float = 0.15

    def __post_init__(self):
        for name, weight in asdict(self).items():
            if not 0 <= weight < np.inf:
                raise ValueError(f"{name}: a weight is a finite number from 0 on, not {weight!r}")

    def __str__(self) -> str:
        return f"{self.query:g} query + {self.positive:g} positive − {self.negative:g} negative"


def refine(
    query: np.ndarray, positive: np.ndarray, negative: np.ndarray, weights: Rocchio
) -> np.ndarray:
    """The query that the marks ask for; the same query where nothing is marked.

    Args:
        query: (d,) of unit length, as it was asked: all marks so far are given each time.
        positive, negative: (n, d) of unit length, the images marked so far; either may be empty.
        weights: of the three.

    Returns:
        (d,) float32 of unit length: weights.query · query + weights.positive · mean(positive) −
        weights.negative · mean(negative), divided by its length. Where they cancel out, which
        leaves no direction, it is the query.

    Raises:
        ValueError: dimensions do not fit.

    Example: with all weights 1, query [1, 0] and [0, 1] meant give [1, 1] / √2; with [0.6, 0.8] not
    meant besides, [0.4, 0.2] / √0.2.
    """
    query = np.asarray(query)
    parts = {"positive": np.asarray(positive), "negative": np.asarray(negative)}
    if query.ndim != 1:
        raise ValueError(f"query: one vector is refined, not an array of shape {query.shape}")
    for name, part in parts.items():
        if part.size and part.shape != (len(part), len(query)):
            raise ValueError(f"{name}: {part.shape} does not fit a query of {len(query)} numbers")
    marked = np.concatenate([part.reshape(-1, len(query)) for part in parts.values()])
    is_positive = np.arange(len(marked)) < parts["positive"].size // len(query)
    return refine_each(query[None], marked[None], is_positive[None], ~is_positive[None], weights)[0]


def refine_each(
    query: np.ndarray,
    marked: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    weights: Rocchio,
) -> np.ndarray:
    """`refine` for many queries at once.

    Args:
        query: (n, d) of unit length.
        marked: (n, m, d) of unit length, the images that each query has marked.
        positive, negative: (n, m) bool, as what; an image that is neither counts nothing.
        weights: of the three.

    Returns:
        (n, d) float32 of unit length.
    """
    query, marked = np.asarray(query, np.float64), np.asarray(marked, np.float64)
    shares = weights.positive * _shares(positive) - weights.negative * _shares(negative)
    refined = weights.query * query + (shares[:, None] @ marked)[:, 0]
    lengths = np.linalg.norm(refined, axis=1, keepdims=True)
    # Unmarked, a query stays what it is to the last bit, and so does its ranking.
    is_moved = shares.any(axis=1, keepdims=True) & (lengths > NOTHING)
    unit = np.where(is_moved, refined / np.where(is_moved, lengths, 1), query)
    return unit.astype(np.float32)


def _shares(chosen: np.ndarray) -> np.ndarray:
    """(n, m) what each image counts in the mean of those chosen: 0 where there are none."""
    return chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1)


# Weights to choose from, beside a weight of 1 for the query. None is 0: a mark always counts.
# Greater ones would leave little of the query to a person who marks one image instead of ten.
POSITIVE, NEGATIVE = (0.5, 1.0, 2.0, 4.0), (0.1, 0.5, 1.0, 2.0)
MARKED = 10
# Of the choice of weights: validation images that ask, and what draws them.
MOST_VALIDATION, VALIDATION_SEED = 500, 0
# Queries a block, and the most places in its rankings: 16 MB.
BLOCK, MOST_PLACES = 64, 2**22


def measure_feedback(embeddings: "Embeddings") -> pd.DataFrame:
    """What marking brings to an embedding, with the weights that its validation images choose.

    Returns:
        The rows of `simulate`, with weight_query, weight_positive and weight_negative.
    """
    weights = choose_weights(embeddings)
    columns = {f"weight_{name}": weight for name, weight in asdict(weights).items()}
    return simulate_feedback(embeddings, weights).assign(**columns)


def choose_weights(embeddings: "Embeddings") -> Rocchio:
    """The weights of the highest mAP in `try_weights`, the smallest of equals."""
    order = {"mean_average_precision": False, "positive": True, "negative": True}
    tried = try_weights(embeddings).sort_values(list(order), ascending=list(order.values()))
    best = tried[["positive", "negative"]].iloc[0]
    return Rocchio(**best.astype(float))


def try_weights(embeddings: "Embeddings") -> pd.DataFrame:
    """How well each pair of weights serves the validation images; computed once and kept.

    The training images are their gallery: no query has a say.

    Returns:
        A row a pair of `POSITIVE` and `NEGATIVE`: positive, negative, mean_average_precision (after
        one round, on the images not yet marked; NaN where no image has a relevant one left).
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        labels = dataset.labels[dataset.validation]
        rows = _spread(labels, MOST_VALIDATION, VALIDATION_SEED)
        pairs = list(itertools.product(POSITIVE, NEGATIVE))
        scores = [[] for _ in pairs]
        for asked in _each_block(
            embeddings.vectors[dataset.validation[rows]],
            labels[rows],
            np.full(len(rows), -1),
            embeddings.vectors[dataset.train],
            dataset.labels[dataset.train],
        ):
            original = asked.rank(asked.query)
            for (positive, negative), found in zip(pairs, scores, strict=True):
                weights = Rocchio(positive=positive, negative=negative)
                *_, (rest, _) = _rounds(asked, original, weights, 1, MARKED)
                found.append(metrics.average_precision(asked.ranks(rest)))
        table = pd.DataFrame(pairs, columns=["positive", "negative"])
        means = pd.DataFrame([np.concatenate(found) for found in scores]).mean(axis=1)
        table.assign(mean_average_precision=means).to_parquet(folder / "tried.parquet")

    artifact = cached(
        "feedback-weights",
        make,
        parameters={},
        reads=[embeddings.artifact.key, dataset.split_fingerprint],
        package="retrieval",
    )
    return pd.read_parquet(artifact.folder / "tried.parquet")


def simulate_feedback(
    embeddings: "Embeddings",
    weights: Rocchio,
    *,
    rounds: int = 3,
    marked: int = MARKED,
    most_queries: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """A user who marks the nearest images by their class, query by query; computed once and kept.

    Args:
        embeddings: of gallery and queries.
        weights: of the query and of what is marked.
        rounds: how often the user marks.
        marked: how many images a round, the nearest that are not yet marked.
        most_queries: about how many queries ask, in equal shares of all classes; 0 for all.
        seed: draws them.

    Returns:
        A row per query and round, from round 0, before any mark, on: query (its position among all
        images), label, round, average_precision (of the refined query, on the images not yet
        marked), average_precision_without (of the original query on the same images; both NaN where
        none of them is relevant), n_relevant (among these), n_marked and n_positive (so far).

    Raises:
        ValueError: fewer than 0 rounds, or than one image a round.
    """
    if rounds < 0 or marked < 1:
        raise ValueError(f"rounds from 0 and marked from 1 on, not {rounds} and {marked}")
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        rows = _spread(dataset.query_labels, most_queries, seed)
        blocks = _each_block(
            embeddings.query[rows],
            dataset.query_labels[rows],
            dataset.exclude[rows],
            embeddings.gallery,
            dataset.gallery_labels,
        )
        played = [_play(asked, weights, rounds, marked) for asked in blocks]
        table = pd.concat(played, ignore_index=True)
        table.insert(0, "query", dataset.queries[rows[table.pop("place")]])
        table.sort_values(["query", "round"]).to_parquet(folder / "per_query.parquet", index=False)

    artifact = cached(
        "feedback",
        make,
        parameters={
            "weights": asdict(weights),
            "rounds": rounds,
            "marked": marked,
            "most_queries": most_queries,
            "seed": seed,
        },
        reads=[embeddings.artifact.key, dataset.search_fingerprint],
        package="retrieval",
    )
    return pd.read_parquet(artifact.folder / "per_query.parquet")


@dataclass(frozen=True)
class _QueryBlock:
    """A block of the queries, and the gallery that they are asked of.

    Attributes:
        rows: which of the queries.
        query, labels, exclude: (b, d), (b,) and (b,), theirs.
        gallery: (n_gallery, d) float32.
        gallery_labels: (n_gallery + 1,) int; at -1, which is no image, stands a class of nothing.
        first: `ranking.first_of_equals` of the gallery.
    """

    rows: slice
    query: np.ndarray
    labels: np.ndarray
    exclude: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray
    first: np.ndarray

    def rank(self, query: np.ndarray) -> np.ndarray:
        """(b, n_gallery) int32 gallery positions, nearest first, -1 for what is excluded."""
        found, _ = ranking.search(
            query, self.gallery, len(self.gallery), exclude=self.exclude, first=self.first
        )
        return found

    def is_positive(self, marks: np.ndarray) -> np.ndarray:
        """(b, m) bool, which of (b, m) marked gallery positions are of the query's class."""
        return self.gallery_labels[marks] == self.labels[:, None]

    def unmarked(self, ranked: np.ndarray, marks: np.ndarray) -> list[np.ndarray]:
        """What (b, m) marks leave of each (b, n_gallery) ranking, in its order."""
        found = []
        for row, marked in zip(ranked, marks, strict=True):
            is_left = np.ones(len(self.gallery_labels), bool)
            is_left[marked] = is_left[-1] = False
            found.append(row[is_left[row]])
        return found

    def ranks(self, rest: list[np.ndarray]) -> np.ndarray:
        """(b, R) ranks of the relevant images in what is left, as `metrics` takes them."""
        found = [
            1 + np.flatnonzero(self.gallery_labels[row] == label)
            for row, label in zip(rest, self.labels, strict=True)
        ]
        ranks = np.full((len(found), max(map(len, found))), np.nan)
        for row, own in zip(ranks, found, strict=True):
            row[: len(own)] = own
        return ranks


def _each_block(
    query: np.ndarray,
    labels: np.ndarray,
    exclude: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
) -> Iterator[_QueryBlock]:
    """The queries block by block, so that few whole rankings stand in memory at once."""
    known = gallery, np.append(gallery_labels, -1), ranking.first_of_equals(gallery)
    size = min(BLOCK, max(1, MOST_PLACES // len(gallery)))
    starts = range(0, len(query), size)
    for start in progress(starts, len(starts), f"blocks of {size} queries, marked"):
        rows = slice(start, min(start + size, len(query)))
        yield _QueryBlock(rows, query[rows], labels[rows], exclude[rows], *known)


def _rounds(
    asked: _QueryBlock, original: np.ndarray, weights: Rocchio, rounds: int, marked: int
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """After 0, 1 and more rounds: what is not yet marked, nearest first, and what is.

    Args:
        original: (b, n_gallery) the rankings of the queries as they were asked.

    Yields:
        A ranking of gallery positions for each query, and the (b, marked * round) positions of its
        marks, -1 where there was nothing left to mark.
    """
    marks = np.empty((len(original), 0), np.int64)
    rest = asked.unmarked(original, marks)
    yield rest, marks
    for _ in range(rounds):
        nearest = np.full((len(rest), marked), -1)
        for row, ranked in zip(nearest, rest, strict=True):
            row[: len(ranked)] = ranked[:marked]
        marks = np.hstack([marks, nearest])
        positive = asked.is_positive(marks)
        negative = (marks >= 0) & ~positive
        refined = refine_each(asked.query, asked.gallery[marks], positive, negative, weights)
        rest = asked.unmarked(asked.rank(refined), marks)
        yield rest, marks


def _play(asked: _QueryBlock, weights: Rocchio, rounds: int, marked: int) -> pd.DataFrame:
    """The rows of `simulate` for a block of queries; `place` is a query's among all that ask."""
    original, frames = asked.rank(asked.query), []
    for number, (rest, marks) in enumerate(_rounds(asked, original, weights, rounds, marked)):
        ranks, without = asked.ranks(rest), asked.ranks(asked.unmarked(original, marks))
        columns = {
            "place": np.arange(asked.rows.start, asked.rows.stop),
            "label": asked.labels,
            "round": number,
            "average_precision": metrics.average_precision(ranks),
            "average_precision_without": metrics.average_precision(without),
            "n_relevant": metrics.n_relevant(ranks),
            "n_marked": (marks >= 0).sum(axis=1),
            "n_positive": asked.is_positive(marks).sum(axis=1),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames)


def _spread(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Places of about so many labels, sorted, in equal shares of all classes; 0 for all."""
    return stratified_share(np.arange(len(labels)), most / max(1, len(labels)), labels, seed)
