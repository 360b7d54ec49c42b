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
# Above so many classes, counts are too small to be read.
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

    Shares of the true class by colour, queries in numbers where there is room; of the first seed,
    under the first protocol.

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
        is_room = len(counts) <= MOST_COUNTED
        names = [shorten(each) for each in counts] if is_room else False
        sns.heatmap(
            shares, annot=counts if is_room else False, fmt="d", cmap="Blues", vmin=0, vmax=1,
            cbar=False, linewidths=0.5 * is_room, xticklabels=names, yticklabels=names,
            annot_kws={"size": 8}, ax=axis, square=True,
        )  # fmt: skip
        axis.set_title(name, size=11)
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


def _backbone(result: Result) -> str:
    return result.summary["parameters"]["backbone"]
