"""Complete small studies for tests, and checks of their reports."""

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
    """Run `report` on the study `tiny`; the project, the report folder and the finished process."""
    process = cbir(root, "report", "--study", "tiny", *arguments, **environment)
    return SimpleNamespace(root=root, reports=root / "reports" / "tiny", done=process)


def leave_out_notebooks(root: Path, *names: str) -> None:
    """Delete notebooks of deeper pages, so that a report lacks these pages and ends earlier."""
    for name in names:
        (root / "notebooks" / f"{name}.ipynb").unlink()


def shorten_notebooks(root: Path, *, but: Collection[str] = ()) -> None:
    """Shorten notebooks to saving the run or to their parameters, and delete deeper pages."""
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
    """The finished results of each step with their modification times."""
    return {
        step: {
            path.parent.name: path.stat().st_mtime_ns
            for path in (root / "artifacts" / step).glob("*/manifest.json")
        }
        for step in steps
    }


def snapshot(*directories: Path) -> dict[str, bytes]:
    """The contents of every file in some folders."""
    return {
        path.relative_to(directory.parent).as_posix(): path.read_bytes()
        for directory in directories
        for path in directory.rglob("*")
        if path.is_file()
    }


def ran(process) -> list[str]:
    """The notebooks that a report ran, in order."""
    return re.findall(r"running notebooks/(\w+)\.ipynb", process.stdout)


def page(reports: Path, name: str) -> Tags:
    return Tags((reports / f"{name}.html").read_text("utf-8"))


def links_between_pages(reports: Path, name: str) -> list[str]:
    """The pages in the navigation at the top of a page, in order."""
    html = (reports / f"{name}.html").read_text("utf-8")
    (navigation,) = re.findall('<nav[^>]*class="pages".*?</nav>', html, re.DOTALL)
    return [link["href"].removesuffix(".html") for link in Tags(navigation).of("a")]


def check_values(table: pd.DataFrame) -> None:
    """Check that each value of a metrics.csv is from 0 to 1 and within its interval."""
    assert table["value"].between(0, 1).all()
    # A draw has too few classes for an interval over them.
    is_draw = (table["protocol"] == "unseen_classes") & table["class"].isna()
    assert table.loc[is_draw, ["ci_low", "ci_high"]].isna().all(axis=None)
    others = table[~is_draw]
    assert others["ci_low"].le(others["value"]).all()
    assert others["value"].le(others["ci_high"]).all()


def check_pages(
    reports: Path,
    runs: list[str],
    figures: dict[str, int],
    index: str = "comparison",
    deeper: Collection[str] = DEEPER,
) -> None:
    """Check every page of a report: figures have texts, links work, nothing is downloaded.

    Args:
        runs: the architectures and baselines of the study.
        figures: the minimum number of figures by page.
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
