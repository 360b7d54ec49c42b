"""Figures: data in, a matplotlib figure out. Hits and misses differ in colour and in sign."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from cbir.reporting import tidy

# Figures show at most so many classes, and so stay readable.
MOST_ROWS = 40
# Okabe and Ito's palette, safe for colour-blind readers.
HIT, MISS, NEUTRAL = "#0072B2", "#D55E00", "#555555"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
# In the order of their importance.
METRICS = [
    "mean_average_precision", "precision", "recall", "ndcg", "hit_rate", "r_precision",
    "mean_average_precision_at_r", "mean_reciprocal_rank", "gallery_searched",
]  # fmt: skip
SEARCH_COLOURS = {
    "unrestricted": "#0072B2",
    "label_lookup": "#555555",
    "predicted_class": "#E69F00",
    "soft": "#009E73",
    "oracle_class": "#CC79A7",
}
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


def _is_number(column: pd.Series) -> bool:
    """Whether a column holds numbers, also as text with their intervals."""
    if pd.api.types.is_numeric_dtype(column):
        return True
    return column.astype(str).str.fullmatch(r"–|(< )?[-+]?[\d.,]+( \[.*\])?").all()


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
    texts = [name for name in shown if not _is_number(shown[name])]
    left = [{"selector": "th, td", "props": "text-align: left"}]
    styled = styled.set_table_styles(dict.fromkeys(texts, left), axis=0)
    return styled.hide(axis="index") if isinstance(shown.index, pd.RangeIndex) else styled


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Retrieval metrics over all queries: a row per metric and k, a column per search.

    Args:
        rows: of metrics.csv, one architecture's, of one seed and protocol.
    """
    chosen = tidy.select(rows[rows["search"].notna()])
    depth = chosen["k"].map(lambda k: "all" if pd.isna(k) else f"{k:.0f}")
    cells = [tidy.number(chosen.loc[[row]]) for row in chosen.index]
    chosen = chosen.assign(depth=depth, cell=cells).set_index(["metric", "depth", "search"])
    wide = chosen["cell"].unstack("search", sort=False)
    order = [name for name in SEARCH_COLOURS if name in wide]
    metrics = [name for name in METRICS if name in wide.index]
    return wide.loc[metrics, order].rename_axis(index={"depth": "k"}, columns=None).reset_index()


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


def per_class(rows: pd.DataFrame, metric: str, search: str) -> Figure:
    """One metric by the query's class, with its interval, a column for each architecture.

    Of very many classes it shows those that score lowest.

    Args:
        rows: of metrics.csv, of one protocol and of one seed or the average of all.
    """
    chosen = rows[rows["class"].notna() & rows["epoch"].isna() & rows["k"].isna()]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["search"] == search)]
    chosen = chosen.astype({"class": str})
    cells = [tidy.number(chosen.loc[[row]]).replace(" ", "\n") for row in chosen.index]
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
    """A metric against k with its interval, a line for each architecture.

    Args:
        rows: as for `per_class`.
    """
    chosen = tidy.select(rows[rows["k"].notna()], metric=metric, search=search)
    figure, axis = plt.subplots(figsize=(7, 3.8))
    markers = itertools.cycle("osD^vPX")
    for (name, own), colour in zip(
        chosen.groupby("architecture", sort=False), itertools.cycle(PALETTE), strict=False
    ):
        line = own.astype({"k": int}).sort_values("k")
        axis.plot(line["k"], line["value"], color=colour, marker=next(markers), label=name)
        axis.fill_between(line["k"], line["ci_low"], line["ci_high"], color=colour, alpha=0.15)
    axis.set(xscale="log", xlabel="k (results looked at)", ylabel=f"{metric} at k, {search}")
    ks = sorted(chosen["k"].astype(int).unique())
    axis.set_xticks(ks, ks)
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def by_search(rows: pd.DataFrame) -> Figure:
    """mAP of each way of searching with its interval, a row for each architecture.

    Args:
        rows: as for `per_class`.
    """
    chosen = tidy.select(rows, metric="mean_average_precision", k=None)
    chosen = chosen[chosen["search"].isin(SEARCH_COLOURS)]
    names = list(dict.fromkeys(chosen["architecture"]))
    figure, axis = plt.subplots(figsize=(8, 0.8 * len(names) + 1.2))
    for place, (search, colour) in enumerate(SEARCH_COLOURS.items()):
        own = chosen[chosen["search"] == search]
        if own.empty:
            continue
        height = [names.index(name) + (place - 2) * 0.15 for name in own["architecture"]]
        # Where all queries score alike, the mean and its interval differ in their last digit.
        around = [
            (own["value"] - own["ci_low"]).clip(lower=0),
            (own["ci_high"] - own["value"]).clip(lower=0),
        ]
        axis.errorbar(
            own["value"], height, xerr=around, fmt="osD^v"[place], color=colour, capsize=3,
            markersize=6, label=search,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="mean average precision, with its 95 % interval")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def lost_and_won_back(counts: dict[str, dict[str, float]]) -> Figure:
    """How many queries are predicted wrongly, and how many of these the soft search wins back.

    Args:
        counts: by architecture, from `comparison.lost_and_won_back`.
    """
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(counts) + 1))
    for height, found in enumerate(counts.values()):
        parts = found["won back"], found["lost"]
        for part, start, colour, hatch, name in zip(
            parts, (0, parts[0]), (HIT, MISS), ("", "//"), ("won back", "lost"), strict=True
        ):
            label = name if height == 0 else None
            axis.barh(height, part, left=start, color=colour, hatch=hatch, label=label)
        text = (
            f" {sum(parts):.3g} of {found['queries']:,}; {100 * found['searched']:.1f} % searched"
        )
        axis.text(sum(parts), height, text, va="center", size=9)
    axis.set_yticks(range(len(counts)), counts)
    axis.set_ylim(len(counts) - 0.5, -0.5)
    axis.set_xlim(0, 1.6 * max([1, *(f["won back"] + f["lost"] for f in counts.values())]))
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="queries whose class is predicted wrongly")
    if counts:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def outcomes(table: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Who is told apart from whom: a win, a tie or a loss of the row against the column.

    Args:
        table: from `uncertainty.outcomes`.
        pairs: from `uncertainty.compare`.
    """
    signs = {"win": 1, "tie": 0, "loss": -1}
    values = table.replace(signs).apply(pd.to_numeric, errors="coerce")
    texts = table.fillna("").astype(str)
    for pair in pairs.itertuples():
        for row, column, sign in ((pair.ahead, pair.behind, ""), (pair.behind, pair.ahead, "-")):
            bounds = (pair.ci_low, pair.ci_high) if sign == "" else (-pair.ci_high, -pair.ci_low)
            texts.loc[row, column] += (
                f"\n{sign or '+'}{pair.difference:.3f}\n[{bounds[0]:.3f}, {bounds[1]:.3f}]"
            )
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
