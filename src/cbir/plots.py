"""Figures: data in, a matplotlib figure out. Hits and misses differ in colour and in sign."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from cbir.data import Dataset

# Figures show at most so many classes, and so stay readable.
MOST_ROWS = 40
# Okabe and Ito's palette, safe for colour-blind readers.
HIT, MISS, NEUTRAL = "#0072B2", "#D55E00", "#555555"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
sns.set_theme(style="whitegrid", context="notebook", palette=PALETTE)
# Shown at half the size they are drawn in, so that they are sharp on any screen.
PIXELS_PER_INCH = 84
plt.rcParams["figure.dpi"] = 2 * PIXELS_PER_INCH
plt.rcParams["savefig.bbox"] = "tight"
# Figures are shown by `show` alone, once, with their text.
plt.ioff()


def show(figure: Figure, alt: str) -> None:
    """Display a figure with the text that stands for it where it cannot be seen."""
    inches = figure.get_tightbbox(figure.canvas.get_renderer()).width
    about = {"alt": alt, "width": round(inches * PIXELS_PER_INCH)}
    display(figure, metadata={"image/png": about})
    plt.close(figure)


def say(text: str) -> None:
    """Display a text in Markdown; nothing where it is empty."""
    if text:
        display(Markdown(text))


def skipped(files: list[str]) -> str:
    """What to say of files that could not be read; nothing where there are none."""
    return (
        f"Skipped {len(files)} unreadable files:\n" + "\n".join(f"- {each}" for each in files)
        if files
        else ""
    )


def table(frame: pd.DataFrame, caption: str, digits: int | dict[str, int] = 3) -> Styler:
    """A data frame as a table with a caption; text to the left, numbers to the right.

    Args:
        digits: after the decimal point, for all rows or by the row's name.
    """
    named = frame.index.name is not None
    shown = (frame.reset_index() if named else frame).rename_axis(columns=None)
    styled = shown.style.set_caption(caption).format(precision=3, thousands=",", na_rep="–")
    if isinstance(digits, int):
        styled = styled.format(precision=digits, thousands=",", na_rep="–")
    else:
        for row, places in digits.items():
            styled = styled.format(
                precision=places, thousands=",", na_rep="–", subset=pd.IndexSlice[row, :]
            )
    texts = [name for name in shown if not pd.api.types.is_numeric_dtype(shown[name])]
    left = [{"selector": "th, td", "props": "text-align: left"}]
    styled = styled.set_table_styles(dict.fromkeys(texts, left), axis=0)
    return styled.hide(axis="index") if isinstance(shown.index, pd.RangeIndex) else styled


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Retrieval metrics over all queries, final state: a row per metric and k, a column per search.

    Args:
        rows: of metrics.csv, one architecture's.
    """
    chosen = rows[rows["class"].isna() & rows["search"].notna() & rows["epoch"].isna()]
    depth = chosen["k"].map(lambda k: "all" if pd.isna(k) else f"{k:.0f}")
    chosen = chosen.assign(depth=depth).set_index(["metric", "depth", "search"])
    wide = chosen["value"].unstack("search", sort=False)
    return wide.rename_axis(index={"depth": "k"}, columns=None).reset_index()


def samples(dataset: Dataset, per_class: int = 10) -> Figure:
    """The first training images of each class, a row a class."""
    classes = dataset.classes[:MOST_ROWS]
    figure, axes = plt.subplots(
        len(classes),
        per_class,
        figsize=(0.62 * per_class + 1.2, 0.62 * len(classes)),
        squeeze=False,
    )
    labels = dataset.train_labels[dataset.train]
    for label, row in enumerate(axes):
        members = dataset.train[np.flatnonzero(labels == label)[:per_class]]
        for axis in row:
            axis.set_axis_off()
        for axis, position in zip(row, members, strict=False):
            axis.imshow(dataset.train_images[position])
        row[0].text(-0.15, 0.5, classes[label], transform=row[0].transAxes, ha="right", va="center")
    figure.subplots_adjust(wspace=0.06, hspace=0.06)
    return figure


