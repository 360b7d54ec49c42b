"""Results that the project publishes: copied from a report, and shown in docs/results.md.

`reports/published/<study>/` holds a study's manifest.json, its figure, and the rows of its
metrics.csv over all queries. docs/results.md is written from these files alone, with figures from
the literature beside them. A study may be published in parts, since some of its runs take hours:
the manifest names each run's commit.
"""

import json
from pathlib import Path

import pandas as pd

from cbir import StudyError
from cbir.cache import MANIFEST, write_text
from cbir.progress import duration
from cbir.reporting import charts, grids, provenance, sentences, tables, tidy
from cbir.reporting.estimates import Estimate
from cbir.reporting.runs import read_run

RESULTS = "docs/results.md"
HEADING = (
    "# Results\n\n`make results` writes this page from `reports/published/`. In brackets stand "
    "95 % intervals over the queries.\n"
)
PAPER = (
    "Babariya et al. print accuracies alone and do not say on which images: their CNN reaches "
    "0.7616 after 29 epochs and 0.7861 after 47."
)
# Accuracies on CIFAR-10's test images, as published: (model, value, source).
LITERATURE = [
    ("VGG16, ImageNet, frozen, 32 px", "0.61 to 0.65", "several authors; their protocols differ"),
    ("VGG16, ImageNet, frozen, 224 px", "0.84", "several authors; their protocols differ"),
    ("ResNet-50, ImageNet, linear probe, 224 px", "0.936", "BYOL, table 3 (Grill et al., 2020)"),
    ("ResNet-50, ImageNet, fine-tuned, 224 px", "0.975", "the same"),
    ("ResNet-50, random weights, 224 px", "0.959", "the same"),
    ("plain CNN, 25 and 50 epochs", "0.75, 0.79", "Keras' former example cifar10_cnn.py"),
    ("plain CNN, today's training", "0.94", "airbench (Jordan, 2024)"),
]
MEASURES = {
    "accuracy": tables.QUALITY["accuracy"],
    "mAP": tables.QUALITY["mAP, unrestricted"],
    "mAP, predicted class": tables.QUALITY["mAP, predicted class"],
    "mAP, label lookup": tables.QUALITY["mAP, label lookup"],
    "P@10": tables.QUALITY["P@10, unrestricted"],
}


def publish_study(root: Path, study: str) -> Path:
    """Copy a finished report's numbers into reports/published/<study>/ and draw its figure.

    Runs that are already published, and that the report does not hold, stay.

    Raises:
        StudyError: the study is a trial, has no report or one in which an architecture failed, or
            does not fit what is published of it.
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
        rows = pd.concat([rows, published])
        protocol = next(iter(runs.values())).protocol
        figure_rows = pd.concat([figure_rows, published[published["protocol"] == protocol]])
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
    study = source.name
    if study.endswith("-trial"):
        raise StudyError(
            f"{study} is a trial, whose parameters stand in no file: put them into params/ and "
            "publish that study"
        )
    if not (source / MANIFEST).exists():
        raise StudyError(f"no results in {source}: run `make report STUDY={study}` first")
    manifest = _read_json(source / MANIFEST)
    if not manifest["architectures"]:
        raise StudyError(f"{source} holds no results to publish")
    if failures := manifest["failures"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise StudyError(
            f"{source} cannot be published: {reasons}: mend it and run "
            f"`make report STUDY={study}` again"
        )
    return manifest


def _kept_runs(folder: Path, manifest: dict) -> dict[str, dict]:
    """The runs of a published manifest that the report's manifest lacks.

    Raises:
        StudyError: they cannot stand in one table with those of the report.
    """
    if not (folder / MANIFEST).exists():
        return {}
    published, runs = _read_json(folder / MANIFEST), manifest["architectures"]
    kept = {name: run for name, run in published["architectures"].items() if name not in runs}
    together = [*kept.values(), *runs.values()]
    parameters = [run["parameters"] for run in together]
    reasons = {
        f"other {key}": published[key] != manifest[key] for key in ("data", "machine", "versions")
    } | {
        "other protocols": len({tuple(given["protocols"]) for given in parameters}) > 1,
        "several seeds": any(len(given["seeds"]) > 1 for given in parameters),
        "a grid": any(run["variant"] for run in together),
    }
    if kept and any(reasons.values()):
        why = ", ".join(reason for reason, holds in reasons.items() if holds)
        raise StudyError(
            f"{folder} holds {', '.join(kept)}, which this report lacks and which cannot stand "
            f"beside it ({why}): run these too, or delete that folder"
        )
    return kept


def write_results(root: Path) -> bool:
    """Write docs/results.md; whether that changed it."""
    path, text = root / RESULTS, results_page(root)
    if path.exists() and path.read_text("utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    return True


def results_page(root: Path) -> str:
    """docs/results.md, in Markdown, from reports/published/ alone."""
    folders = [path.parent for path in sorted((root / "reports/published").glob(f"*/{MANIFEST}"))]
    parts = [HEADING, *(_study_section(folder) for folder in folders)]
    if any(folder.name.startswith("cifar10") for folder in folders):
        parts.append(_literature())
    return "\n".join(parts)


def _study_section(folder: Path) -> str:
    manifest, rows = _read_json(folder / MANIFEST), tidy.read_csv(folder / "metrics.csv")
    runs, data, machine = manifest["architectures"], manifest["data"], manifest["machine"]
    protocol = next(iter(runs.values()))["parameters"]["protocols"][0]
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    return f"""## {folder.name}

