"""Large galleries in a report: tables, a figure and texts on engines, reductions and re-ranking."""

import json
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cbir import StudyError
from cbir.reporting import charts, gains, measurements
from cbir.reporting.display import looks
from cbir.reporting.numbers import from_row
from cbir.reporting.runs import Run, run_folder
from cbir.retrieval import reranking, scale

FILE = "engines.csv"
# The share of the ten nearest images that an engine must find to be recommended.
LEAST_RECALL = 0.95
# Sizes beyond what was measured, and the memory of a machine that holds a part of such a gallery.
PAPER_SIZES, MACHINE_BYTES = (10**8, 10**9), 256 * 2**30
WITH, WITHOUT = "with", "without"


def measure_engines(
    study: str, run: Run, sizes: list[int], engines: Mapping[str, int], dimensions: int
) -> tuple[pd.DataFrame, list[str]]:
    """Measure engines in generated galleries, and write reports/<study>/engines.csv.

    Args:
        study: name of the folder in reports/.
        run: galleries are generated like its embeddings.
        sizes: of the galleries.
        engines: the largest size at which each is measured, by text as for `engines.open_engine`.
        dimensions: of the generated embeddings, limited to those of the run.

    Returns:
        A row per engine and size: engine, and the columns of `scale.measure_engine` with recall;
        and "engine: reason" of those that could not be measured.
    """
    rows, missing = [], {}
    for size in sorted(sizes):
        generated = scale.generate(run.embeddings, size, dimensions)
        _, nearest = scale.measure_engine("exact", generated)
        for engine, largest in engines.items():
            if size > largest or engine in missing:
                continue
            try:
                costs, found = scale.measure_engine(engine, generated)
            except StudyError as error:
                missing[engine] = str(error)
                continue
            recall = scale.recall(found, nearest)
            rows.append({"engine": engine, "size": size, "recall": recall, **costs})
    frame = pd.DataFrame(rows)
    measurements.write_csv(frame, run_folder(study) / FILE)
    return frame, [f"{engine}: {reason}" for engine, reason in missing.items()]


