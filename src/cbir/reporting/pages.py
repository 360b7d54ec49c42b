"""Turns executed notebooks into HTML pages that are self-contained, linked, and hide code."""

import base64
import io
import re
from collections.abc import Collection
from html import unescape
from pathlib import Path
from textwrap import shorten
from urllib.parse import quote

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html, strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image

from cbir.cache import write_text

TABLES = "tables"  # The folder in a report with the CSV files of its tables.
FIGURE_TYPES = ("image/svg+xml", "image/png", "image/jpeg")
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', re.DOTALL)
# Search engines and shared links truncate longer descriptions.
LONGEST_DESCRIPTION = 200
LONGEST_NAME = 60
# A page that is committed.
LARGEST_COPY = 3_000_000  # bytes
_LINK = re.compile(r'<a\b[^>]*\bhref="(?!#|https?://)([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
# An image of a page, or one within an SVG.
_IMAGE = re.compile(r"data:image/([a-z+]+);base64,\s*([A-Za-z0-9+/=\s]+)")


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


def published_copy(page: Path, *, kept: Collection[str], note: str) -> str:
    """The HTML of a page on its own: without links to other files, and with smaller figures.

    Args:
        page: an HTML file that `write_page` wrote.
        kept: the names of files that stay beside the copy, so that links to them stay, too.
        note: a text in Markdown for the beginning of the copy.

    Returns:
        At most `LARGEST_COPY` bytes in UTF-8: if necessary, texts take the place of the largest
        figures.
    """
    html = page.read_text("utf-8")
    html = re.sub(r'<nav\b[^>]*class="pages".*?</nav>', "", html, flags=re.DOTALL)
    html = re.sub(r'<p class="csv">.*?</p>', "", html, flags=re.DOTALL)
    html = _LINK.sub(lambda link: link[0] if link[1] in kept else link[2], html)
    html = html.replace('<main id="content">', f'<main id="content">\n{markdown2html(note)}', 1)
    html = _IMAGE.sub(_smaller, html)
    figures = sorted(re.findall(r"<img\b[^>]*>", html), key=len, reverse=True)
    while len(html.encode()) > LARGEST_COPY and figures:
        html = html.replace(figures.pop(0), "<em>Too large for this copy.</em>")
    return html


def _smaller(image: re.Match) -> str:
    """A data URL with fewer bytes: pixels as WebP, paths of an SVG with two decimals."""
    kind, content = image[1], base64.b64decode(image[2])
    if kind == "svg+xml":
        drawing = _IMAGE.sub(_smaller, content.decode())
        content = re.sub(r' d="[^"]*"', _round_path, drawing).encode()
    else:
        recoded = io.BytesIO()
        Image.open(io.BytesIO(content)).save(recoded, "webp", quality=85)
        if len(recoded.getvalue()) < len(content):
            kind, content = "webp", recoded.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _round_path(path: re.Match) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])


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
    for path in tables_of(page):
        if path.name not in names:
            path.unlink()


def tables_of(page: Path) -> list[Path]:
    """The CSV files of a page's tables."""
    files = (page.parent / TABLES).glob("*.csv")
    return [path for path in files if path.stem.rpartition("-")[0] == page.stem]


def _contents(prose: list[str]) -> list[tuple[str, str]]:
    """Anchor and HTML of each second-level heading; empty if there is only one."""
    headings = [heading for html in prose for heading in HEADING.findall(html)]
    return headings if len(headings) > 1 else []


def _description(prose: list[str]) -> str:
    """The first words of a page, without tags, for search engines and shared links."""
    paragraph = re.search(r"<p>(.*?)</p>", "".join(prose), re.DOTALL)
    words = unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else ""
    return shorten(" ".join(words.split()), LONGEST_DESCRIPTION, placeholder=" …")
