"""How notebooks show figures, tables and texts. Empty ones are not shown."""

import contextlib
import functools
import hashlib
import io
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import SVG, Image, Markdown, display
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from cbir.reporting import numbers
from cbir.reporting.numbers import Estimate, PValue, from_row

# The maximum number of classes in a figure, so that it stays readable.
MOST_ROWS = 40
# Okabe and Ito's palette, safe for colour-blind readers.
HIT, MISS, NEUTRAL, FAINT = "#0072B2", "#D55E00", "#555555", "#8C8C8C"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
# Markers, so that lines can be distinguished without their colour.
MARKERS = "osD^vPX"
# A colour and a marker for each architecture: 42 pairs, no two alike.
LOOKS = [(PALETTE[place % 6], MARKERS[place % 7]) for place in range(42)]
# The architectures that get the first looks, in this order.
KNOWN = ("cnn", "resnet50", "vgg16", "mobilenet", "cnn_strong")
# Baselines that are fixed rules are grey.
RULES = {"random": (FAINT, "X"), "raw_pixels": (FAINT, "P"), "hand_crafted": (FAINT, "v")}
# Pixel figures are drawn at twice the size at which they are shown, so that they are sharp.
PIXELS_PER_INCH = 84
# A figure with more points, or with more pixels in its images, is not stored as SVG.
MOST_POINTS, MOST_PIXELS = 2_000, 250_000
# The titles of columns whose names in the library are not words.
TITLES = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "batch_norms": "batch norms",
    "divides_by": "divided by",
    "used_by": "used by",
    "with_feedback": "with feedback",
    "without_feedback": "without feedback",
    "area_against": "area against",
    "p_holm": "p, Holm",
    "n_queries": "queries",
    "n_left_out": "left out",
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
    autoescape=True, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip

# matplotlib brings this font along; others are used only for letters that it lacks.
FONT = "DejaVu Sans"
# Fonts with the same box for every letter.
BOXES = ("lastresort", ".lastresort", "adobeblank")
NO_FONT = (
    "No font on this machine has their letters; Noto fonts do (on Debian and Ubuntu, the packages "
    "fonts-noto-core and fonts-noto-cjk). With such a font, delete this report and make it again."
)

# Figures are the same for every user, whatever their matplotlibrc says.
plt.rcdefaults()
sns.set_theme(style="whitegrid", context="notebook", palette=PALETTE, font=FONT)
# A font that lacks the usual weight is drawn in another one, which is no reason for a warning.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
# Names may contain "$", and are never formulas.
plt.rcParams["text.parse_math"] = False
plt.rcParams["figure.dpi"] = 2 * PIXELS_PER_INCH
plt.rcParams["savefig.bbox"] = "tight"
# Drawing the same figure again yields the same bytes.
plt.rcParams["svg.hashsalt"] = "cbir"
# Only `show` displays figures, once and with their text.
plt.ioff()


def show(figure: Figure | None, alt: str, folded: bool = False) -> None:
    """Display a figure and close it.

    The format is SVG, which is sharp at any size, except for JPEG with large images and PNG with
    many points, for which SVG would take more bytes.

    Args:
        figure: None displays nothing.
        alt: the text alternative of the figure, which is also its caption on a page.
        folded: whether a page shows it only when its caption is clicked.
    """
    if figure is None:
        return
    if legend := _make_drawable(figure):
        alt = f"{alt} {legend}"
    if layout := figure.get_layout_engine():
        layout.execute(figure)
    box = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    images = figure.findobj(AxesImage)
    n_pixels = sum(image.get_size()[0] * image.get_size()[1] for image in images)
    n_points = sum(len(points.get_offsets()) for points in figure.findobj(PathCollection))
    if n_pixels > MOST_PIXELS:
        kind, display_type, settings = "jpeg", Image, {"pil_kwargs": {"quality": 80}}
    elif n_points > MOST_POINTS:
        kind, display_type, settings = "png", Image, {}
    else:
        kind, display_type, settings = "svg+xml", SVG, {"metadata": {"Date": None}}
        for image in images:
            # Small pictures are stored pixel by pixel, without interpolation.
            if image.get_interpolation() == plt.rcParams["image.interpolation"]:
                image.set_interpolation("none")
    drawing = io.BytesIO()
    figure.savefig(drawing, format=kind.partition("+")[0], bbox_inches=box, **settings)
    sides = {"width": box.width, "height": box.height}
    about = {side: round(inches * PIXELS_PER_INCH) for side, inches in sides.items()}
    about |= {"alt": alt, "folded": folded}
    display(display_type(drawing.getvalue()), metadata={f"image/{kind}": about})
    plt.close(figure)


