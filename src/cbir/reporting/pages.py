"""Turns executed notebooks into HTML pages that are self-contained, linked, and hide code.

To add a page, add a notebook to notebooks/, and its title to `studies.study.DEEPER`.
"""

import base64
import io
import re
from collections.abc import Collection
from html import unescape
from pathlib import Path
from textwrap import shorten
from urllib.parse import quote, unquote

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html, strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image

from cbir.cache import write_text
from cbir.reporting.display import TEMPLATES
from cbir.reporting.runs import read_manifest

# The folders in a report with copies of its tables and figures.
TABLES, FIGURES = "tables", "figures"
SUFFIXES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
FIGURE_TYPES = tuple(SUFFIXES)
# The tag of cells that say what came out.
LEAD = "lead"
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', re.DOTALL)
# Search engines and shared links truncate longer descriptions.
LONGEST_DESCRIPTION = 300
LONGEST_NAME = 60
# A page that is committed.
LARGEST_COPY = 3_000_000  # bytes
_LINK = re.compile(r'<a\b[^>]*\bhref="(?!#|https?://)([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
# A picture of a page, or one within an SVG.
_PNG = re.compile(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)")


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
    _add_figures(outputs, page)
    _add_tables(outputs, page)
    exporter = HTMLExporter(
        template_name="template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        preprocessors=[CoalesceStreamsPreprocessor],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    prose = [markdown2html(cell.source) for cell in content.cells if cell.cell_type == "markdown"]
    # What came out, if the page says so, and otherwise what it is about.
    leads = [
        markdown2html(output.data["text/markdown"])
        for cell in content.cells
        if LEAD in cell.metadata.get("tags", ())
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    context = {"report": report, "title": title, "links": links, "page": page.name}
    context |= {"contents": _contents(prose), "description": _description([*leads, *prose])}
    html, _ = exporter.from_notebook_node(content, resources={"cbir": context})
    write_text(page, html)


def write_index(reports: Path) -> None:
    """Write the page of all studies in a folder of reports, the newest first.

    It shows what their own first pages say: the description, the first figure, and the date.
    """
    studies = []
    for page in [*reports.glob("*/index.html"), *reports.glob("published/*/index.html")]:
        html, folder = page.read_text("utf-8"), page.parent
        figures = [*re.findall(r'href="(figures/[^"]*)"', html)[:1], "results.png"]
        pictures = [figure for figure in figures if (folder / unquote(figure)).is_file()]
        path, manifest = folder.relative_to(reports).as_posix(), read_manifest(folder)
        about = re.search(r'<meta[^>]*name="description"[^>]*>', html)
        answer = re.search(r'content="([^"]*)"', about[0])[1] if about else ""
        studies.append(
            {
                "name": folder.name,
                "kind": "published" if "/" in path else "",
                "page": f"{quote(path)}/{page.name}",
                "date": manifest.get("date", ""),
                "answer": unescape(answer),
                "picture": f"{quote(path)}/{pictures[0]}" if pictures else "",
            }
        )
    studies.sort(key=lambda study: study["name"])
    studies.sort(key=lambda study: study["date"], reverse=True)
    template = TEMPLATES.get_template("studies.html.j2")
    write_text(reports / "index.html", template.render(studies=studies))


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
    """The HTML of a page on its own: without links to other files.

    Args:
        page: an HTML file that `write_page` wrote.
        kept: the names of files that stay beside the copy, so that links to them stay, too.
        note: a text in Markdown for the end of the copy.

    Returns:
        At most `LARGEST_COPY` bytes in UTF-8: if necessary, texts take the place of the largest
        figures.
    """
    html = page.read_text("utf-8")
    html = re.sub(r'<nav\b[^>]*class="pages".*?</nav>', "", html, flags=re.DOTALL)
    files = rf'<a\b[^>]*href="(?:{TABLES}|{FIGURES})/[^"]*"[^>]*>.*?</a>'
    html = re.sub(files, "", html, flags=re.DOTALL)
    html = _LINK.sub(lambda link: link[0] if link[1] in kept else link[2], html)
    html = html.replace("</main>", f"{markdown2html(note)}\n</main>", 1)
    figures = sorted(re.findall(r"<img\b[^>]*>", html), key=len, reverse=True)
    while len(html.encode()) > LARGEST_COPY and figures:
        html = html.replace(figures.pop(0), "<em>Too large for this copy.</em>")
    return html


def _smaller(image: re.Match) -> str:
    """A data URL of a PNG as WebP, if that takes fewer bytes."""
    content, recoded = base64.b64decode(image[1]), io.BytesIO()
    Image.open(io.BytesIO(content)).save(recoded, "webp", quality=85)
    if len(recoded.getvalue()) >= len(content):
        return image[0]
    return f"data:image/webp;base64,{base64.b64encode(recoded.getvalue()).decode()}"


def _round_path(path: re.Match) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])


def _small_svg(drawing: str) -> str:
    """An SVG with fewer bytes: pixels as WebP, paths with two decimals."""
    return re.sub(r' d="[^"]*"', _round_path, _PNG.sub(_smaller, drawing))


def _add_figures(outputs: list, page: Path) -> None:
    """Number figures, write each to a file, and pass the metadata of `display.show` on."""
    figures = [
        (output, kind)
        for output in outputs
        for kind in FIGURE_TYPES
        # Streams and errors have no data.
        if kind in output.get("data", {})
    ]
    captions = [output.metadata.get(kind, {}).get("alt", "") for output, kind in figures]
    anchors, contents = _anchors(captions, "figure"), {}
    for number, ((output, kind), anchor) in enumerate(zip(figures, anchors, strict=True), 1):
        drawing = output.data[kind]
        if kind == "image/svg+xml":
            content = _small_svg(drawing).encode()
        else:  # Notebooks store all figures except SVG in Base64.
            content = base64.b64decode("".join(drawing.split()))
        file = f"{page.stem}-{anchor}.{SUFFIXES[kind]}"
        contents[file] = content
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        about = {"name": f"Figure {number}", "source": _PNG.sub(_smaller, source)}
        about |= {"anchor": f"figure-{anchor}", "file": f"{FIGURES}/{quote(file)}"}
        output.metadata["figure"] = {"alt": "", **output.metadata.get(kind, {}), **about}
    _write_files(page, FIGURES, contents)


def _add_tables(outputs: list, page: Path) -> None:
    """Number tables, and write the CSV file of each."""
    tables = [
        (output, output.metadata["text/html"]["caption"])
        for output in outputs
        if "caption" in output.get("metadata", {}).get("text/html", {})
    ]
    anchors, contents = _anchors([caption for _, caption in tables], "table"), {}
    for number, ((output, caption), anchor) in enumerate(zip(tables, anchors, strict=True), 1):
        file = f"{page.stem}-{anchor}.csv"
        contents[file] = output.data["text/csv"].encode()
        about = {"name": f"Table {number}", "caption": caption, "anchor": f"table-{anchor}"}
        output.metadata["table"] = about | {"file": f"{TABLES}/{quote(file)}"}
    _write_files(page, TABLES, contents)


def _anchors(captions: list[str], kind: str) -> list[str]:
    """The words of each caption, joined by underscores, for anchors and the names of files."""
    names = []
    for caption in captions:
        words = re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")[:LONGEST_NAME] or kind
        name, copy = words, 1
        while name in names:
            copy += 1
            name = f"{words}_{copy}"
        names.append(name)
    return names


def _write_files(page: Path, kind: str, contents: dict[str, bytes]) -> None:
    """Write copies of a page's tables or figures, and remove the page's earlier ones."""
    folder = page.parent / kind
    if contents:
        folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for path in copies_of(page):
        if path.parent == folder and path.name not in contents:
            path.unlink()


def copies_of(page: Path) -> list[Path]:
    """The files of a page's tables and figures.

    They are named `<page>-<words>`: the last hyphen ends the page's name.
    """
    files = [path for kind in (TABLES, FIGURES) for path in (page.parent / kind).glob("*-*")]
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
