"""Whole studies for tests: small projects, and what the real command left of them."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import yaml
from conftest import ROOT, STUDY, cbir, write_pictures, write_study
from test_notebook_html import Tags

from cbir.studies.study import PAGES

BASELINE = "raw_pixels"
BASELINES = {"notebook": "baseline", "baseline": BASELINE}
PROTOCOLS = ["closed", "held_out_gallery", "unseen_classes"]
QUERIES = "per_query.parquet"
# The pages about all runs of a study that follow the comparison.
DEEPER = [*PAGES]


def make_study(root: Path, architectures: dict[str, dict], **shared) -> Path:
    """A project with the real notebooks, small pictures and the study `tiny`."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    write_pictures(root / "data" / "shapes")
    write_study(root, "tiny", STUDY | shared, architectures)
    return root


def report(root: Path, *arguments: str, **environment: str) -> SimpleNamespace:
    """The study `tiny` brought up to date: where its report stands, and the finished process."""
    done = cbir(root, "report", "--study", "tiny", *arguments, **environment)
    return SimpleNamespace(root=root, reports=root / "reports" / "tiny", done=done)


def leave_out_notebooks(root: Path, *names: str) -> None:
    """Delete notebooks of deeper pages, so that a report lacks these pages and ends earlier."""
    for name in names:
        (root / "notebooks" / f"{name}.ipynb").unlink()


def shorten_notebooks(root: Path, *, but: Collection[str] = ()) -> None:
    """Notebooks for tests of what runs when: runs end when they are saved, few pages, all empty."""
    for path in (root / "notebooks").glob("*.ipynb"):
        if path.stem in but:
            continue
        if path.stem in DEEPER:
            path.unlink()
            continue
        notebook = json.loads(path.read_text("utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        ends = [i for i, cell in enumerate(code) if "save_run(" in "".join(cell["source"])]
        tags = [cell["metadata"].get("tags", ()) for cell in code]
        ends += [i for i, names in enumerate(tags) if "parameters" in names]
        notebook["cells"] = code[: ends[0] + 1]
        path.write_text(json.dumps(notebook), "utf-8")


def change(root: Path, name: str, **values) -> None:
    """Change values in a file of the study `tiny`."""
    path = root / "params" / "tiny" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def folders(root: Path, *steps: str) -> dict[str, dict[str, int]]:
    """The finished results of each step, and when each was made."""
    return {
        step: {
            path.parent.name: path.stat().st_mtime_ns
            for path in (root / "artifacts" / step).glob("*/manifest.json")
        }
        for step in steps
    }


def snapshot(*places: Path) -> dict[str, bytes]:
    """Every file of some folders with what it holds."""
    return {
        path.relative_to(place.parent).as_posix(): path.read_bytes()
        for place in places
        for path in place.rglob("*")
        if path.is_file()
    }


def ran(done) -> list[str]:
    """The notebooks that a report ran, in their order."""
    return re.findall(r"running notebooks/(\w+)\.ipynb", done.stdout)


def page(reports: Path, name: str) -> Tags:
    return Tags((reports / f"{name}.html").read_text("utf-8"))


def links_between_pages(reports: Path, name: str) -> list[str]:
    """The pages that the navigation at the top of a page leads to, in its order."""
    html = (reports / f"{name}.html").read_text("utf-8")
    (navigation,) = re.findall('<nav[^>]*class="pages".*?</nav>', html, re.DOTALL)
    return [link["href"].removesuffix(".html") for link in Tags(navigation).of("a")]


def check_values(table: pd.DataFrame) -> None:
    """Each number of a metrics.csv is a share, within its interval if it has one."""
    assert table["value"].between(0, 1).all()
    # A draw has too few classes for an interval over them.
    is_draw = (table["protocol"] == "unseen_classes") & table["class"].isna()
    assert table.loc[is_draw, ["ci_low", "ci_high"]].isna().all(axis=None)
    rest = table[~is_draw]
    assert rest["ci_low"].le(rest["value"]).all()
    assert rest["value"].le(rest["ci_high"]).all()


def check_pages(
    reports: Path,
    runs: list[str],
    figures: dict[str, int],
    index: str = "comparison",
    deeper: Collection[str] = DEEPER,
) -> None:
    """Every page of a report: figures with texts, links that lead somewhere, nothing fetched.

    Args:
        runs: the architectures and baselines of the study.
        figures: how many a page has at least.
        index: the notebook of index.html.
        deeper: the pages that follow the comparison.
    """
    names = ["index", *runs, *deeper]
    left_out = {f"{name}.html" for name in DEEPER if name not in deeper}
    for name in names:
        html = (reports / f"{name}.html").read_text("utf-8")
        tags = Tags(html)
        assert "No results" not in html, name
        assert len(tags.of("img")) >= figures.get(name, 0), name
        assert all(image.get("alt", "").strip() for image in tags.of("img")), name
        assert all(image["src"].startswith("data:image/") for image in tags.of("img")), name
        assert not tags.of("script"), name
        assert all(link["href"].startswith("data:") for link in tags.of("link")), name
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", html), name
        assert links_between_pages(reports, name) == ["../index", *names]
        files = [link["href"] for link in tags.of("a") if re.fullmatch(r"[\w.]+", link["href"])]
        assert all((reports / file).exists() for file in files if file not in left_out), name
        # Only the comparison shows the provenance, so each run's page links to it.
        assert files.count("index.html") >= (2 if name in runs else 1), name
        notebook = index if name == "index" else name
        executed = nbformat.read(reports / f"{notebook}.ipynb", as_version=4)
        cells = [cell for cell in executed.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), name
        tagged = [cell for cell in cells if cell.metadata.get("tags") == ["injected-parameters"]]
        assert len(tagged) == 1, name
        assert 'study = "tiny"' in tagged[0].source, name
        assert (reports / f"{notebook}.log").exists(), name
