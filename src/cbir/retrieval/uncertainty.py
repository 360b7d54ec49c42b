"""Confidence intervals of means over queries, and paired tests between architectures.

Intervals and tests treat the queries as a sample: they show how a mean would vary with other
queries of the same kind. `seed_test` covers other seeds as well, and `class_test` other classes.
All columns are computed at once, as the product of a matrix of random weights or signs and the
matrix of values per query.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.special
from scipy.special import stdtr, stdtrit

ALPHA = 0.05
# Fewer differences give no p-value; docs/evaluation.md shows why.
MIN_QUERIES = 30
# Fewer seeds, classes or draws give no test over them; docs/evaluation.md shows why.
MIN_SEEDS, MIN_CLASSES, MIN_DRAWS = 3, 6, 3
# No p-value is 0. SciPy's t quantiles are infinite from about 1e-300 on.
LEAST_P = 1e-30
# Scores this close to a limit are at it, and may exceed it by as much.
ROUNDING = 1e-6
# The number of weights or signs per batch: 16 MB in float64.
BATCH = 2_000_000


def confidence_bounds(
    values: np.ndarray,
    *,
    limits: tuple[np.ndarray | float, np.ndarray | float] | None = (0, 1),
    resamples: int = 2000,
    level: float = 1 - ALPHA,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of each column's mean over queries, for scores between two limits.

    Its low end is a quantile of means with random weights (a Bayesian bootstrap) of the values and
    one more query at the lower limit; its high end has one more query at the upper limit. If all
    values lie at a limit, as with shares, this is the interval of Clopper and Pearson: 1.0 of 36
    queries gives [0.903, 1], of 2 queries [0.158, 1]. docs/evaluation.md says how often it covers
    the mean.

    Sources: Gaffke, Three Test Statistics for a Nonparametric One-Sided Hypothesis on the Mean of a
    Nonnegative Variable (2005); Learned-Miller and Thomas, A New Confidence Interval for the Mean
    of a Bounded Random Variable (2019); Clopper and Pearson, The Use of Confidence or Fiducial
    Limits Illustrated in the Case of the Binomial (1934).

    Args:
        values: (n_queries, m), finite, or NaN if a query has no value.
        limits: the lowest and the highest possible value, each a number or (m,). If they are equal,
            the interval is a point. None: unknown, as for differences; then a column's limits are
            plus and minus its largest absolute value, or 1 if all are 0.
        level: share of samples whose interval covers the mean, between 0 and 1.

    Returns (m,) float64 low and high ends, NaN for a column with fewer than two values. ValueError
    if `values` is not a matrix, or contains an infinite value or one beyond a limit.
    """
    values = _matrix(values)
    n_values = (~np.isnan(values)).sum(axis=0)
    if limits is None:
        reach = np.abs(np.nan_to_num(values)).max(axis=0, initial=0)
        reach[reach < ROUNDING] = 1
        limits = (-reach, reach)
    lowest, highest = (np.broadcast_to(limit, n_values.shape).astype(float) for limit in limits)
    span = highest - lowest
    is_beyond = ((values < lowest - ROUNDING) | (values > highest + ROUNDING)).any(axis=0)
    if is_beyond.any():
        column = is_beyond.argmax()
        ends = f"{lowest[column]:g} to {highest[column]:g}"
        raise ValueError(f"column {column}: a value is beyond its limits, {ends}")

    bounds = np.full((2, len(span)), np.nan)
    at_lowest, at_highest = values <= lowest + ROUNDING, values >= highest - ROUNDING
    is_share = (at_lowest | at_highest | np.isnan(values)).all(axis=0) & (n_values > 1)
    tail = (1 - level) / 2
    n, k = n_values[is_share], at_highest[:, is_share].sum(axis=0)
    # Quantiles of beta distributions; the share 0 has the low end 0, and 1 the high end 1.
    shares = [
        np.where(k > 0, scipy.special.betaincinv(k, n - k + 1, tail), 0),
        np.where(k < n, scipy.special.betaincinv(k + 1, n - k, 1 - tail), 1),
    ]
    bounds[:, is_share] = lowest[is_share] + span[is_share] * shares
    others = ~is_share & (n_values > 1)
    if others.any():
        sums, weights, extra = _weighted_sums(values[:, others], resamples, seed)
        for end, limit, quantile in ((0, lowest, tail), (1, highest, 1 - tail)):
            means = (sums + extra * limit[others]) / (weights + extra)
            bounds[end, others] = np.quantile(means, quantile, axis=0)
    return bounds[0], bounds[1]


