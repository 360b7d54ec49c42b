"""Confidence intervals of means over queries, and paired tests between architectures.

Both treat the queries as a sample: they show how a mean would vary with other queries of the same
kind, but not with other seeds or training settings. All columns are computed at once, as the
product of a matrix of resampling counts or signs and the matrix of values per query.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

ALPHA = 0.05
# The test tries all choices of signs for up to this number of differences: 2 ** 13 = 8,192.
EXACT_UP_TO = 13
# The number of counts or signs per batch: 16 MB in float64.
BATCH = 2_000_000


def bootstrap(
    values: np.ndarray, *, resamples: int = 2000, level: float = 1 - ALPHA, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of each column's mean over queries.

    Queries are drawn with replacement, the same ones for all columns; NaN is left out of the mean
    of a resample. Source: Efron and Tibshirani, An Introduction to the
    Bootstrap (1993), chapter 13.

    Args:
        values: (n_queries, m), finite, or NaN if a query has no value.
        level: share of the resampled means inside the interval, between 0 and 1.

    Returns:
        low, high: (m,) float64 each; NaN for a column with fewer than two values.

    Raises:
        ValueError: `values` is not a matrix, or contains an infinite value.
    """
    values = _matrix(values)
    enough = (~np.isnan(values)).sum(axis=0) >= 2
    tail = (1 - level) / 2
    bounds = np.full((2, values.shape[1]), np.nan)
    if enough.any():
        means = _resampled_means(values[:, enough], resamples, seed)
        bounds[:, enough] = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return bounds[0], bounds[1]


def intervals(
    values: pd.DataFrame, *, resamples: int = 2000, level: float = 1 - ALPHA, seed: int = 0
) -> pd.DataFrame:
    """Each column's mean over queries with its interval; arguments as for `bootstrap`.

    Returns:
        One row per column of `values`, in their order: value, ci_low, ci_high (float64; value is
        NaN if no query has one), n_queries (int64, those with a value).
    """
    low, high = bootstrap(values.to_numpy(float), resamples=resamples, level=level, seed=seed)
    columns = {"value": values.mean(), "ci_low": low, "ci_high": high, "n_queries": values.count()}
    return pd.DataFrame(columns, index=values.columns)


def permutation_test(
    differences: np.ndarray, *, permutations: int = 10_000, seed: int = 0
) -> float:
    """p-value of the two-sided paired permutation test that the mean difference is 0.

    If two architectures were equal, each query's difference could equally have the other sign. p is
    the share of sign choices whose mean is at least as far from 0 as the observed mean: among all
    choices for up to 13 differences, else (1 + count) / (1 + permutations) for random choices.
    Sources: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005); Smucker, Allan,
    Carterette, A Comparison of Statistical Significance Tests for Information Retrieval Evaluation
    (2007); the added 1: Phipson and Smyth, Permutation P-values Should Never Be Zero (2010).

    Args:
        differences: (n_queries,), finite; NaN is left out.

    Returns:
        Above 0, at most 1; 1 if all differences are 0; NaN if there are none.

    Raises:
        ValueError: `differences` is not one-dimensional, or contains an infinite value.
    """
    differences = np.asarray(differences, float)
    if differences.ndim != 1:
        raise ValueError(f"differences must be one-dimensional, not of shape {differences.shape}")
    given = differences[~np.isnan(differences)]
    return float(_permutation_tests(given[:, None], permutations, seed)[0])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction of p-values for multiple tests, which controls the family-wise error rate.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none is smaller than the
    previous one, and none exceeds 1. Example: 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06. Source:
    Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).

    Args:
        p_values: (n,), from 0 to 1; NaN stays NaN and is not counted.

    Returns:
        (n,) float64, in the order given.
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    rising = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.full(p_values.shape, np.nan)
    adjusted[order] = np.minimum(rising, 1)
    return adjusted


def corrected(tests: pd.DataFrame) -> pd.DataFrame:
    """The same tests with p_holm (`holm` over all rows) and is_significant (p_holm < 0.05).

    Args:
        tests: one row per test, with column p; existing columns of these names are replaced.
    """
    p_holm = holm(tests["p"].to_numpy(float))
    return tests.assign(p_holm=p_holm, is_significant=p_holm < ALPHA)


