"""The definitions of mAP@k in use: one ranking, scored by each of them.

All definitions sum the precision at the ranks of relevant images, i / rank of the i-th. They differ
in the number of results that they consider and in their divisor.
`reporting.tables.DEFINITION_TEXTS` holds the formula and the users of each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cbir.retrieval import metrics, uncertainty

# The number of queries scored at a time. It limits the memory if thousands of images are relevant.
BATCH = 1000


@dataclass(frozen=True)
class Definition:
    """One definition of mean average precision.

    `score` is a function of `ranks`, as in `metrics`, and k: (n_queries,) float64 from 0 to 1, NaN
    for a query without relevant images.
    """

    definition: str
    score: Callable[[np.ndarray, int], np.ndarray]


def compare_definitions(ranks: np.ndarray, k: int) -> pd.DataFrame:
    """Score the same rankings by every definition.

    Args:
        ranks: (n_queries, R) float, as in `metrics`.
        k: at least 1, else ValueError.

    Example: ranks 1 and 3, and two of four relevant images beyond the first k = 3 results. The
    precisions 1/1 and 2/3 add up to 1.667, which is 0.417 divided by R = 4, 0.556 by min(R, k) = 3
    and 0.833 by the 2 hits found.

    Returns:
        One row per definition: definition, value (mAP: the mean over the queries with a relevant
        image, NaN if there are none), ci_low, ci_high.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    rows = []
    for definition in DEFINITIONS:
        batches = range(0, len(ranks), BATCH)
        scores = [definition.score(ranks[start : start + BATCH], k) for start in batches]
        scores = pd.DataFrame({"mAP": np.concatenate([[], *scores])})
        mean = uncertainty.intervals(scores).loc["mAP", ["value", "ci_low", "ci_high"]]
        rows.append({"definition": definition.definition, **mean})
    return pd.DataFrame(rows)


def _trapezoid(ranks: np.ndarray, _: int) -> np.ndarray:
    """Each hit adds the mean of the precisions just before it (1 before rank 1) and at it."""
    earlier = np.arange(ranks.shape[1])
    rank = np.where(np.isnan(ranks), np.inf, ranks).astype(np.float64)
    before = np.where(rank == 1, 1, earlier / np.maximum(rank - 1, 1))
    at = (earlier + 1) / rank
    relevant = metrics.n_relevant(ranks)
    return ((before + at) / 2).sum(axis=1) / np.where(relevant > 0, relevant, np.nan)


def _precisions(ranks: np.ndarray, k: int) -> np.ndarray:
    """Sum of the precisions at ranks up to k; NaN for a query without relevant images."""
    return metrics.average_precision(ranks, k) * np.minimum(metrics.n_relevant(ranks), k)


DEFINITIONS = (
    Definition(
        definition="AP@k by min(R, k)",
        score=metrics.average_precision,
    ),
    Definition(
        definition="AP@k by R",
        score=lambda ranks, k: _precisions(ranks, k) / np.maximum(metrics.n_relevant(ranks), 1),
    ),
    Definition(
        definition="AP@k by hits found",
        score=lambda ranks, k: (
            _precisions(ranks, k) / np.maximum((ranks[:, :k] <= k).sum(axis=1), 1)
        ),
    ),
    Definition(
        definition="MAP@R",
        score=lambda ranks, _: metrics.average_precision_at_r(ranks),
    ),
    Definition(
        definition="AP of the full ranking",
        score=lambda ranks, _: metrics.average_precision(ranks),
    ),
    Definition(
        definition="AP of the full ranking, trapezoids",
        score=_trapezoid,
    ),
)
