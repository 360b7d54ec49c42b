"""Charts: a data frame in, a matplotlib figure out; without rows there is no figure."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from cbir.reporting import tidy
from cbir.reporting.display import HIT, MISS, MOST_ROWS, NEUTRAL, SEARCH_COLOURS, looks
from cbir.reporting.estimates import Estimate
from cbir.reporting.image_grids import shorten

# A curve has about so many markers, however many epochs it has.
MOST_MARKERS = 12
# With more classes than that, the counts of a confusion matrix are too small to be read.
MOST_COUNTED = 12
# Of `against_cost`: a column of its points, and what its axis is called.
COST_AXES = {
    "milliseconds": "embedding an image (ms)",
    "bytes": "index, per image (bytes)",
}
# Names beside points keep so far apart, as a share of the axis' height.
APART = 0.055


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Accuracy and loss by epoch: solid on training images, dashed on validation images.

    Args:
        histories: by architecture, one row per epoch: accuracy, loss, val_accuracy, val_loss.
    """
    if not histories:
        return None
    of_name = looks(histories)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, history in histories.items():
        colour, marker = of_name[name]
        every = -(-len(history) // MOST_MARKERS) or None
        for axis, measure in zip(axes, ("accuracy", "loss"), strict=True):
            for column, style, part in (
                (measure, "-", "training"),
                (f"val_{measure}", "--", "validation"),
            ):
                axis.plot(
                    history.index, history[column], style, color=colour, marker=marker,
                    markevery=every, markersize=4, label=f"{name}, {part}",
                )  # fmt: skip
            axis.set(xlabel="epoch", ylabel=measure)
    last = max(1, *map(len, histories.values()))
    for axis in axes:
        axis.set_xlim(0.5, last + 0.5)
        axis.set_xticks(np.unique(np.linspace(1, last, min(last, 10)).round().astype(int)))
    axes[0].set_ylim(top=1.02)
    axes[1].set_ylim(0, 1.05 * axes[1].dataLim.y1)
    axes[1].set_ylabel("loss (cross-entropy)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.02), frameon=False,
        ncols=min(3, len(histories) * 2),
    )  # fmt: skip
    figure.tight_layout()
    return figure


def per_class(rows: pd.DataFrame, metric: str, search: str) -> Figure:
    """A heat map of one metric by class of the query and architecture, with intervals.

    Of more than `MOST_ROWS` classes it shows those that score lowest.

    Args:
        rows: of metrics.csv, of one protocol and of one seed or the average of all.
    """
    chosen = rows[rows["class"].notna() & rows["epoch"].isna() & rows["k"].isna()]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["search"] == search)]
    chosen = chosen.astype({"class": str})
    cells = [str(tidy.number(chosen.loc[[row]])).replace(" ", "\n") for row in chosen.index]
    place = {"index": "class", "columns": "architecture"}
    values = chosen.pivot(**place, values="value")
    texts = chosen.assign(cell=cells).pivot(**place, values="cell")
    if len(values) > MOST_ROWS:
        values = values.loc[values.mean(axis=1).nsmallest(MOST_ROWS).index]
    texts = texts.loc[values.index]
    figure, axis = plt.subplots(figsize=(1.5 * len(values.columns) + 2.4, 0.52 * len(values) + 1))
    sns.heatmap(
        values, annot=texts, fmt="", cmap="Blues", linewidths=0.5, ax=axis, vmax=1,
        annot_kws={"size": 8}, cbar_kws={"label": f"{metric.replace('_', ' ')}, {search}"},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="class of the query")
    axis.tick_params(axis="y", rotation=0)
    return figure


