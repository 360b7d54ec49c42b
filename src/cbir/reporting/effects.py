"""Effects: means of paired differences with their tests, in one file per study and question.

`explanations` and `feedback` measure effects; their rows are averaged, stored, read and tabulated
here. An effect or a mean `x` has the columns x, x_low and x_high, the ends of its 95 % interval.
"""

from collections.abc import Mapping

import pandas as pd

from cbir.reporting import estimates, tidy
from cbir.reporting.estimates import Estimate, PValue
from cbir.reporting.runs import run_folder
from cbir.retrieval import uncertainty

NO_ROWS = pd.DataFrame(columns=["study", "architecture", "p"])


def mean_row(values: pd.DataFrame, tested: str) -> dict[str, float]:
    """The mean of each column with its bootstrap interval, and the test of one of them.

    Args:
        values: one row per query; NaN is left out.
        tested: the column that holds the paired differences.

    Returns:
        The means and the ends of their intervals, n_queries (those with a difference), and p
        (`uncertainty.permutation_test`, not corrected).
    """
    row = {}
    for name, mean in uncertainty.intervals(values).iterrows():
        row |= {name: mean["value"], f"{name}_low": mean["ci_low"], f"{name}_high": mean["ci_high"]}
    differences = values[tested]
    p = uncertainty.permutation_test(differences.to_numpy())
    return row | {"n_queries": differences.count(), "p": p}


def save(rows: list[dict], study: str, file: str) -> pd.DataFrame:
    """Write the rows of a study into reports/<study>/<file>, and return them as `read` does."""
    frame = pd.DataFrame(rows) if rows else NO_ROWS
    tidy.write_csv(frame, run_folder(study) / file)
    return uncertainty.corrected(frame)


def read(study: str, file: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of these architectures; none where nothing has been measured.

    Returns:
        The columns of the file, and those of `uncertainty.corrected` over these rows.
    """
    path = run_folder(study) / file
    rows = tidy.read_csv(path) if path.is_file() else NO_ROWS
    return uncertainty.corrected(rows[rows["architecture"].isin(architectures)])


def estimate(row: pd.Series, name: str) -> Estimate:
    """The mean of this name with its interval."""
    return estimates.from_row(row, (name, f"{name}_low", f"{name}_high"))


def table(rows: pd.DataFrame, headings: Mapping[str, str]) -> pd.DataFrame:
    """The rows as a reader sees them.

    Args:
        headings: by the names of means and of other columns.
    """
    cells = [[_cell(row, name) for name in headings] for _, row in rows.iterrows()]
    return pd.DataFrame(cells, columns=list(headings.values()))


def _cell(row: pd.Series, name: str):
    if f"{name}_low" in row:
        return estimate(row, name)
    return PValue(row[name]) if name == "p_holm" else row[name]
