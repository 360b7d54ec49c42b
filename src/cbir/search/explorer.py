"""The explorer in JupyterLab: search a finished study, mark results, search again."""

import functools
import json
from collections.abc import Callable
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import numpy as np

from cbir import StudyError, project_root
from cbir.cache import write_text
from cbir.images.pictures import Unreadable, read_square
from cbir.networks.gradients import attention_maps, similarity_maps
from cbir.reporting import explanations, tables
from cbir.reporting.montages import overlay
from cbir.reporting.runs import trained_runs
from cbir.search import answers
from cbir.search.answers import Answer, Result, data_url
from cbir.search.engine import (
    SEARCHES,
    Engine,
    architectures,
    best_architecture,
    first_finished,
    open_engine,
)

QUERIES_PER_PAGE = 12
ALL, ONE_CLASS, WORST, UPLOAD = "all", "one class", "worst first", "my own picture"
# Heat maps by their kind, a name in `explain.KINDS`.
MAPS = {"similarity": "similarity maps", "attention": "attention maps"}
NO_MARK, POSITIVE, NEGATIVE = "–", "✓", "✗"
LEGEND = f"{POSITIVE} positive example, {NEGATIVE} negative example"
MARKS_FOLDER = Path("data", "marks")
STYLE = """<style>
.cbir-image img { width: 72px; height: 72px; object-fit: cover; image-rendering: pixelated; }
.cbir-image { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
.cbir-marks .jupyter-button { padding: 0; margin: 0 2px 6px 0; }
.cbir-note { margin: 0; }
.cbir-results h4 { margin: 1em 0 0; }
</style>"""


def explore(study: str = "") -> widgets.Widget:
    """The explorer of finished studies, or a sentence that says how to make one.

    Args:
        study: the study shown first; another one if it is not finished.
    """
    try:
        return Explorer(study).view
    except StudyError as error:
        return widgets.HTML(f"<p>{escape(str(error))}</p>")


