"""Retrieval metrics, computed from the ranks of each query's relevant images.

`evaluate_retrieval` turns embeddings into a table. The functions below it take `ranks`, (n, R) as
from `ranking.relevant_ranks`: ascending from 1, infinite for a relevant image that the search may
not return (it counts as missed), NaN in the remaining places. They return (n,) float64, NaN for a
query without relevant images.

The examples use four relevant images at ranks 1, 3, 6 and 10: `[[1, 3, 6, 10]]`.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from cbir.retrieval import ranking


def evaluate_retrieval(
    query_embeddings: np.ndarray,
    query_labels: np.ndarray,
    gallery_embeddings: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    ks: Iterable[int] = (1, 5, 10, 100, 1000),
    restrict_to: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
) -> pd.DataFrame:
    """Compute all metrics of every query's full ranking by cosine similarity.

    Args:
        query_embeddings, gallery_embeddings: (n_queries, d) and (n_gallery, d) numbers, rows of any
            length except zero. Similarities that differ by at most 1e-12, relative to the sum of
            the absolute products that they consist of, are ties and keep the order of the gallery;
            the similarities of integers, such as binary codes, are exact. A query's scores depend
            on neither the other queries nor the number of threads.
        query_labels, gallery_labels: (n_queries,) and (n_gallery,) int class ids, 0 or greater; an
            image is relevant to queries of its class.
        ks: depths at which to measure, 1 or greater; they may exceed the size of the gallery.
        restrict_to: the classes that a query's search may return: one, (n_queries,) int ids, or
            several, (n_queries, n_classes) bool; all by default. Relevant images of other classes
            count as missed.
        exclude: (n_queries,) int, the gallery position of the query itself, -1 if it is not in the
            gallery; it is neither ranked nor relevant.

    Returns:
        One row per query, in their order, with the columns of `per_query`.

    Raises:
        ValueError: empty or masked arrays, shapes or types that do not fit, NaN, infinite or zero
            rows, or ids out of range; the message names the argument and the first invalid row.

    Example: for query [1, 0] of class 0, the ranking is [2, 0], [1, 1], [0, 3], with the classes 0,
    1 and 0. The relevant ranks are 1 and 3, and the average precision is (1/1 + 2/3) / 2 = 0.833.
    """
    scores, _, _ = search_and_evaluate(
        query_embeddings, query_labels, gallery_embeddings, gallery_labels,
        k=0, ks=ks, restrict_to=restrict_to, exclude=exclude,
    )  # fmt: skip
    return scores


def search_and_evaluate(
    *arrays: np.ndarray, k: int, ks: Iterable[int], **restrictions
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """`evaluate_retrieval` of the same arguments, and the k nearest images and their similarities,
    as from `ranking.search`.
    """
    if not isinstance(ks, Iterable):
        raise ValueError(f"ks must be a sequence of depths, such as (1, 10), not {ks!r}")
    ks = [ranking.check_count("ks", k, least=1) for k in dict.fromkeys(ks)]
    blocks = ranking.relevant_ranks(*arrays, k=k, **restrictions)
    scores, rankings, similarities = zip(
        *((per_query(ranks, ks), *nearest) for ranks, *nearest in _ahead(blocks)), strict=True
    )
    scores = pd.concat(scores, ignore_index=True)
    return scores, np.concatenate(rankings), np.concatenate(similarities)


def per_query(ranks: np.ndarray, ks: Iterable[int]) -> pd.DataFrame:
    """Compute all metrics of (n, R) ranks.

    One row per query: n_relevant, average_precision, r_precision, average_precision_at_r,
    reciprocal_rank, and for each k precision@k, recall@k, hit_rate@k, average_precision@k, ndcg@k.
    """
    columns = {
        "n_relevant": n_relevant(ranks),
        "average_precision": average_precision(ranks),
        "r_precision": r_precision(ranks),
        "average_precision_at_r": average_precision_at_r(ranks),
        "reciprocal_rank": reciprocal_rank(ranks),
    }
    for k in ks:
        columns[f"precision@{k}"] = precision_at_k(ranks, k)
        columns[f"recall@{k}"] = recall_at_k(ranks, k)
        columns[f"hit_rate@{k}"] = hit_rate_at_k(ranks, k)
        columns[f"average_precision@{k}"] = average_precision(ranks, k)
        columns[f"ndcg@{k}"] = ndcg_at_k(ranks, k)
    return pd.DataFrame(columns)


def n_relevant(ranks: np.ndarray) -> np.ndarray:
    """R, the number of relevant images in the gallery, (n_queries,) int. Example: 4."""
    return np.count_nonzero(~np.isnan(ranks), axis=1)


def precision_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k results that are relevant: |{rank <= k}| / k. Example, k = 3: 2/3.

    Divides by k even if the search returns fewer images. Source: Manning, Raghavan, Schütze,
    Introduction to Information Retrieval (2008), 8.4.
    """
    return np.where(_any_relevant(ranks), _hits(ranks, k) / k, np.nan)


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant images among the first k: |{rank <= k}| / R. Example, k = 3: 2/4.

    Source: Manning et al. (2008), 8.3. Not to be confused with `hit_rate_at_k`, which the
    metric-learning literature calls recall@k.
    """
    return _divide(_hits(ranks, k), n_relevant(ranks))


def hit_rate_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 if any of the first k results is relevant, else 0. Example, k = 3: 1.

    Source: Jégou, Douze, Schmid, Product quantization for nearest neighbor search (2011), where it
    is called "recall@R", for one relevant image.
    """
    return np.where(_any_relevant(ranks), _hits(ranks, k) > 0, np.nan)