def compare(
    values: pd.DataFrame, *, resamples: int = 2000, permutations: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Compare every pair of architectures on the same queries.

    Args:
        values: (n_queries, n_architectures), one score per query, averaged over seeds. A pair is
            compared on the queries for which both have a value.

    Returns:
        One row per pair, the architectures with the highest means first: ahead, behind (names of
        columns), difference (mean of ahead - behind, >= 0), ci_low, ci_high (its 95 % bootstrap
        interval, only for this pair), p (`permutation_test`), p_holm (`holm` over these rows),
        effect_size (Cohen's d_z: mean / standard deviation of the differences; 0 if all are 0, NaN
        if they are equal otherwise), n_queries, is_significant (p_holm < 0.05). Source of
        d_z: Lakens, Calculating and Reporting Effect Sizes to Facilitate Cumulative Science (2013).

    Raises:
        ValueError: two columns have the same name, or a value is infinite.
    """
    if not values.columns.is_unique:
        raise ValueError("two architectures have the same name")
    scores = _matrix(values.sort_index(axis="columns"))
    names = values.columns.sort_values()
    order = np.argsort(-pd.DataFrame(scores).mean().to_numpy(), kind="stable")
    one, other = order[np.array(np.triu_indices(len(order), 1))]
    differences = pd.DataFrame(scores[:, one] - scores[:, other])
    # If some queries have no value, the architecture with the higher mean can be behind.
    is_turned = (differences.mean() < 0).to_numpy()
    differences *= np.where(is_turned, -1, 1)
    mean, spread = differences.mean(), differences.std()

    table = intervals(differences, resamples=resamples, seed=seed)
    table = table.rename(columns={"value": "difference"})
    table.insert(0, "ahead", names[np.where(is_turned, other, one)])
    table.insert(1, "behind", names[np.where(is_turned, one, other)])
    p_values = _permutation_tests(differences.to_numpy(), permutations, seed)
    table.insert(5, "p", p_values)
    table.insert(6, "p_holm", p_values)
    # The spread of equal differences is 0, except for rounding.
    effect = (mean / spread).where(spread > 1e-12 * mean, mean.where(mean == 0))
    table.insert(7, "effect_size", effect)
    return corrected(table)


def pair_outcomes(pairs: pd.DataFrame, architectures: Sequence[str]) -> pd.DataFrame:
    """Wins, ties and losses of every architecture against every other one.

    Args:
        pairs: from `compare`; pairs with an architecture not in `architectures` are left out.

    Returns:
        Rows and columns as in `architectures`: "win" if the row's architecture is significantly
        ahead of the column's, "loss" if it is significantly behind, "tie" if they are not
        significantly different (which does not mean that they are equal), "" if there is no pair.
    """
    table = pd.DataFrame("", index=architectures, columns=architectures)
    for pair in pairs.itertuples():
        if pair.ahead in table.index and pair.behind in table.index:
            table.loc[pair.ahead, pair.behind] = "win" if pair.is_significant else "tie"
            table.loc[pair.behind, pair.ahead] = "loss" if pair.is_significant else "tie"
    return table


def _matrix(values: np.ndarray | pd.DataFrame) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 2 or np.isinf(values).any():
        raise ValueError("values must be a matrix, (n_queries, m), of finite values or NaN")
    return values


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, m) means; NaN if a resample has none of a column's values."""
    n, generator = len(values), np.random.default_rng(seed)
    both = np.hstack([np.nan_to_num(values), ~np.isnan(values)])
    sums = np.empty((resamples, both.shape[1]))
    for rows in _batches(resamples, n):
        size = rows.stop - rows.start
        drawn = generator.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[rows] = counts.astype(float) @ both
    totals, present = np.hsplit(sums, 2)
    return totals / np.where(present > 0, present, np.nan)


def _permutation_tests(differences: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """(m,) p-values of the columns of (n, m) differences; NaN counts as 0, which moves no sum."""
    n, generator = len(differences), np.random.default_rng(seed)
    filled = np.nan_to_num(_matrix(differences))
    total = filled.sum(axis=0)
    # Equal sums may differ in their last digits if added in another order.
    least = np.abs(total) - 1e-12 * np.abs(filled).sum(axis=0)
    exact = n <= EXACT_UP_TO
    count = 0
    for rows in _batches(2**n if exact else permutations, n):
        if exact:
            kept = np.arange(rows.start, rows.stop)[:, None] >> np.arange(n) & 1
        else:
            noise = generator.integers(256, size=(rows.stop - rows.start, n // 8 + 1), dtype="u1")
            kept = np.unpackbits(noise, axis=1, count=n)
        # kept - flipped = 2 kept - total
        sums = 2 * (kept.astype(float) @ filled) - total
        count += (np.abs(sums) >= least).sum(axis=0)
    p_values = count / 2**n if exact else (1 + count) / (1 + permutations)
    return np.where(np.isnan(differences).all(axis=0), np.nan, p_values)


def _batches(total: int, n: int) -> Iterator[slice]:
    """Slices of the rows 0 to total - 1, of n numbers each, one per batch."""
    size = max(1, BATCH // max(n, 1))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
