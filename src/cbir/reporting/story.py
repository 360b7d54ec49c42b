"""The paper's figures 3 to 12, measured anew: which runs they are of, and what they show."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cbir.reporting import cases
from cbir.reporting.pictures import shorten
from cbir.reporting.results import Result

# The paper's first architecture; its figures 3 to 6 are of it.
CNN = "cnn"
# With more classes than that, counts are too small to be read.
MOST_COUNTED = 12


def networks(results: dict[str, Result]) -> dict[str, Result]:
    """The runs that are no controls."""
    return {name: each for name, each in results.items() if not each.is_control}


def of_cnn(results: dict[str, Result]) -> dict[str, Result]:
    """The runs of the paper's plain CNN, whatever they are called."""
    return {name: each for name, each in networks(results).items() if _backbone(each) == CNN}


def of_others(results: dict[str, Result]) -> dict[str, Result]:
    """The runs of all other networks, ResNet-50 and VGG16 among them."""
    return {name: each for name, each in networks(results).items() if _backbone(each) != CNN}


def confusions(results: dict[str, Result]) -> Figure:
    """Confusion matrices side by side: true class in rows, predicted class in columns.

    Shares of the true class by colour, queries in numbers; of the first seed, under the first
    protocol. Of many classes those that are confused most often are shown, as the title says; the
    shares stay those of all queries of the class.

    Args:
        results: of networks, at least one.
    """
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.4 * columns, 4.9 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        axis.set_axis_on()
        counts = confusion(cases.scores(result), result.summary["dataset"]["classes"])
        shares = counts / np.maximum(counts.sum(axis=1).to_numpy(), 1)[:, None]
        chosen = most_confused(counts)
        names = [shorten(each) for each in counts.columns[chosen]]
        sns.heatmap(
            shares.iloc[chosen, chosen], annot=counts.iloc[chosen, chosen], fmt="d", cmap="Blues",
            vmin=0, vmax=1, cbar=False, linewidths=0.5, xticklabels=names, yticklabels=names,
            annot_kws={"size": 8}, ax=axis, square=True,
        )  # fmt: skip
        title = name
        if len(chosen) < len(counts):
            title += f"\nof {len(counts)} classes, the {len(chosen)} confused most often"
        axis.set_title(title, size=11)
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.tick_params(labelsize=9)
    return figure


def confusion(scores: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """How many queries of each class (rows) were taken for which class (columns).

    Args:
        scores: rows of per_query.parquet, a row a query: label and predicted, which is -1 where
            nothing was predicted.
    """
    counts = np.zeros((len(classes), len(classes)), int)
    predicted = scores[scores["predicted"] >= 0]
    np.add.at(counts, (predicted["label"].to_numpy(int), predicted["predicted"].to_numpy(int)), 1)
    return pd.DataFrame(counts, classes, classes)


def most_confused(counts: pd.DataFrame, most: int = MOST_COUNTED) -> np.ndarray:
    """Positions of the classes that are most often taken for another, or another for them; sorted.

    Equals by position.

    Args:
        counts: from `confusion`.
        most: how many.
    """
    table = counts.to_numpy()
    wrongly = table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal()
    return np.sort(np.argsort(-wrongly, kind="stable")[:most])


def _backbone(result: Result) -> str:
    return result.summary["parameters"]["backbone"]
