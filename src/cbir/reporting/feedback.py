"""The gains of relevance feedback in a report: rows in a file, a table, a figure and a text."""

from collections.abc import Mapping
from dataclasses import fields

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cbir.reporting import charts, gains
from cbir.reporting.display import NEUTRAL, entry, looks
from cbir.reporting.numbers import from_row, interval_columns
from cbir.reporting.runs import Run
from cbir.reporting.sentences import join
from cbir.retrieval.feedback import Rocchio, measure_feedback

FILE = "feedback.csv"
WITH, WITHOUT = "with_feedback", "without_feedback"
# What feedback does to the mAP, by verdict.
EFFECTS = {
    "better": "raises",
    "worse": "lowers",
    "not significantly different": "does not significantly change",
    "untested": "has an untested effect on",
}
WEIGHTS = [f"weight_{field.name}" for field in fields(Rocchio)]
COLUMNS = [
    "architecture", "round", WITH, WITHOUT, "gain", "p_holm", "marked", "positive", "n_queries",
    "n_left_out",
]  # fmt: skip


def measure_runs(study: str, runs: Mapping[str, Run]) -> pd.DataFrame:
    """Measure the gains of feedback for a study's runs, and write reports/<study>/feedback.csv.

    Architectures and baselines are measured with the first seed and the first protocol; cached.
    The rows are those of `summarise`, with the columns that `gains.read_gains` adds. StudyError if
    the embeddings of a run are missing.
    """
    measured = {name: measure_feedback(run.embeddings) for name, run in runs.items()}
    return gains.save_gains(summarise(study, measured), study, FILE)


def read_weights(study: str, architecture: str) -> Rocchio | None:
    """The weights chosen for a run; None if its feedback has not been measured."""
    rows = gains.read_gains(study, FILE, [architecture])
    return None if rows.empty else Rocchio(*rows[WEIGHTS].iloc[0].astype(float))


def summarise(study: str, measured: Mapping[str, pd.DataFrame]) -> list[dict]:
    """Means over the queries of each run and round, with their intervals and the paired test.

    `measured` is from `measure_feedback`, by architecture.

    Returns:
        One row per architecture and round: with_feedback and without_feedback (mAPs on the same
        images) and gain (their difference), as in `gains.mean_row`, but for round 0, where both
        are the same query, the gain's interval is a point and p is NaN; n_left_out (queries without
        a relevant image left), marked and positive (means over all queries of the images marked so
        far, and of the positive examples among them), and the weights of `Rocchio`.
    """
    rows = []
    for architecture, scores in measured.items():
        for number, group in scores.groupby("round"):
            row = {"study": study, "architecture": architecture, "round": number}
            row |= gains.mean_row(gains.paired(group, WITH, WITHOUT))
            if number == 0:
                row |= dict.fromkeys(interval_columns("gain"), 0.0) | {"p": np.nan}
            row["n_left_out"] = len(group) - row["n_queries"]
            row |= {"marked": group["n_marked"].mean(), "positive": group["n_positive"].mean()}
            rows.append(row | group[WEIGHTS].iloc[0].to_dict())
    return rows


def feedback_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, from `measure_runs`, as a reader sees them."""
    if rows.empty:
        return rows
    texts = gains.readable_gains(rows, COLUMNS)
    means = texts[["marked", "positive"]].map("{:.1f}".format)
    weights = [describe_weights(Rocchio(*row)) for row in rows[WEIGHTS].to_numpy()]
    return texts.assign(**means, weights=weights)


def describe_weights(weights: Rocchio) -> str:
    """Rocchio's formula with these weights."""
    terms = f"{weights.query:g} query + {weights.positive:g} positive"
    return f"{terms} − {weights.negative:g} negative"


def feedback_chart(rows: pd.DataFrame) -> Figure | None:
    """mAP by round, one colour per architecture: solid with feedback, dashed without.

    Without rows, which are from `measure_runs`, there is no figure.
    """
    if rows.empty:
        return None
    figure, axis = plt.subplots(figsize=(7, 4.2))
    by_name = looks(rows["architecture"].unique())
    for place, (name, (colour, marker)) in enumerate(by_name.items()):
        run_rows = rows[rows["architecture"] == name]
        # Beside each other, so that no interval hides another.
        x = run_rows["round"] + 0.06 * (place - (len(by_name) - 1) / 2)
        for mean, style, fill in ((WITH, "-", colour), (WITHOUT, "--", "white")):
            lengths = charts.interval_lengths(run_rows[list(interval_columns(mean))])
            label = entry(name) if mean == WITH else None
            axis.errorbar(
                x, run_rows[mean], lengths, color=colour, linestyle=style, marker=marker,
                markerfacecolor=fill, markersize=5, capsize=3, label=label,
            )  # fmt: skip
    for style, label in (("-", "with feedback"), ("--", "without, same images")):
        axis.plot([], [], style, color=NEUTRAL, label=label)
    axis.set_xticks(sorted(rows["round"].unique()))
    axis.set(xlabel="rounds of feedback", ylabel="mAP on the images not yet marked")
    axis.legend(**charts.BESIDE)
    return figure


def feedback_sentence(rows: pd.DataFrame) -> str:
    """What marking results once does to the mAP of each architecture, in a sentence.

    Without a round of feedback in the rows, which are from `measure_runs`, it is empty.
    """
    if rows.empty or rows["round"].max() == 0:
        return ""
    first = rows[rows["round"] == 1]
    names = first.groupby("verdict", observed=True)["architecture"].agg(join)
    parts = [f"{EFFECTS[verdict]} the mAP of {joined}" for verdict, joined in names.items()]
    text = (
        "On the images not yet marked, with the network of the first seed: marking the "
        f"{first['marked'].max():.3g} nearest images once {'; '.join(parts)}."
    )
    better = first[first["verdict"] == "better"]
    if len(better):
        best = better.loc[better[WITH].idxmax()]
        text += (
            f" With {best['architecture']}, it rises from {from_row(best, WITHOUT)} to "
            f"{from_row(best, WITH)}."
        )
    return text
