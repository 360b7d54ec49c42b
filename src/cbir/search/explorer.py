"""The explorer in JupyterLab: search a finished study, mark results, search again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps

from cbir import StudyError, project_root
from cbir.cache import write_text
from cbir.images.pictures import Unreadable, enlarge_map, read_square
from cbir.networks.gradients import attention_maps, similarity_maps
from cbir.reporting import explanations, tables
from cbir.search import answers
from cbir.search.answers import Answer, Result, data_url
from cbir.search.engine import (
    SEARCHES,
    Engine,
    architectures,
    best_architecture,
    first_finished,
    open_engine,
    studies,
)

QUERIES_PER_PAGE = 12
ALL, ONE_CLASS, WORST, UPLOAD = "all", "one class", "worst first", "my own picture"
# Heat maps by their kind, a name in `explain.KINDS`.
NO_MAPS, MAPS = "none", {"similarity": "similarity maps", "attention": "attention maps"}
COLOURS, OPACITY = "magma", 0.6
POSITIVE, NEGATIVE = "positive", "negative"
SIGNS = {"–": None, "✓": POSITIVE, "✗": NEGATIVE}
LEGEND = "✓ positive example, ✗ negative example"
MARKS_FOLDER = Path("data", "marks")
STYLE = """<style>
.cbir-image img { width: 72px; height: 72px; object-fit: cover; image-rendering: pixelated; }
.cbir-image { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
.cbir-marks .jupyter-button { padding: 0; margin: 0 2px 6px 0; }
.cbir-note { margin: 0; }
.cbir-results h4 { margin: 1em 0 0; }
</style>"""


def explore(study: str = "") -> widgets.Widget:
    """The explorer of finished studies; a sentence that says what to do if there are none.

    Args:
        study: the study shown first; another one if it is not finished.
    """
    try:
        return Explorer(study).view
    except StudyError as error:
        return widgets.HTML(f"<p>{escape(str(error))}</p>")


@dataclass(frozen=True)
class Marks:
    """Gallery positions of positive and negative examples, in the order of marking.

    Marking returns new marks, so that a mark can be undone.
    """

    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()

    def mark(self, position: int, kind: str | None) -> "Marks":
        """Mark a result as `POSITIVE` or `NEGATIVE`, or remove its mark (None)."""
        if kind not in (POSITIVE, NEGATIVE, None):
            raise ValueError(f"kind: {POSITIVE!r}, {NEGATIVE!r} or None, not {kind!r}")
        positions = {
            name: tuple(marked for marked in getattr(self, name) if marked != position)
            for name in (POSITIVE, NEGATIVE)
        }
        if kind:
            positions[kind] += (position,)
        return Marks(**positions)

    def kind(self, position: int) -> str | None:
        """`POSITIVE` or `NEGATIVE`; None for a result without a mark."""
        if position in self.positive:
            return POSITIVE
        return NEGATIVE if position in self.negative else None

    @property
    def positions(self) -> tuple[int, ...]:
        """All marked positions."""
        return self.positive + self.negative

    def __str__(self) -> str:
        return f"{len(self.positive)} positive, {len(self.negative)} negative"


class QueryChoice:
    """One of the study's queries with a button that searches with it.

    Attributes:
        query: its position among the queries; None if nothing is shown.
    """

    def __init__(self, choose: Callable[[int], None]):
        self.query: int | None = None
        self.image = widgets.HTML()
        self.button = _button("search", lambda: choose(self.query), width="72px")
        self.view = widgets.VBox([self.image, self.button])

    def show(self, query: int | None, engine: Engine) -> None:
        """Show a query, or nothing."""
        self.query = query
        self.view.layout.visibility = "hidden" if query is None else "visible"
        if query is not None:
            dataset = engine.run.dataset
            label = dataset.classes[dataset.query_labels[query]]
            self.image.value = image_html(dataset.images[dataset.queries[query]], label)


class ResultCell:
    """A result with the buttons that mark it."""

    def __init__(self, mark: Callable[[int, str | None], None]):
        self.position = -1
        self.image = widgets.HTML()
        self.marks = widgets.ToggleButtons(
            options=list(SIGNS), style={"button_width": "28px"},
            tooltips=["no mark", "positive example", "negative example"],
        ).add_class("cbir-marks")  # fmt: skip
        self.marks.observe(lambda change: mark(self.position, SIGNS[change["new"]]), "value")
        self.view = widgets.VBox([self.image, self.marks])

    def show(self, position: int, image: str, kind: str | None) -> None:
        """Show a gallery image and its mark."""
        self.position, self.image.value = position, image
        self.marks.value = next(sign for sign, meaning in SIGNS.items() if meaning == kind)


class ResultsPanel:
    """The prediction and the results of one architecture."""

    def __init__(self, mark: Callable[[int, str | None], None]):
        self.mark = mark
        self.heading, self.note = widgets.HTML(), widgets.HTML()
        self.cells: list[ResultCell] = []
        self.row = _row()
        self.view = widgets.VBox([self.heading, self.row, self.note])

    def show(self, engine: Engine, answer: Answer, marks: Marks) -> None:
        """Show an answer, in the cells that exist already as far as they go."""
        self.heading.value = (
            f"<h4>{escape(engine.run.architecture)}</h4>predicted: {escape(answer.prediction)}"
        )
        while len(self.cells) < len(answer.results):
            self.cells.append(ResultCell(self.mark))
        used = self.cells[: len(answer.results)]
        for cell, result in zip(used, answer.results, strict=True):
            cell.show(result.position, _result_html(result), marks.kind(result.position))
        self.row.children = [cell.view for cell in used]
        self._write_note("")

    def show_maps(self, engine: Engine, answer: Answer, kind: str) -> None:
        """Show query and result under heat maps, for each result, and how reliable the maps are.

        Args:
            kind: a name in `MAPS`.
        """
        if not has_maps(engine, kind):
            self._write_note("This architecture has no attention pooling, and so no such maps.")
            return
        images = map_overlays(engine, answer, kind)
        for cell, result, (query, overlay) in zip(self.cells, answer.results, images, strict=False):
            cell.image.value = image_html(query, "query") + _result_html(result, overlay)
        if kind == "similarity":
            self._write_note(explanations.trust(engine.run.study, engine.run.architecture))

    def _write_note(self, note: str) -> None:
        self.note.value = f'<p class="cbir-note">{escape(note)}</p>' if note else ""


class Explorer:
    """The widgets, and the state behind them: query, marks and opened engines."""

    def __init__(self, study: str = ""):
        self.opened: dict[tuple[str, str], Engine] = {}
        # A query's position, or the name and the pixels of an uploaded picture.
        self.query: int | tuple[str, np.ndarray] | None = None
        self.history = [Marks()]
        self.panels: list[ResultsPanel] = []
        self.page = 0
        self.is_busy = False

        self.study = widgets.Dropdown(
            options=studies(), value=first_finished(study), description="study"
        )
        self.architectures = widgets.SelectMultiple(
            description="architectures", rows=4, style={"description_width": "initial"}
        )
        self.search = widgets.Dropdown(options=SEARCHES, description="search")
        self.k = widgets.BoundedIntText(10, min=1, max=100, description="k").add_class("cbir-k")
        self.queries = _toggle_buttons("queries", [ALL, ONE_CLASS, WORST, UPLOAD])
        self.label = widgets.Dropdown(description="class")
        self.upload = widgets.FileUpload(description="choose a picture", multiple=False)
        self.choices = [QueryChoice(self._search_for) for _ in range(QUERIES_PER_PAGE)]
        self.back = _button("◀", lambda: self._turn_page(-1))
        self.more = _button("▶", lambda: self._turn_page(1))
        self.again = _button("search again", self._search_again)
        self.undo = _button("undo last mark", self._undo)
        self.export = _button("export marks", self._export)
        self.maps = _toggle_buttons("heat maps", [NO_MAPS])
        self.status = widgets.HTML(layout={"min_height": "2em"}).add_class("cbir-status")
        self.query_image = widgets.HTML().add_class("cbir-query")
        self.results = widgets.VBox().add_class("cbir-results")
        self.choice_row = _row(*(choice.view for choice in self.choices))
        self.page_row = _row(self.back, self.more)
        self.view = widgets.VBox(
            [
                widgets.HTML(STYLE),
                _row(self.study, self.search, self.k),
                _row(self.architectures, widgets.VBox([self.queries, self.label, self.upload])),
                self.choice_row,
                self.page_row,
                _row(self.again, self.undo, self.export),
                self.maps,
                self.status,
                self.query_image,
                self.results,
            ]
        )
        for action, *observed in (
            (self._open_study, self.study),
            (self._open_architectures, self.architectures),
            (self._answer, self.search, self.k, self.maps),
            (self._show_queries, self.queries, self.label),
            (self._read_upload, self.upload),
        ):
            for widget in observed:
                widget.observe(lambda _, action=action: action(), "value")
        self._open_study()

    @property
    def engines(self) -> list[Engine]:
        """The engines of the selected architectures; each is opened once."""
        keys = [(self.study.value, name) for name in self.architectures.value]
        for key in keys:
            if key not in self.opened:
                self.opened[key] = open_engine(*key)
        return [self.opened[key] for key in keys]

    @property
    def marks(self) -> Marks:
        """The current marks."""
        return self.history[-1]

    # Study, architectures and queries to choose from

    def _open_study(self) -> None:
        study = self.study.value
        self.query, self.history, self.is_busy = None, [Marks()], True
        if self.queries.value == UPLOAD:
            self.queries.value = ALL
        self.architectures.options = architectures(study)
        self.architectures.value = (best_architecture(study),)
        self.label.options = self.engines[0].classes
        self.label.index = 0
        self.is_busy = False
        self._open_architectures()
        self._search_for(self.choices[0].query)

    def _open_architectures(self) -> None:
        if self.is_busy or not self.architectures.value:
            return
        self.is_busy, selected = True, self.maps.value
        self.maps.options = [NO_MAPS] + [
            label for kind, label in MAPS.items() if any(has_maps(e, kind) for e in self.engines)
        ]
        self.maps.value = selected if selected in self.maps.options else NO_MAPS
        self.is_busy = False
        self._show_queries()

    def _show_queries(self) -> None:
        """Show the first page of the selected queries, or the upload, and search again."""
        if self.is_busy or not self.architectures.value:
            return
        is_upload = self.queries.value == UPLOAD
        for widget, is_shown in (
            (self.label, self.queries.value == ONE_CLASS), (self.upload, is_upload),
            (self.choice_row, not is_upload), (self.page_row, not is_upload),
        ):  # fmt: skip
            widget.layout.display = "" if is_shown else "none"
        self.page = 0
        self._turn_page(0)
        self._answer()

    def _turn_page(self, step: int) -> None:
        if not self.architectures.value:
            return
        queries = self._selected_queries()
        n_pages = max(1, -(-len(queries) // QUERIES_PER_PAGE))
        self.page = (self.page + step) % n_pages
        shown = [int(query) for query in queries[self.page * QUERIES_PER_PAGE :]]
        shown += [None] * QUERIES_PER_PAGE
        for choice, query in zip(self.choices, shown, strict=False):
            choice.show(query, self.engines[0])

    def _selected_queries(self) -> np.ndarray:
        """Positions of the queries to choose from, in order."""
        run = self.engines[0].run
        labels = run.dataset.query_labels
        if self.queries.value == ONE_CLASS:
            return np.flatnonzero(labels == self.label.index)
        if self.queries.value == WORST:
            scores = tables.average_precision(run, "unrestricted", run.protocol)
            worst = scores.sort_values(kind="stable").index
            return np.searchsorted(run.dataset.queries, worst)
        return np.arange(len(labels))

    def _read_upload(self) -> None:
        if not (self.upload.value and self.architectures.value):
            return
        (file,) = self.upload.value
        # Otherwise choosing the same file again would not be a change.
        self.upload.value = ()
        try:
            image = read_square(BytesIO(file["content"]), self.engines[0].image_size)
        except Unreadable as error:
            self.status.value = escape(
                f"{file['name']} cannot be read: {error}. The results below are those of the "
                "previous query."
            )
            return
        self._search_for((file["name"], image))

    # Searching

    def _search_for(self, query: int | tuple[str, np.ndarray] | None) -> None:
        self.query, self.history = query, [Marks()]
        self._answer()

    def _search_again(self) -> None:
        if self.marks.positions:
            self._answer()
        else:
            self.status.value = f"mark some results first: {LEGEND}"

    def _answer(self) -> None:
        """Search with every selected architecture, and show the results."""
        if self.is_busy or self.query is None or not self.architectures.value:
            return
        self.is_busy, self.status.value = True, "searching …"
        try:
            searches = [(engine, self._search(engine)) for engine in self.engines]
            picture = searches[0][1].picture
            self.query_image.value = image_html(picture.image, f"query: {picture.name}", width=400)
            while len(self.panels) < len(searches):
                self.panels.append(ResultsPanel(self._mark))
            panels = self.panels[: len(searches)]
            self.results.children = [panel.view for panel in panels]
            for panel, (engine, answer) in zip(panels, searches, strict=True):
                panel.show(engine, answer, self.marks)
            if self.maps.value != NO_MAPS:
                kind = next(kind for kind, label in MAPS.items() if label == self.maps.value)
                for panel, (engine, answer) in zip(panels, searches, strict=True):
                    self.status.value = f"{engine.run.architecture}: computing {self.maps.value} …"
                    panel.show_maps(engine, answer, kind)
            self.status.value = self._describe_marks() if self.marks.positions else ""
        except Exception as error:
            # Jupyter does not show exceptions that are raised in a widget's callback.
            self.status.value = escape(f"the search failed: {error}")
        finally:
            self.is_busy = False

    def _search(self, engine: Engine) -> Answer:
        gallery, marks = engine.gallery, self.marks
        left_out = set(marks.positions)
        if isinstance(self.query, int):
            picture = answers.picture_of_query(engine, self.query)
            # Under some protocols the gallery contains the query itself; -1 where it does not.
            left_out |= {int(engine.run.dataset.exclude[self.query])} - {-1}
        else:
            self.status.value = f"{engine.run.architecture} embeds your picture …"
            (picture,) = answers.embed_pictures(engine, dict([self.query]))
        return answers.search(
            engine, gallery, picture, self.k.value, search=self.search.value,
            positive=gallery.vectors[list(marks.positive)],
            negative=gallery.vectors[list(marks.negative)],
            left_out=left_out,
        )  # fmt: skip

    # Marks

    def _mark(self, position: int, kind: str | None) -> None:
        if not self.is_busy and self.marks.kind(position) != kind:
            self.history.append(self.marks.mark(position, kind))
            self.status.value = f"marked: {self.marks}. Press “search again” to use the marks"

    def _undo(self) -> None:
        if len(self.history) > 1:
            self.history.pop()
            self._answer()

    def _describe_marks(self) -> str:
        weights = "; ".join(
            f"{engine.run.architecture}: {engine.describe_feedback_weights()}"
            for engine in self.engines
        )
        return escape(f"marked: {self.marks}. Weights: {weights}")

    def _export(self) -> None:
        """Write query and marks into a new, numbered file."""
        if not self.marks.positions:
            self.status.value = f"there are no marks to export: {LEGEND}"
            return
        first = self.engines[0]
        is_upload = not isinstance(self.query, int)
        query = f"{self.query[0]}, uploaded" if is_upload else first.query_names[self.query]
        content = {
            "study": self.study.value, "architectures": list(self.architectures.value),
            "search": self.search.value, "query": query,
            "positive": [first.gallery.names[position] for position in self.marks.positive],
            "negative": [first.gallery.names[position] for position in self.marks.negative],
            "weights": {engine.run.architecture: vars(engine.feedback_weights)
                        for engine in self.engines},
        }  # fmt: skip
        folder = project_root() / MARKS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]
        name = f"{max(numbers, default=0) + 1:03d}.json"
        write_text(folder / name, json.dumps(content, indent=1))
        self.status.value = f"{MARKS_FOLDER / name} written"


def has_maps(engine: Engine, kind: str) -> bool:
    """Whether a network has heat maps of this kind, a name in `MAPS`."""
    return kind != "attention" or engine.run.summary["parameters"]["pooling"] == "attention"


def map_overlays(
    engine: Engine, answer: Answer, kind: str = "similarity"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each result, the query and the result under their heat maps.

    Args:
        kind: a name in `MAPS`. Bright parts raise the similarity most
            (`gradients.similarity_maps`), or have the largest attention weights
            (`gradients.attention_maps`).

    Returns:
        Pairs of (size, size, 3) uint8 images.

    Raises:
        StudyError: attention maps of a network without attention pooling.
    """
    if not answer.results:
        return []
    results = np.stack([result.image for result in answer.results])
    queries = np.broadcast_to(answer.picture.image, results.shape)
    network, whitening = engine.run.network, engine.run.embeddings.whitening
    if kind == "attention":
        maps = attention_maps(network, queries, results)
    else:
        maps = similarity_maps(network, queries, results, whitening)
    return [
        (_overlay(query, query_map), _overlay(result, result_map))
        for query, result, query_map, result_map in zip(
            queries, results, maps.query, maps.result, strict=True
        )
    ]


def image_html(image: np.ndarray, *lines: str, width: int = 96) -> str:
    """HTML of an image with lines of text under it, at most `width` pixels wide."""
    text = "<br>".join(escape(line) for line in lines)
    tag = f'<img src="{data_url(image)}" alt="{escape(lines[0])}">'
    return f'<div class="cbir-image" style="width: {width}px">{tag}<br>{text}</div>'


def _result_html(result: Result, image: np.ndarray | None = None) -> str:
    line = f"{result.rank} · {result.similarity:.3f}"
    return image_html(result.image if image is None else image, line, result.label)


def _overlay(image: np.ndarray, heat_map: np.ndarray) -> np.ndarray:
    """A (size, size, 3) uint8 image under a (h, w) map of values from 0 to 1."""
    colours = colormaps[COLOURS](enlarge_map(heat_map, len(image)))[..., :3] * 255
    return (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)


def _button(text: str, action: Callable[[], None], width: str = "auto") -> widgets.Button:
    button = widgets.Button(description=text, layout={"width": width})
    button.on_click(lambda _: action())
    return button


def _toggle_buttons(description: str, options: list[str]) -> widgets.ToggleButtons:
    return widgets.ToggleButtons(
        options=options, description=description, style={"button_width": "auto"}
    )


def _row(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout={"flex_flow": "row wrap"})
