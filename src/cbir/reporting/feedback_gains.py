"""What relevance feedback brings, as a report shows it: rows in a file, a table, a figure, a text.

`measure_runs` measures all runs of a study and writes `feedback.csv`; all other functions read it.
"""

from collections.abc import Mapping
from dataclasses import fields

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cbir.reporting import estimates, tidy
from cbir.reporting.display import NEUTRAL, looks
from cbir.reporting.runs import Run, run_folder
from cbir.reporting.sentences import p_value
from cbir.retrieval import uncertainty
from cbir.retrieval.feedback import Rocchio, measure_feedback

FILE = "feedback.csv"
# A mean over queries and its interval: with feedback, without it, and the difference.
WITH = ["value", "ci_low", "ci_high"]
WITHOUT = ["without", "without_low", "without_high"]
DIFFERENCE = ["difference", "difference_low", "difference_high"]
WEIGHTS = [f"weight_{field.name}" for field in fields(Rocchio)]
COLUMNS = [
    "study", "architecture", "round", *WITH, *WITHOUT, *DIFFERENCE, "p", "n_queries", "n_left_out",
    "marked", "positive", *WEIGHTS,
]  # fmt: skip


def measure_runs(study: str, runs: Mapping[str, Run]) -> pd.DataFrame:
    """Measure what feedback brings to the runs of a study, and write reports/<study>/feedback.csv.

    Architectures and baselines alike; cached. The first seed under the first protocol is measured.

    Returns:
        The rows as `read_all` returns them.

    Raises:
        StudyError: the embeddings of a run are gone.
    """
    measured = {name: measure_feedback(run.embeddings) for name, run in runs.items()}
    tidy.write_csv(summarise(study, measured), run_folder(study) / FILE)
    return read_all(study, list(runs))


