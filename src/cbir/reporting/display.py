"""How a notebook shows its figures, tables and texts."""

import io
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import SVG, Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from pandas.io.formats.style import Styler

from cbir.reporting import estimates
from cbir.reporting.estimates import Estimate, PValue

# Figures show at most so many classes, and so stay readable.
MOST_ROWS = 40
# Okabe and Ito's palette, safe for colour-blind readers.
HIT, MISS, NEUTRAL = "#0072B2", "#D55E00", "#555555"
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
# Beside the colours, so that none need be told by its colour alone.
MARKERS = "osD^vPX"
# Architectures that `look` has seen, in the order in which they were first drawn.
_places: dict[str, int] = {}
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


def unreadable_files(files: list[str]) -> str:
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
