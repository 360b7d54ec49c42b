"""Numbers in rows: metrics.csv, a row a number, and per_query.parquet, a row a query."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cbir.cache import write_text
from cbir.reporting import estimates
from cbir.reporting.estimates import Estimate
from cbir.retrieval import uncertainty

if TYPE_CHECKING:
    from cbir.retrieval.evaluation import State

PLACE = ["study", "architecture", "variant", "seed", "draw", "epoch", "protocol", "search"]
COLUMNS = [*PLACE, "metric", "k", "class", "value", "ci_low", "ci_high", "n_queries"]
WHOLE = {"seed": "Int64", "draw": "Int64", "epoch": "Int64"}
# What a row of per_query.parquet says of its query; all other columns are measured.
QUERY = ["query", "label", "predicted"]
# Means over queries have names of their own.
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
    """A row per query, seed, protocol, draw, state and way of searching: the scores of each."""
    frames = []
    for state in states:
        view = state.embeddings.dataset
        place = {"study": study, "architecture": architecture, "variant": variant or None}
        place |= {"seed": state.seed, "draw": view.draw, "epoch": state.epoch}
        place |= {"protocol": view.protocol}
        for each in state.evaluations:
            frames.append(each.per_query.assign(**place, search=each.search))
    frame = pd.concat(frames, ignore_index=True).astype(WHOLE | {"variant": "str"})
    return frame[[*PLACE, *frame.columns.drop(PLACE)]]


def average_seeds(per_query: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the scores of all seeds averaged for each query; `seed` stays empty."""
    group = [name for name in PLACE if name != "seed"] + ["query", "label"]
    scores = per_query.drop(columns=["seed", "predicted"])
    return scores.groupby(group, dropna=False, sort=False).mean().reset_index().assign(seed=None)


def metrics(per_query: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """The rows of metrics.csv: means over all queries (`class` empty) and by the query's class.

    Each has the 95 % interval of a bootstrap over its queries. Accuracy belongs to no search.

    Args:
        per_query: as `per_query` or `average_seeds` gives it.
        classes: names by label.
    """
    frames = []
    for place, group in per_query.groupby(PLACE, dropna=False, sort=False):
        where = dict(zip(PLACE, place, strict=True))
        told = [name for name in (*PLACE, *QUERY, "n_relevant") if name in group]
        scores = group.drop(columns=[*told, "correct"])
        measured = [(where["search"], scores)]
        if where["search"] == "unrestricted" and group["correct"].notna().any():
            measured.append((None, group[["correct"]]))
        for search, values in measured:
            parts = [(None, values)]
            parts += [(classes[label], part) for label, part in values.groupby(group["label"])]
            for name, part in parts:
                found = uncertainty.intervals(part)
                named = found.index.to_series().str.partition("@")
                found = found.assign(
                    **(where | {"search": search, "class": name}),
                    metric=named[0].replace(MEANS),
                    k=pd.to_numeric(named[2]),
                )
                frames.append(found)
    return sort(pd.concat(frames, ignore_index=True).reindex(columns=COLUMNS))


def sort(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv in their one order; what does not apply stands first."""
    rows = rows.astype(WHOLE | {"k": "Int64", "n_queries": "Int64"})
    return rows.sort_values(COLUMNS[: COLUMNS.index("value")], na_position="first").reset_index(
        drop=True
    )


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    """metrics.csv, the same bytes for the same numbers."""
    write_text(path, rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def write_parquet(rows: pd.DataFrame, path: Path) -> None:
    """per_query.parquet, under a temporary name and then moved into place."""
    temporary = path.with_name(path.name + ".tmp")
    rows.to_parquet(temporary, index=False)
    temporary.replace(path)


def read_csv(path: Path) -> pd.DataFrame:
    """Rows of a metrics.csv; names stay text, also where they look like numbers."""
    named = ["study", "architecture", "variant", "protocol", "search", "metric", "class"]
    # A class may be called NA: only an empty field is empty.
    return pd.read_csv(
        path, dtype=dict.fromkeys(named, "str"), keep_default_na=False, na_values=[""]
    )


def select(rows: pd.DataFrame, **wanted) -> pd.DataFrame:
    """Rows of metrics.csv or per_query.parquet by the values of their columns.

    Args:
        wanted: a value for a column, as in `metric="accuracy"`; None means that it does not apply.
            What is not named is the final state (`epoch`), all queries (`class`), and whatever
            stands there for the rest.
    """
    unnamed = {name: None for name in ("epoch", "class") if name in rows}
    for column, value in (unnamed | wanted).items():
        is_it = rows[column].isna() if value is None else (rows[column] == value).fillna(False)
        rows = rows[is_it.astype(bool)]
    return rows


def number(rows: pd.DataFrame) -> Estimate:
    """The one number in these rows with its 95 % interval; that of NaN where there is no row."""
    if rows.empty:
        return Estimate(float("nan"))
    (_, row), *others = rows.iterrows()
    assert not others, "more than one number"
    return estimates.from_row(row)