def by_depth(rows: pd.DataFrame, metric: str, search: str) -> Figure:
    """A metric against k with its interval, one line per architecture.

    Args:
        rows: as for `per_class`.
    """
    chosen = tidy.select(rows[rows["k"].notna()], metric=metric, search=search)
    figure, axis = plt.subplots(figsize=(7, 3.8))
    of_name = looks(chosen["architecture"].unique())
    for name, of_architecture in chosen.groupby("architecture", sort=False):
        colour, marker = of_name[name]
        line = of_architecture.astype({"k": int}).sort_values("k")
        axis.plot(line["k"], line["value"], color=colour, marker=marker, label=name)
        axis.fill_between(line["k"], line["ci_low"], line["ci_high"], color=colour, alpha=0.15)
    axis.set(xscale="log", xlabel="k (results looked at)", ylabel=f"{metric} at k, {search}")
    ks = sorted(chosen["k"].astype(int).unique())
    axis.set_xticks(ks, ks)
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def by_search(rows: pd.DataFrame) -> Figure:
    """mAP of each way of searching with its interval, one row per architecture.

    Args:
        rows: as for `per_class`.
    """
    chosen = tidy.select(rows, metric="mean_average_precision", k=None)
    chosen = chosen[chosen["search"].isin(SEARCH_COLOURS)]
    names = list(dict.fromkeys(chosen["architecture"]))
    figure, axis = plt.subplots(figsize=(8, 0.8 * len(names) + 1.2))
    for place, (search, colour) in enumerate(SEARCH_COLOURS.items()):
        points = chosen[chosen["search"] == search]
        if points.empty:
            continue
        height = [names.index(name) + (place - 2) * 0.15 for name in points["architecture"]]
        # Where all queries score alike, the mean and its interval differ in their last digit.
        around = [
            (points["value"] - points["ci_low"]).clip(lower=0),
            (points["ci_high"] - points["value"]).clip(lower=0),
        ]
        axis.errorbar(
            points["value"], height, xerr=around, fmt="osD^v"[place], color=colour, capsize=3,
            markersize=6, label=search,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="mean average precision, with its 95 % interval")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def against_cost(table: pd.DataFrame) -> Figure:
    """mAP with its interval against each cost: the best are at the top left.

    Architectures are filled, baselines hollow; each point has its name beside it.

    Args:
        table: from `tables.quality_and_cost`.
    """
    of_name = looks(table.index)
    figure, axes = plt.subplots(1, len(COST_AXES), figsize=(11, 4.4), sharey=True)
    for axis, (cost, label) in zip(axes, COST_AXES.items(), strict=True):
        for name, row in table.iterrows():
            colour, marker = of_name[name]
            around = [
                [max(row["value"] - row["ci_low"], 0)],
                [max(row["ci_high"] - row["value"], 0)],
            ]
            axis.errorbar(
                row[cost], row["value"], yerr=around, fmt=marker, capsize=3, markersize=8,
                color=NEUTRAL if row["is_baseline"] else colour,
                markerfacecolor="none" if row["is_baseline"] else colour,
            )  # fmt: skip
        axis.set(xscale="log", xlabel=label)
        axis.xaxis.set_major_formatter("{x:,g}")
        # Names stand to the right of their points.
        low, high = table[cost].min(), table[cost].max()
        axis.set_xlim(low / (high / low) ** 0.06 / 1.15, high * (high / low) ** 0.25 * 1.9)
    axes[0].set_ylim(0, 1.08 * axes[0].get_ylim()[1])
    axes[0].set_ylabel("mAP, unrestricted search")
    for axis, cost in zip(axes, COST_AXES, strict=True):
        _label_points(axis, table[cost], table["value"])
    figure.tight_layout()
    return figure


def _label_points(axis: plt.Axes, across: pd.Series, up: pd.Series) -> None:
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


