"""Figures of what quality costs: mAP against the time of embedding and the size of the index."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from cbir.reporting import comparison, tidy
from cbir.reporting.plots import NEUTRAL, look
from cbir.reporting.results import Result

# What a point may cost, as a column of `points` and on an axis.
COSTS = {
    "milliseconds": "embedding an image (ms)",
    "bytes": "index, per image (bytes)",
}
# Labels keep so far apart, as a share of the axis' height.
APART = 0.055


def points(rows: pd.DataFrame, results: dict[str, Result]) -> pd.DataFrame:
    """The mAP of each run, and what it costs an image.

    Args:
        rows: from `comparison.headline`.

    Returns:
        A row a run: value, ci_low, ci_high (mAP of the unrestricted search), milliseconds
        (embedding an image, one batch after the other), bytes (an image's embedding in the index),
        is_control.
    """
    table = {}
    for name, result in results.items():
        own = tidy.select(
            rows[rows["architecture"] == name], **comparison.QUALITY["mAP, unrestricted"]
        )
        summary = result.summary
        table[name] = own[["value", "ci_low", "ci_high"]].iloc[0].to_dict() | {
            "milliseconds": 1000 / summary["speed"]["images_per_second"],
            "bytes": summary["index_bytes"] / summary["dataset"]["gallery"],
            "is_control": result.is_control,
        }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("architecture")


def against_cost(table: pd.DataFrame) -> Figure:
    """mAP with its interval against each cost: up is more relevant, left is cheaper.

    Architectures are filled, controls hollow; each point has its name beside it.

    Args:
        table: from `points`.
    """
    figure, axes = plt.subplots(1, len(COSTS), figsize=(11, 4.4), sharey=True)
    for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
        for name, row in table.iterrows():
            colour, marker = look(name)
            around = [
                [max(row["value"] - row["ci_low"], 0)],
                [max(row["ci_high"] - row["value"], 0)],
            ]
            axis.errorbar(
                row[cost], row["value"], yerr=around, fmt=marker, capsize=3, markersize=8,
                color=NEUTRAL if row["is_control"] else colour,
                markerfacecolor="none" if row["is_control"] else colour,
            )  # fmt: skip
        axis.set(xscale="log", xlabel=label)
        axis.xaxis.set_major_formatter("{x:,g}")
        # Names stand to the right of their points.
        low, high = table[cost].min(), table[cost].max()
        axis.set_xlim(low / (high / low) ** 0.06 / 1.15, high * (high / low) ** 0.25 * 1.9)
    axes[0].set_ylim(0, 1.08 * axes[0].get_ylim()[1])
    axes[0].set_ylabel("mAP, unrestricted search")
    for axis, cost in zip(axes, COSTS, strict=True):
        _label(axis, table[cost], table["value"])
    figure.tight_layout()
    return figure


def _label(axis: plt.Axes, across: pd.Series, up: pd.Series) -> None:
    """Names to the right of their points, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    beside = offset_copy(axis.transData, axis.figure, x=11, units="points")
    for name, height in spread_out(up, APART * (high - low)).items():
        is_moved = abs(height - up[name]) > APART / 4 * (high - low)
        line = {"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.6} if is_moved else None
        axis.annotate(
            name, (across[name], up[name]), (across[name], height), textcoords=beside, size=9,
            va="center", arrowprops=line,
        )  # fmt: skip


def spread_out(heights: pd.Series, apart: float) -> pd.Series:
    """Heights moved as little as keeps each `apart` from the next; their order stays.

    Those that are too near form a group around their mean; groups that then touch become one.
    """
    ordered = heights.sort_values(kind="stable")
    groups: list[list[float]] = []
    for value in ordered:
        group = [value]
        while groups and _ends(groups[-1], apart)[1] + apart > _ends(group, apart)[0]:
            group = groups.pop() + group
        groups.append(group)
    placed = [
        _ends(group, apart)[0] + place * apart for group in groups for place in range(len(group))
    ]
    return pd.Series(placed, ordered.index)


def _ends(group: list[float], apart: float) -> tuple[float, float]:
    """Where a group's lowest and highest come to stand."""
    half = apart * (len(group) - 1) / 2
    middle = sum(group) / len(group)
    return middle - half, middle + half
