"""Coverage of intervals, and errors of the permutation test.

    .venv/bin/python tests/benchmarks/uncertainty.py --per-query reports/digits/per_query.parquet

Samples are drawn from distributions whose mean is known: shares; the average precisions of
scikit-learn's digits with two baselines, which are computed here; and beta(1, 0.05), the shape of a
good network's average precisions: mostly 1, with a tail to 0. With `--per-query`, the average
precisions of a finished study's networks are added. It takes a few minutes and prints the tables
of docs/evaluation.md.

The permutation test is exact if differences are symmetric around 0. Its errors are measured for
differences that are skewed but have a mean of 0: all that are not 0 are shifted by one number.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cbir.networks import baselines
from cbir.reporting import measurements
from cbir.retrieval import metrics, uncertainty

SIZES = (30, 36, 100, 359, 1000)
TEST_SIZES = (8, 10, 14, 20, 30, 40, 60, 100, 359)
SHARES = (0.5, 0.8, 0.95, 0.99)
RESAMPLES, LEVEL, PERMUTATIONS = 2000, 0.95, 1000
TAIL = (1 - LEVEL) / 2
# A distribution draws samples, (n, m), and has a mean.
Distribution = tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]
Bounds = tuple[np.ndarray, np.ndarray]


def share(p: float) -> Distribution:
    return lambda random, shape: (random.random(shape) < p).astype(float), p


def resampling(values: np.ndarray) -> Distribution:
    """Draws from given values with replacement: their mean is the true one."""
    return lambda random, shape: random.choice(values, shape), values.mean()


def digits() -> dict[str, np.ndarray]:
    """Average precisions of scikit-learn's digits, a fifth of which are queries, by baseline."""
    data = load_digits()
    images = np.kron(data.images * 15.9, np.ones((4, 4))).astype("u1")[..., None].repeat(3, axis=3)
    split = partial(train_test_split, test_size=0.2, stratify=data.target, random_state=0)
    scores = {}
    for name in ("hand_crafted", "raw_pixels", "random"):
        gallery, query, gallery_labels, labels = split(
            baselines.describe_images(name, images, seed=0), data.target
        )
        table = metrics.evaluate_retrieval(query, labels, gallery, gallery_labels, ks=(1,))
        scores[name] = table["average_precision"].to_numpy()
    return scores


def networks(path: Path) -> dict[str, np.ndarray]:
    """Average precisions of a study's networks with their first seed, by name and search."""
    rows = pd.read_parquet(path)
    rows = measurements.select(rows, protocol=rows["protocol"].iloc[0], seed=rows["seed"].min())
    rows = rows[rows["correct"].notna() & rows["search"].isin(["unrestricted", "label_lookup"])]
    return {
        f"{name}, {search}": group.sort_values("query")["average_precision"].to_numpy()
        for (name, search), group in rows.groupby(["architecture", "search"], sort=False)
    }


# --- intervals: functions of (n, m) samples, which return two arrays (m,)


@cache
def counts(n: int) -> np.ndarray:
    """(RESAMPLES, n): the count of each value in each bootstrap sample."""
    random = np.random.default_rng(0)
    return random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def percentile(values: np.ndarray) -> Bounds:
    return np.quantile(counts(len(values)) @ values / len(values), [TAIL, 1 - TAIL], axis=0)


def bca(values: np.ndarray) -> Bounds:
    """Bias-corrected and accelerated bootstrap (Efron 1987)."""
    means, mean = np.sort(counts(len(values)) @ values / len(values), axis=0), values.mean(axis=0)
    below = (means < mean - 1e-12).mean(axis=0) + (np.abs(means - mean) <= 1e-12).mean(axis=0) / 2
    bias = scipy.stats.norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    errors = values - mean
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = (errors**3).sum(axis=0) / (6 * (errors**2).sum(axis=0) ** 1.5)
    ends = []
    for quantile in scipy.stats.norm.ppf([TAIL, 1 - TAIL]):
        moved = bias + (bias + quantile) / (1 - np.nan_to_num(skew) * (bias + quantile))
        rank = np.clip((scipy.stats.norm.cdf(moved) * RESAMPLES).astype(int), 0, RESAMPLES - 1)
        ends.append(means[rank, np.arange(values.shape[1])])
    return ends