def intervals(
    values: pd.DataFrame,
    *,
    limits: tuple[np.ndarray | float, np.ndarray | float] | None = (0, 1),
) -> pd.DataFrame:
    """Each column's mean with its interval; arguments as for `confidence_bounds`.

    One row per column: value, ci_low, ci_high, n_queries (those with a value).
    """
    array = values.to_numpy(float)
    low, high = confidence_bounds(array, limits=limits)
    n_queries = (~np.isnan(array)).sum(axis=0)
    columns = {"value": values.mean(), "ci_low": low, "ci_high": high, "n_queries": n_queries}
    return pd.DataFrame(columns, index=values.columns)


def permutation_test(
    differences: np.ndarray, *, permutations: int = 10_000, seed: int = 0
) -> float:
    """p-value of the two-sided paired permutation test that two architectures are exchangeable.

    If they were, each query's difference could equally have the other sign. p is the share of sign
    choices whose mean is at least as far from 0 as the observed mean: (1 + count) / (1 +
    permutations) of random choices. If differences are skewed, the test errs too often among few
    queries (docs/evaluation.md says how often), so p is NaN for fewer than `MIN_QUERIES` of the
    (n_queries,) differences, without NaN. ValueError if they have another shape or one is infinite.

    Sources: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005); Smucker, Allan,
    Carterette, A Comparison of Statistical Significance Tests for Information Retrieval Evaluation
    (2007); the added 1: Phipson and Smyth, Permutation P-values Should Never Be Zero (2010).
    """
    differences = np.asarray(differences, float)
    if differences.ndim != 1:
        raise ValueError(f"differences must be one-dimensional, not of shape {differences.shape}")
    observed = differences[~np.isnan(differences)]
    return float(_permutation_tests(observed[:, None], permutations, seed)[0])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction of p-values for multiple tests, which controls the family-wise error rate.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none is smaller than the
    previous one, and none exceeds 1. NaN stays NaN and is not counted. Example: 0.01, 0.04, 0.03
    become 0.03, 0.06, 0.06. Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure
    (1979).
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    rising = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.full(p_values.shape, np.nan)
    adjusted[order] = np.minimum(rising, 1)
    return adjusted


def corrected(tests: pd.DataFrame) -> pd.DataFrame:
    """Tests, with column p, and p_holm (`holm` of all rows) and is_significant (p_holm < 0.05)."""
    p_holm = holm(tests["p"].to_numpy(float))
    return tests.assign(p_holm=p_holm, is_significant=p_holm < ALPHA)


def compare(
    values: Mapping[str, pd.DataFrame | pd.Series],
    *,
    baselines: Collection[str] = (),
    same_networks: bool = False,
) -> pd.DataFrame:
    """Compare every pair of architectures on the same queries.

    If both have at least `MIN_SEEDS` seeds, or one has and the other is a baseline, the test and
    the interval are those of `seed_test`, and apply to the architectures. Otherwise they are those
    of `permutation_test` and `intervals`, and apply only to the networks that were trained.

    Args:
        values: by architecture, one score per query (rows) and seed (columns, or a series for one
            seed). A pair is compared on the queries for which both have a value.
        baselines: those that are not trained, and therefore have no variance between seeds.
        same_networks: whether columns of one number come from the same trained network, as for two
            searches, so that seeds are paired.

    Returns:
        One row per pair, the architectures with the highest means first: ahead, behind (names),
        difference (mean of ahead - behind over queries and seeds, >= 0), ci_low, ci_high (its 95 %
        interval, only for this pair), p (NaN for too few queries), p_holm (`holm` over these rows),
        effect_size (Cohen's d_z of scores averaged over seeds: mean / standard deviation of the
        differences; 0 if all are 0, NaN if they are equal otherwise), n_queries, covers_seeds
        (whether the row applies to architectures), is_significant (p_holm < 0.05). Source of d_z:
        Lakens, Calculating and Reporting Effect Sizes to Facilitate Cumulative Science (2013).

    Raises:
        ValueError: two columns have the same name, or a value is infinite.
    """
    by_name = {name: pd.DataFrame(values[name]) for name in sorted(dict.fromkeys(values))}
    if len(by_name) < len(list(values)):
        raise ValueError("two architectures have the same name")
    means = pd.DataFrame({name: scores.mean(axis=1) for name, scores in by_name.items()})
    pairs, differences = _pairs(means)
    table = intervals(differences, limits=None)
    p_values = _permutation_tests(differences.to_numpy())
    covers_seeds = np.zeros(len(pairs), bool)
    for row, pair in enumerate(pairs.itertuples()):
        trained = [by_name[name] for name in (pair.ahead, pair.behind) if name not in baselines]
        covers_seeds[row] = all(scores.shape[1] >= MIN_SEEDS for scores in trained)
        if trained and covers_seeds[row] and not np.isnan(p_values[row]):
            paired = differences[row].dropna()
            seed_means = [scores.loc[paired.index].mean().to_numpy() for scores in trained]
            if same_networks:
                seed_means = [np.subtract(*seed_means)]
            *bounds, p_values[row] = seed_test(paired.to_numpy(), seed_means)
            table.loc[row, ["ci_low", "ci_high"]] = bounds
    return _compared(pairs, table, differences, p_values).assign(covers_seeds=covers_seeds)