def _make_drawable(figure: Figure) -> str:
    """Draw letters that `FONT` lacks in other fonts, and number the words that no font can draw.

    Returns:
        The words by number, and which fonts to install; empty if all can be drawn.
    """
    texts = figure.findobj(Text)
    letters = {letter for text in texts for letter in text.get_text() if not letter.isspace()}
    unknown = frozenset(map(ord, letters)) - _letters_of(FONT)
    if not unknown:
        return ""
    families, undrawable = _fonts_for(unknown)
    for text in texts:
        text.set_fontfamily([FONT, *families])
    if not undrawable:
        return ""
    numbers, within = {}, r"[^\s,:;()]*"
    letters = "".join(map(chr, sorted(undrawable)))
    words = re.compile(f"{within}[{re.escape(letters)}]{within}")

    def number(text: str) -> str:
        return words.sub(lambda word: f"[{numbers.setdefault(word[0], len(numbers) + 1)}]", text)

    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            # Matplotlib sets the tick labels again when it draws the figure.
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if any(map(words.search, labels)):
                axis.set_ticks(axis.get_ticklocs(), list(map(number, labels)))
    for text in texts:
        text.set_text(number(text.get_text()))
    return f"{', '.join(f'[{place}] is {word}' for word, place in numbers.items())}. {NO_FONT}"


@functools.cache
def _fonts_for(letters: frozenset[int]) -> tuple[list[str], frozenset[int]]:
    """The fewest fonts of the machine that draw these letters, and the letters that none draws."""
    manager = font_manager.fontManager
    # matplotlib's own list may be older than a font.
    for path in {*font_manager.findSystemFonts()} - {font.fname for font in manager.ttflist}:
        with contextlib.suppress(Exception):
            manager.addfont(path)
    names = {font.name for font in manager.ttflist}
    names = {name for name in names if not name.replace(" ", "").lower().startswith(BOXES)}
    drawn_by = {
        name: letters & _letters_of(name)
        for name in sorted(names, key=lambda name: ("Sans" not in name, name))
    }
    families = []
    while drawn_by and (best := max(drawn_by, key=lambda name: len(drawn_by[name] & letters))):
        if not drawn_by[best] & letters:
            break
        families.append(best)
        letters -= drawn_by.pop(best)
    return families, letters


@functools.cache
def _letters_of(family: str) -> frozenset[int]:
    """The code points that a font can draw; none if the font cannot be read."""
    try:
        path = font_manager.findfont(family, fallback_to_default=False)
        return frozenset(font_manager.get_font(path).get_charmap())
    except (ValueError, RuntimeError, OSError):
        return frozenset()


def entry(name: str) -> str:
    """A name as the label of a legend's entry: matplotlib hides labels that begin with "_"."""
    return f"\u200a{name}" if name.startswith("_") else name


def say(text: str | None) -> None:
    """Display a text in Markdown; an empty one or None displays nothing."""
    if text:
        display(Markdown(text))


