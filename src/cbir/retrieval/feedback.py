"""What did the person mean? A query moved by what is marked as meant and as not meant.

A picture says more than its person wanted to say: the class, but the colours and the pose too.
Whoever marks a few results tells which of it was meant. Rocchio's formula takes the query towards
the mean of what is meant and away from the mean of what is not; the search is then repeated with
it. Source: Rocchio, Relevance Feedback in Information Retrieval, in Salton (ed.), The SMART
Retrieval System (1971); Manning, Raghavan, Schütze, Introduction to Information Retrieval (2008),
9.1.1. `simulation` chooses the weights and measures what marking brings.
"""

from dataclasses import asdict, dataclass

import numpy as np

# Unit vectors that add up to less than this cancel out: what is left is rounding.
NOTHING = 1e-6


@dataclass(frozen=True)
class Rocchio:
    """How much the query and the marks count, each from 0 on; only their ratios matter.

    Where nobody has chosen them for an embedding, they are those that Manning et al. (2008), 9.1.1,
    hold reasonable: what is meant counts for more than what is not.

    Attributes:
        query: of the query as it was asked.
        meant: of the mean of the images that are marked as meant.
        not_meant: of the mean of those marked as not meant, which is taken away.

    Raises:
        ValueError: a weight is below 0 or not finite.
    """

    query: float = 1.0
    meant: float = 0.75
    not_meant: float = 0.15

    def __post_init__(self):
        for name, weight in asdict(self).items():
            if not 0 <= weight < np.inf:
                raise ValueError(f"{name}: a weight is a finite number from 0 on, not {weight!r}")

    def __str__(self) -> str:
        return f"{self.query:g} query + {self.meant:g} meant − {self.not_meant:g} not meant"


def refine(
    query: np.ndarray, meant: np.ndarray, not_meant: np.ndarray, weights: Rocchio
) -> np.ndarray:
    """The query that the marks ask for; the same query where nothing is marked.

    Args:
        query: (d,) of unit length, as it was asked: all marks so far are given each time.
        meant, not_meant: (n, d) of unit length, the images marked so far; either may be empty.
        weights: of the three.

    Returns:
        (d,) float32 of unit length: weights.query · query + weights.meant · mean(meant) −
        weights.not_meant · mean(not_meant), divided by its length. Where they cancel out, which
        leaves no direction, it is the query.

    Raises:
        ValueError: dimensions do not fit.

    Example: with all weights 1, query [1, 0] and [0, 1] meant give [1, 1] / √2; with [0.6, 0.8] not
    meant besides, [0.4, 0.2] / √0.2.
    """
    query = np.asarray(query)
    parts = {"meant": np.asarray(meant), "not_meant": np.asarray(not_meant)}
    if query.ndim != 1:
        raise ValueError(f"query: one vector is refined, not an array of shape {query.shape}")
    for name, part in parts.items():
        if part.size and part.shape != (len(part), len(query)):
            raise ValueError(f"{name}: {part.shape} does not fit a query of {len(query)} numbers")
    marked = np.concatenate([part.reshape(-1, len(query)) for part in parts.values()])
    is_meant = np.arange(len(marked)) < parts["meant"].size // len(query)
    return refine_each(query[None], marked[None], is_meant[None], ~is_meant[None], weights)[0]


def refine_each(
    query: np.ndarray,
    marked: np.ndarray,
    meant: np.ndarray,
    not_meant: np.ndarray,
    weights: Rocchio,
) -> np.ndarray:
    """`refine` for many queries at once.

    Args:
        query: (n, d) of unit length.
        marked: (n, m, d) of unit length, the images that each query has marked.
        meant, not_meant: (n, m) bool, as what; an image that is neither counts nothing.
        weights: of the three.

    Returns:
        (n, d) float32 of unit length.
    """
    query, marked = np.asarray(query, np.float64), np.asarray(marked, np.float64)
    shares = weights.meant * _shares(meant) - weights.not_meant * _shares(not_meant)
    refined = weights.query * query + (shares[:, None] @ marked)[:, 0]
    lengths = np.linalg.norm(refined, axis=1, keepdims=True)
    # Unmarked, a query stays what it is to the last bit, and so does its ranking.
    is_moved = shares.any(axis=1, keepdims=True) & (lengths > NOTHING)
    unit = np.where(is_moved, refined / np.where(is_moved, lengths, 1), query)
    return unit.astype(np.float32)


def _shares(chosen: np.ndarray) -> np.ndarray:
    """(n, m) what each image counts in the mean of those chosen: 0 where there are none."""
    return chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1)