def average_precision(ranks: np.ndarray, k: int | None = None) -> np.ndarray:
    """Mean of the precision at each relevant image: sum(i / rank_i) / R, i counting from 1.

    With k, only ranks up to k count, and the sum is divided by min(R, k), so that the best possible
    first k results score 1 (`map_definitions` has other divisors). A relevant image that is never
    returned adds 0. Example: (1/1 + 2/3 + 3/6 + 4/10) / 4 = 0.642; k = 3:
    (1/1 + 2/3) / 3 = 0.556. Source: Manning et al. (2008), 8.4.
    """
    ranks = ranks[:, :k]
    return _divide(_precisions(ranks, np.inf if k is None else k), n_relevant(ranks))


def average_precision_at_r(ranks: np.ndarray) -> np.ndarray:
    """Average precision over the first R results: sum(P(i) rel(i), i <= R) / R.

    P(i) is the precision at i, and rel(i) is 1 if result i is relevant, else 0. Example: hits at
    1 and 3 of the first 4 results, (1/1 + 2/3) / 4 = 0.417. Source: Musgrave, Belongie, Lim,
    A Metric Learning Reality Check (2020), 3.1, there "MAP@R".
    """
    relevant = n_relevant(ranks)
    return _divide(_precisions(ranks, relevant[:, None]), relevant)


def ndcg_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k results, with a gain of 1 per hit.

    sum(1 / log2(rank + 1), rank <= k) / sum(1 / log2(i + 1), i <= min(R, k)).
    Example, k = 3: (1/1 + 1/2) / (1/1 + 1/1.585 + 1/2) = 0.704. Source: Järvelin, Kekäläinen,
    Cumulated gain-based evaluation of IR techniques (2002); Manning et al. (2008), 8.4.
    """
    ranks = ranks[:, :k]
    places = np.arange(1, ranks.shape[1] + 1)
    gains = 1 / np.log2(_up_to(ranks, k).astype(np.float64) + 1)
    ideal = np.append(0, np.cumsum(1 / np.log2(places + 1)))
    return _divide(gains.sum(axis=1), ideal[n_relevant(ranks)])


def r_precision(ranks: np.ndarray) -> np.ndarray:
    """Precision at R, the number of relevant images. Example: ranks up to 4, 2/4.

    Source: Manning et al. (2008), 8.4.
    """
    relevant = n_relevant(ranks)
    return _divide(np.count_nonzero(ranks <= relevant[:, None], axis=1), relevant)


def reciprocal_rank(ranks: np.ndarray) -> np.ndarray:
    """1 / rank of the first relevant image, 0 if none is returned. Example: 1.

    Source: Voorhees, The TREC-8 Question Answering Track Report (1999).
    """
    if not ranks.shape[1]:
        return np.full(len(ranks), np.nan)
    return 1 / ranks[:, 0].astype(np.float64)


def _hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """Number of hits among the first k results; the i-th relevant image has rank i or more."""
    return np.count_nonzero(ranks[:, :k] <= k, axis=1)


def _up_to(ranks: np.ndarray, depth: float | np.ndarray) -> np.ndarray:
    """The ranks up to `depth`; all others, and NaN, become infinite."""
    return np.where(ranks <= depth, ranks, np.inf)


def _precisions(ranks: np.ndarray, depth: float | np.ndarray) -> np.ndarray:
    """Sum of the precisions at the relevant images up to rank `depth`; a missed image adds 0."""
    places = np.arange(1, ranks.shape[1] + 1, dtype=np.float64)
    return (places / _up_to(ranks, depth)).sum(axis=1)


def _any_relevant(ranks: np.ndarray) -> np.ndarray:
    return n_relevant(ranks[:, :1]) > 0


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN for a query without relevant images, whose denominator is 0."""
    is_positive = denominator > 0
    return np.where(is_positive, numerator / np.where(is_positive, denominator, 1), np.nan)


def _ahead(blocks: Iterator) -> Iterator:
    """Yield the same blocks, and compute each while the previous one is used."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = thread.submit(next, blocks, None)
            yield block
