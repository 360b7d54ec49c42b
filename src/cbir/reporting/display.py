"""How notebooks show figures, tables and texts. Empty ones are not shown."""

import base64
import hashlib
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import SVG, Markdown, display
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from cbir.reporting import numbers
from cbir.reporting.numbers import Estimate, PValue, from_row

# The maximum number of classes in a figure, so that it stays readable.
MOST_ROWS = 40
# Okabe and Ito's palette, safe for colour-blind readers.
HIT, MISS, FAINT = "#0072B2", "#D55E00", "#8C8C8C"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
# Markers, so that lines can be distinguished without their colour.
MARKERS = "osD^vPX"
# A colour and a marker for each architecture: 42 pairs, no two alike.
LOOKS = [(PALETTE[place % 6], MARKERS[place % 7]) for place in range(42)]
# The architectures that get the first looks, in this order.
KNOWN = ("cnn", "resnet50", "vgg16", "mobilenet", "cnn_strong")
# Baselines that are fixed rules are grey.
RULES = {"random": (FAINT, "X"), "raw_pixels": (FAINT, "P"), "hand_crafted": (FAINT, "v")}
# The colours of texts and lines, which colours.css replaces on dark pages.
INK, NEUTRAL, LINE = "#1c2126", "#56606a", "#d9dee3"
PIXELS_PER_INCH = 84
# More points of a figure are stored as pixels, at twice the size at which they are shown.
MOST_POINTS = 2_000
# The titles of columns whose names in the library are not words.
TITLES = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "batch_norms": "batch norms",
    "used_by": "used by",
    "with_feedback": "with feedback",
    "without_feedback": "without feedback",
    "area_against": "area against",
    "p_holm": "p, Holm",
    "n_queries": "queries",
    "n_left_out": "left out",
}
# The names of the methods that project embeddings to two dimensions.
PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE"}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
    autoescape=True, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip

# Figures are laid out in matplotlib's own font, which is wide, and shown in the reader's font.
FONT = "DejaVu Sans"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
# How much wider a Chinese, Japanese or Korean letter is than its placeholder in `FONT`, in ems.
WIDER = 0.4
# A PNG embedded in an SVG.
_PNG = re.compile(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)")

# Figures are the same for every user, whatever their matplotlibrc says.
plt.rcdefaults()
sns.set_theme(
    style="whitegrid", context="notebook", palette=PALETTE, font=FONT,
    rc=dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    | dict.fromkeys(("axes.edgecolor", "grid.color"), LINE)
    # Texts stay texts.
    | {"svg.fonttype": "none"},
)  # fmt: skip
# If a font lacks the usual weight, matplotlib uses another weight and warns needlessly.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
# Names may contain "$", and are never formulas.
plt.rcParams["text.parse_math"] = False
plt.rcParams["figure.dpi"] = 2 * PIXELS_PER_INCH
plt.rcParams["savefig.bbox"] = "tight"
# Drawing the same figure again yields the same bytes.
plt.rcParams["svg.hashsalt"] = "cbir"
# Only `show` displays figures, once and with their text.
plt.ioff()


def show(figure: Figure | str | None, alt: str, folded: bool = False) -> None:
    """Display a figure as SVG, which is sharp at any size, and close it.

    Args:
        figure: of matplotlib, or an SVG as text, which begins with its width and height in pixels;
            an empty text or None displays nothing.
        alt: the text alternative of the figure, which is also its caption on a page.
        folded: whether a page shows it only when its caption is clicked.
    """
    if not figure:
        return
    svg = figure if isinstance(figure, str) else _draw(figure)
    width, height = map(int, re.search(r'width="(\d+)" height="(\d+)"', svg).groups())
    details = {"alt": alt, "width": width, "height": height, "folded": folded}
    display(SVG(svg), metadata={"image/svg+xml": details})


def _draw(figure: Figure) -> str:
    """A figure as SVG; the figure is closed."""
    # Not those of the legend.
    clouds = [points for axes in figure.axes for points in axes.findobj(PathCollection)]
    if sum(len(points.get_offsets()) for points in clouds) > MOST_POINTS:
        for points in clouds:
            # Rings stay lines, in the ink of the page.
            points.set_rasterized(len(points.get_facecolor()) > 0)
    for image in figure.findobj(AxesImage):
        # Pictures are stored pixel by pixel, without interpolation.
        if image.get_interpolation() == plt.rcParams["image.interpolation"]:
            image.set_interpolation("none")
    wide = max(map(_width_of_wide_letters, figure.findobj(Text)), default=0)
    pad, drawing = plt.rcParams["savefig.pad_inches"], io.StringIO()
    with warnings.catch_warnings():
        # The reader's fonts have what the font of the layout lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if layout := figure.get_layout_engine():
            layout.execute(figure)
        box = figure.get_tightbbox().padded(pad + wide, pad)
        figure.savefig(drawing, format="svg", bbox_inches=box, metadata={"Date": None})
    plt.close(figure)
    # Pixels as WebP, paths with two decimals, the reader's fonts, and the size on the screen.
    svg = _PNG.sub(_smaller, drawing.getvalue())
    svg = re.sub(r' d="[^"]*"', _round_path, svg).replace(f"'{FONT}'", FONTS)
    width, height = (round(side * PIXELS_PER_INCH) for side in (box.width, box.height))
    size = f'width="{width}" height="{height}"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, svg, count=1)