def training_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy and loss by epoch: solid on training images, dashed on validation images.

    Args:
        histories: by name, a row per epoch with accuracy, loss, val_accuracy, val_loss.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for (name, history), colour in zip(histories.items(), itertools.cycle(PALETTE), strict=False):
        marker = "o" if len(history) < 15 else ""
        for axis, measure in zip(axes, ("accuracy", "loss"), strict=True):
            for column, style, part in (
                (measure, "-", "training"),
                (f"val_{measure}", "--", "validation"),
            ):
                axis.plot(
                    history.index, history[column], style, color=colour, marker=marker,
                    markersize=4, label=f"{name}, {part}",
                )  # fmt: skip
            axis.set(xlabel="epoch", ylabel=measure)
    last = max((len(history) for history in histories.values()), default=1)
    for axis in axes:
        axis.set_xlim(0.5, last + 0.5)
        axis.set_xticks(np.unique(np.linspace(1, last, min(last, 10)).round().astype(int)))
    axes[0].set_ylim(top=1.02)
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("loss (cross-entropy)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.02), frameon=False,
        ncols=min(3, len(histories) * 2),
    )  # fmt: skip
    figure.tight_layout()
    return figure


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> Figure:
    """How many queries of each class (rows) were taken for which class (columns)."""
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, predicted), 1)
    side = min(16, max(4.5, 0.62 * len(classes)))
    figure, axis = plt.subplots(figsize=(side, side * 0.85))
    sns.heatmap(
        counts, annot=len(classes) <= 30, fmt="d", cmap="Blues", cbar=False, linewidths=0.5,
        xticklabels=classes, yticklabels=classes, annot_kws={"size": 9}, ax=axis,
    )  # fmt: skip
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.tick_params(axis="y", rotation=0)
    return figure


def results(
    dataset: Dataset,
    queries: np.ndarray,
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    k: int = 10,
) -> Figure:
    """Queries (left) and what was found for them, hits and misses framed and signed.

    Args:
        queries: positions in the test images.
        answers: by name (of a way of searching, or of an architecture), the rankings and the
            similarities of all queries.
    """
    rows = [(query, name) for query in queries for name in answers]
    figure, axes = plt.subplots(
        len(rows), k + 1, figsize=(0.85 * (k + 1) + 1.6, 0.98 * len(rows)), squeeze=False
    )
    for row, (query, name) in zip(axes, rows, strict=True):
        row[0].imshow(dataset.test_images[query])
        _frame(row[0], NEUTRAL, dataset.classes[dataset.test_labels[query]])
        if len(answers) > 1:
            row[0].text(
                -0.2, 0.5, name, transform=row[0].transAxes, ha="right", va="center", size=9
            )
        rankings, similarities = answers[name]
        found = rankings[query][:k]
        for axis, position, similarity in zip(row[1:], found, similarities[query], strict=False):
            if position < 0:
                axis.set_axis_off()
                continue
            axis.imshow(dataset.train_images[position])
            is_hit = dataset.train_labels[position] == dataset.test_labels[query]
            sign = "✓" if is_hit else "✗"
            _frame(axis, HIT if is_hit else MISS, f"{sign} {similarity:.2f}")
        for axis in row[1 + len(found) :]:
            axis.set_axis_off()
    figure.subplots_adjust(wspace=0.12, hspace=0.42)
    return figure


def per_class(rows: pd.DataFrame, metric: str, search: str, k: int | None = None) -> Figure:
    """One metric by the query's class, a column of the heat map for each architecture.

    Of very many classes it shows those that score lowest.

    Args:
        rows: of metrics.csv.
    """
    chosen = rows[(rows["metric"] == metric) & (rows["search"] == search) & rows["epoch"].isna()]
    chosen = chosen[chosen["k"].isna() if k is None else (chosen["k"] == k)]
    chosen = chosen[chosen["class"].notna()].astype({"class": str})
    table = chosen.pivot(index="class", columns="architecture", values="value")
    if len(table) > MOST_ROWS:
        table = table.loc[table.mean(axis=1).nsmallest(MOST_ROWS).index]
    figure, axis = plt.subplots(figsize=(1.6 * len(table.columns) + 2.4, 0.42 * len(table) + 1))
    sns.heatmap(
        table, annot=True, fmt=".3f", cmap="Blues", linewidths=0.5, ax=axis, vmax=1,
        cbar_kws={"label": f"{metric.replace('_', ' ')}, {search}"},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="class of the query")
    axis.tick_params(axis="y", rotation=0)
    return figure


def by_depth(rows: pd.DataFrame, metric: str) -> Figure:
    """A metric against k, a line for each architecture and way of searching."""
    chosen = rows[
        (rows["metric"] == metric) & rows["k"].notna() & rows["class"].isna() & rows["epoch"].isna()
    ]
    figure, axis = plt.subplots(figsize=(7, 3.8))
    sns.lineplot(
        chosen.astype({"k": int}), x="k", y="value", hue="architecture", style="search",
        markers=True, errorbar=None, ax=axis,
    )  # fmt: skip
    axis.set(xscale="log", xlabel="k (results looked at)", ylabel=f"{metric} at k")
    ks = sorted(chosen["k"].astype(int).unique())
    axis.set_xticks(ks, ks)
    axis.minorticks_off()
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def one_query_a_class(dataset: Dataset, most: int = 6) -> np.ndarray:
    """Positions of the first test image of each of the first classes: chosen by nothing else."""
    classes = range(min(most, len(dataset.classes)))
    return np.array([np.flatnonzero(dataset.test_labels == label)[0] for label in classes])


def _frame(axis: plt.Axes, colour: str, title: str) -> None:
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, size=8, color=colour, pad=2)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5, visible=True)
