"""Results that the project itself publishes: copied from a report, shown in README's tables.

`reports/published/<study>/` holds a study's metrics.csv, manifest.json and figures, and README's
table of results is written from these files alone. What others have published stands beside it.
A study may be published in parts, since some of its runs take hours: the manifest has each run's
commit.
"""

import json
import re
from pathlib import Path

import pandas as pd

from cbir import StudyError
from cbir.cache import MANIFEST, write_text
from cbir.progress import duration
from cbir.reporting import charts, grids, provenance, sentences, tables, tidy
from cbir.reporting.estimates import Estimate
from cbir.reporting.runs import read_run

BEGIN, END = "<!-- results: written by `make results` -->", "<!-- results: end -->"
PAPER = (
    "Babariya et al., who print accuracies alone and do not say on which images: their CNN reaches "
    "0.7616 after 29 epochs and 0.7861 after 47."
)
# Accuracies on CIFAR-10's test images, as published: (what, value, source).
OTHERS = [
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

    Runs that are published already, and that the report does not hold, stay.

    Raises:
        StudyError: it is a trial, or has no report, or one in which an architecture failed, or
            does not fit what is published of the study.
    """
    source, folder = root / "reports" / study, root / "reports" / "published" / study
    manifest = _manifest(source)
    found = {name: read_run(study, name) for name in manifest["architectures"]}
    rows, averaged = tidy.read_csv(source / "metrics.csv"), tables.rows_of(found)
    if kept := _kept(folder, manifest):
        before = tidy.read_csv(folder / "metrics.csv")
        before = before[before["architecture"].isin(kept)]
        runs = manifest["architectures"] | kept
        # Networks first, then baselines, as a report has them.
        names = sorted(runs, key=lambda name: (not runs[name]["weights"], name))
        manifest["architectures"] = {name: runs[name] for name in names}
        manifest["command"] = f'make report STUDY={study} ARCHITECTURES="{" ".join(names)}"'
        rows, averaged = (pd.concat([each, before]) for each in (rows, averaged))
        averaged = averaged.sort_values("architecture", key=lambda each: each.map(names.index))
    folder.mkdir(parents=True, exist_ok=True)
    tidy.write_csv(tidy.sort(rows), folder / "metrics.csv")
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    from cbir.reporting import grids

    if any(run["variant"] for run in manifest["architectures"].values()):
        figure = grids.heat_maps(grids.grid_table(found))
    else:
        figure = charts.by_search(tables.headline(averaged, found))
    figure.savefig(folder / "results.png", dpi=100)
    return folder


def _manifest(source: Path) -> dict:
    """The manifest of a report that may be published."""
    study = source.name
    if study.endswith("-trial"):
        raise StudyError(
            f"{study} is a trial, whose parameters stand in no file: put them into params/ and "
            "publish that study"
        )
    if not (source / MANIFEST).exists():
        raise StudyError(f"no results in {source}: run `make report STUDY={study}` first")
    manifest = json.loads((source / MANIFEST).read_text("utf-8"))
    if not manifest["architectures"]:
        raise StudyError(f"{source} holds no results to publish")
    if failures := manifest["failures"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise StudyError(
            f"{source} cannot be published: {reasons}: mend it and run "
            f"`make report STUDY={study}` again"
        )
    return manifest


def _kept(folder: Path, manifest: dict) -> dict[str, dict]:
    """Runs that stand in a published manifest and not in a report's.

    Raises:
        StudyError: they cannot stand in one table with those of the report.
    """
    if not (folder / MANIFEST).exists():
        return {}
    before = json.loads((folder / MANIFEST).read_text("utf-8"))
    runs = manifest["architectures"]
    kept = {name: run for name, run in before["architectures"].items() if name not in runs}
    asked = [run["parameters"] for run in [*kept.values(), *runs.values()]]
    reasons = {f"other {what}": before[what] != manifest[what]
               for what in ("data", "machine", "versions")}  # fmt: skip
    reasons |= {
        "other protocols": any(each["protocols"] != asked[0]["protocols"] for each in asked),
        "several seeds": any(len(each["seeds"]) > 1 for each in asked),
        "a grid": any(run["variant"] for run in [*kept.values(), *runs.values()]),
    }
    if kept and (why := [reason for reason, holds in reasons.items() if holds]):
        raise StudyError(
            f"{folder} holds {', '.join(kept)}, which this report lacks and which cannot stand "
            f"beside it ({', '.join(why)}): run these too, or delete that folder"
        )
    return kept


def write_readme(root: Path) -> bool:
    """Bring README's tables up to date with what is published; whether that changed it.

    Raises:
        StudyError: README has no place for them.
    """
    path = root / "README.md"
    text = path.read_text("utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise StudyError(f"README.md lacks the lines {BEGIN} and {END}")
    written = pattern.sub(lambda _: f"{BEGIN}\n\n{section(root)}\n{END}", text)
    if written != text:
        write_text(path, written)
    return written != text


def section(root: Path) -> str:
    """README's tables of results, in Markdown, from reports/published/ alone."""
    folders = [path.parent for path in sorted((root / "reports/published").glob(f"*/{MANIFEST}"))]
    parts = [_study(folder) for folder in folders]
    if any(folder.name.startswith("cifar10") for folder in folders):
        parts.append(_others())
    return "\n".join(parts)


def _study(folder: Path) -> str:
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    runs = manifest["architectures"]
    rows = tidy.read_csv(folder / "metrics.csv")
    first = next(iter(runs.values()))["parameters"]
    rows = rows[rows["protocol"] == first["protocols"][0]]
    data, machine = manifest["data"], manifest["machine"]
    lines = [
        f"**{folder.name}** (`{manifest['command']}`): protocol `{first['protocols'][0]}`, "
        f"{data['queries']:,} queries, {data['gallery']:,} gallery images; "
        f"{machine['cpu']}, {machine['cores']} cores"
        + (f", {', '.join(machine['gpus'])}" if machine["gpus"] else "")
        + f". {provenance.weights_label_of_manifest(runs)}".rstrip(),
        "",
        _table(_frame(rows, runs)),
        "",
        f"![Results of {folder.name}](reports/published/{folder.name}/results.png)",
        "",
    ]
    return "\n".join(lines)


def _frame(rows: pd.DataFrame, runs: dict[str, dict]) -> pd.DataFrame:
    """A row a run, and one more for each of its states that was measured."""
    table = []
    for name, run in runs.items():
        own = rows[rows["architecture"] == name]
        architecture, _ = grids.parse(name, run["variant"])
        label = f"{architecture}, {run['variant']}" if run["variant"] else name
        states = [None, *sorted(own["epoch"].dropna().astype(int).unique())]
        for epoch in states:
            weights = run["weights"]["source"] if run["weights"] else "–"
            is_final = epoch is None
            table.append(
                {
                    "architecture": label,
                    "weights": "random" if weights == "none" else weights,
                    "epochs": provenance.epochs_of_manifest(run, epoch) if run["weights"] else "–",
                    **{
                        measure: _mean(tidy.select(own, epoch=epoch, **wanted))
                        for measure, wanted in MEASURES.items()
                    },
                    "trained in": duration(run["training_seconds"])
                    if is_final and run["training_seconds"]
                    else "–",
                    "images/s": f"{run['speed']['images_per_second']:,.0f}" if is_final else "–",
                }
            )
    return pd.DataFrame(table)


def _mean(rows: pd.DataFrame) -> Estimate | str:
    """One seed's number with its interval; of several, the mean with the lowest and highest."""
    if len(rows) < 2:
        return tidy.number(rows)
    values = rows["value"]
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f}, {len(values)} seeds)"


def _others() -> str:
    table = pd.DataFrame(
        OTHERS, columns=["accuracy on CIFAR-10's test images, as published", "value", "source"]
    )
    retrieval = "\n".join(
        f"- `{protocol}`: {said}" for protocol, said in sentences.PUBLISHED_MAP.items()
    )
    return "\n".join(
        [
            "Beside these, as published. " + PAPER,
            "",
            _table(table),
            "",
            "mAP of binary codes on CIFAR-10, as published, each under the protocol named:",
            "",
            retrieval,
            "",
        ]
    )


def _table(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
