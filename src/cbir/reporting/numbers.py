"""Numbers for readers, with as many digits as their 95 % interval supports, and p-values."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cbir.retrieval.uncertainty import ALPHA

# Digits of a number without an interval, and the width below which an interval is a rounding error.
DECIMALS, WIDTH = 3, 1e-9
# More digits would not help readers.
MOST_DECIMALS = 4
# A text that a spreadsheet would evaluate, and the apostrophe that prevents it. A text that begins
# with apostrophes gets one more, so that the original can be restored.
FORMULA, FORMULA_AS_TEXT = r"'*[=+\-@\t\r]", r"^'(?='*[=+\-@\t\r])"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which prints as `value [low, high]`.

    Without an interval, only the value is printed; without a value, a dash. The format "+" prints
    the sign of each number, as for differences.

    Attributes:
        value: NaN if there is no number.
        low, high: the ends of the interval; NaN if there is none, as for a single query.
        marks: superscripts, printed at the end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    marks: str = ""

    def __neg__(self) -> "Estimate":
        return Estimate(-self.value, -self.high, -self.low)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates (Zou and Donner, 2008)."""
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - below, value + above)

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, sign: str) -> str:
        if math.isnan(self.value):
            return "–"
        style = f"{sign}.{decimals((self.high - self.low) / 2)}f"
        value, low, high = (format(number, style) for number in (self.value, self.low, self.high))
        # No line break within the interval.
        return (value if math.isnan(self.low) else f"{value} [{low},\u00a0{high}]") + self.marks


@dataclass(frozen=True)
class PValue:
    """A p-value, never printed as 0; a dash if nothing was tested (NaN).

    It has three digits after the decimal point, and more if rounding would move it to or across
    `ALPHA`, so that a reader who compares it with `ALPHA` comes to the same verdict: 0.0496.
    """

    value: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        if self.value < 0.001:
            return "< 0.001"
        # With 20 digits, the text is exactly the number.
        texts = (f"{self.value:.{digits}f}" for digits in range(DECIMALS, 21))
        side = np.sign(self.value - ALPHA)
        return next(text for text in texts if np.sign(float(text) - ALPHA) == side)


def decimals(half: float) -> int:
    """Digits after the decimal point, from half of an interval's width.

    This is the rounding of the Particle Data Group (Review of Particle Physics, introduction, 5.3):
    if the first three digits are 100 to 354, two are kept; if 355 to 949, one; 950 to 999 become
    1000 and keep two. At most `MOST_DECIMALS`.
    """
    if not WIDTH < half < math.inf:
        return DECIMALS
    exponent = math.floor(math.log10(half))
    first = round(half / 10 ** (exponent - 2))
    return min(MOST_DECIMALS, max(0, (1 if first < 355 else 0) - exponent))


def interval_columns(name: str = "value") -> tuple[str, str, str]:
    """A number and the ends of its interval: `value`, `ci_low`, `ci_high`.

    The columns of other names are, for example, `gain`, `gain_ci_low` and `gain_ci_high`.
    """
    prefix = "" if name == "value" else f"{name}_"
    return name, f"{prefix}ci_low", f"{prefix}ci_high"


def from_row(row: pd.Series, name: str = "value") -> Estimate:
    """The estimate in the `interval_columns` of a row."""
    return Estimate(*(float(row[column]) for column in interval_columns(name)))


def span(values: Iterable[float], digits: int = 0) -> str:
    """One number if all are equal, else the lowest and the highest."""
    values = sorted(values)
    return " to ".join(dict.fromkeys(f"{value:,.{digits}f}" for value in (values[0], values[-1])))


def csv_text(frame: pd.DataFrame, index: bool = False, **options) -> str:
    """A table as CSV, in which no text is a formula; `measurements.read_csv` removes apostrophes.

    Spreadsheets evaluate texts that begin with =, +, - or @, and names of files may be malicious.
    `index` tells whether the index is a column; options are as for `DataFrame.to_csv`.
    """
    frame = frame.copy()
    for place, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            frame.isetitem(place, frame.iloc[:, place].map(_as_text))
    frame = frame.rename(columns=_as_text, index=_as_text if index else None)
    return frame.to_csv(index=index, lineterminator="\n", **options)


def _as_text(cell):
    if not isinstance(cell, str) or not re.match(FORMULA, cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def split(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of plain numbers: a column of estimates becomes its `interval_columns`."""
    columns = {}
    frame = frame.map(lambda cell: cell.value if isinstance(cell, PValue) else cell)
    for name, column in frame.items():
        if not column.map(lambda cell: isinstance(cell, Estimate)).any():
            columns[name] = column
            continue
        cells = [cell if isinstance(cell, Estimate) else Estimate(math.nan) for cell in column]
        numbers = ([getattr(cell, end) for cell in cells] for end in ("value", "low", "high"))
        columns |= zip(interval_columns(name), numbers, strict=True)
    return pd.DataFrame(columns, index=frame.index)
