"""Mean gains of explanations, feedback, shorter embeddings and re-ranking, with their tests.

Each mean, of gains or of anything else, has the columns of `numbers.interval_columns`.
"""

import json
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from cbir.networks.embeddings import Embeddings
from cbir.reporting import measurements
from cbir.reporting.numbers import PValue, from_row, interval_columns
from cbir.reporting.runs import Run, run_folder
from cbir.retrieval import uncertainty

VERDICTS = ("better", "worse", "not significantly different", "untested")
# The columns of mAP with and without a method, and those of the scores that they average.
WITH, WITHOUT = "with", "without"
SCORES = ["average_precision", "average_precision_without"]
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


def paired(scores: pd.DataFrame, with_name: str, without_name: str) -> pd.DataFrame:
    """The columns `SCORES` by these names, and gain, their difference."""
    values = scores[SCORES].set_axis([with_name, without_name], axis="columns")
    return values.assign(gain=values[with_name] - values[without_name])


def save_gains(rows: list[dict], study: str, file: str) -> pd.DataFrame:
    """Write the rows of a study to reports/<study>/<file>; return them as `read_gains` does."""
    frame = pd.DataFrame(rows) if rows else NO_ROWS
    measurements.write_csv(frame, run_folder(study) / file)
    return _with_verdicts(frame)


def read_gains(study: str, file: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of these architectures, if measured, with `uncertainty.corrected` and verdict.

    The verdict is one of `VERDICTS`. As on the page of the report, it is corrected for all rows of
    the file, whatever architectures are chosen.
    """
    path = run_folder(study) / file
    rows = _with_verdicts(measurements.read_csv(path) if path.is_file() else NO_ROWS)
    return rows[rows["architecture"].isin(architectures)]


def _with_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    rows, (better, worse, neither, untested) = uncertainty.corrected(rows), VERDICTS
    is_significant, is_gain = rows["is_significant"], rows["gain"] > 0
    conditions = [rows["p"].isna(), is_significant & is_gain, is_significant & ~is_gain]
    verdicts = np.select(conditions, [untested, better, worse], neither)
    return rows.assign(verdict=pd.Categorical(verdicts, VERDICTS))


def readable_gains(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The rows for readers, with the columns `names`, which are means or other columns."""
    cells = [[_cell(row, name) for name in names] for _, row in rows.iterrows()]
    return pd.DataFrame(cells, columns=names)


def _cell(row: pd.Series, name: str):
    if interval_columns(name)[1] in row:
        return from_row(row, name)
    return PValue(row[name]) if name == "p_holm" else row[name]


def measure_gains(
    study: str, runs: Mapping[str, Run], scores: Callable[[Embeddings], pd.DataFrame], kind: str
) -> pd.DataFrame:
    """Mean gains in average precision by methods of a kind, such as re-ranking, in <kind>s.csv.

    Args:
        scores: embeddings -> a row per query and kind: query, `kind`, `SCORES`, and costs, which
            are the same for all queries of a kind.

    Returns:
        A row per run and kind, as from `read_gains`: architecture, `kind`, the means `WITHOUT`,
        `WITH` and gain, and the costs.
    """
    rows = []
    for name, run in runs.items():
        for method, group in scores(run.embeddings).groupby(kind, sort=False):
            means = mean_row(paired(group, WITH, WITHOUT))
            row = {"study": study, "architecture": name, kind: method} | means
            rows.append(row | group.drop(columns=["query", kind, *SCORES]).iloc[0].to_dict())
    return save_gains(rows, study, f"{kind}s.csv")


def measured_table(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of `measure_gains` for readers."""
    table = readable_gains(rows, ["architecture", kind, WITHOUT, WITH, "gain", "p_holm"])
    table["bytes per image"] = rows["bytes"].map("{:,.0f}".format).to_numpy()
    if "settings" in rows:
        settings = rows["settings"].map(json.loads)
        table["settings"] = [", ".join(f"{k} {v:g}" for k, v in one.items()) for one in settings]
        table["ms per query"] = rows["milliseconds"].map("{:.2f}".format).to_numpy()
    return table


def gain_sentences(rows: pd.DataFrame, kind: str) -> str:
    """Each verdict of `measure_gains`, in words."""
    verbs = {"better": "raises", "worse": "lowers"}
    lines = []
    for _, row in rows.iterrows():
        before, after = from_row(row, WITHOUT), from_row(row, WITH)
        if verb := verbs.get(row["verdict"]):
            change = f"{verb} the mAP from {before} to {after}, by {from_row(row, 'gain'):+}"
        elif row["verdict"] == "untested":
            change = (
                f"has too few queries for a test (fewer than {uncertainty.MIN_QUERIES}): the mAP "
                f"is {before} without it, {after} with it"
            )
        else:
            change = f"does not change the mAP significantly: {before} without it, {after} with it"
        lines.append(f"- {row['architecture']}: {row[kind]} {change}.")
    return "\n".join(lines)