def read_all(study: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of feedback.csv that belong to these architectures and baselines.

    Returns:
        `COLUMNS`, with p_holm (`uncertainty.holm` over all these rows but those of round 0) and
        is_significant (p_holm < 0.05). No rows where nothing has been measured.
    """
    path = run_folder(study) / FILE
    rows = tidy.read_csv(path) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    chosen = rows[rows["architecture"].isin(architectures)]
    return uncertainty.corrected(chosen.reset_index(drop=True))


def weights_of(study: str, architecture: str) -> Rocchio | None:
    """The weights chosen for a run; None where its feedback has not been measured."""
    rows = read_all(study, [architecture])
    return _weights(rows.iloc[0]) if len(rows) else None


def summarise(study: str, measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Means over the queries of each run and round, with their intervals and the paired test.

    Args:
        measured: from `feedback.measure_feedback`, by architecture.

    Returns:
        One row per architecture and round, in the order of `COLUMNS`: value (mAP with feedback),
        without (that of the original query on the same images), difference (value - without), each
        with its 95 % bootstrap interval; p (`uncertainty.permutation_test`; NaN for round 0, where
        both are the same query), n_queries (those scored), n_left_out (those without a relevant
        image left), marked and positive (how many images a query has marked so far, and how many
        of these are positive examples: means over all queries), and the weights of `Rocchio`.
    """
    rows = []
    for architecture, of_run in measured.items():
        for number, group in of_run.groupby("round"):
            scores = group[["average_precision", "average_precision_without"]]
            scores = scores.set_axis([WITH[0], WITHOUT[0]], axis=1)
            scores = scores.assign(difference=scores[WITH[0]] - scores[WITHOUT[0]])
            means = uncertainty.intervals(scores)
            row = {"study": study, "architecture": architecture, "round": number}
            for names in (WITH, WITHOUT, DIFFERENCE):
                row |= dict(zip(names, means.loc[names[0], WITH], strict=True))
            differences = scores["difference"].to_numpy()
            row["p"] = uncertainty.permutation_test(differences) if number else float("nan")
            row["n_queries"] = int(means["n_queries"].iloc[0])
            row["n_left_out"] = len(group) - row["n_queries"]
            row |= {"marked": group["n_marked"].mean(), "positive": group["n_positive"].mean()}
            rows.append(row | group[WEIGHTS].iloc[0].to_dict())
    return pd.DataFrame(rows, columns=COLUMNS)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as a reader sees them, with intervals.

    Args:
        rows: from `read_all` or `measure_runs`.
    """
    cells = [
        {
            "architecture": row["architecture"],
            "round": row["round"],
            "mAP with feedback": estimates.from_row(row, WITH),
            "mAP without": estimates.from_row(row, WITHOUT),
            "difference": estimates.from_row(row, DIFFERENCE),
            "p, Holm": estimates.PValue(row["p_holm"]),
            "marked": f"{row['marked']:.1f}",
            "positive": f"{row['positive']:.1f}",
            "queries": row["n_queries"],
            "left out": row["n_left_out"],
        }
        for _, row in rows.iterrows()
    ]
    return pd.DataFrame(cells)


def figure(rows: pd.DataFrame) -> Figure | None:
    """mAP by round, one colour per architecture: solid with feedback, dashed without.

    Args:
        rows: as for `table`; without any, there is no figure.
    """
    if rows.empty:
        return None
    drawn, axis = plt.subplots(figsize=(7, 4.2))
    groups = list(rows.groupby("architecture", sort=False))
    of_name = looks(name for name, _ in groups)
    entries = []
    for place, (name, of_run) in enumerate(groups):
        colour, marker = of_name[name]
        # Beside each other, so that no interval hides another.
        shift = 0.06 * (place - (len(groups) - 1) / 2)
        for names, style in ((WITH, "-"), (WITHOUT, "--")):
            value, low, high = (of_run[name] for name in names)
            # Where all queries score alike, the mean and its interval differ in their last digit.
            around = [(value - low).clip(lower=0), (high - value).clip(lower=0)]
            axis.errorbar(
                of_run["round"] + shift, value, yerr=around, linestyle=style, color=colour,
                marker=marker, markersize=5, capsize=3,
                markerfacecolor=colour if names is WITH else "white",
            )  # fmt: skip
        entries.append(Line2D([], [], color=colour, marker=marker, label=name))
    for style, label in (("-", "with feedback"), ("--", "without, same images")):
        entries.append(Line2D([], [], color=NEUTRAL, linestyle=style, label=label))
    axis.set_xticks(sorted(rows["round"].unique()))
    axis.set(xlabel="rounds of feedback", ylabel="mAP on the images not yet marked")
    axis.legend(handles=entries, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return drawn


def describe(rows: pd.DataFrame) -> str:
    """What feedback brings to each architecture, in words.

    Args:
        rows: as for `table`; without a round of feedback, the text is empty.
    """
    lines = [
        f"- **{name}**: {_gains(of_run)}"
        for name, of_run in rows.groupby("architecture", sort=False)
        if (of_run["round"] > 0).any()
    ]
    if not lines:
        return ""
    marked = rows.loc[rows["round"] == 1, "marked"].max()
    queries = rows.loc[rows["round"] == 0, "n_queries"]
    counts = " to ".join(f"{count:,}" for count in sorted({queries.min(), queries.max()}))
    lines.append(
        f"\nA simulated user of {counts} queries marks, in each round, the {marked:.3g} nearest "
        "images not yet marked: those of the query's class as positive examples, the others as "
        "negative ones. The search is then repeated with the refined query. Both mAPs of a round "
        "are measured on the images not yet marked; these become fewer from round to round, so "
        "compare the two of one round only. Intervals are 95 % percentile bootstrap intervals over "
        "the queries; p is of a paired permutation test on them, Holm-corrected over all rounds "
        "and architectures shown. This user never errs and judges by the class alone; how well a "
        "person marks images is not measured."
    )
    return "\n".join(lines)


def _gains(rows: pd.DataFrame) -> str:
    """All rounds of one architecture in a few sentences."""
    parts = []
    for _, row in rows[rows["round"] > 0].iterrows():
        after = "one round" if row["round"] == 1 else f"{row['round']} rounds"
        after = f"after {after}" if parts else f"after {after} of feedback,"
        if not row["n_queries"]:
            parts.append(f"{after} no query has a relevant image left")
            continue
        measure = "it" if parts else "mAP on the images not yet marked"
        verdict = "not significantly different"
        if row["is_significant"]:
            verdict = "a gain" if row["difference"] > 0 else "a loss"
        part = (
            f"{after} {measure} is {estimates.from_row(row, WITH)} instead of "
            f"{estimates.from_row(row, WITHOUT)} without feedback: {verdict}, "
            f"{estimates.from_row(row, DIFFERENCE):+}, {p_value(row['p_holm'])}"
        )
        if row["n_left_out"]:
            part += f" ({row['n_left_out']:,} queries with no relevant image left are left out)"
        parts.append(part)
    last = rows.iloc[-1]
    return (
        f"{'; '.join(parts)}. Of {last['marked']:.3g} images marked, {last['positive']:.3g} were "
        "positive examples (means over the queries). Weights, chosen on validation images: "
        f"{_weights(last)}."
    )


def _weights(row: pd.Series) -> Rocchio:
    return Rocchio(*(float(row[name]) for name in WEIGHTS))
