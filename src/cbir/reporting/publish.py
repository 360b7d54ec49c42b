"""Results that the project publishes: copied from a report, and shown in docs/results.md.

`reports/published/<study>/` contains a study's manifest.json, its figure, the rows of its
metrics.csv over all queries, and an optional notes.md. docs/results.md is written only from these
files. A study can be published in parts, because some of its runs take hours: the manifest records
the commit of each run.
"""

import json
from pathlib import Path

import pandas as pd

from cbir import StudyError
from cbir.cache import MANIFEST, write_text
from cbir.progress import duration
from cbir.reporting import charts, estimates, grids, provenance, sentences, tables, tidy
from cbir.reporting.display import TEMPLATES
from cbir.reporting.estimates import Estimate
from cbir.reporting.runs import parse_point, read_manifest, read_run

RESULTS = "docs/results.md"
# The columns of a study's table, and which rows of metrics.csv they show.
MEASURES = {
    "accuracy": tables.QUALITY["accuracy"],
    "mAP": tables.QUALITY["mAP, unrestricted"],
    "mAP, predicted class": tables.QUALITY["mAP, predicted class"],
    "mAP, label lookup": tables.QUALITY["mAP, label lookup"],
    "P@10": tables.QUALITY["P@10, unrestricted"],
}


def publish_study(root: Path, study: str) -> Path:
    """Copy a finished report's numbers into reports/published/<study>/ and draw its figure.

    Published runs that the report does not contain are kept.

    Raises:
        StudyError: the study is a trial, has no report, has a report in which an architecture
            failed, or does not fit its published runs.
    """
    source, folder = root / "reports" / study, root / "reports" / "published" / study
    manifest = _finished_manifest(source)
    runs = {name: read_run(study, name) for name in manifest["architectures"]}
    rows, figure_rows = tidy.read_csv(source / "metrics.csv"), tables.first_protocol_rows(runs)
    if kept := _kept_runs(folder, manifest):
        published = tidy.read_csv(folder / "metrics.csv")
        published = published[published["architecture"].isin(kept)]
        architectures = manifest["architectures"] | kept
        # Networks first, then baselines, as in a report.
        names = sorted(architectures, key=lambda name: (not architectures[name]["weights"], name))
        manifest["architectures"] = {name: architectures[name] for name in names}
        manifest["command"] = f'make report STUDY={study} ARCHITECTURES="{" ".join(names)}"'
        rows, figure_rows = pd.concat([rows, published]), pd.concat([figure_rows, published])
        figure_rows = figure_rows[figure_rows["protocol"] == figure_rows["protocol"].iloc[0]]
        figure_rows = figure_rows.sort_values("architecture", key=lambda row: row.map(names.index))
    folder.mkdir(parents=True, exist_ok=True)
    tidy.write_csv(tidy.sort(rows[rows["class"].isna()]), folder / "metrics.csv")
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    if any(run["variant"] for run in manifest["architectures"].values()):
        figure = grids.heat_maps(grids.points_table(runs))
    else:
        figure = charts.by_search(figure_rows)
    figure.savefig(folder / "results.png", dpi=100)
    return folder


def _finished_manifest(source: Path) -> dict:
    """The manifest of a report that may be published."""
    study, manifest = source.name, read_manifest(source)
    if study.endswith("-trial"):
        raise StudyError(
            f"{study} is a trial, whose parameters are not in a file: put them into params/ and "
            "publish that study"
        )
    if not manifest.get("architectures"):
        raise StudyError(f"no results in {source}: run `make report STUDY={study}` first")
    if failures := manifest["failures"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise StudyError(
            f"{source} cannot be published: {reasons}: fix this and run "
            f"`make report STUDY={study}` again"
        )
    return manifest


def _kept_runs(folder: Path, manifest: dict) -> dict[str, dict]:
    """The runs of a published manifest that the report's manifest lacks.

    Raises:
        StudyError: they cannot be shown in one table with those of the report.
    """
    published, runs = read_manifest(folder), manifest["architectures"]
    kept = {name: published["architectures"][name]
            for name in published.get("architectures", {}) if name not in runs}  # fmt: skip
    if not kept:
        return {}
    together = [*kept.values(), *runs.values()]
    parameters = [run["parameters"] for run in together]
    shared = ("data", "machine", "versions")
    reasons = [f"other {key}" for key in shared if published[key] != manifest[key]]
    if any(row["protocols"] != parameters[0]["protocols"] for row in parameters):
        reasons.append("other protocols")
    if any(len(row["seeds"]) > 1 for row in parameters):
        reasons.append("several seeds")
    if any(run["variant"] for run in together):
        reasons.append("a grid")
    if reasons:
        raise StudyError(
            f"{folder} contains {', '.join(kept)}, which this report lacks and which cannot be "
            f"combined with it ({', '.join(reasons)}): run these too, or delete that folder"
        )
    return kept


def write_results(root: Path) -> bool:
    """Write docs/results.md; return whether it changed."""
    path, text = root / RESULTS, results_page(root)
    if path.exists() and path.read_text("utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    return True


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
    manifest, rows = read_manifest(folder), tidy.read_csv(folder / "metrics.csv")
    runs, data, machine = manifest["architectures"], manifest["data"], manifest["machine"]
    protocol, notes = next(iter(runs.values()))["parameters"]["protocols"][0], folder / "notes.md"
    processors = [machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]]
    return {
        "name": folder.name,
        "command": manifest["command"],
        "protocol": protocol,
        "counts": f"{data['queries']:,} queries, {data['gallery']:,} gallery images",
        "machine": ", ".join(processors),
        "weights": provenance.weights_label(runs),
        "table": _markdown(_results_table(rows[rows["protocol"] == protocol], runs)),
        "notes": notes.read_text("utf-8").strip() if notes.exists() else "",
    }


def _results_table(rows: pd.DataFrame, runs: dict[str, dict]) -> pd.DataFrame:
    """A row per run, and per measured state of it."""
    table = []
    for name, run in runs.items():
        run_rows = rows[rows["architecture"] == name]
        architecture, _ = parse_point(name, run["variant"])
        weights = provenance.weights_and_digest(run["weights"]) if run["weights"] else "–"
        seconds, speed = run["training_seconds"], run["speed"]["images_per_second"]
        for epoch in [None, *sorted(run_rows["epoch"].dropna().astype(int).unique())]:
            states = {
                measure: _mean(tidy.select(run_rows, epoch=epoch, **selection))
                for measure, selection in MEASURES.items()
            }
            table.append(
                {
                    "architecture": ", ".join(filter(None, [architecture, run["variant"]])),
                    "weights": weights,
                    "epochs": provenance.epochs(run, epoch) if run["weights"] else "–",
                    **states,
                    "trained in": duration(seconds) if seconds and epoch is None else "–",
                    "images/s": f"{speed:,.0f}" if epoch is None else "–",
                }
            )
    return pd.DataFrame(table)


def _mean(rows: pd.DataFrame) -> Estimate | str:
    """The number of one seed with its interval, or the mean, lowest and highest of several."""
    if len(rows) < 2:
        return tidy.number(rows)
    values = rows["value"]
    return f"{values.mean():.3f} ({estimates.span(values, 3)}, {len(values)} seeds)"


def _markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