def compare_classes(values: pd.DataFrame) -> pd.DataFrame:
    """`compare` architectures by `class_test`, on classes that they were not trained on.

    `values` are (n, n_architectures) means over the queries of a class, indexed by draw and class.
    n_classes takes the place of n_queries, and covers_seeds is True: each draw is another training.
    """
    pairs, differences = _pairs(values)
    table = class_test(differences)
    p_values = table.pop("p").to_numpy()
    return _compared(pairs, table, differences, p_values).assign(covers_seeds=True)


def seed_test(
    differences: np.ndarray, seed_means: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """Interval and two-sided test of a mean difference, over both seeds and queries.

    The variance of the difference is estimated by the sum of its variance over queries / n_queries,
    and of each side's means over seeds / n_seeds, which counts interactions twice. The quantile is
    the mean of the t quantiles of both parts, weighted by their variances (Cochran's
    approximation); the seeds have Welch's degrees of freedom. docs/evaluation.md says how often the
    test errs.

    Sources: Cochran and Cox, Experimental Designs (1957), section 4.14; Welch, The Generalization
    of `Student's' Problem when Several Different Population Variances are Involved (1947);
    McCullagh, Resampling and Exchangeable Arrays (2000), for the sum of the variances.

    Args:
        differences: (n_queries,), of scores averaged over the seeds, finite; at least two.
        seed_means: for each side that was trained, (n_seeds,) its mean over queries by seed, at
            least two; if seeds are paired, one array of the mean differences.

    Returns low, high and p, above 0 and at most 1.
    """
    from scipy.optimize import brentq  # takes a third of a second, and few callers need it

    n, mean = len(differences), float(np.mean(differences))
    by_query = np.var(differences, ddof=1) / n
    by_side = np.array([np.var(means, ddof=1) / len(means) for means in seed_means])
    by_seed, n_free = by_side.sum(), np.array([len(means) - 1 for means in seed_means])
    error = np.sqrt(by_query + by_seed)
    # Equal means may differ in their last digits.
    if error <= 1e-12 * np.abs(differences).max(initial=0):
        return mean, mean, 1.0 if mean == 0 else LEAST_P
    weight = by_seed / error**2
    seeds_free = by_seed**2 / (by_side**2 / n_free).sum() if by_seed > 0 else n - 1

    def quantile(p: float) -> float:
        return -weight * stdtrit(seeds_free, p / 2) - (1 - weight) * stdtrit(n - 1, p / 2)

    half = quantile(ALPHA) * error

    def excess(log_p: float) -> float:
        return quantile(np.exp(log_p)) - abs(mean) / error

    least = np.log(LEAST_P)
    p = np.exp(brentq(excess, least, 0)) if excess(least) > 0 else LEAST_P
    return mean - half, mean + half, float(p)


def class_test(values: pd.DataFrame, limits: tuple[float, float] = (-1, 1)) -> pd.DataFrame:
    """Intervals and two-sided tests of means over classes, which apply to other classes, too.

    Classes differ, and so do the networks of different draws. Therefore each column is tested twice
    with Student's t, over the means of the classes and over those of the draws. The interval
    reaches from the lower low end to the higher high end, and p is the larger one. With fewer than
    `MIN_CLASSES` classes or `MIN_DRAWS` draws, there is neither. docs/evaluation.md says how often
    the test errs.

    `values`, (n, m), are means over the queries of a class, or differences of them, indexed by draw
    and class; intervals end at the `limits` of possible values. One row per column: value (mean
    over classes, each of which counts once), ci_low, ci_high, p, n_classes.
    """
    by_class, by_draw = (values.groupby(level=level).mean() for level in (1, 0))
    table = pd.DataFrame({"value": by_class.mean()}, index=values.columns)
    n_classes, n_draws = len(by_class), len(by_draw)
    bounds, p_values = [], []
    for means in (by_class, by_draw):
        n, mean, error = len(means), means.mean(), means.sem()
        half = -stdtrit(n - 1, ALPHA / 2) * error if n > 1 else np.nan
        bounds += [mean - half, mean + half]
        # Without any spread, a mean that is not 0 has the smallest p.
        ratio = (mean.abs() / error).fillna(0)
        p_values.append((2 * stdtr(max(n - 1, 1), -ratio)).clip(LEAST_P))
    is_enough = n_classes >= MIN_CLASSES and n_draws >= MIN_DRAWS
    table["ci_low"] = np.min(bounds, axis=0).clip(*limits) if is_enough else np.nan
    table["ci_high"] = np.max(bounds, axis=0).clip(*limits) if is_enough else np.nan
    table["p"] = np.max(p_values, axis=0) if is_enough else np.nan
    return table.assign(n_classes=n_classes)


def _pairs(values: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every pair of columns, the higher mean first: ahead and behind, and their differences."""
    scores = _matrix(values.sort_index(axis="columns"))
    names = values.columns.sort_values()
    order = np.argsort(-pd.DataFrame(scores).mean().to_numpy(), kind="stable")
    one, other = order[np.array(np.triu_indices(len(order), 1))]
    differences = pd.DataFrame(scores[:, one] - scores[:, other], index=values.index)
    # If some queries have no value, the architecture with the higher mean can be behind.
    is_turned = (differences.mean() < 0).to_numpy()
    differences *= np.where(is_turned, -1, 1)
    ahead = names[np.where(is_turned, other, one)]
    behind = names[np.where(is_turned, one, other)]
    return pd.DataFrame({"ahead": ahead, "behind": behind}), differences


def _compared(
    pairs: pd.DataFrame, table: pd.DataFrame, differences: pd.DataFrame, p_values: np.ndarray
) -> pd.DataFrame:
    """The rows of `compare`: pairs beside their differences, which `table` summarises."""
    table = pairs.join(table.rename(columns={"value": "difference"}))
    table.insert(5, "p", p_values)
    table.insert(6, "p_holm", p_values)
    mean, spread = differences.mean(), differences.std()
    # The spread of equal differences is 0, except for rounding.
    effect = (mean / spread).where(spread > 1e-12 * mean, mean.where(mean == 0))
    table.insert(7, "effect_size", effect)
    return corrected(table)


def pair_outcomes(pairs: pd.DataFrame, architectures: Sequence[str]) -> pd.DataFrame:
    """Wins, ties and losses of every architecture against every other one, from `compare`.

    Rows and columns as in `architectures`: "win" if the row's architecture is significantly ahead
    of the column's, "loss" if it is significantly behind, "tie" if they are not significantly
    different, "untested" if there are too few queries, "" if there is no pair.
    """
    table = pd.DataFrame("", index=architectures, columns=architectures)
    for pair in pairs.itertuples():
        if pair.ahead in table.index and pair.behind in table.index:
            neither = "untested" if np.isnan(pair.p) else "tie"
            table.loc[pair.ahead, pair.behind] = "win" if pair.is_significant else neither
            table.loc[pair.behind, pair.ahead] = "loss" if pair.is_significant else neither
    return table


def _matrix(values: np.ndarray | pd.DataFrame) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 2 or np.isinf(values).any():
        raise ValueError("values must be a matrix, (n_queries, m), of finite values or NaN")
    return values


def _weighted_sums(
    values: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of (n, m) values with random weights, which all columns share, and of the weights, both
    (resamples, m) without NaN, and (resamples, 1) one more query's weight.

    Divided by their sum, weights of an exponential distribution are uniform on the simplex.
    """
    n, generator = len(values), np.random.default_rng(seed)
    both = np.hstack([np.nan_to_num(values), ~np.isnan(values)])
    sums, extra = np.empty((resamples, both.shape[1])), np.empty((resamples, 1))
    for rows in _batches(resamples, n + 1):
        drawn = generator.standard_exponential((rows.stop - rows.start, n + 1))
        sums[rows], extra[rows] = drawn[:, 1:] @ both, drawn[:, :1]
    return *np.hsplit(sums, 2), extra


def _permutation_tests(
    differences: np.ndarray, permutations: int = 10_000, seed: int = 0
) -> np.ndarray:
    """(m,) p-values of the columns of (n, m) differences; NaN counts as 0, which moves no sum."""
    n, generator = len(differences), np.random.default_rng(seed)
    filled = np.nan_to_num(_matrix(differences))
    total = filled.sum(axis=0)
    # Equal sums may differ in their last digits if added in another order.
    least = np.abs(total) - 1e-12 * np.abs(filled).sum(axis=0)
    count = 0
    for rows in _batches(permutations, n):
        noise = generator.integers(256, size=(rows.stop - rows.start, n // 8 + 1), dtype="u1")
        is_kept = np.unpackbits(noise, axis=1, count=n)
        # The sum of those with a kept sign, minus that of those with a flipped one.
        sums = 2 * (is_kept.astype(float) @ filled) - total
        count += (np.abs(sums) >= least).sum(axis=0)
    is_tested = (~np.isnan(differences)).sum(axis=0) >= MIN_QUERIES
    return np.where(is_tested, (1 + count) / (1 + permutations), np.nan)


def _batches(total: int, n: int) -> Iterator[slice]:
    """Slices of the rows 0 to total - 1, of n numbers each, one per batch."""
    size = max(1, BATCH // max(n, 1))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