def lost_and_won_back(counts: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """How many queries are classified wrongly, and how many of these the soft search wins back.

    Beside each bar stands the share of the gallery that the soft search searches.

    Args:
        counts: by architecture, from `tables.lost_and_won_back`.
    """
    if not counts:
        return None
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(counts) + 1))
    for height, of_run in enumerate(counts.values()):
        parts = of_run["won back"], of_run["lost"]
        for part, start, colour, hatch, name in zip(
            parts, (0, parts[0]), (HIT, MISS), ("", "//"), ("won back", "lost"), strict=True
        ):
            label = name if height == 0 else None
            axis.barh(height, part, left=start, color=colour, hatch=hatch, label=label)
        text = (
            f" {sum(parts):.3g} of {of_run['queries']:,}; {100 * of_run['searched']:.1f} % searched"
        )
        axis.text(sum(parts), height, text, va="center", size=9)
    axis.set_yticks(range(len(counts)), counts)
    axis.set_ylim(len(counts) - 0.5, -0.5)
    longest = max(of_run["won back"] + of_run["lost"] for of_run in counts.values())
    axis.set_xlim(0, 1.6 * max(1, longest))
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="queries whose class is predicted wrongly")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def pair_matrix(table: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Who is significantly better: a win, a tie or a loss of the row against the column.

    Args:
        table: from `uncertainty.pair_outcomes`.
        pairs: from `uncertainty.compare`.
    """
    signs = {"win": 1, "tie": 0, "loss": -1}
    values = table.replace(signs).apply(pd.to_numeric, errors="coerce")
    texts = table.fillna("").astype(str)
    for pair in pairs.itertuples():
        gain = Estimate(pair.difference, pair.ci_low, pair.ci_high)
        texts.loc[pair.ahead, pair.behind] += "\n" + f"{gain:+}".replace(" ", "\n")
        texts.loc[pair.behind, pair.ahead] += "\n" + f"{-gain:+}".replace(" ", "\n")
    side = 1.25 * len(table) + 1.5
    figure, axis = plt.subplots(figsize=(side, 0.65 * side))
    colours = ListedColormap([MISS, "#F2F2F2", HIT])
    sns.heatmap(
        values, annot=texts, fmt="", cmap=colours, vmin=-1, vmax=1, cbar=False, linewidths=1,
        annot_kws={"size": 8}, ax=axis,
    )  # fmt: skip
    axis.grid(visible=False)
    axis.set(xlabel="against", ylabel="")
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(axis="x", rotation=30)
    return figure


def confusion_matrices(counts: Mapping[str, pd.DataFrame]) -> Figure | None:
    """How many queries of each true class (rows) are classified as which class (columns).

    Colour shows the share of the true class, numbers count queries. Of more than `MOST_COUNTED`
    classes those that are confused most often are shown, as the title says; shares remain those of
    all queries of the class.

    Args:
        counts: by architecture, from `tables.confusion_counts`.
    """
    if not counts:
        return None
    columns = min(2, len(counts))
    rows = -(-len(counts) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.4 * columns, 4.9 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(counts) :]:
        axis.set_axis_off()
    for axis, (name, table) in zip(axes.flat, counts.items(), strict=False):
        shares = table / np.maximum(table.sum(axis=1).to_numpy(), 1)[:, None]
        chosen = most_confused(table)
        classes = [shorten(label) for label in table.columns[chosen]]
        sns.heatmap(
            shares.iloc[chosen, chosen], annot=table.iloc[chosen, chosen], fmt="d", cmap="Blues",
            vmin=0, vmax=1, cbar=False, linewidths=0.5, xticklabels=classes, yticklabels=classes,
            annot_kws={"size": 8}, ax=axis, square=True,
        )  # fmt: skip
        title = name
        if len(chosen) < len(table):
            title += f"\nof {len(table)} classes, the {len(chosen)} confused most often"
        axis.set_title(title, size=11)
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.tick_params(labelsize=9)
    return figure


def most_confused(counts: pd.DataFrame, most: int = MOST_COUNTED) -> np.ndarray:
    """Positions, sorted, of the classes with the most wrong classifications, as either class.

    Args:
        counts: from `tables.confusion_counts`.
        most: how many; equals by position.
    """
    table = counts.to_numpy()
    wrong = table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:most])
