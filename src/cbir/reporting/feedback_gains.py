"""What marking brings, as a report shows it: its rows in a file, a table, a figure, sentences.

A notebook saves what `simulation.measure` found into `feedback.csv`; the comparison reads these
files and never a network.
"""

from dataclasses import fields

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cbir.reporting import estimates, tidy
from cbir.reporting.display import NEUTRAL, look
from cbir.reporting.runs import run_folder
from cbir.reporting.sentences import chance
from cbir.retrieval import uncertainty
from cbir.retrieval.feedback import Rocchio

FILE = "feedback.csv"
# A mean over queries and its interval: with the marks, without them, and what they bring.
WITH = ["value", "ci_low", "ci_high"]
WITHOUT = ["without", "without_low", "without_high"]
DIFFERENCE = ["difference", "difference_low", "difference_high"]
WEIGHTS = [f"weight_{each.name}" for each in fields(Rocchio)]
COLUMNS = [
    "study", "architecture", "round", *WITH, *WITHOUT, *DIFFERENCE, "p", "n_queries", "n_left_out",
    "marked", "meant", *WEIGHTS,
]  # fmt: skip


def summarise(study: str, architecture: str, measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of feedback.csv: means over queries with their intervals, and the paired test.

    Args:
        measured: from `simulation.measure`.

    Returns:
        A row a round, in the order of `COLUMNS`: value (mAP with the marks), without (that of the
        original query on the same images), difference (value - without), each with its 95 %
        bootstrap interval; p (`uncertainty.permutation_test`; NaN for round 0, where both are the
        same query), n_queries (those scored), n_left_out (those without a relevant image left),
        marked and meant (how many images a query has marked so far, and marked as meant: means over
        all queries), weight_query, weight_meant, weight_not_meant.
    """
    rows = []
    for number, group in measured.groupby("round"):
        scores = pd.DataFrame(
            {
                "value": group["average_precision"],
                "without": group["average_precision_without"],
                "difference": group["average_precision"] - group["average_precision_without"],
            }
        )
        row = {"study": study, "architecture": architecture, "round": number}
        found = uncertainty.intervals(scores)
        for names in (WITH, WITHOUT, DIFFERENCE):
            row |= dict(zip(names, found.loc[names[0], WITH], strict=True))
        differences = scores["difference"].to_numpy()
        row["p"] = uncertainty.permutation_test(differences) if number else float("nan")
        row["n_queries"] = int(found["n_queries"].iloc[0])
        row["n_left_out"] = len(group) - row["n_queries"]
        row |= {"marked": group["n_marked"].mean(), "meant": group["n_meant"].mean()}
        rows.append(row | group[WEIGHTS].iloc[0].to_dict())
    return pd.DataFrame(rows, columns=COLUMNS)


def save(study: str, architecture: str, measured: pd.DataFrame) -> pd.DataFrame:
    """Write reports/<study>/<architecture>/feedback.csv, and read it back as `read_all` does.

    Args:
        measured: from `simulation.measure`.
    """
    folder = run_folder(study, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    tidy.write_csv(summarise(study, architecture, measured), folder / FILE)
    return read_all(study, [architecture])


def read_all(study: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of several runs; those that have not measured it are left out.

    Returns:
        `COLUMNS`, with p_holm (`uncertainty.holm` over all rounds and architectures that are read)
        and is_significant (p_holm < 0.05). No rows where nobody has measured it.
    """
    files = [run_folder(study, name) / FILE for name in architectures]
    found = [tidy.read_csv(file) for file in files if file.is_file()]
    rows = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)
    return uncertainty.corrected(rows)