def engines_table(costs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `measure_engines` for readers."""
    return pd.DataFrame({
        "engine": costs["engine"],
        "images": costs["size"].map("{:,}".format),
        "recall@10": costs["recall"].map("{:.3f}".format),
        "mAP@100": costs["map"].map("{:.3f}".format),
        "median (ms)": costs["p50"].map("{:.2f}".format),
        "99th percentile (ms)": costs["p99"].map("{:.2f}".format),
        "queries/s": costs["throughput"].map("{:,.0f}".format),
        "build (s)": costs["build"].map("{:,.1f}".format),
        "bytes per image": costs["bytes"].map("{:,.0f}".format),
    })  # fmt: skip


def figure(costs: pd.DataFrame) -> Figure:
    """Time of a query and recall by size of the gallery, one colour per engine."""
    drawn, (times, recalls) = plt.subplots(1, 2, figsize=(10, 4))
    for name, (colour, marker) in looks(costs["engine"].unique()).items():
        rows = costs[costs["engine"] == name]
        style = {"color": colour, "marker": marker, "markersize": 5, "label": name}
        times.plot(rows["size"], rows["p50"], **style)
        recalls.plot(rows["size"], rows["recall"], **style)
    for axis in (times, recalls):
        axis.set(xscale="log", xlabel="images in the gallery")
        # Those of matplotlib are formulas, which figures do not draw.
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(axis="x", labelsize="small")
    times.set(yscale="log", ylabel="median time of a query (ms)")
    times.yaxis.set_major_formatter("{x:g}")
    recalls.set(ylabel="recall@10", ylim=(min(0.5, costs["recall"].min()) - 0.02, 1.02))
    recalls.legend(**charts.BESIDE)
    return drawn


def describe(costs: pd.DataFrame, missing: list[str]) -> str:
    """Which engine answers fastest at each size, of those that find enough, in words."""
    lines = []
    for size, rows in costs.groupby("size"):
        enough = rows[rows["recall"] >= LEAST_RECALL]
        best = enough.loc[enough["p50"].idxmin()]
        exact = rows[rows["engine"] == "exact"].iloc[0]
        text = f"- With {size:,} images, **{best['engine']}** answers fastest"
        if best["engine"] == "exact":
            lines.append(f"{text}: {_milliseconds(best['p50'])} per query.")
            continue
        lines.append(
            f"{text}: {_milliseconds(best['p50'])} per query instead of "
            f"{_milliseconds(exact['p50'])} with exact, and it finds {best['recall']:.1%} of the "
            "ten nearest images."
        )
    lines.append(
        f"\nOnly engines that find at least {LEAST_RECALL:.0%} of the ten nearest images are "
        "considered. Times are medians of single queries on the machine named below."
    )
    lines += [f"\nNot measured: {reason}" for reason in missing]
    return "\n".join(lines)


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def paper_table(costs: pd.DataFrame, images_per_second: float | None) -> pd.DataFrame:
    """What larger galleries would need, computed from the largest gallery that was measured.

    Args:
        costs: from `measure_engines`.
        images_per_second: speed of embedding on this machine; None if unknown.
    """
    largest = costs[costs["size"] == costs["size"].max()]
    rows = []
    for size in PAPER_SIZES:
        for _, row in largest.iterrows():
            n_bytes = size * row["bytes"]
            hours = size / images_per_second / 3600 if images_per_second else np.nan
            rows.append({
                "images": f"{size:,}",
                "engine": row["engine"],
                "memory (GB)": f"{n_bytes / 1e9:,.0f}",
                "machines of 256 GiB": f"{int(np.ceil(n_bytes / MACHINE_BYTES)):,}",
                "build (hours, one machine)": f"{size / row['size'] * row['build'] / 3600:,.1f}",
                "embedding (hours, one machine)": f"{hours:,.0f}",
            })  # fmt: skip
    return pd.DataFrame(rows)


def measure_reductions(study: str, runs: Mapping[str, Run]) -> pd.DataFrame:
    """What smaller embeddings lose, as from `gains.save`, with reduction and bytes."""
    measured = {name: scale.measure_reductions(run.embeddings) for name, run in runs.items()}
    return _save(study, measured, "reduction", ["bytes"], "reductions.csv")


def measure_rerankings(study: str, runs: Mapping[str, Run]) -> pd.DataFrame:
    """What re-ranking gains, as from `gains.save`, with method, settings and costs."""
    measured = {name: reranking.measure_rerankings(run.embeddings) for name, run in runs.items()}
    return _save(study, measured, "method", ["settings", "milliseconds", "bytes"], "reranking.csv")


def _save(
    study: str, measured: Mapping[str, pd.DataFrame], kind: str, costs: list[str], file: str
) -> pd.DataFrame:
    """Means over the queries of each run and kind, with intervals and the paired test."""
    rows = []
    for architecture, scores in measured.items():
        for name, group in scores.groupby(kind, sort=False):
            values = group[["average_precision", "average_precision_without"]]
            values = values.set_axis([WITH, WITHOUT], axis="columns")
            values = values.assign(gain=values[WITH] - values[WITHOUT])
            row = {"study": study, "architecture": architecture, kind: name}
            rows.append(row | gains.mean_row(values) | group[costs].iloc[0].to_dict())
    return gains.save(rows, study, file)


def effects_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `measure_reductions` or `measure_rerankings` for readers."""
    kind = "method" if "method" in rows else "reduction"
    table = gains.table(rows, ["architecture", kind, WITHOUT, WITH, "gain", "p_holm"])
    table["bytes per image"] = rows["bytes"].map("{:,.0f}".format).to_numpy()
    if "settings" in rows:
        settings = rows["settings"].map(json.loads)
        table["settings"] = [", ".join(f"{k} {v:g}" for k, v in one.items()) for one in settings]
        table["ms per query"] = rows["milliseconds"].map("{:.2f}".format).to_numpy()
    return table


def describe_effects(rows: pd.DataFrame) -> str:
    """Each verdict of `measure_reductions` or `measure_rerankings`, in words."""
    kind = "method" if "method" in rows else "reduction"
    verdicts = {"better": "raises", "worse": "lowers"}
    lines = []
    for (architecture, name), group in rows.groupby(["architecture", kind], sort=False):
        row = group.iloc[0]
        before, after = from_row(row, WITHOUT), from_row(row, WITH)
        if verb := verdicts.get(row["verdict"]):
            lines.append(f"- {architecture}: {name} {verb} the mAP from {before} to {after}.")
        else:
            lines.append(
                f"- {architecture}: {name} does not change the mAP significantly: {before} without "
                f"it, {after} with it."
            )
    return "\n".join(lines)
