"""Turns executed notebooks into HTML files that are self-contained, linked, and hide code.

A page of a report is a notebook in notebooks/, with its title in `studies.study.PAGES`.
"""

import base64
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

from cbir.cache import write_text
from cbir.reporting.display import HIT, INK, LINE, MISS, NEUTRAL, TEMPLATES
from cbir.reporting.runs import read_manifest

FIGURE = "image/svg+xml"
# The type and the ending of the copies in the folders figures/ and tables/ of a report.
COPIES = {"figure": (FIGURE, "svg"), "table": ("text/csv", "csv")}
# The variables in colours.css that replace the colours of a figure.
ALL_COLOURS = {INK: "ink", NEUTRAL: "soft", LINE: "line"}
SHAPE_COLOURS = ALL_COLOURS | {"#ffffff": "paper"}
TEXT_COLOURS = ALL_COLOURS | {HIT.lower(): "hit", MISS.lower(): "miss"}
COLOURS = TEMPLATES.get_template("colours.css").render()
# The tags of cells with the main results of a page, and of those that it shows first.
LEAD, FIRST = "lead", "first"
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', re.DOTALL)
# Search engines and shared links truncate longer descriptions.
LONGEST_DESCRIPTION = 300
LONGEST_NAME = 60
# The maximum number of bytes of a page that is committed.
LARGEST_COPY = 3_000_000
_LINK = re.compile(r'<a\b[^>]*\bhref="(?!#|https?://)([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)


def write_page(
    notebook: Path, page: Path, *, report: str, title: str, links: list[tuple[str, str]]
) -> None:
    """Write the HTML page of an executed notebook, and its tables and figures to files beside it.

    Args:
        report: the study's name, shown before the links.
        title: title of the browser window.
        links: (name, file name) of all pages of the report, including this one.
    """
    content = nbformat.read(notebook, as_version=4)
    # Some cells address only readers of the notebook.
    content.cells = [cell for cell in content.cells if "notebook-only" not in _tags(cell)]
    for cell in content.cells:
        # A notebook for many runs: the heading of each page is the name of its run.
        if "name-as-title" in _tags(cell):
            cell.source = re.sub(r"\A# .*", f"# {page.stem}", cell.source)
    # The results of a run follow the title, although the notebook computes them last.
    heading, *cells = content.cells
    content.cells = [heading, *sorted(cells, key=lambda cell: FIRST not in _tags(cell))]
    _add_copies([output for cell in content.cells for output in cell.get("outputs", ())], page)
    exporter = HTMLExporter(
        template_name="template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        preprocessors=[CoalesceStreamsPreprocessor],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    prose = [markdown2html(cell.source) for cell in content.cells if cell.cell_type == "markdown"]
    # Search engines show the main results, if a page has any, and otherwise its first prose.
    leads = [
        markdown2html(output.data["text/markdown"])
        for cell in content.cells
        if LEAD in _tags(cell)
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    context = {"report": report, "title": title, "links": links, "page": page.name}
    context |= {"contents": _contents(prose), "description": _description([*leads, *prose])}
    html, _ = exporter.from_notebook_node(content, resources={"cbir": context})
    write_text(page, html)


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def write_index(reports: Path) -> None:
    """Write the page of all studies in a folder of reports, the newest first.

    It shows the description and the first figure of their first pages, and the date.
    """
    studies = []
    for page in [*reports.glob("*/index.html"), *reports.glob("published/*/index.html")]:
        html, folder = page.read_text("utf-8"), page.parent
        path, manifest = folder.relative_to(reports).as_posix(), read_manifest(folder)
        figure = re.search(r'<img\b[^>]*\bsrc="(data:[^"]*)"', html)
        description = re.search(r'<meta[^>]*name="description"[^>]*>', html)
        answer = re.search(r'content="([^"]*)"', description[0])[1] if description else ""
        studies.append(
            {
                "name": folder.name,
                "kind": "published" if "/" in path else "",
                "page": f"{quote(path)}/{page.name}",
                "date": manifest.get("date", ""),
                "answer": unescape(answer),
                "picture": figure[1] if figure else "",
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
    """The HTML of a page from `write_page` on its own: without links to other files.

    It has at most `LARGEST_COPY` bytes in UTF-8: if necessary, texts take the place of the largest
    figures. Links to the files `kept` stay; `note` is a text in Markdown for the end.
    """
    html = page.read_text("utf-8")
    html = re.sub(r'<nav\b[^>]*class="pages".*?</nav>', "", html, flags=re.DOTALL)
    files = rf'<a\b[^>]*href="(?:{"|".join(COPIES)})s/[^"]*"[^>]*>.*?</a>'
    html = re.sub(files, "", html, flags=re.DOTALL)
    html = _LINK.sub(lambda link: link[0] if link[1] in kept else link[2], html)
    html = html.replace("</main>", f"{markdown2html(note)}\n</main>", 1)
    figures = sorted(re.findall(r"<img\b[^>]*>", html), key=len, reverse=True)
    while len(html.encode()) > LARGEST_COPY and figures:
        html = html.replace(figures.pop(0), "<em>Too large for this copy.</em>")
    return html


def _data_url(drawing: str) -> str:
    """A drawing of `display.show` as a data URL, in the colours of a light or dark page."""

    def recolour(tag: re.Match) -> str:
        names = TEXT_COLOURS if tag[0].startswith("<text") else SHAPE_COLOURS
        colour = lambda match: f"var(--{names[match[0]]})" if match[0] in names else match[0]  # noqa: E731
        return re.sub(r"#[0-9a-f]{6}\b", colour, tag[0])

    drawing = re.sub(r"<(?:text|path|g|use|rect)\b[^>]*>", recolour, drawing)
    drawing = re.sub(
        r"<svg\b[^>]*>", lambda tag: f"{tag[0]}<style>{COLOURS}</style>", drawing, count=1
    )
    return f"data:{FIGURE};base64,{base64.b64encode(drawing.encode()).decode()}"


def _add_copies(outputs: list, page: Path) -> None:
    """Number figures and tables, write each to a file, and pass their captions to the template."""
    # Streams and errors have neither data nor metadata.
    for output in outputs:
        metadata = output.get("metadata", {})
        if FIGURE in output.get("data", {}):
            details = {"alt": "", **metadata.get(FIGURE, {})}
            source = _data_url(output.data[FIGURE])
            metadata["figure"] = details | {"source": source, "caption": details["alt"]}
        elif "caption" in metadata.get("text/html", {}):
            metadata["table"] = {"caption": metadata["text/html"]["caption"]}
    for kind in COPIES:
        _write_copies(page, kind, [one for one in outputs if kind in one.get("metadata", {})])


def _write_copies(page: Path, kind: str, outputs: list) -> None:
    """Number outputs of a kind, write each to a file, and remove the page's earlier files.

    Anchors and files are named by the words of the captions, joined by underscores.
    """
    folder, anchors, (part, ending) = page.parent / f"{kind}s", [], COPIES[kind]
    for number, output in enumerate(outputs, 1):
        caption = output.metadata[kind]["caption"].lower()
        words = re.sub(r"[^a-z0-9]+", "_", caption).strip("_")[:LONGEST_NAME] or kind
        anchor, copy = words, 1
        while anchor in anchors:
            copy += 1
            anchor = f"{words}_{copy}"
        anchors.append(anchor)
        file = f"{page.stem}-{anchor}.{ending}"
        folder.mkdir(exist_ok=True)
        (folder / file).write_bytes(output.data[part].encode())
        output.metadata[kind] |= {
            "name": f"{kind.capitalize()} {number}", "anchor": f"{kind}-{anchor}",
            "file": f"{folder.name}/{quote(file)}",
        }  # fmt: skip
    names = [f"{page.stem}-{anchor}.{ending}" for anchor in anchors]
    for path in copies_of(page):
        if path.parent == folder and path.name not in names:
            path.unlink()


def copies_of(page: Path) -> list[Path]:
    """The files of a page's tables and figures.

    They are named `<page>-<words>`: the last hyphen ends the page's name.
    """
    files = [path for kind in COPIES for path in (page.parent / f"{kind}s").glob("*-*")]
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
