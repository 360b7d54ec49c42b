"""Pieces of the explorer: a query that is offered, and what one architecture finds."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps

from cbir import project_root
from cbir.cache import write_text
from cbir.explain import enlarged
from cbir.networks.gradients import attention_maps, similarity_maps
from cbir.reporting import explanations
from cbir.search import output
from cbir.search.answers import Answer
from cbir.search.engine import Engine

POSITIVE, NEGATIVE = "positive", "negative"
SIGNS = {"–": None, "✓": POSITIVE, "✗": NEGATIVE}
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

MARKS_FOLDER = Path("data", "marks")
POSITIVE, NEGATIVE = "positive", "negative"
COLOURS, OPACITY = "magma", 0.6


@dataclass(frozen=True)
class Marks:
    """What somebody has marked so far; marking gives new marks, so that old ones can come back.

    Attributes:
        positive, negative: gallery positions, in the order in which they were marked.
    """

    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()

    def mark(self, position: int, as_what: str | None) -> "Marks":
        """With an image marked as `POSITIVE` or `NEGATIVE`, or with its mark taken away (None)."""
        if as_what not in (POSITIVE, NEGATIVE, None):
            raise ValueError(f"as_what: {POSITIVE!r}, {NEGATIVE!r} or None, not {as_what!r}")
        rest = {
            name: tuple(each for each in getattr(self, name) if each != position)
            for name in ("positive", "negative")
        }
        if as_what:
            rest[as_what.replace(" ", "_")] += (position,)
        return replace(self, **rest)

    def of(self, position: int) -> str | None:
        """As what an image is marked; None where it is not."""
        if position in self.positive:
            return POSITIVE
        return NEGATIVE if position in self.negative else None

    @property
    def all(self) -> tuple[int, ...]:
        """Every image that is marked."""
        return self.positive + self.negative

    def __str__(self) -> str:
        return f"{len(self.positive)} positive, {len(self.negative)} negative"


def keep_marks(told: dict) -> Path:
    """Write what was asked and marked into a new file, numbered, and return its path."""
    folder = project_root() / MARKS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(each.stem) for each in folder.glob("*.json") if each.stem.isdecimal()]
    name = f"{max(taken, default=0) + 1:03d}.json"
    write_text(folder / name, json.dumps(told, indent=1))
    return MARKS_FOLDER / name


def overlays(
    opened: Engine, answer: Answer, kind: str = "similarity"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each result the picture and the result, (size, size, 3) uint8, with their maps over them.

    Args:
        kind: of map, a name in `explain.KINDS`. Bright is what raises the similarity most, or what
            attention pooling weighs most: see `gradients.similarity_maps`, `attention_maps`.

    Raises:
        StudyError: attention, and the network has none.
    """
    if not answer.results:
        return []
    found = np.stack([each.image for each in answer.results])
    asked = np.broadcast_to(answer.picture.image, found.shape)
    if kind == "attention":
        maps = attention_maps(opened.network, asked, found)
    else:
        maps = similarity_maps(opened.network, asked, found, opened.embeddings.whitening)
    return [
        (overlay(answer.picture.image, of_query), overlay(result.image, of_result))
        for result, of_query, of_result in zip(answer.results, maps.query, maps.result, strict=True)
    ]


def overlay(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """An image, (size, size, 3) uint8, under a map of (h, w) values from 0 to 1."""
    colours = colormaps[COLOURS](enlarged(cells, len(image)))[..., :3] * 255
    return (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)


def has_maps(opened: Engine, kind: str) -> bool:
    """Whether an engine's network has maps of this kind."""
    return kind != "attention" or opened.summary["parameters"]["pooling"] == "attention"


def picture(image: np.ndarray, *lines: str, width: int = 96) -> str:
    """An image with lines of text under it, at most so many pixels wide, as HTML."""
    text = "<br>".join(escape(line) for line in lines)
    shown = f'<img src="{output.address(image)}" alt="{escape(lines[0])}">'
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
            f"<h4>{escape(opened.architecture)}</h4>predicted: {escape(output.predicted(answer))}"
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

        if not has_maps(opened, kind):
            self.say("It has no attention pooling, so no such maps.")
            return
        drawn = overlays(opened, answer, kind)
        for cell, result, (asked, found) in zip(self.cells, answer.results, drawn, strict=False):
            cell.image.value = picture(asked, "in the query") + picture(
                found, f"{result.place} · {result.similarity:.3f}", result.label
            )
        if kind == "similarity":
            self.say(explanations.trust(explanations.read_all(opened.study, [opened.architecture])))


class Cell:
    """A result, and the mark that can be set on it."""

    def __init__(self, mark: Callable[[int, str | None], None]):
        self.position = -1
        self.image = widgets.HTML()
        self.marks = widgets.ToggleButtons(
            options=list(SIGNS), tooltips=["no mark", POSITIVE, NEGATIVE],
            style={"button_width": "28px"},
        ).add_class("cbir-marks")  # fmt: skip
        self.marks.observe(lambda change: mark(self.position, SIGNS[change["new"]]), "value")
        self.view = widgets.VBox([self.image, self.marks])

    def show(self, position: int, image: str, as_what: str | None) -> None:
        """Show a gallery image as it is marked."""
        self.position, self.image.value = position, image
        self.marks.value = next(sign for sign, meaning in SIGNS.items() if meaning == as_what)