`{manifest["command"]}`: protocol `{protocol}`, {data["queries"]:,} queries, \
{data["gallery"]:,} gallery images; {machine["cpu"]}, {machine["cores"]} cores{gpus}. \
{provenance.weights_label_of_manifest(runs)}

{_markdown(_results_table(rows[rows["protocol"] == protocol], runs))}

![Results of {folder.name}](../reports/published/{folder.name}/results.png)
"""


def _results_table(rows: pd.DataFrame, runs: dict[str, dict]) -> pd.DataFrame:
    """A row per run, and one for each of its states that was measured."""
    table = []
    for name, run in runs.items():
        run_rows = rows[rows["architecture"] == name]
        architecture, _ = grids.parse(name, run["variant"])
        label = f"{architecture}, {run['variant']}" if run["variant"] else name
        weights = run["weights"]["source"] if run["weights"] else "–"
        for epoch in [None, *sorted(run_rows["epoch"].dropna().astype(int).unique())]:
            is_trained, is_final = bool(run["weights"]), epoch is None
            row = {
                "architecture": label,
                "weights": "random" if weights == "none" else weights,
                "epochs": provenance.epochs_of_manifest(run, epoch) if is_trained else "–",
            }
            row |= {
                measure: _mean(tidy.select(run_rows, epoch=epoch, **selection))
                for measure, selection in MEASURES.items()
            }
            seconds, speed = run["training_seconds"], run["speed"]["images_per_second"]
            row["trained in"] = duration(seconds) if is_final and seconds else "–"
            row["images/s"] = f"{speed:,.0f}" if is_final else "–"
            table.append(row)
    return pd.DataFrame(table)


def _mean(rows: pd.DataFrame) -> Estimate | str:
    """One seed's number with its interval; of several, the mean with the lowest and highest."""
    if len(rows) < 2:
        return tidy.number(rows)
    values = rows["value"]
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f}, {len(values)} seeds)"


def _literature() -> str:
    columns = ["accuracy on CIFAR-10's test images, as published", "value", "source"]
    lines = [f"- `{protocol}`: {text}" for protocol, text in sentences.PUBLISHED_MAP.items()]
    return "\n".join(
        [
            f"## What others published\n\n{PAPER}\n",
            _markdown(pd.DataFrame(LITERATURE, columns=columns)),
            "\nmAP of binary codes on CIFAR-10, as published, each under the protocol named:\n",
            *lines,
            "",
        ]
    )


def _markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))
