"""Charts: a data frame in, a matplotlib figure out; without rows, there is no figure."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cbir.images.dataset import Dataset
from cbir.reporting import measurements, tables
from cbir.reporting.display import (
    FAINT,
    HIT,
    INK,
    LOOKS,
    MISS,
    MOST_ROWS,
    PROJECTIONS,
    entry,
    looks,
)
from cbir.reporting.montages import shorten
from cbir.reporting.numbers import Estimate, from_row, interval_columns
from cbir.retrieval.projections import Projection

# The approximate number of markers on a curve, whatever its number of epochs.
MOST_MARKERS = 12
MOST_COLUMNS = 3  # of panels
# With more classes, the counts of a confusion matrix would be too small to read.
MOST_COUNTED = 12
# Okabe and Ito's colours and further ones that can be seen on light and dark pages. Because ten
# colours are hard to distinguish, each class also has a marker.
CLASS_COLOURS = [
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#AA4499", "#8C8C00", "#B5446E",
    "#7A6FF0", "#A65628",
]  # fmt: skip
CLASS_MARKERS = "os^DvPX<>*"
INTERVAL = list(interval_columns())
SHADES = LinearSegmentedColormap.from_list("shades", [(HIT, 0), (HIT, 0.55)])
# A legend to the right of its figure.
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Accuracy and loss by epoch: solid on training images, dashed on validation images.

    `histories` have a row per epoch, by architecture: accuracy, loss, val_accuracy, val_loss.
    """
    if not histories:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    labels = {"accuracy": "accuracy", "loss": "loss (cross-entropy)"}
    for axis, (measure, label) in zip(axes, labels.items(), strict=True):
        for name, (colour, marker) in looks(histories).items():
            history = histories[name]
            every = -(-len(history) // MOST_MARKERS) or None
            for prefix, style, part in (("", "-", "training"), ("val_", "--", "validation")):
                axis.plot(
                    history[prefix + measure], style, color=colour, marker=marker,
                    markevery=every, markersize=4, label=entry(f"{name}, {part}"),
                )  # fmt: skip
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylim(top=1.02)
    axes[1].set_ylim(0, 1.05 * axes[1].dataLim.y1)
    entries = axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", frameon=False, ncols=3)
    return figure


def per_class(rows: pd.DataFrame, metric: str, search: str) -> Figure:
    """A heat map of one metric by class of the query and architecture, with intervals.

    If there are more than `MOST_ROWS` classes, it shows those with the lowest scores. `rows` are
    those of metrics.csv for one protocol, and for one seed or the average of all seeds.
    """
    metric_rows = measurements.select(rows, by_class=True, metric=metric, search=search, k=None)
    cells = metric_rows.assign(cell=metric_rows.apply(from_row, axis=1))
    cells = cells.pivot(index="class", columns="architecture", values="cell")
    values = cells.map(lambda cell: cell.value)
    if len(values) > MOST_ROWS:
        values = values.loc[values.mean(axis=1).nsmallest(MOST_ROWS).index]
    texts = cells.loc[values.index].map(lambda cell: str(cell).replace(" ", "\n"))
    figure, axis = plt.subplots(figsize=(1.5 * len(values.columns) + 2.4, 0.52 * len(values) + 1))
    heat_map(axis, values, texts, vmin=0, vmax=1)
    axis.set(xlabel=f"{metric.replace('_', ' ')}, {search}", ylabel="class of the query")
    return figure


def heat_map(axis: plt.Axes, values: pd.DataFrame, texts: pd.DataFrame, **style) -> None:
    """Draw values as colours, from none to `HIT`, with texts on them; `style` as for `sns.heatmap`.

    Colours are half transparent, so that texts can be read on light and dark pages.
    """
    style = {"cmap": SHADES, "cbar": False, "linewidths": 0.5, "fmt": ""} | style
    sns.heatmap(values, annot=texts, annot_kws={"size": 8, "color": INK}, ax=axis, **style)
    axis.grid(visible=False)
    axis.tick_params(axis="y", rotation=0)


def by_depth(rows: pd.DataFrame, metric: str, search: str) -> Figure:
    """A metric against k with its interval, one line per architecture; rows as in `per_class`."""
    metric_rows = measurements.select(rows[rows["k"].notna()], metric=metric, search=search)
    metric_rows = metric_rows.astype({"k": int}).set_index("k").sort_index()
    figure, axis = plt.subplots(figsize=(7, 3.8))
    for name, (colour, marker) in looks(metric_rows["architecture"].unique()).items():
        means = metric_rows[metric_rows["architecture"] == name]
        draw_mean(axis, means, color=colour, marker=marker, label=entry(name))
    ks = metric_rows.index.unique()
    axis.set(xscale="log", xlabel="k (number of results)", ylabel=f"{metric} at k, {search}")
    axis.set_xticks(ks, ks)
    axis.minorticks_off()
    axis.legend(**BESIDE)
    return figure


def draw_mean(axis: plt.Axes, means: pd.DataFrame, **look) -> None:
    """Draw a line of means (value, ci_low, ci_high by position) in the band of their intervals.

    `look` is the style of the line, as for `Axes.plot`; `color` also applies to the band.
    """
    axis.plot(means.index, means["value"], **look)
    low, high = means["ci_low"], means["ci_high"]
    axis.fill_between(means.index, low, high, color=look["color"], alpha=0.15)


def by_search(rows: pd.DataFrame) -> Figure:
    """mAP of each search with its interval, one row per architecture; rows as in `per_class`."""
    mean_rows = measurements.select(rows, metric="mean_average_precision", k=None)
    names = list(dict.fromkeys(mean_rows["architecture"]))
    figure, axis = plt.subplots(figsize=(8, 0.8 * len(names) + 1.2))
    for place, search in enumerate(tables.SEARCH_ORDER):
        points = mean_rows[mean_rows["search"] == search]
        if len(points):
            colour, marker = LOOKS[place]
            height = [names.index(name) + (place - 2) * 0.15 for name in points["architecture"]]
            axis.errorbar(
                points["value"], height, xerr=interval_lengths(points[INTERVAL]), color=colour,
                fmt=marker, capsize=3, markersize=6, label=search,
            )  # fmt: skip
    axis.set(xlabel="mean average precision, with its 95 % interval")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.legend(**BESIDE)
    return figure


def interval_lengths(means: pd.DataFrame) -> np.ndarray:
    """(2, n) distances of intervals' ends, in the last two columns, from the means in the first."""
    value, low, high = means.to_numpy(float).T
    # If all queries have the same score, the mean and its interval may differ in the last digit.
    return np.maximum([value - low, high - value], 0)


def pair_matrix(table: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Who is significantly better: a win, a tie or a loss of the row against the column.

    An asterisk marks pairs whose test does not cover seeds: it is about these networks only.
    `table` is from `uncertainty.pair_outcomes`, `pairs` from `uncertainty.compare`.
    """
    values = table.map({"win": 1, "tie": 0, "untested": 0, "loss": -1}.get).astype(float)
    texts = table.copy()
    for pair in pairs.itertuples():
        gain = Estimate(pair.difference, pair.ci_low, pair.ci_high)
        mark = "*" if tables.is_of_networks(pair) else ""
        names = [pair.ahead, pair.behind]
        for (row, column), lead in ((names, gain), (names[::-1], -gain)):
            texts.loc[row, column] += f"{mark}\n{lead:+}".replace(" ", "\n")
    side = 1.25 * len(table) + 1.5
    figure, axis = plt.subplots(figsize=(side, 0.65 * side))
    colours = ListedColormap([(MISS, 0.5), (FAINT, 0.1), (HIT, 0.5)])
    heat_map(axis, values, texts, cmap=colours, vmin=-1, vmax=1)
    axis.set(xlabel="against", ylabel="")
    axis.tick_params(axis="x", rotation=30)
    return figure


def confusion_matrices(counts: Mapping[str, pd.DataFrame]) -> Figure | None:
    """The number of queries of each true class (rows) by predicted class (columns).

    Colour shows the share of the true class, numbers count queries; `counts` are from
    `tables.confusion_counts`, by architecture. If there are more than `MOST_COUNTED` classes, those
    that are confused most often are shown; shares still refer to all queries of the class.
    """
    if not counts:
        return None
    figure, axes = panels(len(counts), (3.9, 3.9))
    for axis, (name, table) in zip(axes, counts.items(), strict=True):
        shares = table / np.maximum(table.sum(axis=1).to_numpy(), 1)[:, None]
        positions = most_confused(table)
        classes = [shorten(label) for label in table.columns[positions]]
        names = {"xticklabels": classes, "yticklabels": classes}
        # A number in each empty cell would hide the others.
        texts = table.astype(object).replace(0, "")
        selected = (frame.iloc[positions, positions] for frame in (shares, texts))
        heat_map(axis, *selected, vmin=0, vmax=1, square=True, **names)
        title = name
        if len(positions) < len(table):
            title += f"\nthe {len(positions)} of {len(table)} classes confused most often"
        axis.set_title(title, size=11)
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.tick_params(labelsize=8)
    return figure


def query_maps(
    dataset: Dataset, projections: Mapping[str, Projection], predicted: Mapping[str, np.ndarray]
) -> Figure | None:
    """Queries as points, coloured and marked by class; rings mark wrong predictions.

    If there are more than ten classes, those confused most often have colours; the others are grey.

    Args:
        projections: by architecture, from `projections.project_all`; empty for no figure.
        predicted: by architecture, the predicted class of every query, -1 if there is none.
    """
    if not projections:
        return None
    labels, classes = dataset.query_labels, dataset.classes
    counts = [tables.confusion_counts(labels, predicted[name], classes) for name in projections]
    coloured_labels = most_confused(sum(counts), len(CLASS_COLOURS))
    side = 9.6 / min(MOST_COLUMNS, len(projections))
    figure, axes = panels(len(projections), (side, side + 0.35))
    for axis, (name, projection) in zip(axes, projections.items(), strict=True):
        shown_labels = labels[projection.queries]
        others = projection.points[~np.isin(shown_labels, coloured_labels)]
        guesses = predicted[name][projection.queries]
        wrong = projection.points[(guesses >= 0) & (guesses != shown_labels)]
        size = float(np.clip(14_000 / len(shown_labels), 14, 30))
        others_label = "other classes" if len(coloured_labels) < len(classes) else ""
        axis.scatter(*others.T, s=size / 3, color=FAINT, marker=".", label=others_label)
        looks = zip(coloured_labels, CLASS_COLOURS, CLASS_MARKERS, strict=False)
        for label, colour, marker in looks:
            axis.scatter(
                *projection.points[shown_labels == label].T, s=size, color=colour, marker=marker,
                alpha=0.75, linewidths=0, label=entry(shorten(classes[label], 24)),
            )  # fmt: skip
        axis.scatter(
            *wrong.T, s=2.4 * size + 12, facecolors="none", edgecolors=INK, linewidths=0.6,
            label="classified wrongly",
        )  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        axis.set_title(f"{name}, {PROJECTIONS[projection.method]}", size=10)
        qualities = [
            (projection.variance, f"{100 * projection.variance:.0f} % of the variance"),
            (projection.trustworthiness, f"trustworthiness {projection.trustworthiness:.2f}"),
        ]
        texts = [text for value, text in qualities if not np.isnan(value)]
        axis.set_xlabel(", ".join(texts), size=8.5)
    entries = axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", frameon=False, ncols=6, fontsize=9)
    return figure


def panels(n: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of n panels of this size in inches, in rows of `MOST_COLUMNS`, and their axes."""
    columns = min(MOST_COLUMNS, n)
    rows = -(-n // columns)
    figsize = size[0] * columns, size[1] * rows
    figure, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    for axis in axes.flat[n:]:
        axis.set_axis_off()
    return figure, axes.flat[:n]


def most_confused(counts: pd.DataFrame, most: int = MOST_COUNTED) -> np.ndarray:
    """Positions, sorted, of the `most` classes in `confusion_counts` that are confused most often.

    Ties are broken by position.
    """
    table = counts.to_numpy()
    wrong = table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:most])


def engines(costs: pd.DataFrame) -> Figure:
    """Time of a query and recall by size of the gallery, narrow enough for a phone.

    Marker and line style together distinguish up to 18 engines, even without colour.

    Args:
        costs: from `scale.measure_engines`.
    """
    figure, (times, recalls) = plt.subplots(
        2, 1, figsize=(4, 7.6), sharex=True, layout="constrained"
    )
    for place, (name, rows) in enumerate(costs.groupby("engine", sort=False)):
        colour, marker = LOOKS[place % len(LOOKS)]
        style = {"color": colour, "marker": marker, "markersize": 5, "label": name}
        style["linestyle"] = ("-", "--", ":")[place // 6 % 3]
        times.plot(rows["size"], rows["p50"], **style)
        recalls.plot(rows["size"], rows["recall"], **style)
    recalls.set(xscale="log", xlabel="images in the gallery", ylabel="recall@10")
    recalls.set_ylim(min(0.5, costs["recall"].min()) - 0.02, 1.02)
    times.set(yscale="log", ylabel="median time of a query (ms)")
    # By default, matplotlib formats these ticks as formulas, which figures do not render.
    recalls.xaxis.set_major_formatter("{x:,.0f}")
    times.yaxis.set_major_formatter("{x:g}")
    for axis in (times, recalls):
        axis.tick_params(labelsize="small")
        axis.yaxis.label.set_size("small")
    entries = times.get_legend_handles_labels()
    figure.legend(
        *entries, loc="outside lower left", frameon=False, fontsize="small", handlelength=3.5
    )
    return figure