def weights_of(study: str, architecture: str) -> Rocchio | None:
    """The weights that a run has chosen; None where it has chosen none."""
    rows = read_all(study, [architecture])
    return _weights(rows.iloc[0]) if len(rows) else None


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row an architecture and round, with intervals, as a reader sees them.

    Args:
        rows: from `read_all` or `save`.
    """
    cells = [
        {
            "architecture": row["architecture"],
            "round": row["round"],
            "mAP with marks": estimates.of(row, WITH),
            "mAP without": estimates.of(row, WITHOUT),
            "difference": estimates.of(row, DIFFERENCE),
            "p, Holm": estimates.PValue(row["p_holm"]),
            "marked": f"{row['marked']:.1f}",
            "meant": f"{row['meant']:.1f}",
            "queries": row["n_queries"],
            "left out": row["n_left_out"],
        }
        for _, row in rows.iterrows()
    ]
    return pd.DataFrame(cells)


def figure(rows: pd.DataFrame) -> Figure:
    """mAP by round with its interval, a colour an architecture: solid with the marks, else dashed.

    Args:
        rows: as for `table`.
    """
    drawn, axis = plt.subplots(figsize=(7, 4.2))
    groups = list(rows.groupby("architecture", sort=False))
    entries = []
    for place, (name, own) in enumerate(groups):
        colour, marker = look(name)
        # Beside each other, so that no interval hides another.
        shift = 0.06 * (place - (len(groups) - 1) / 2)
        for names, style in ((WITH, "-"), (WITHOUT, "--")):
            value, low, high = (own[each] for each in names)
            # Where all queries score alike, the mean and its interval differ in their last digit.
            around = [(value - low).clip(lower=0), (high - value).clip(lower=0)]
            axis.errorbar(
                own["round"] + shift, value, yerr=around, linestyle=style, color=colour,
                marker=marker, markersize=5, capsize=3,
                markerfacecolor=colour if names is WITH else "white",
            )  # fmt: skip
        entries.append(Line2D([], [], color=colour, marker=marker, label=name))
    for style, label in (("-", "with the marks"), ("--", "without, same images")):
        entries.append(Line2D([], [], color=NEUTRAL, linestyle=style, label=label))
    axis.set_xticks(sorted(rows["round"].unique()))
    axis.set(xlabel="rounds of marking", ylabel="mAP on the images not yet marked")
    axis.legend(handles=entries, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return drawn


def describe(rows: pd.DataFrame) -> str:
    """What marking brings to each architecture, in words; nothing where nobody has measured it.

    Args:
        rows: as for `table`.
    """
    lines = [
        f"- **{name}**: {_brought(own)}"
        for name, own in rows.groupby("architecture", sort=False)
        if (own["round"] > 0).any()
    ]
    if not lines:
        return ""
    each_round = rows.loc[rows["round"] == 1, "marked"].max()
    queries = rows.loc[rows["round"] == 0, "n_queries"]
    asked = " to ".join(f"{each:,}" for each in sorted({queries.min(), queries.max()}))
    lines.append(
        f"\nA simulated user asks {asked} queries and, round by round, marks the "
        f"{each_round:.3g} nearest images not yet marked: those of the query's class as meant, the "
        "others as not meant. With the marks and without them the same images are ranked, those "
        "not yet marked; as the marked ones leave, mAP changes by itself, so that only the two of "
        "one round are compared. Intervals are 95 % percentile bootstraps over the queries; p is "
        "that of a paired permutation test on them, after Holm's correction for all rounds and "
        "architectures shown. This user never errs and means nothing but the class: what a person "
        "means by a picture, and how well one marks it, is not measured."
    )
    return "\n".join(lines)


def _brought(own: pd.DataFrame) -> str:
    """All rounds of one architecture in a few sentences."""
    said = []
    for _, row in own[own["round"] > 0].iterrows():
        rounds = "one round" if row["round"] == 1 else f"{row['round']} rounds"
        after = f"after {rounds}{'' if said else ' of marking,'}"
        if not row["n_queries"]:
            said.append(f"{after} no query has a relevant image left")
            continue
        where = "it " if said else "mAP on the images not yet marked "
        if row["is_significant"]:
            verdict = "a gain" if row["difference"] > 0 else "a loss"
        else:
            verdict = "not told apart"
        text = (
            f"{after} {where}is {estimates.of(row, WITH)} instead of "
            f"{estimates.of(row, WITHOUT)} without the marks: {verdict}, "
            f"{estimates.of(row, DIFFERENCE):+}, {chance(row['p_holm'])}"
        )
        if row["n_left_out"]:
            text += f" ({row['n_left_out']:,} queries with no relevant image left are left out)"
        said.append(text)
    last = own.iloc[-1]
    return (
        f"{'; '.join(said)}. Of {last['marked']:.3g} images marked, {last['meant']:.3g} were meant "
        f"(means over the queries). Weights, chosen on validation images: {_weights(last)}."
    )


def _weights(row: pd.Series) -> Rocchio:
    return Rocchio(*(float(row[name]) for name in WEIGHTS))
