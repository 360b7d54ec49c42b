"""Rows of the two result files: metrics.csv, one per number; per_query.parquet, one per query."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cbir.cache import replacing, write_text
from cbir.reporting import numbers
from cbir.reporting.numbers import Estimate
from cbir.retrieval import uncertainty

if TYPE_CHECKING:
    from cbir.retrieval.evaluation import State

# The columns that both files share and that identify a measurement.
PLACE = ["study", "architecture", "variant", "seed", "draw", "epoch", "protocol", "search"]
COLUMNS = [*PLACE, "metric", "k", "class", "value", "ci_low", "ci_high", "n_queries"]
INTEGERS = {"seed": "Int64", "draw": "Int64", "epoch": "Int64"}
# Columns of per_query.parquet that describe the query; all further ones are measured.
QUERY = ["query", "label", "predicted"]
# The names of the means of measured columns.
MEANS = {
    "average_precision": "mean_average_precision",
    "average_precision_at_r": "mean_average_precision_at_r",
    "reciprocal_rank": "mean_reciprocal_rank",
    "correct": "accuracy",
    "searched": "gallery_searched",
}


def per_query(
    study: str, architecture: str, states: list["State"], variant: str = ""
) -> pd.DataFrame:
    """Rows of per_query.parquet: one per query, seed, protocol, draw, state and search."""
    frames = []
    for state in states:
        view = state.embeddings.dataset
        place = [study, architecture, variant or None, state.seed, view.draw, state.epoch]
        for evaluation in state.evaluations:
            where = zip(PLACE, [*place, view.protocol, evaluation.search], strict=True)
            frames.append(evaluation.per_query.assign(**dict(where)))
    frame = pd.concat(frames, ignore_index=True).astype(INTEGERS | {"variant": "str"})
    return frame[[*PLACE, *frame.columns.drop(PLACE)]]


def average_seeds(per_query: pd.DataFrame) -> pd.DataFrame:
    """The same rows with each query's scores averaged over the seeds; `seed` is empty."""
    group = [name for name in PLACE if name != "seed"] + ["query", "label"]
    scores = per_query.drop(columns=["seed", "predicted"])
    return scores.groupby(group, dropna=False, sort=False).mean().reset_index().assign(seed=None)


def metrics(per_query: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """The rows of metrics.csv: means over all queries (`class` empty) and by class, with intervals.

    The interval covers queries, except for all queries of a draw of `unseen_classes`:
    `uncertainty.class_test` gives the interval of all draws. Accuracy has no search. `classes` are
    names by label.
    """
    places, means = [], []
    for place, group in per_query.groupby(PLACE, dropna=False, sort=False):
        *where, protocol, search = place
        described = [name for name in (*PLACE, *QUERY, "n_relevant") if name in group]
        measured = {search: group.drop(columns=[*described, "correct"])}
        if search == "unrestricted" and group["correct"].notna().any():
            measured[None] = group[["correct"]]
        for name, scores in measured.items():
            parts = [(None, scores), *scores.groupby(group["label"])]
            for label, part in parts:
                limits = _limits(part, group["n_relevant"].loc[part.index], name)
                intervals = uncertainty.intervals(part, limits=limits)
                if protocol == "unseen_classes" and label is None:
                    # An interval over queries would speak only of the few classes of this draw.
                    intervals[["ci_low", "ci_high"]] = float("nan")
                class_name = None if label is None else classes[label]
                places.append((*where, protocol, name, class_name))
                means.append(intervals)
    rows = pd.concat(means, keys=range(len(means)), names=["place", "column"]).reset_index()
    rows = rows.join(pd.DataFrame(places, columns=[*PLACE, "class"]), on="place")
    columns = rows["column"].str.partition("@")
    rows = rows.assign(metric=columns[0].replace(MEANS), k=pd.to_numeric(columns[2]))
    return sort(rows[COLUMNS])


def _limits(
    scores: pd.DataFrame, n_relevant: pd.Series, search: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest score, by column, that another query of these classes could have.

    The number of relevant images limits precision and recall. In a search of the true class, a
    score depends only on the class of the query, and so does the share of the gallery in searches
    of one class or of all. The limits are then the lowest and the highest score of these queries,
    and the interval of a score that is constant by construction is a point.
    """
    lowest, highest = np.zeros(scores.shape[1]), np.ones(scores.shape[1])
    for column, name in enumerate(scores):
        metric, _, k = name.partition("@")
        if search == "oracle_class" or (metric == "searched" and search != "soft"):
            lowest[column], highest[column] = scores[name].min(), scores[name].max()
        elif metric == "recall":
            highest[column] = min(1, int(k) / max(1, n_relevant.min()))
        elif metric == "precision":
            highest[column] = min(1, n_relevant.max() / int(k))
    return lowest, highest


def sort(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv in their fixed order; empty cells come first."""
    rows = rows.astype(INTEGERS | {"k": "Int64", "n_queries": "Int64"})
    order = COLUMNS[: COLUMNS.index("value")]
    return rows.sort_values(order, na_position="first").reset_index(drop=True)


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    """Write rows, such as those of metrics.csv; the same numbers give the same bytes."""
    write_text(path, numbers.csv_text(rows, float_format="%.6g"))


def write_parquet(rows: pd.DataFrame, path: Path) -> None:
    """Write per_query.parquet."""
    with replacing(path) as temporary:
        rows.to_parquet(temporary, index=False)


def read_csv(path: Path) -> pd.DataFrame:
    """Rows of a metrics.csv; names that look like numbers stay text."""
    names = ["study", "architecture", "variant", "protocol", "search", "metric", "class"]
    # A class may be called NA, so only an empty field counts as empty.
    empty = {"keep_default_na": False, "na_values": [""]}
    rows = pd.read_csv(path, dtype=dict.fromkeys(names, "str"), **empty)
    for name in rows.columns.intersection(names):
        rows[name] = rows[name].str.replace(numbers.FORMULA_AS_TEXT, "", regex=True)
    return rows


def select(rows: pd.DataFrame, by_class: bool = False, **values) -> pd.DataFrame:
    """Rows of metrics.csv or per_query.parquet by values of their columns; None for empty cells.

    By default `epoch` and `class` are None, which is the final state and all queries. If
    `by_class`, the rows of each class take the place of those of all queries.
    """
    defaults = {name: None for name in ("epoch", "class") if name in rows}
    if by_class:
        del defaults["class"]
        rows = rows[rows["class"].notna()]
    for column, value in (defaults | values).items():
        matches = rows[column].isna() if value is None else (rows[column] == value).fillna(False)
        rows = rows[matches.astype(bool)]
    return rows


def number(rows: pd.DataFrame) -> Estimate:
    """The number of the only row with its 95 % interval; NaN if there is no row."""
    if rows.empty:
        return Estimate(float("nan"))
    assert len(rows) == 1, "more than one number"
    return numbers.from_row(rows.iloc[0])
