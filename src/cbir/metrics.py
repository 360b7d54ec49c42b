"""Retrieval metrics, each from where the relevant images of a query stand in its ranking.

Every function takes `ranks`, (n_queries, R) as `retrieval.relevant_ranks` gives them: rising from
1 on, infinite for a relevant image that the search may not return (it counts as missed), NaN in
places left over. It returns (n_queries,) float64, NaN for a query without relevant images.

Worked example, used below: four relevant images at ranks 1, 3, 6 and 10, `[[1, 3, 6, 10]]`.
"""

import numpy as np
import pandas as pd


def n_relevant(ranks: np.ndarray) -> np.ndarray:
    """R, the number of relevant images in the gallery. Example: 4."""
    return (~np.isnan(ranks)).sum(axis=1)


def precision_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k results that are relevant: |{rank <= k}| / k. Example, k = 3: 2/3.

    Divides by k also where the search returns fewer. Source: Manning, Raghavan, Schütze,
    Introduction to Information Retrieval (2008), 8.4.
    """
    return _per_query(ranks, (ranks <= k).sum(axis=1) / k)


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant images among the first k: |{rank <= k}| / R. Example, k = 3: 2/4.

    Source: Manning et al. (2008), 8.3. Not to be confused with `hit_rate_at_k`, which the
    metric-learning literature calls recall@k.
    """
    return _divide((ranks <= k).sum(axis=1), n_relevant(ranks))


def hit_rate_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 where any of the first k results is relevant, else 0. Example, k = 3: 1.

    Source: Jégou, Douze, Schmid, Product quantization for nearest neighbor search (2011), there
    "recall@R" for one relevant image.
    """
    return _per_query(ranks, (ranks <= k).any(axis=1).astype(float))


def average_precision(ranks: np.ndarray, k: int | None = None) -> np.ndarray:
    """Mean of the precision at each relevant image: sum(i / rank_i) / R, i counting from 1.

    With k only ranks up to k enter, and the sum is divided by min(R, k), so that a perfect top k
    scores 1 (the literature also divides by R, or by the hits found). A relevant image that is
    never returned adds 0. Example: (1/1 + 2/3 + 3/6 + 4/10) / 4 = 0.642; k = 3:
    (1/1 + 2/3) / 3 = 0.556. Source: Manning et al. (2008), 8.4.
    """
    found = ranks <= (np.inf if k is None else k)
    place = np.arange(1, ranks.shape[1] + 1)
    total = np.where(found, place / np.where(found, ranks, 1), 0).sum(axis=1, dtype=np.float64)
    relevant = n_relevant(ranks)
    return _divide(total, relevant if k is None else np.minimum(relevant, k))


def r_precision(ranks: np.ndarray) -> np.ndarray:
    """Precision at R, the number of relevant images. Example: ranks up to 4, 2/4.

    Source: Manning et al. (2008), 8.4.
    """
    relevant = n_relevant(ranks)
    return _divide((ranks <= relevant[:, None]).sum(axis=1), relevant)


def reciprocal_rank(ranks: np.ndarray) -> np.ndarray:
    """1 / rank of the first relevant image, 0 where none is returned. Example: 1.

    Source: Voorhees, The TREC-8 Question Answering Track Report (1999).
    """
    if not ranks.shape[1]:
        return np.full(len(ranks), np.nan)
    return 1 / ranks[:, 0].astype(np.float64)


def per_query(ranks: np.ndarray, ks: list[int]) -> pd.DataFrame:
    """All metrics, a row per query in the order given.

    Returns:
        Columns n_relevant, average_precision, r_precision, reciprocal_rank, and for each k
        precision@k, recall@k, hit_rate@k, average_precision@k.
    """
    columns = {
        "n_relevant": n_relevant(ranks),
        "average_precision": average_precision(ranks),
        "r_precision": r_precision(ranks),
        "reciprocal_rank": reciprocal_rank(ranks),
    }
    for k in ks:
        columns[f"precision@{k}"] = precision_at_k(ranks, k)
        columns[f"recall@{k}"] = recall_at_k(ranks, k)
        columns[f"hit_rate@{k}"] = hit_rate_at_k(ranks, k)
        columns[f"average_precision@{k}"] = average_precision(ranks, k)
    return pd.DataFrame(columns)


def _divide(numerator: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Divided by a number of relevant images; NaN where a query has none."""
    return np.where(relevant > 0, numerator / np.maximum(relevant, 1), np.nan)


def _per_query(ranks: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(n_relevant(ranks) > 0, values, np.nan)
