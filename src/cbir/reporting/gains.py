"""Mean gains with their tests, in one file per study and question.

`explanations` and `feedback` measure gains; this module averages, stores, reads and tabulates their
rows. Each mean, of gains or of anything else, has the columns of `numbers.interval_columns`.
"""

import numpy as np
import pandas as pd

from cbir.reporting import measurements
from cbir.reporting.numbers import PValue, from_row, interval_columns
from cbir.reporting.runs import run_folder
from cbir.retrieval import uncertainty

VERDICTS = ("better", "worse", "not significantly different", "untested")
NO_ROWS = pd.DataFrame(columns=["study", "architecture", "gain", "p"])


def mean_row(values: pd.DataFrame, limits: tuple[float, float] = (0, 1)) -> dict[str, float]:
    """The mean of each column with its interval, and the test of the gains.

    Args:
        values: one row per query, with column gain, the paired differences; NaN is left out.
        limits: the lowest and the highest possible value of the other columns.

    Returns:
        Means, the ends of their intervals, n_queries (with a gain), p (not corrected; may be NaN).
    """
    row, gains = {}, values[["gain"]]
    means = uncertainty.intervals(values.drop(columns="gain"), limits=limits)
    means = pd.concat([means, uncertainty.intervals(gains, limits=None)])
    for name, mean in means[list(interval_columns())].iterrows():
        row |= zip(interval_columns(name), mean, strict=True)
    p = uncertainty.permutation_test(gains["gain"].to_numpy())
    return row | {"n_queries": gains["gain"].count(), "p": p}


def save(rows: list[dict], study: str, file: str) -> pd.DataFrame:
    """Write the rows of a study to reports/<study>/<file>, and return them as from `read`."""
    frame = pd.DataFrame(rows) if rows else NO_ROWS
    measurements.write_csv(frame, run_folder(study) / file)
    return _with_verdicts(frame)


def read(study: str, file: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of these architectures, if measured, with `uncertainty.corrected` and verdict.

    The verdict is one of `VERDICTS`.
    """
    path = run_folder(study) / file
    rows = measurements.read_csv(path) if path.is_file() else NO_ROWS
    return _with_verdicts(rows[rows["architecture"].isin(architectures)])


def _with_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    rows, (better, worse, neither, untested) = uncertainty.corrected(rows), VERDICTS
    is_significant, is_gain = rows["is_significant"], rows["gain"] > 0
    conditions = [rows["p"].isna(), is_significant & is_gain, is_significant & ~is_gain]
    verdicts = np.select(conditions, [untested, better, worse], neither)
    return rows.assign(verdict=pd.Categorical(verdicts, VERDICTS))


def table(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The rows for readers, with the columns `names`, which are means or other columns."""
    cells = [[_cell(row, name) for name in names] for _, row in rows.iterrows()]
    return pd.DataFrame(cells, columns=names)


def _cell(row: pd.Series, name: str):
    if interval_columns(name)[1] in row:
        return from_row(row, name)
    return PValue(row[name]) if name == "p_holm" else row[name]