class Explorer:
    """The widgets, and the state behind them: query, marks, answers and opened engines.

    Attributes:
        query: a query's position, or the name and the pixels of an uploaded picture.
        history: signs (`POSITIVE`, `NEGATIVE`) by gallery position, after each mark.
        answers: the answers shown, one per selected architecture.
        choices: positions of the queries that are shown to choose from.
    """

    def __init__(self, study: str = ""):
        # Each engine is opened once.
        self.open = functools.cache(open_engine)
        self.query: int | tuple[str, np.ndarray] | None = None
        self.history: list[dict[int, str]] = [{}]
        self.answers: list[Answer] = []
        self.choices: list[int] = []
        self.page = 0
        self.is_busy = False

        self.study = widgets.Dropdown(
            options=list(trained_runs()), value=first_finished(study), description="study"
        )
        self.architectures = widgets.SelectMultiple(
            description="architectures", rows=4, style={"description_width": "initial"}
        )
        self.search = widgets.Dropdown(options=SEARCHES, description="search")
        self.k = widgets.BoundedIntText(10, min=1, max=100, description="k").add_class("cbir-k")
        self.queries = _toggle_buttons("queries", [ALL, ONE_CLASS, WORST, UPLOAD])
        self.label = widgets.Dropdown(description="class")
        self.upload = widgets.FileUpload(description="choose a picture", multiple=False)
        self.choice_row = _row()
        self.more = _button("▶", lambda: self._turn_page(1))
        self.page_row = _row(_button("◀", lambda: self._turn_page(-1)), self.more)
        self.again = _button("search again", self._search_again)
        self.undo = _button("undo last mark", self._undo)
        self.export = _button("export marks", self._export)
        self.maps = _toggle_buttons("heat maps", [("none", None)])
        self.status = widgets.HTML(layout={"min_height": "2em"}).add_class("cbir-status")
        self.query_image = widgets.HTML().add_class("cbir-query")
        self.results = widgets.VBox().add_class("cbir-results")
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
        """The engines of the selected architectures."""
        return [self.open(self.study.value, name) for name in self.architectures.value]

    @property
    def marks(self) -> dict[int, str]:
        """The current marks: the sign by marked gallery position."""
        return self.history[-1]

    def _marked(self, sign: str) -> list[int]:
        return [position for position, mark in self.marks.items() if mark == sign]

    # Study, architectures and queries to choose from

    def _open_study(self) -> None:
        study = self.study.value
        self.query, self.history, self.is_busy = None, [{}], True
        if self.queries.value == UPLOAD:
            self.queries.value = ALL
        self.architectures.options = architectures(study)
        self.architectures.value = (best_architecture(study),)
        self.label.options = self.engines[0].classes
        self.label.index = 0
        self.is_busy = False
        self._open_architectures()
        self._search_for(self.choices[0])

    def _open_architectures(self) -> None:
        if self.is_busy or not self.architectures.value:
            return
        self.is_busy, selected = True, self.maps.value
        kinds = [kind for kind in MAPS if any(has_maps(engine, kind) for engine in self.engines)]
        self.maps.options = [("none", None), *((MAPS[kind], kind) for kind in kinds)]
        self.maps.value = selected if selected in kinds else None
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
        queries = self._selected_queries().tolist()
        self.page = (self.page + step) % max(1, -(-len(queries) // QUERIES_PER_PAGE))
        start = self.page * QUERIES_PER_PAGE
        self.choices = queries[start : start + QUERIES_PER_PAGE]
        _replace(self.choice_row, [self._choice(query) for query in self.choices])

    def _choice(self, query: int) -> widgets.Widget:
        """One of the study's queries with a button that searches with it."""
        dataset = self.engines[0].run.dataset
        image, label = dataset.images[dataset.queries[query]], dataset.query_labels[query]
        button = _button("search", lambda: self._search_for(query), width="72px")
        return widgets.VBox([widgets.HTML(image_html(image, dataset.classes[label])), button])

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
        # Otherwise, selecting the same file again would not count as a change.
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

    def _search_for(self, query: int | tuple[str, np.ndarray]) -> None:
        self.query, self.history = query, [{}]
        self._answer()

    def _search_again(self) -> None:
        if self.marks:
            self._answer()
        else:
            self.status.value = f"mark some results first: {LEGEND}"

    def _answer(self) -> None:
        """Search with every selected architecture, and show the results."""
        if self.is_busy or self.query is None or not self.architectures.value:
            return
        self.is_busy, self.status.value = True, "searching …"
        try:
            self.answers = [self._search(engine) for engine in self.engines]
            picture = self.answers[0].picture
            self.query_image.value = image_html(picture.image, f"query: {picture.name}", width=400)
            answered = list(zip(self.engines, self.answers, strict=True))
            _replace(self.results, [self._panel(engine, answer) for engine, answer in answered])
            if self.maps.value:
                for panel, (engine, answer) in zip(self.results.children, answered, strict=True):
                    self.status.value = f"{engine.run.architecture}: computing {self.maps.label} …"
                    self._show_maps(panel, engine, answer)
            self.status.value = self._describe_marks() if self.marks else ""
        except Exception as error:
            # Jupyter does not show exceptions that are raised in a widget's callback.
            self.status.value = escape(f"the search failed: {error}")
        finally:
            self.is_busy = False

    def _search(self, engine: Engine) -> Answer:
        gallery, left_out = engine.gallery, set(self.marks)
        if isinstance(self.query, int):
            picture = answers.picture_of_query(engine, self.query)
            # Under some protocols, the gallery contains the query itself; otherwise, this is -1.
            left_out |= {int(engine.run.dataset.exclude[self.query])} - {-1}
        else:
            self.status.value = f"{engine.run.architecture} embeds your picture …"
            (picture,) = answers.embed_pictures(engine, dict([self.query]))
        return answers.search(
            engine, gallery, picture, self.k.value, search=self.search.value,
            positive=gallery.vectors[self._marked(POSITIVE)],
            negative=gallery.vectors[self._marked(NEGATIVE)],
            left_out=left_out,
        )  # fmt: skip

    def _panel(self, engine: Engine, answer: Answer) -> widgets.VBox:
        """The prediction and the results of one architecture, and room for a note."""
        name, cells = escape(engine.run.architecture), map(self._cell, answer.results)
        heading = widgets.HTML(f"<h4>{name}</h4>predicted: {escape(answer.prediction)}")
        return widgets.VBox([heading, _row(*cells), widgets.HTML()])

    def _cell(self, result: Result) -> widgets.VBox:
        """A result with the buttons that mark it."""
        position = result.position
        marks = widgets.ToggleButtons(
            options=[NO_MARK, POSITIVE, NEGATIVE], value=self.marks.get(position, NO_MARK),
            tooltips=["no mark", "positive example", "negative example"],
            style={"button_width": "28px"},
        ).add_class("cbir-marks")  # fmt: skip
        marks.observe(lambda change: self._mark(position, change["new"]), "value")
        return widgets.VBox([widgets.HTML(_result_html(result, result.image)), marks])

    def _show_maps(self, panel: widgets.VBox, engine: Engine, answer: Answer) -> None:
        """Show query and result under heat maps, for each result, and how reliable the maps are."""
        _, row, note = panel.children
        kind, text = self.maps.value, ""
        if not has_maps(engine, kind):
            text = "This architecture has no attention pooling, so it has no attention maps."
        else:
            images = map_overlays(engine, answer, kind)
            for cell, result, (query, image) in zip(
                row.children, answer.results, images, strict=True
            ):
                html = image_html(query, "query") + _result_html(result, image)
                cell.children[0].value = html
            if kind == "similarity":
                text = explanations.trust(engine.run.study, engine.run.architecture)
        note.value = f'<p class="cbir-note">{escape(text)}</p>' if text else ""

    # Marks

    def _mark(self, position: int, sign: str) -> None:
        marks = {other: mark for other, mark in self.marks.items() if other != position}
        self.history.append(marks | ({} if sign == NO_MARK else {position: sign}))
        self.status.value = f"marked: {self._count_marks()}. Press “search again” to use the marks"

    def _undo(self) -> None:
        if len(self.history) > 1:
            self.history.pop()
            self._answer()

    def _count_marks(self) -> str:
        return f"{len(self._marked(POSITIVE))} positive, {len(self._marked(NEGATIVE))} negative"

    def _describe_marks(self) -> str:
        weights = "; ".join(
            f"{engine.run.architecture}: {engine.describe_feedback_weights()}"
            for engine in self.engines
        )
        return escape(f"marked: {self._count_marks()}. Weights: {weights}")

    def _export(self) -> None:
        """Write the query and the marks to a new, numbered file."""
        if not self.marks:
            self.status.value = f"no marks to export: {LEGEND}"
            return
        first, is_upload = self.engines[0], not isinstance(self.query, int)
        content = {
            "study": self.study.value, "architectures": list(self.architectures.value),
            "search": self.search.value,
            "query": self.answers[0].picture.name + (", uploaded" if is_upload else ""),
            "positive": [first.gallery.names[position] for position in self._marked(POSITIVE)],
            "negative": [first.gallery.names[position] for position in self._marked(NEGATIVE)],
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
    of_queries, of_results = map(overlay, queries, maps.query), map(overlay, results, maps.result)
    return list(zip(of_queries, of_results, strict=True))


def image_html(image: np.ndarray, *lines: str, width: int = 96) -> str:
    """HTML of an image with lines of text under it, at most `width` pixels wide."""
    text = "<br>".join(escape(line) for line in lines)
    tag = f'<img src="{data_url(image)}" alt="{escape(lines[0])}">'
    return f'<div class="cbir-image" style="width: {width}px">{tag}<br>{text}</div>'


def _result_html(result: Result, image: np.ndarray) -> str:
    return image_html(image, f"{result.rank} · {result.similarity:.3f}", result.label)


def _replace(box: widgets.Box, children: list[widgets.Widget]) -> None:
    """Show other widgets in a box, and close those that it contained."""
    previous, box.children = list(box.children), children
    while previous:
        widget = previous.pop()
        previous += getattr(widget, "children", ())
        widget.close()


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