def studentised(values: np.ndarray) -> Bounds:
    """Bootstrap-t (Efron and Tibshirani 1993, chapter 12.5)."""
    n, mean, spread = len(values), values.mean(axis=0), values.std(axis=0)
    means = counts(n) @ values / n
    spreads = np.sqrt(np.maximum(counts(n) @ values**2 / n - means**2, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        # The quotient of a resample of equal values is infinite or undefined.
        quotients = np.nan_to_num((means - mean) / spreads, nan=0, posinf=1e9, neginf=-1e9)
    low, high = np.quantile(quotients, [TAIL, 1 - TAIL], axis=0)
    return np.clip(mean - high * spread, 0, 1), np.clip(mean - low * spread, 0, 1)


def student(values: np.ndarray) -> Bounds:
    """Student's t."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    half = scipy.stats.t.ppf(1 - TAIL, len(values) - 1) * error
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def effective_size(values: np.ndarray) -> Bounds:
    """Clopper and Pearson with as many queries as the variance supports (Korn, Graubard 1998)."""
    mean, variance = values.mean(axis=0), values.var(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = len(values) * np.where(variance > 0, mean * (1 - mean) / variance, 1)
    low = scipy.special.betaincinv(n * mean, n * (1 - mean) + 1, TAIL)
    high = scipy.special.betaincinv(n * mean + 1, n * (1 - mean), 1 - TAIL)
    return np.nan_to_num(low), np.nan_to_num(high, nan=1)


def maurer_pontil(values: np.ndarray) -> Bounds:
    """Empirical Bernstein bound (Maurer and Pontil 2009)."""
    n, log = len(values), np.log(2 / TAIL)
    half = np.sqrt(2 * values.var(axis=0, ddof=1) * log / n) + 7 * log / (3 * (n - 1))
    return np.maximum(values.mean(axis=0) - half, 0), np.minimum(values.mean(axis=0) + half, 1)


def anderson(values: np.ndarray) -> Bounds:
    """Means of the highest and the lowest distribution in a band (Anderson 1969)."""
    n = len(values)
    shift = min(1, np.sqrt(np.log(1 / TAIL) / 2 / n))
    ordered, steps = np.sort(values, axis=0), np.arange(n + 1) / n
    low = np.diff(np.minimum(steps + shift, 1)) @ ordered
    return low, np.diff(np.maximum(steps - shift, 0)) @ ordered + shift


def empirical_likelihood(values: np.ndarray, mean: float) -> np.ndarray:
    """Whether the interval of Owen (1988) covers a mean; its ends are not computed."""
    errors = values - mean
    n, lowest, highest = len(values), errors.min(axis=0), errors.max(axis=0)
    is_inside = (lowest < 0) & (highest > 0)
    errors = errors[:, is_inside]
    low, high = (1 / n - 1) / highest[is_inside], (1 / n - 1) / lowest[is_inside]
    for _ in range(40):
        middle = (low + high) / 2
        is_low = (errors / (1 + middle * errors)).sum(axis=0) > 0
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    covers = np.zeros(values.shape[1], bool)
    ratio = 2 * np.log1p((low + high) / 2 * errors).sum(axis=0)
    covers[is_inside] = ratio <= scipy.stats.chi2.ppf(LEVEL, 1)
    return covers


OURS = "cbir"
METHODS = {
    OURS: uncertainty.confidence_bounds,
    "percentile bootstrap": percentile,
    "BCa bootstrap": bca,
    "studentised bootstrap": studentised,
    "Student's t": student,
    "effective sample size": effective_size,
    "Maurer and Pontil": maurer_pontil,
    "Anderson": anderson,
}
DIFFERENCE_METHODS = {
    OURS: partial(uncertainty.confidence_bounds, limits=None),
    "percentile bootstrap": percentile,
    "Student's t": student,
}


def coverage(
    distributions: dict[str, Distribution], methods: dict[str, Callable], samples: int
) -> pd.DataFrame:
    """One row per distribution, n and method: share of samples covered, mean half width."""
    rows = []
    for name, (draw, mean) in distributions.items():
        for n in SIZES:
            values = draw(np.random.default_rng(1), (n, samples))
            for method, interval in methods.items():
                low, high = interval(values)
                covers = (low <= mean + 1e-12) & (mean - 1e-12 <= high)
                rows.append((name, n, method, covers.mean(), (high - low).mean() / 2))
            if methods is METHODS:
                covers = empirical_likelihood(values, mean)
                rows.append((name, n, "empirical likelihood", covers.mean(), np.nan))
    return pd.DataFrame(rows, columns=["distribution", "n", "method", "covered", "half"])


def centred(differences: np.ndarray) -> np.ndarray:
    """The same differences with a mean of 0; equal scores stay equal."""
    is_different = differences != 0
    return np.where(is_different, differences - differences[is_different].mean(), 0)


def type_1_errors(differences: dict[str, np.ndarray], samples: int) -> pd.DataFrame:
    """Share of samples with a mean difference of 0 for which p < 0.05, by distribution and n."""
    table = {}
    for name, population in differences.items():
        draw, _ = resampling(centred(population))
        table[f"{name} (skew {scipy.stats.skew(population):.1f})"] = errors = {}
        for n in TEST_SIZES:
            values = draw(np.random.default_rng(2), (n, samples))
            signs = np.random.default_rng(3).choice([-1.0, 1.0], (PERMUTATIONS, n))
            # As in `uncertainty.permutation_test`, which gives no p-value for few queries.
            count = (np.abs(signs @ values) >= np.abs(values.sum(axis=0)) - 1e-9).sum(axis=0)
            p_values = (1 + count) / (1 + PERMUTATIONS)
            errors[n] = (p_values < uncertainty.ALPHA).mean()
    return pd.DataFrame.from_dict(table, orient="index")


def table_of_method(rows: pd.DataFrame, method: str, column: str) -> pd.DataFrame:
    chosen = rows[rows["method"] == method]
    return chosen.pivot_table(index="distribution", columns="n", values=column, sort=False)


def print_table(title: str, table: pd.DataFrame, digits: int) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}:\n")
    table = table.map(lambda value: "–" if pd.isna(value) else f"{value:.{digits}f}")
    lines = [[table.index.name or "", *map(str, table.columns)], ["---"] * (1 + table.shape[1])]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000, help="per distribution and size")
    parser.add_argument("--per-query", type=Path, help="per_query.parquet of a finished study")
    arguments = parser.parse_args()

    baseline, measured = digits(), {}
    good = scipy.stats.beta(1, 0.05)
    distributions = {f"share {p}": share(p) for p in SHARES}
    distributions["beta(1, 0.05)"] = (lambda random, shape: random.beta(1, 0.05, shape), 1 / 1.05)
    if arguments.per_query:
        measured = networks(arguments.per_query)
    scores = measured | {f"{name}, baseline": values for name, values in baseline.items()}
    distributions |= {f"AP of {name}": resampling(values) for name, values in scores.items()}
    rows = coverage(distributions, METHODS, arguments.samples)
    print_table("Covered by the interval", table_of_method(rows, OURS, "covered"), 3)
    print_table(
        "Covered by the percentile bootstrap",
        table_of_method(rows, "percentile bootstrap", "covered"),
        3,
    )
    lowest = rows.pivot_table(index="method", columns="n", values="covered", aggfunc="min")
    print_table("The lowest coverage of each method", lowest, 3)
    print_table("Half width of the interval", table_of_method(rows, OURS, "half"), 4)
    print_table("Half width by Student's t", table_of_method(rows, "Student's t", "half"), 4)

    # Two good networks that differ on 15 % of the queries, and the baselines.
    random = np.random.default_rng(0)
    pair = good.rvs((2, 20_000), random_state=random) * (random.random(20_000) < 0.15)
    differences = {
        "two good networks": pair[0] - pair[1],
        "hand_crafted - raw_pixels": baseline["hand_crafted"] - baseline["raw_pixels"],
        "hand_crafted - random": baseline["hand_crafted"] - baseline["random"],
    }
    unrestricted = {
        name.partition(",")[0]: values
        for name, values in measured.items()
        if name.endswith("unrestricted")
    }
    names = list(unrestricted)
    for number, first_name in enumerate(names):
        for second_name in names[number + 1 :]:
            differences[f"{first_name} - {second_name}"] = (
                unrestricted[first_name] - unrestricted[second_name]
            )
    distributions = {name: resampling(values) for name, values in differences.items()}
    rows = coverage(distributions, DIFFERENCE_METHODS, arguments.samples)
    for method in DIFFERENCE_METHODS:
        print_table(f"Differences covered, {method}", table_of_method(rows, method, "covered"), 3)
    print_table("Half width of the interval", table_of_method(rows, OURS, "half"), 4)
    print_table("Half width by Student's t", table_of_method(rows, "Student's t", "half"), 4)

    differences |= {
        "normal": random.normal(size=20_000),
        "exponential": random.exponential(size=20_000) - 1,
    }
    errors = type_1_errors(differences, arguments.samples)
    print_table("Type I error of the permutation test for a mean difference of 0", errors, 3)


if __name__ == "__main__":
    main()