def looks(architectures: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The colour and marker of each architecture in a figure, unique for up to 42 architectures.

    The architectures of `KNOWN` and the baselines of `RULES` always look the same. The look of
    others depends on a hash of their name; if two would look alike, one of them gets the next free
    look.
    """
    architectures = list(architectures)
    places = {name: KNOWN.index(name) for name in architectures if name in KNOWN}
    n_free = len(LOOKS) - len(KNOWN)
    for name in sorted(set(architectures) - {*KNOWN, *RULES}):
        start = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        order = [len(KNOWN) + (start + step) % n_free for step in range(n_free)]
        free = [place for place in order if place not in places.values()]
        places[name] = (free or order)[0]
    return {name: RULES.get(name) or LOOKS[places[name]] for name in architectures}


def table(
    frame: pd.DataFrame | None, caption: str, digits: int | dict[str, int] = 3, folded: bool = False
) -> None:
    """Display a data frame as an HTML table, and as CSV with all digits.

    Args:
        frame: None or an empty frame displays nothing.
        caption: one sentence.
        digits: digits after the decimal point, for all rows or by row name; an `Estimate` has as
            many as its interval supports.
        folded: whether the table is collapsed until its caption is clicked.
    """
    if frame is None or frame.empty:
        return
    # A named index is shown as a column; a range is not shown.
    cells = frame.rename_axis(columns=None)
    cells = cells.reset_index() if frame.index.name is not None else cells
    has_names = not isinstance(cells.index, pd.RangeIndex)
    by_name = digits if isinstance(digits, dict) else {}
    usual = 3 if by_name else digits
    html = TEMPLATES.get_template("table.html.j2").render(
        caption=caption,
        folded=folded,
        columns=[TITLES.get(name, str(name)) for name in cells.columns],
        is_number=[all(map(_is_number, column)) for _, column in cells.items()],
        names=[str(name) for name in cells.index] if has_names else None,
        rows=[
            [_text(cell, by_name.get(name, usual)) for cell in row]
            for name, *row in cells.itertuples(name=None)
        ],
    )
    csv = numbers.csv_text(numbers.split(cells), index=has_names)
    bundle = {"text/html": html, "text/csv": csv.replace("\u00a0", " ")}
    display(bundle, metadata={"text/html": {"caption": caption}}, raw=True)


def bars(points: pd.DataFrame, caption: str) -> None:
    """Display mAPs with their intervals and the time per image as bars, the highest mAP first.

    Each row names its numbers, so the figure needs no axes, and fits any width.

    Args:
        points: from `tables.quality_and_cost`.
        caption: one sentence.
    """
    points = points.sort_values("value", ascending=False, kind="stable")
    by_name = looks(points.index)
    slowest = points["milliseconds"].max()
    rows = [
        {"name": name, "colour": by_name[name][0],
         "estimate": from_row(row),
         "shares": [100 * row[end] for end in ("ci_low", "value", "ci_high")],
         "milliseconds": row["milliseconds"], "share": 100 * row["milliseconds"] / slowest,
         "is_baseline": row["is_baseline"]}
        for name, row in points.iterrows()
    ]  # fmt: skip
    html = TEMPLATES.get_template("bars.html.j2").render(rows=rows, caption=caption)
    csv = points.to_csv(lineterminator="\n")
    bundle = {"text/html": html, "text/csv": csv}
    display(bundle, metadata={"text/html": {"caption": caption}}, raw=True)


def _text(cell, digits: int) -> str:
    """A cell as text for readers, a dash if there is no value."""
    if isinstance(cell, Estimate | PValue):
        return str(cell)
    if pd.api.types.is_scalar(cell) and pd.isna(cell):
        return "–"
    if isinstance(cell, float | np.floating):
        return f"{cell:,.{digits}f}"
    is_whole = isinstance(cell, int | np.integer) and not isinstance(cell, bool)
    return f"{cell:,}" if is_whole else str(cell)


def _is_number(cell) -> bool:
    """Whether a cell is aligned right: a number, a number as text, or no value."""
    if isinstance(cell, str):
        return cell == "–" or cell.replace(",", "").replace(".", "").lstrip("+-").isdecimal()
    return isinstance(cell, Estimate | PValue | int | float | np.number) or pd.isna(cell)
