"""Results that the project publishes: copied from a report, and shown in docs/results.md.

`reports/published/<study>/` contains a study's manifest.json, its figure, a copy of its comparison
page, an optional notes.md, and the rows of its metrics.csv over all queries, for full rankings and
the first ten results. docs/results.md is written only from these files. A study can be published in
parts, because some of its runs take hours: the manifest records the commit of each run.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from cbir import StudyError, report_command
from cbir.cache import MANIFEST, read, write_text
from cbir.progress import duration
from cbir.reporting import charts, grids, measurements, notebook_html, provenance, sentences, tables
from cbir.reporting.display import TEMPLATES
from cbir.reporting.numbers import span
from cbir.reporting.runs import parse_point, read_manifest, read_run, training_place
from cbir.retrieval.evaluation import N_RESULTS

RESULTS = "docs/results.md"
PAGE = "index.html"
# The properties of a data set that runs on the same images share.
SAME_DATA = ("fingerprint", "classes", "gallery", "train", "validation", "queries")
# The columns of a study's table, and which rows of metrics.csv they show.
MEASURES = {
    "accuracy": tables.QUALITY["accuracy"],
    "mAP": tables.QUALITY["mAP, unrestricted"],
    "mAP, predicted class": tables.QUALITY["mAP, predicted class"],
    "mAP, label lookup": tables.QUALITY["mAP, label lookup"],
    "P@10": tables.QUALITY["P@10, unrestricted"],
}


def publish_study(root: Path, study: str) -> Path:
    """Copy a finished report's numbers and comparison page into reports/published/<study>/.

    It also draws their figure and replaces paths of this machine by names of files. Published runs
    that the report lacks are kept. StudyError for a trial, an unfinished report, or runs that do
    not fit.
    """
    source, folder = root / "reports" / study, root / "reports" / "published" / study
    finished = _finished_manifest(source)
    manifest = json.loads(_without_paths(json.dumps(finished), finished, root))
    runs = {name: read_run(study, name) for name in manifest["architectures"]}
    averaged = [
        run.averaged for run in runs.values() if len(run.summary["measurement"]["seeds"]) > 1
    ]
    rows = pd.concat([measurements.read_csv(source / "metrics.csv"), *averaged])
    figure_rows = tables.first_protocol_rows(runs)
    if kept_runs := _kept_runs(folder, manifest):
        published = measurements.read_csv(folder / "metrics.csv")
        published = published[published["architecture"].isin(kept_runs)]
        architectures = manifest["architectures"] | kept_runs
        # Networks first, then baselines, as in a report.
        names = sorted(architectures, key=lambda name: (not architectures[name]["weights"], name))
        manifest["architectures"] = {name: architectures[name] for name in names}
        command = f'make report STUDY={shlex.quote(study)} ARCHITECTURES="{" ".join(names)}"'
        manifest["command"] = command
        rows = pd.concat([rows, published])
        # Of several seeds, a figure shows the mean, whose rows name no seed.
        n_seeds = published.groupby("architecture")["seed"].transform("nunique")
        figure_rows = pd.concat([figure_rows, published[(n_seeds == 1) | published["seed"].isna()]])
        figure_rows = figure_rows[figure_rows["protocol"] == figure_rows["protocol"].iloc[0]]
        figure_rows = figure_rows.sort_values("architecture", key=lambda row: row.map(names.index))
    folder.mkdir(parents=True, exist_ok=True)
    is_shown = rows["class"].isna() & (rows["k"].isna() | (rows["k"] == N_RESULTS))
    measurements.write_csv(measurements.sort(rows[is_shown]), folder / "metrics.csv")
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    if any(run["variant"] for run in manifest["architectures"].values()):
        figure = grids.heat_maps(grids.points_table(runs))
    else:
        figure = charts.by_search(figure_rows)
    figure.savefig(folder / "results.png", dpi=100)
    note = (
        f"A copy of the page that `{finished['command']}` wrote. The other pages that it mentions "
        "are not published; the same command writes them."
    )
    page = notebook_html.published_copy(source / PAGE, kept=["metrics.csv", MANIFEST], note=note)
    write_text(folder / PAGE, _without_paths(page, finished, root))
    return folder


def _without_paths(text: str, manifest: dict, root: Path) -> str:
    """A text with the names of files and folders instead of their absolute paths."""
    paths = {f"{root}/": "", f"{Path.home()}/": "~/"}
    paths |= {value: Path(value).name for value in _texts(manifest) if Path(value).is_absolute()}
    for path in sorted(paths, key=len, reverse=True):
        # The data of an image may contain the same characters.
        text = re.sub(rf"(?<![\w/+.]){re.escape(path)}", paths[path], text)
    return text


def _texts(content) -> Iterator[str]:
    """Every text within JSON content, except for names."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _texts(part)


