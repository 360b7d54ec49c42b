"""Figures: data in, a matplotlib figure out. Hits and misses differ in colour and in sign."""

import io
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import SVG, Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from pandas.io.formats.style import Styler

from cbir.reporting import estimates, tidy
from cbir.reporting.estimates import Estimate, PValue

# Figures show at most so many classes, and so stay readable.
MOST_ROWS = 40
# Okabe and Ito's palette, safe for colour-blind readers.
HIT, MISS, NEUTRAL = "#0072B2", "#D55E00", "#555555"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
# Beside the colours, so that none need be told by its colour alone.
MARKERS = "osD^vPX"
# A curve has about so many markers, however many epochs it has.
MOST_MARKERS = 12
# Architectures that `look` has seen, in the order in which they were first drawn.
_places: dict[str, int] = {}
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
# Those made of pixels are shown at half the size they are drawn in, so that all are sharp.
PIXELS_PER_INCH = 84
# What has more bytes, as PNG or SVG, gives way to a JPEG of half its size.
LARGE = 200_000
plt.rcParams["figure.dpi"] = 2 * PIXELS_PER_INCH
plt.rcParams["savefig.bbox"] = "tight"
# The same figure is drawn as the same bytes.
plt.rcParams["svg.hashsalt"] = "cbir"
# Figures are shown by `show` alone, once, with their text.
plt.ioff()


def show(figure: Figure, alt: str) -> None:
    """Display a figure with its text, which is read under it, and where it cannot be seen.

    As SVG, which is sharp at any size; as PNG where that is smaller, as of clouds of points; as
    JPEG where many photographs would make the PNG large.
    """
    inches = figure.get_tightbbox().width + 2 * plt.rcParams["savefig.pad_inches"]
    about = {"alt": alt, "width": round(inches * PIXELS_PER_INCH)}
    png = _draw(figure, "png")
    jpeg = _draw(figure, "jpeg", pil_kwargs={"quality": 90}) if len(png) > LARGE else png
    for picture in figure.findobj(AxesImage):
        # Small pictures are kept pixel by pixel, not as what enlarging makes of them.
        if picture.get_interpolation() == plt.rcParams["image.interpolation"]:
            picture.set_interpolation("none")
    svg = _draw(figure, "svg", metadata={"Date": None})
    if len(svg) < min(len(png), max(LARGE, 2 * len(jpeg))):
        display(SVG(svg), metadata={"image/svg+xml": about})
    elif 2 * len(jpeg) < len(png):
        display(Image(jpeg), metadata={"image/jpeg": about})
    else:
        display(Image(png), metadata={"image/png": about})
    plt.close(figure)


def look(architecture: str) -> tuple[str, str]:
    """An architecture's colour and marker, the same in all figures of a notebook.

    The first that is drawn takes the first colour.
    """
    place = _places.setdefault(architecture, len(_places))
    return PALETTE[place % (len(PALETTE) - 1)], MARKERS[place % len(MARKERS)]


def _draw(figure: Figure, kind: str, **settings) -> bytes:
    drawing = io.BytesIO()
    figure.savefig(drawing, format=kind, **settings)
    return drawing.getvalue()


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
    if not files:
        return ""
    many = "file" if len(files) == 1 else "files"
    return f"Skipped {len(files)} unreadable {many}:\n" + "\n".join(f"- {each}" for each in files)


def table(frame: pd.DataFrame, caption: str, digits: int | dict[str, int] = 3) -> Styler:
    """A data frame as a table with a caption; text to the left, numbers to the right.

    Args:
        digits: after the decimal point, for all rows or by the row's name; an `Estimate` has those
            that its interval supports.
    """
    named = frame.index.name is not None
    cells = (frame.reset_index() if named else frame).rename_axis(columns=None)
    shown = cells.map(lambda cell: str(cell) if isinstance(cell, Estimate | PValue) else cell)
    as_text = {"thousands": ",", "na_rep": "–", "escape": "html"}
    styled = Table(shown).set_caption(escape(caption, quote=False)).format(precision=3, **as_text)
    styled.in_full = estimates.split(cells)
    styled = styled.format_index(axis=0, escape="html").format_index(axis=1, escape="html")
    if isinstance(digits, int):
        styled = styled.format(precision=digits, **as_text)
    else:
        for row, places in digits.items():
            styled = styled.format(precision=places, subset=pd.IndexSlice[row, :], **as_text)
    texts = [name for name in shown if not _is_number(shown[name])]
    left = [{"selector": "th, td", "props": "text-align: left"}]
    styled = styled.set_table_styles(dict.fromkeys(texts, left), axis=0)
    return styled.hide(axis="index") if isinstance(shown.index, pd.RangeIndex) else styled


class Table(Styler):
    """A table as it is read, and beside it as CSV: its numbers in full, intervals in columns."""

    in_full: pd.DataFrame

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        has_names = not isinstance(self.data.index, pd.RangeIndex)
        csv = self.in_full.to_csv(index=has_names, lineterminator="\n").replace("\u00a0", " ")
        return {"text/csv": csv}


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

    Colour and marker tell the histories apart.

    Args:
        histories: by name, a row per epoch with accuracy, loss, val_accuracy, val_loss.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, history in histories.items():
        colour, marker = look(name)
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
    """A metric against k with its interval, a line for each architecture.

    Args:
        rows: as for `per_class`.
    """
    chosen = tidy.select(rows[rows["k"].notna()], metric=metric, search=search)
    figure, axis = plt.subplots(figsize=(7, 3.8))
    groups = chosen.groupby("architecture", sort=False)
    for name, own in groups:
        colour, marker = look(name)
        line = own.astype({"k": int}).sort_values("k")
        axis.plot(line["k"], line["value"], color=colour, marker=marker, label=name)
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
