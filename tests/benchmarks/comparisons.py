"""Errors of comparisons over seeds and over classes, and the variation a fixed gallery hides.

    .venv/bin/python tests/benchmarks/comparisons.py

Two architectures that are equal are compared again and again; the share of p-values below 0.05 is
the type I error. With a difference, that share is the power. It takes a few minutes, without any
training, and prints the tables of docs/evaluation.md.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from cbir.retrieval import metrics, uncertainty

# As measured on the digits: between seeds, and of the paired difference over 359 queries.
SEED_SD, QUERY_ERROR, N_QUERIES = 0.010, 0.004, 359
N_SEEDS = ((1, 1), (2, 2), (3, 3), (3, 5), (5, 5), (3, 0), (5, 0))  # 0: a baseline
SEED_SETTINGS = {
    "equal sd": (SEED_SD, SEED_SD, "normal"),
    "one sd a third": (SEED_SD, SEED_SD / 3, "normal"),
    "one sd almost 0": (SEED_SD, SEED_SD / 30, "normal"),
    "both sd a fifth": (SEED_SD / 5, SEED_SD / 5, "normal"),
    "skew 2": (SEED_SD, SEED_SD, "exponential"),
    "heavy tails": (SEED_SD, SEED_SD, "t3"),
}
DIFFERENCES = (0.02, 0.03, 0.05)
# Draws and classes per draw; standard deviations between classes and between draws.
N_DRAWS = ((3, 2), (5, 2), (10, 1), (3, 4), (5, 4))
CLASS_SETTINGS = {
    "classes differ": (0.10, 0.01, "normal"),
    "draws differ as much": (0.05, 0.05, "normal"),
    "skew 1": (0.10, 0.01, "gamma"),
    "skew 2": (0.10, 0.01, "exponential"),
}
CLASS_DIFFERENCES = (0.1, 0.2)
ALPHA = uncertainty.ALPHA


def noise(random: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Independent numbers with mean 0 and standard deviation 1."""
    if name == "exponential":
        return 1 - random.exponential(size=shape)
    if name == "gamma":
        return 2 - random.gamma(4, 0.5, shape)
    return random.standard_t(3, shape) / np.sqrt(3) if name == "t3" else random.normal(size=shape)


def seed_errors(n_seeds, setting, difference: float, repeats: int) -> dict[str, float]:
    """Shares of p < 0.05 of the test over seeds and queries, and of one over only queries."""
    random, (*sds, name) = np.random.default_rng(0), setting
    p_values = {"seeds and queries": [], "queries alone": []}
    for _ in range(repeats):
        sides = [sd * noise(random, (n,), name) for n, sd in zip(n_seeds, sds, strict=True) if n]
        queries = random.normal(0, QUERY_ERROR * np.sqrt(N_QUERIES), N_QUERIES)
        gap = sides[0].mean() - (sides[1].mean() if len(sides) > 1 else 0)
        differences = difference + gap + queries
        if min(len(side) for side in sides) > 1:
            p_values["seeds and queries"].append(uncertainty.seed_test(differences, sides)[2])
        constant = [np.zeros(2)]
        p_values["queries alone"].append(uncertainty.seed_test(differences, constant)[2])
    return {name: share_below_alpha(values) for name, values in p_values.items()}


def share_below_alpha(p_values: list[float] | pd.Series) -> float:
    return (np.array(p_values) < ALPHA).mean() if len(p_values) else np.nan


def seed_table(repeats: int) -> pd.DataFrame:
    rows = {}
    for n_seeds in N_SEEDS:
        row = {}
        for name, setting in SEED_SETTINGS.items():
            errors = seed_errors(n_seeds, setting, 0, repeats)
            if name == "equal sd":
                row["queries alone"] = errors["queries alone"]
            row[name] = errors["seeds and queries"]
        for difference in DIFFERENCES:
            errors = seed_errors(n_seeds, SEED_SETTINGS["equal sd"], difference, repeats)
            row[f"power, {difference:g}"] = errors["seeds and queries"]
        n_first, n_second = n_seeds
        rows[f"{n_first} and {n_second}" if n_second else f"{n_first} and a baseline"] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seeds")