def _width_of_wide_letters(text: Text) -> float:
    """How much wider a text is than in the layout, in inches: `FONT` lacks the widest letters."""
    n_wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text.get_text())
    return WIDER * n_wide * text.get_fontsize() / 72


def _smaller(image: re.Match) -> str:
    """A data URL of a PNG as WebP, if that takes fewer bytes."""
    content, recoded = base64.b64decode(image[1]), io.BytesIO()
    Image.open(io.BytesIO(content)).save(recoded, "webp", quality=85)
    if len(recoded.getvalue()) >= len(content):
        return image[0]
    return f"data:image/webp;base64,{base64.b64encode(recoded.getvalue()).decode()}"


def _round_path(path: re.Match) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])


def entry(name: str) -> str:
    """A name as the label of a legend's entry: matplotlib hides labels that begin with "_"."""
    return f"\u200a{name}" if name.startswith("_") else name


def say(text: str, folded_under: str = "") -> None:
    """Display a text in Markdown, if any; `folded_under` are words that show it when clicked."""
    if text and folded_under:
        text = f"<details><summary>{folded_under}</summary>\n\n{text}\n\n</details>"
    if text:
        display(Markdown(text))


def looks(architectures: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The colour and marker of each architecture in a figure, unique for up to 42 architectures.

    The architectures of `KNOWN` and the baselines of `RULES` always look the same. `resnet50_64`
    has the colour of `resnet50`. All else depends on a hash of the name; if two would look alike,
    one of them gets the next free look.
    """
    architectures = list(architectures)
    places = {name: KNOWN.index(name) for name in architectures if name in KNOWN}
    n_free = len(LOOKS) - len(KNOWN)
    for name in sorted(set(architectures) - {*KNOWN, *RULES}):
        start = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        order = [len(KNOWN) + (start + step) % n_free for step in range(n_free)]
        # `cnn_strong_short` is a variant of `cnn_strong`, which is itself known.
        known = max((one for one in KNOWN if name.startswith(f"{one}_")), key=len, default=None)
        if known:
            colour = LOOKS[KNOWN.index(known)][0]
            order.sort(key=lambda place: LOOKS[place][0] != colour)
        free = [place for place in order if place not in places.values()]
        places[name] = (free or order)[0]
    return {name: RULES.get(name) or LOOKS[places[name]] for name in architectures}


def table(frame: pd.DataFrame, caption: str, digits: int = 3, folded: bool = False) -> None:
    """Display a data frame as an HTML table, and as CSV with all digits.

    Args:
        frame: an empty one displays nothing.
        caption: one sentence.
        digits: digits after the decimal point, but an `Estimate` has as many as its interval
            supports.
        folded: whether the table is collapsed until its caption is clicked.
    """
    if frame.empty:
        return
    # A named index is shown as a column; a range is not shown.
    cells = frame.rename_axis(columns=None)
    cells = cells.reset_index() if frame.index.name is not None else cells
    has_names = not isinstance(cells.index, pd.RangeIndex)
    html = TEMPLATES.get_template("table.html.j2").render(
        caption=caption,
        folded=folded,
        columns=[TITLES.get(name, str(name)) for name in cells.columns],
        is_number=[all(map(_is_number, column)) for _, column in cells.items()],
        names=[str(name) for name in cells.index] if has_names else None,
        rows=[[_text(cell, digits) for cell in row] for _, *row in cells.itertuples(name=None)],
    )
    csv = numbers.csv_text(numbers.split(cells), index=has_names)
    bundle = {"text/html": html, "text/csv": csv.replace("\u00a0", " ")}
    display(bundle, metadata={"text/html": {"caption": caption}}, raw=True)


def bars(points: pd.DataFrame, caption: str) -> None:
    """Display `tables.quality_and_cost` as bars, the highest mAP first.

    Each row names its numbers, so the figure needs no axes, and fits any width.
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
    bundle = {"text/html": html, "text/csv": numbers.csv_text(points, index=True)}
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