def _finished_manifest(source: Path) -> dict:
    """The manifest of a report that may be published."""
    study, manifest = source.name, read_manifest(source)
    if re.search("-trial-[0-9a-f]{6}$", study):
        raise StudyError(
            f"{study} is a trial, whose parameters are not in a file: put them into params/ and "
            "publish that study"
        )
    if not manifest.get("architectures"):
        raise StudyError(f"no results in {source}: run `{report_command(study)}` first")
    if read(source / "index") is None:
        raise StudyError(
            f"{PAGE} in {source} is missing or does not fit the numbers beside it: run "
            f"`{report_command(study)}` again"
        )
    if failures := manifest["failures"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise StudyError(
            f"{source} cannot be published: {reasons}: fix this and run "
            f"`{report_command(study)}` again"
        )
    return manifest


def _kept_runs(folder: Path, manifest: dict) -> dict[str, dict]:
    """The runs of a published manifest that the report's lacks; StudyError if they do not fit."""
    published, runs = read_manifest(folder), manifest["architectures"]
    published_runs = published.get("architectures", {}).items()
    if not (kept_runs := {name: run for name, run in published_runs if name not in runs}):
        return {}
    all_runs = [*kept_runs.values(), *runs.values()]
    is_same = all(published["data"].get(key) == manifest["data"].get(key) for key in SAME_DATA)
    reasons = [] if is_same else ["other data"]
    # Earlier manifests do not record the code.
    if len({run["code"] for run in all_runs if run.get("code")}) > 1:
        reasons.append("other code")
    if len({run["parameters"]["protocols"][0] for run in all_runs}) > 1:
        reasons.append("another first protocol")
    if any(run["variant"] for run in all_runs):
        reasons.append("a grid")
    if reasons:
        raise StudyError(
            f"{folder} contains {', '.join(kept_runs)}, which this report lacks and which cannot "
            f"be combined with it ({', '.join(reasons)}): run these too, or delete that folder"
        )
    return kept_runs


def write_results(root: Path) -> bool:
    """Write docs/results.md; return whether it changed."""
    path, text = root / RESULTS, results_page(root)
    if is_new := not path.exists() or path.read_text("utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        write_text(path, text)
    return is_new


def results_page(root: Path) -> str:
    """The Markdown text of docs/results.md, from only reports/published/."""
    folders = [path.parent for path in sorted((root / "reports/published").glob(f"*/{MANIFEST}"))]
    is_cifar10 = any(folder.name.startswith("cifar10") for folder in folders)
    text = TEMPLATES.get_template("results.md.j2").render(
        studies=[_section(folder) for folder in folders],
        published_map=sentences.PUBLISHED_MAP if is_cifar10 else {},
    )
    return text.rstrip() + "\n"


def _section(folder: Path) -> dict[str, str]:
    """The content of a study's section."""
    manifest, rows = read_manifest(folder), measurements.read_csv(folder / "metrics.csv")
    runs, data, machines = manifest["architectures"], manifest["data"], {}
    protocol, notes = next(iter(runs.values()))["parameters"]["protocols"][0], folder / "notes.md"
    for name, run in runs.items():
        machine = run.get("machine") or manifest["machine"]
        text = ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]])
        machines.setdefault(text, []).append(name)
    measured_on = [
        text if len(machines) == 1 else f"{text} ({', '.join(names)})"
        for text, names in machines.items()
    ]
    return {
        "name": folder.name,
        "command": manifest["command"],
        "protocol": protocol,
        "counts": f"{data['queries']:,} queries, {data['gallery']:,} gallery images",
        "machine": "; ".join(measured_on),
        "page": (folder / PAGE).exists(),
        "weights": provenance.weights_label(runs),
        "table": _markdown(_results_table(rows[rows["protocol"] == protocol], runs)),
        "notes": notes.read_text("utf-8").strip() if notes.exists() else "",
    }


def _results_table(rows: pd.DataFrame, runs: dict[str, dict]) -> pd.DataFrame:
    """A row per run, and per measured state of it."""
    table = []
    for name, run in runs.items():
        run_rows, weights = rows[rows["architecture"] == name], run["weights"]
        architecture, _ = parse_point(name, run["variant"])
        seconds, speed = run["training_seconds"], run["speed"]["images_per_second"]
        for epoch in [None, *sorted(run_rows["epoch"].dropna().astype(int).unique())]:
            place, is_last = training_place(run), epoch is None
            row = {
                "architecture": ", ".join(filter(None, [architecture, run["variant"]])),
                "weights": provenance.weights_and_digest(weights) if weights else "–",
                "epochs": provenance.epochs(run, epoch) if weights else "–",
            }
            for measure, selection in MEASURES.items():
                row[measure] = _mean(measurements.select(run_rows, epoch=epoch, **selection))
            row["trained in"] = f"{duration(seconds)}{place}" if seconds and is_last else "–"
            row["images/s"] = f"{speed:,.0f}" if speed and is_last else "–"
            table.append(row)
    return pd.DataFrame(table)


def _mean(rows: pd.DataFrame) -> str:
    """The number of one seed, or the mean of several, with its interval; their range follows.

    Without a row of the mean, which names no seed, there is no interval.
    """
    by_seed, mean = rows[rows["seed"].notna()], rows[rows["seed"].isna()]
    if len(by_seed) < 2:
        return str(measurements.number(rows))
    value = f"{by_seed['value'].mean():.3f}" if mean.empty else measurements.number(mean)
    return f"{value} ({span(by_seed['value'], 3)}, {len(by_seed)} seeds)"


def _markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
