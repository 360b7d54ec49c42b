"""Executed notebooks to HTML pages: code hidden, self-contained, linked to one another."""

import base64
import re
from html import unescape
from pathlib import Path
from textwrap import shorten
from urllib.parse import quote

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html, strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from cbir.cache import write_text

TABLES = "tables"  # the folder in a report that holds what its tables show
FIGURE_TYPES = ("image/svg+xml", "image/png", "image/jpeg")
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', re.DOTALL)
# Search engines and shared links cut longer descriptions.
LONGEST_DESCRIPTION = 200
LONGEST_NAME = 60


def write_page(
    notebook: Path, page: Path, *, report: str, title: str, links: list[tuple[str, str]]
) -> None:
    """Write the HTML page of an executed notebook, and its tables as CSV into `tables/` beside it.

    Args:
        notebook: the executed notebook.
        page: the HTML file.
        report: the study's name, shown in front of the links.
        title: of the browser's window.
        links: (name, file name) of all pages of the report, this one among them.
    """
    content = nbformat.read(notebook, as_version=4)
    # Some cells speak to those who edit the notebook.
    content.cells = [
        cell for cell in content.cells if "notebook-only" not in cell.metadata.get("tags", ())
    ]
    outputs = [output for cell in content.cells for output in cell.get("outputs", ())]
    _number_figures([output for output in outputs if _figure_type(output)])
    tables = [output for output in outputs if "caption" in _metadata(output, "text/html")]
    _number_tables(tables)
    _write_csv(tables, page)
    exporter = HTMLExporter(
        template_name="template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        preprocessors=[CoalesceStreamsPreprocessor],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    prose = [markdown2html(cell.source) for cell in content.cells if cell.cell_type == "markdown"]
    shown = {"report": report, "title": title, "links": links, "page": page.name}
    shown |= {"contents": _contents(prose), "description": _description(prose)}
    html, _ = exporter.from_notebook_node(content, resources={"cbir": shown})
    write_text(page, html)


def log_of(notebook: Path) -> str:
    """All that an executed notebook printed, with the traceback of its failure."""
    lines = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                lines.append(output.text)
            elif output.output_type == "error":
                lines.append(strip_ansi("\n".join(output.traceback)) + "\n")
    return "".join(lines)


def _figure_type(output) -> str | None:
    """The media type of an output that is a figure; streams and errors hold none."""
    return next((kind for kind in FIGURE_TYPES if kind in output.get("data", {})), None)


def _metadata(output, kind: str) -> dict:
    """What `display.show` and `display.table` say of an output."""
    return output.get("metadata", {}).get(kind, {})


def _number_figures(figures: list) -> None:
    """Number figures, and note for the template what each shows."""
    for number, output in enumerate(figures, 1):
        kind = _figure_type(output)
        output.metadata["figure"] = {
            "name": f"Figure {number}",
            "source": f"data:{kind};base64,{_base64(output.data[kind], kind)}",
            "alt": _metadata(output, kind).get("alt", ""),
            "width": _metadata(output, kind).get("width"),
        }


def _base64(drawing: str, kind: str) -> str:
    """A figure in Base64, in which notebooks keep all figures but SVG."""
    if kind != "image/svg+xml":
        return "".join(drawing.split())
    return base64.b64encode(drawing.encode()).decode()


def _number_tables(tables: list) -> None:
    """Number tables, in their captions too."""
    for number, output in enumerate(tables, 1):
        name, caption = f"Table {number}", _metadata(output, "text/html")["caption"]
        output.metadata["table"] = {"name": name, "caption": caption}
        output.data["text/html"] = output.data["text/html"].replace(
            "<caption>", f'<caption><span class="number">{name}</span> ', 1
        )


def _write_csv(tables: list, page: Path) -> None:
    """Write the CSV file of each table, and remove those of the page's earlier tables.

    They are named `<page>-<words of the caption>.csv`, the words joined by underscores: the last
    hyphen ends the page's name, so that no page removes another's files.
    """
    folder = page.parent / TABLES
    names = set()
    for output in tables:
        caption = output.metadata["table"]["caption"]
        words = re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")[:LONGEST_NAME] or "table"
        name, number = f"{page.stem}-{words}.csv", 1
        while name in names:
            number += 1
            name = f"{page.stem}-{words}_{number}.csv"
        names.add(name)
        folder.mkdir(exist_ok=True)
        write_text(folder / name, output.data["text/csv"])
        output.metadata["table"]["csv"] = f"{TABLES}/{quote(name)}"
    for path in folder.glob("*.csv"):
        if path.stem.rpartition("-")[0] == page.stem and path.name not in names:
            path.unlink()


def _contents(prose: list[str]) -> list[tuple[str, str]]:
    """Anchor and HTML of each heading of the second level; none where there is only one."""
    headings = [heading for html in prose for heading in HEADING.findall(html)]
    return headings if len(headings) > 1 else []


def _description(prose: list[str]) -> str:
    """The first words of a page, without tags, for search engines and shared links."""
    paragraph = re.search(r"<p>(.*?)</p>", "".join(prose), re.DOTALL)
    words = unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else ""
    return shorten(" ".join(words.split()), LONGEST_DESCRIPTION, placeholder=" …")
