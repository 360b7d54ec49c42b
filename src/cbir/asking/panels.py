"""Pieces of the explorer: a query that is offered, and what one architecture finds."""

from collections.abc import Callable
from html import escape

import ipywidgets as widgets
import numpy as np

from cbir.asking import showing
from cbir.asking.answers import Answer
from cbir.asking.engine import Engine
from cbir.asking.marks import MEANT, NOT_MEANT, Marks
from cbir.reporting import explained

SIGNS = {"–": None, "✓": MEANT, "✗": NOT_MEANT}
STYLE = """<style>
.cbir-image img { width: 72px; height: 72px; object-fit: cover; image-rendering: pixelated; }
.cbir-image { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
.cbir-marks .jupyter-button { padding: 0; margin: 0 2px 6px 0; }
.cbir-note { margin: 0; }
.cbir-found h4 { margin: 1em 0 0; }
</style>"""
# Heat maps by their kind, as `explain.KINDS` names it.
MAPS = {"similarity": "what makes them alike", "attention": "what attention weighs"}
WRAPPED = {"flex_flow": "row wrap"}


def has_maps(opened: Engine, kind: str) -> bool:
    """Whether an engine's network has maps of this kind."""
    return kind != "attention" or opened.summary["parameters"]["pooling"] == "attention"


def picture(image: np.ndarray, *lines: str, width: int = 96) -> str:
    """An image with lines of text under it, at most so many pixels wide, as HTML."""
    text = "<br>".join(escape(line) for line in lines)
    shown = f'<img src="{showing.address(image)}" alt="{escape(lines[0])}">'
    return f'<div class="cbir-image" style="width: {width}px">{shown}<br>{text}</div>'


class Offer:
    """A query that can be chosen.

    Attributes:
        query: its position among the queries; None where there is nothing to offer.
    """

    def __init__(self, choose: Callable[[], None]):
        self.query: int | None = None
        self.image = widgets.HTML()
        self.button = widgets.Button(description="ask", layout={"width": "72px"})
        self.button.on_click(lambda _: choose())
        self.view = widgets.VBox([self.image, self.button])

    def show(self, query: int | None, image: np.ndarray | None, label: str) -> None:
        """Offer a query, or nothing."""
        self.query = query
        self.view.layout.visibility = "hidden" if query is None else "visible"
        self.image.value = "" if query is None else picture(image, label)


class Panel:
    """What one architecture predicts and finds, with a mark to set on each result."""

    def __init__(self, mark: Callable[[int, str | None], None]):
        self.mark = mark
        self.head = widgets.HTML()
        self.cells: list[Cell] = []
        self.row = widgets.HBox(layout=WRAPPED)
        self.note = widgets.HTML()
        self.view = widgets.VBox([self.head, self.row, self.note])

    def show(self, opened: Engine, answer: Answer, marks: Marks) -> None:
        """Show an answer of an engine; cells that stand there already are used again."""
        self.head.value = (
            f"<h4>{escape(opened.architecture)}</h4>predicted: {escape(showing.predicted(answer))}"
        )
        while len(self.cells) < len(answer.results):
            self.cells.append(Cell(self.mark))
        used = self.cells[: len(answer.results)]
        for cell, result in zip(used, answer.results, strict=True):
            cell.show(
                result.position,
                picture(result.image, f"{result.place} · {result.similarity:.3f}", result.label),
                marks.of(result.position),
            )
        self.row.children = [cell.view for cell in used]
        self.say("")

    def say(self, note: str) -> None:
        """Say something of what is shown, under it."""
        self.note.value = f'<p class="cbir-note">{escape(note)}</p>' if note else ""

    def show_maps(self, opened: Engine, answer: Answer, kind: str) -> None:
        """Show, in the place of each result, the query and the result with their maps.

        Under maps of similarity stands how such maps stood the study's test.

        Args:
            kind: a name in `MAPS`.
        """
        from cbir.asking.likeness import overlays  # brings Keras along

        if not has_maps(opened, kind):
            self.say("It has no attention pooling, so no such maps.")
            return
        drawn = overlays(opened, answer, kind)
        for cell, result, (asked, found) in zip(self.cells, answer.results, drawn, strict=False):
            cell.image.value = picture(asked, "in the query") + picture(
                found, f"{result.place} · {result.similarity:.3f}", result.label
            )
        if kind == "similarity":
            self.say(explained.trust(explained.read_all(opened.study, [opened.architecture])))


class Cell:
    """A result, and the mark that can be set on it."""

    def __init__(self, mark: Callable[[int, str | None], None]):
        self.position = -1
        self.image = widgets.HTML()
        self.marks = widgets.ToggleButtons(
            options=list(SIGNS), tooltips=["no mark", MEANT, NOT_MEANT],
            style={"button_width": "28px"},
        ).add_class("cbir-marks")  # fmt: skip
        self.marks.observe(lambda change: mark(self.position, SIGNS[change["new"]]), "value")
        self.view = widgets.VBox([self.image, self.marks])

    def show(self, position: int, image: str, as_what: str | None) -> None:
        """Show a gallery image as it is marked."""
        self.position, self.image.value = position, image
        self.marks.value = next(sign for sign, meaning in SIGNS.items() if meaning == as_what)
