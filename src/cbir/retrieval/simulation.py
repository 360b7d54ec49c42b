"""What marking brings: a simulated user marks the nearest images by their class, round by round.

The user looks at the ten nearest images that are not yet marked and marks those of the query's
class as meant, the others as not meant. The query is refined from the original one and all marks
so far, and what is not yet marked is ranked anew. Marked images are known, so they are not scored:
else moving them to the top would pass for finding more of their kind. Without them mAP changes by
itself, so the original query is scored on exactly the same images beside the refined one. Source:
Chang, Cirillo, Razon, Evaluation of Feedback Retrieval Using Modified Freezing, Residual
Collection, and Test and Control Groups, in Salton (ed.), The SMART Retrieval System (1971); Manning
et al. (2008), 9.1.3.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cbir.cache import cached
from cbir.images import splits
from cbir.progress import progress
from cbir.retrieval import metrics, ranking
from cbir.retrieval.feedback import Rocchio, refine_each

if TYPE_CHECKING:  # the vectors are there; how they were made does not matter here
    from cbir.networks.embeddings import Embeddings

# Weights to choose from, beside a weight of 1 for the query. None is 0: a mark always counts.
# Greater ones would leave little of the query to a person who marks one image instead of ten.
MEANT, NOT_MEANT = (0.5, 1.0, 2.0, 4.0), (0.1, 0.5, 1.0, 2.0)
MARKED = 10
# Of the choice of weights: validation images that ask, and what draws them.
MOST_VALIDATION, VALIDATION_SEED = 500, 0
# Queries a block, and the most places in its rankings: 16 MB.
BLOCK, MOST_PLACES = 64, 2**22


def measure(embeddings: "Embeddings") -> pd.DataFrame:
    """What marking brings to an embedding, with the weights that its validation images choose.

    Returns:
        The rows of `simulate`, with weight_query, weight_meant and weight_not_meant.
    """
    weights = choose_weights(embeddings)
    columns = {f"weight_{name}": weight for name, weight in asdict(weights).items()}
    return simulate(embeddings, weights).assign(**columns)


def choose_weights(embeddings: "Embeddings") -> Rocchio:
    """The weights of the highest mAP in `try_weights`, the smallest of equals."""
    order = {"mean_average_precision": False, "meant": True, "not_meant": True}
    tried = try_weights(embeddings).sort_values(list(order), ascending=list(order.values()))
    return Rocchio(meant=float(tried["meant"].iloc[0]), not_meant=float(tried["not_meant"].iloc[0]))


def try_weights(embeddings: "Embeddings") -> pd.DataFrame:
    """How well each pair of weights serves the validation images; computed once and kept.

    The training images are their gallery: no query has a say.

    Returns:
        A row a pair of `MEANT` and `NOT_MEANT`: meant, not_meant, mean_average_precision (after one
        round, on the images not yet marked; NaN where no validation image has a relevant one left).
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        labels = dataset.labels[dataset.validation]
        rows = _spread(labels, MOST_VALIDATION, VALIDATION_SEED)
        pairs = list(itertools.product(MEANT, NOT_MEANT))
        scores = [[] for _ in pairs]
        for asked in _each_block(
            embeddings.vectors[dataset.validation[rows]],
            labels[rows],
            np.full(len(rows), -1),
            embeddings.vectors[dataset.train],
            dataset.labels[dataset.train],
        ):
            original = asked.rank(asked.query)
            for (meant, not_meant), found in zip(pairs, scores, strict=True):
                weights = Rocchio(meant=meant, not_meant=not_meant)
                *_, (rest, _) = _rounds(asked, original, weights, 1, MARKED)
                found.append(metrics.average_precision(asked.ranks(rest)))
        table = pd.DataFrame(pairs, columns=["meant", "not_meant"])
        means = pd.DataFrame([np.concatenate(found) for found in scores]).mean(axis=1)
        table.assign(mean_average_precision=means).to_parquet(folder / "tried.parquet")

    artifact = cached(
        "feedback-weights",
        make,
        parameters={},
        reads=[embeddings.artifact.key, dataset.split_fingerprint],
        code=__name__,
    )
    return pd.read_parquet(artifact.folder / "tried.parquet")


def simulate(
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
        none of them is relevant), n_relevant (among these), n_marked and n_meant (so far).

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
        code=__name__,
    )
    return pd.read_parquet(artifact.folder / "per_query.parquet")


@dataclass(frozen=True)
class _Asked:
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

    def is_meant(self, marks: np.ndarray) -> np.ndarray:
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
) -> Iterator[_Asked]:
    """The queries block by block, so that few whole rankings stand in memory at once."""
    known = gallery, np.append(gallery_labels, -1), ranking.first_of_equals(gallery)
    size = min(BLOCK, max(1, MOST_PLACES // len(gallery)))
    starts = range(0, len(query), size)
    for start in progress(starts, len(starts), f"blocks of {size} queries, marked"):
        rows = slice(start, min(start + size, len(query)))
        yield _Asked(rows, query[rows], labels[rows], exclude[rows], *known)


def _rounds(
    asked: _Asked, original: np.ndarray, weights: Rocchio, rounds: int, marked: int
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
        meant = asked.is_meant(marks)
        not_meant = (marks >= 0) & ~meant
        refined = refine_each(asked.query, asked.gallery[marks], meant, not_meant, weights)
        rest = asked.unmarked(asked.rank(refined), marks)
        yield rest, marks


def _play(asked: _Asked, weights: Rocchio, rounds: int, marked: int) -> pd.DataFrame:
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
            "n_meant": asked.is_meant(marks).sum(axis=1),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames)


def _spread(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Places of about so many labels, sorted, in equal shares of all classes; 0 for all."""
    return splits.share(np.arange(len(labels)), most / max(1, len(labels)), labels, seed)