def class_error(n_draws, setting, difference: float, repeats: int) -> float:
    """Share of p < 0.05 of the test over classes and draws."""
    random, (class_sd, draw_sd, name) = np.random.default_rng(0), setting
    draws, classes = n_draws
    effects = class_sd * noise(random, (draws, classes, repeats), name)
    effects += difference + draw_sd * random.normal(size=(draws, 1, repeats))
    draws_and_classes = pd.MultiIndex.from_arrays(
        [np.repeat(range(draws), classes), range(draws * classes)]
    )
    values = pd.DataFrame(effects.reshape(draws * classes, repeats), draws_and_classes)
    return share_below_alpha(uncertainty.class_test(values)["p"])


def class_table(repeats: int) -> pd.DataFrame:
    rows = {}
    for n_draws in N_DRAWS:
        row = {}
        for name, setting in CLASS_SETTINGS.items():
            row[name] = class_error(n_draws, setting, 0, repeats)
        for difference in CLASS_DIFFERENCES:
            setting = CLASS_SETTINGS["classes differ"]
            row[f"power, {difference:g}"] = class_error(n_draws, setting, difference, repeats)
        rows[f"{n_draws[0]} × {n_draws[1]}"] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("draws × classes")


def blurred_classes(blur: float) -> Callable[[np.random.Generator, int], tuple]:
    """Draws n embeddings of ten classes, each around its own direction, with their labels."""

    def draw(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 10
        return np.eye(16)[labels] + blur * random.normal(size=(n, 16)), labels

    return draw


def digits(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the pixels of n of scikit-learn's digits without replacement, with their labels."""
    images, labels = load_digits(return_X_y=True)
    chosen = random.permutation(len(images))[:n]
    return images[chosen] - images.mean(axis=1, keepdims=True)[chosen], labels[chosen]


def held_out_table(repeats: int) -> pd.DataFrame:
    """How much mAP varies between sets of new images, relative to the error over queries.

    The standard error over queries takes the gallery as fixed. Under `held_out_gallery`, the images
    of a new set are queries and gallery at once.
    """
    rows = {}
    draws = {f"blur {blur}": blurred_classes(blur) for blur in (0.2, 0.3, 0.5)}
    for name, draw in (draws | {"raw pixels of the digits": digits}).items():
        for n in (100, 200, 359):
            random, means, errors = np.random.default_rng(0), [], []
            for _ in range(repeats):
                vectors, labels = draw(random, n)
                scores = metrics.evaluate_retrieval(
                    vectors, labels, vectors, labels, ks=(1,), exclude=np.arange(n)
                )["average_precision"]
                means.append(scores.mean())
                errors.append(scores.sem())
            ratio = np.std(means, ddof=1) / np.sqrt(np.mean(np.square(errors)))
            if draw is digits:  # a set without replacement varies less than new images
                ratio /= np.sqrt(1 - n / 1797)
            rows.setdefault(name, {"mAP": np.mean(means)})[f"n = {n:,}"] = ratio
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("embeddings")


def markdown(table: pd.DataFrame) -> str:
    cells = table.map(lambda x: "–" if np.isnan(x) else f"{x:.2f}").reset_index()
    lines = [list(cells.columns), ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4000, help="comparisons per number")
    repeats = parser.parse_args().repeats
    print("Type I error and power over seeds and queries:\n")
    print(markdown(seed_table(repeats)), flush=True)
    print("\nType I error and power over classes and draws:\n")
    print(markdown(class_table(repeats)), flush=True)
    print("\nStandard deviation of mAP between image sets / standard error over queries:\n")
    print(markdown(held_out_table(max(2, repeats // 10))))


if __name__ == "__main__":
    main()
