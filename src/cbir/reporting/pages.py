"""Turns executed notebooks into HTML pages that are self-contained, linked, and hide code."""

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

TABLES = "tables"  # The folder in a report with the CSV files of its tables.
FIGURE_TYPES = ("image/svg+xml", "image/png", "image/jpeg")
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', re.DOTALL)
# Search engines and shared links truncate longer descriptions.
LONGEST_DESCRIPTION = 200
LONGEST_NAME = 60


def write_page(
    notebook: Path, page: Path, *, report: str, title: str, links: list[tuple[str, str]]
) -> None:
    """Write the HTML page of an executed notebook, and its tables as CSV to `tables/` beside it.

    Args:
        notebook: the executed notebook.
        page: the HTML file.
        report: the study's name, shown before the links.
        title: title of the browser window.
        links: (name, file name) of all pages of the report, including this one.
    """
    content = nbformat.read(notebook, as_version=4)
    # Some cells address only readers of the notebook.
    content.cells = [
        cell for cell in content.cells if "notebook-only" not in cell.metadata.get("tags", ())
    ]
    for cell in content.cells:
        # A notebook for many runs: the heading of each page is the name of its run.
        if "name-as-title" in cell.metadata.get("tags", ()):
            cell.source = re.sub(r"\A# .*", f"# {page.stem}", cell.source)
    outputs = [output for cell in content.cells for output in cell.get("outputs", ())]
    _number_figures(outputs)
    _number_tables(outputs, page)
    exporter = HTMLExporter(
        template_name="template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        preprocessors=[CoalesceStreamsPreprocessor],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    prose = [markdown2html(cell.source) for cell in content.cells if cell.cell_type == "markdown"]
    context = {"report": report, "title": title, "links": links, "page": page.name}
    context |= {"contents": _contents(prose), "description": _description(prose)}
    html, _ = exporter.from_notebook_node(content, resources={"cbir": context})
    write_text(page, html)


def log_of(notebook: Path) -> str:
    """Everything that an executed notebook printed, with the traceback of its failure."""
    lines = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                lines.append(output.text)
            elif output.output_type == "error":
                lines.append(strip_ansi("\n".join(output.traceback)) + "\n")
    return "".join(lines)


def _number_figures(outputs: list) -> None:
    """Number figures, and pass the metadata of `display.show` to the template."""
    figures = [
        (output, kind)
        for output in outputs
        for kind in FIGURE_TYPES
        # Streams and errors have no data.
        if kind in output.get("data", {})
    ]
    for number, (output, kind) in enumerate(figures, 1):
        drawing = output.data[kind]
        # Notebooks store all figures except SVG in Base64.
        if kind == "image/svg+xml":
            drawing = base64.b64encode(drawing.encode()).decode()
        source = f"data:{kind};base64,{''.join(drawing.split())}"
        about = {"alt": "", **output.metadata.get(kind, {})}
        output.metadata["figure"] = {"name": f"Figure {number}", "source": source, **about}


def _number_tables(outputs: list, page: Path) -> None:
    """Number tables, write the CSV file of each, and remove the files of the page's earlier tables.

    Files are named `<page>-<words of the caption>.csv`, with words joined by underscores: the last
    hyphen ends the page's name, so a page never removes files of another page.
    """
    tables = [
        (output, output.metadata["text/html"]["caption"])
        for output in outputs
        if "caption" in output.get("metadata", {}).get("text/html", {})
    ]
    folder, names = page.parent / TABLES, set()
    for number, (output, caption) in enumerate(tables, 1):
        words = re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")[:LONGEST_NAME] or "table"
        name, copy = f"{page.stem}-{words}.csv", 1
        while name in names:
            copy += 1
            name = f"{page.stem}-{words}_{copy}.csv"
        names.add(name)
        folder.mkdir(exist_ok=True)
        write_text(folder / name, output.data["text/csv"])
        csv = f"{TABLES}/{quote(name)}"
        output.metadata["table"] = {"name": f"Table {number}", "caption": caption, "csv": csv}
    for path in folder.glob("*.csv"):
        if path.stem.rpartition("-")[0] == page.stem and path.name not in names:
            path.unlink()


def _contents(prose: list[str]) -> list[tuple[str, str]]:
    """Anchor and HTML of each second-level heading; empty if there is only one."""
    headings = [heading for html in prose for heading in HEADING.findall(html)]
    return headings if len(headings) > 1 else []


def _description(prose: list[str]) -> str:
    """The first words of a page, without tags, for search engines and shared links."""
    paragraph = re.search(r"<p>(.*?)</p>", "".join(prose), re.DOTALL)
    words = unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else ""
    return shorten(" ".join(words.split()), LONGEST_DESCRIPTION, placeholder=" …")
