"""Executed notebooks to HTML pages: code hidden, self-contained, linked to one another."""

from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor

from cbir.cache import write_text


def write_page(
    notebook: Path, page: Path, *, report: str, title: str, links: list[tuple[str, str]]
) -> None:
    """Write the HTML page of an executed notebook.

    Args:
        notebook: the executed notebook.
        page: the HTML file.
        report: the study's name, shown in front of the links.
        title: of the browser's window.
        links: (name, file name) of all pages of the report, this one among them.
    """
    exporter = HTMLExporter(
        template_name="template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        preprocessors=[CoalesceStreamsPreprocessor],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    # Words to whoever works in the notebook mean nothing on the page.
    hide = TagRemovePreprocessor(remove_cell_tags={"notebook-only"}, enabled=True)
    exporter.register_preprocessor(hide, enabled=True)
    content = nbformat.read(notebook, as_version=4)
    shown = {"report": report, "title": title, "links": links, "page": page.name}
    html, _ = exporter.from_notebook_node(content, resources={"cbir": shown})
    write_text(page, html)


def log_of(notebook: Path) -> str:
    """What an executed notebook printed, the traceback of its failure included."""
    lines = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                lines.append(output.text)
            elif output.output_type == "error":
                lines.append(strip_ansi("\n".join(output.traceback)) + "\n")
    return "".join(lines)
