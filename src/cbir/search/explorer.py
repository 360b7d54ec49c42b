"""Exploring finished studies in JupyterLab: ask, look, mark results, search again."""

from collections.abc import Callable
from html import escape
from io import BytesIO

import ipywidgets as widgets
import numpy as np

from cbir import StudyError
from cbir.images.pictures import Unreadable, read_square
from cbir.reporting import tables
from cbir.reporting.runs import read_run
from cbir.search import answers, engine
from cbir.search.answers import Answer
from cbir.search.engine import Engine
from cbir.search.panels import MAPS, STYLE, Marks, Offer, Panel, has_maps, keep_marks, picture

# Queries that are offered at a time.
OFFERED = 12
ALL, OF_CLASS, WORST, UPLOAD = "all", "of one class", "worst first", "a picture of my own"
NO_MAPS = "none"


def explore(study: str = "") -> widgets.Widget:
    """The explorer of finished studies; a sentence where there is none.

    Args:
        study: the one that is shown first; the first by name where it is empty or not finished.
    """
    try:
        return Explorer(study).view
    except StudyError as error:
        return widgets.HTML(f"<p>{escape(str(error))}</p>")


class Explorer:
    """What is chosen, asked and marked, and the widgets that show it."""

    def __init__(self, study: str = ""):
        known, first = engine.studies(), engine.first_finished(study)
        self.opened: dict[tuple[str, str], Engine] = {}
        self.history = [Marks()]
        # A query's position, or a picture of one's own by its file's name.
        self.asked: int | dict[str, np.ndarray] | None = None
        self.panels: list[Panel] = []
        self.page = 0
        self.is_busy = False

        self.study = widgets.Dropdown(options=known, value=first, description="study")
        self.architectures = widgets.SelectMultiple(
            description="architectures", rows=4, style={"description_width": "initial"}
        )
        self.search = widgets.Dropdown(options=engine.SEARCHES, description="search")
        self.k = widgets.BoundedIntText(10, min=1, max=100, description="k").add_class("cbir-k")
        self.queries = widgets.ToggleButtons(
            options=[ALL, OF_CLASS, WORST, UPLOAD],
            description="queries",
            style={"button_width": "auto"},
        )
        self.label = widgets.Dropdown(description="class")
        self.upload = widgets.FileUpload(description="choose a picture", multiple=False)
        self.offered = [Offer(lambda number=number: self._choose(number))
                        for number in range(OFFERED)]  # fmt: skip
        self.back, self.more = self._button("◀", self._turn, -1), self._button("▶", self._turn, 1)
        self.again = self._button("search again with the marks", self._ask_again)
        self.undo = self._button("undo", self._undo)
        self.export = self._button("export the marks", self._export)
        self.maps = widgets.ToggleButtons(
            options=[NO_MAPS], description="heat maps", style={"button_width": "auto"}
        )
        self.status = widgets.HTML(layout={"min_height": "2em"}).add_class("cbir-status")
        self.query = widgets.HTML().add_class("cbir-query")
        self.found = widgets.VBox().add_class("cbir-found")

        row = widgets.HBox
        # Not one Layout for all: whatever hides one row would hide every row.
        grid = {"flex_flow": "row wrap"}
        self.offers = row([each.view for each in self.offered], layout=grid)
        self.pages = row([self.back, self.more])
        self.view = widgets.VBox(
            [
                widgets.HTML(STYLE),
                row([self.study, self.search, self.k], layout=grid),
                row([self.architectures, widgets.VBox([self.queries, self.label, self.upload])],
                    layout=grid),
                self.offers,
                self.pages,
                row([self.again, self.undo, self.export], layout=grid),
                self.maps,
                self.status,
                self.query,
                self.found,
            ]
        )  # fmt: skip
        self.study.observe(lambda _: self._open_study(), "value")
        self.architectures.observe(lambda _: self._open_architectures(), "value")
        for widget in (self.search, self.k, self.maps):
            widget.observe(lambda _: self._answer(), "value")
        for widget in (self.queries, self.label):
            widget.observe(lambda _: self._offer(from_start=True), "value")
        self.upload.observe(lambda _: self._uploaded(), "value")
        self._open_study()

    def _button(self, text: str, act: Callable, *given) -> widgets.Button:
        made = widgets.Button(description=text, layout={"width": "auto"})
        made.on_click(lambda _: act(*given))
        return made

    # What is chosen

    @property
    def engines(self) -> list[Engine]:
        """Of the chosen architectures; opened once."""
        study = self.study.value
        for name in self.architectures.value:
            if (study, name) not in self.opened:
                self.opened[study, name] = engine.open_engine(study, name)
        return [self.opened[study, name] for name in self.architectures.value]

    @property
    def marks(self) -> Marks:
        """What is marked now."""
        return self.history[-1]

    def _open_study(self) -> None:
        names = engine.architectures(self.study.value)
        self.asked, self.history, self.is_busy = None, [Marks()], True
        if self.queries.value == UPLOAD:
            self.queries.value = ALL
        self.architectures.options, self.architectures.value = names, ()
        self.is_busy = False
        self.architectures.value = (engine.best_architecture(self.study.value),)
        self.label.options = self.engines[0].classes
        self.label.index = 0
        self._offer(from_start=True)
        self._choose(0)

    def _open_architectures(self) -> None:
        if self.is_busy or not self.architectures.value:
            return
        self.is_busy, chosen = True, self.maps.value
        self.maps.options = [
            NO_MAPS,
            *(said for kind, said in MAPS.items() if any(has_maps(e, kind) for e in self.engines)),
        ]
        self.maps.value = chosen if chosen in self.maps.options else NO_MAPS
        self.is_busy = False
        self._offer(from_start=True)

    def _candidates(self) -> np.ndarray:
        """The queries that are offered, in order."""
        labels = self.engines[0].embeddings.dataset.query_labels
        if self.queries.value == OF_CLASS:
            return np.flatnonzero(labels == self.label.index)
        if self.queries.value == WORST:
            result = read_run(self.study.value, self.engines[0].architecture)
            scores = tables.average_precision(result, "unrestricted", result.protocol)
            worst = scores.sort_values(kind="stable").index
            return np.searchsorted(self.engines[0].embeddings.dataset.queries, worst)
        return np.arange(len(labels))

    def _offer(self, *, from_start: bool = False) -> None:
        if self.is_busy or not self.architectures.value:
            return
        is_upload = self.queries.value == UPLOAD
        for widget, is_shown in (
            (self.label, self.queries.value == OF_CLASS), (self.upload, is_upload),
            (self.offers, not is_upload), (self.pages, not is_upload),
        ):  # fmt: skip
            widget.layout.display = "" if is_shown else "none"
        if is_upload:
            return
        found = self._candidates()
        self.page = 0 if from_start else self.page % -(-len(found) // OFFERED)
        shown = found[self.page * OFFERED :][:OFFERED]
        dataset = self.engines[0].embeddings.dataset
        for place, offer in enumerate(self.offered):
            query = int(shown[place]) if place < len(shown) else None
            image = None if query is None else dataset.images[dataset.queries[query]]
            label = "" if query is None else dataset.classes[dataset.query_labels[query]]
            offer.show(query, image, label)
        if from_start and self.asked is not None:
            self._answer()

    def _turn(self, step: int) -> None:
        self.page += step
        self._offer()

    def _choose(self, number: int) -> None:
        if self.offered[number].query is not None:
            self._ask(self.offered[number].query)

    def _uploaded(self) -> None:
        if not self.upload.value:
            return
        try:
            (file,) = self.upload.value
            # Else the same file, chosen again later, would be no change.
            self.upload.value = ()
            square = read_square(BytesIO(file["content"]), self.engines[0].image_size)
        except Unreadable as error:
            reason = f"{file['name']} cannot be read: {error}; below stands the answer before it"
            self.status.value = escape(reason)
            return
        self._ask({file["name"]: square})

    # What is asked, and found

    def _ask(self, asked: int | dict[str, np.ndarray]) -> None:
        self.asked, self.history = asked, [Marks()]
        self._answer()

    def _ask_again(self) -> None:
        if self.marks.all:
            self._answer()
        else:
            self.status.value = "mark some results first: ✓ positive, ✗ negative"

    def _undo(self) -> None:
        if len(self.history) > 1:
            self.history.pop()
            self._answer()

    def _answer(self) -> None:
        """Search with what is chosen, in every architecture, and show what is found."""
        if self.is_busy or self.asked is None or not self.architectures.value:
            return
        self.is_busy, self.status.value = True, "searching …"
        try:
            found = [(each, self._find(each)) for each in self.engines]
            asked = found[0][1].picture
            self.query.value = picture(asked.image, f"asked: {asked.name}", width=400)
            while len(self.panels) < len(found):
                self.panels.append(Panel(self._mark))
            self.found.children = [panel.view for panel in self.panels[: len(found)]]
            for panel, (opened, answer) in zip(self.panels, found, strict=False):
                panel.show(opened, answer, self.marks)
            if self.maps.value != NO_MAPS:
                self._show_maps(found)
            self.status.value = self._how_marks_count() if self.marks.all else ""
        except Exception as error:
            # Nobody sees what a widget raises.
            self.status.value = escape(f"this could not be done: {error}")
        finally:
            self.is_busy = False

    def _find(self, opened: Engine) -> Answer:
        is_own = isinstance(self.asked, dict)
        if is_own:
            self.status.value = f"{opened.architecture} looks at your picture …"
            (asked,) = answers.embed_pictures(opened, self.asked)
        else:
            asked = answers.picture_of_query(opened, self.asked)
        dataset, gallery, marks = opened.embeddings.dataset, opened.gallery, self.marks
        # Under some protocols a query stands in the gallery too.
        itself = -1 if is_own else int(dataset.exclude[self.asked])
        return answers.search(
            opened, gallery, asked, self.k.value, search=self.search.value,
            positive=gallery.vectors[list(marks.positive)],
            negative=gallery.vectors[list(marks.negative)],
            left_out={*marks.all, itself} - {-1},
        )  # fmt: skip

    def _show_maps(self, found: list[tuple[Engine, Answer]]) -> None:
        kind = next(kind for kind, said in MAPS.items() if said == self.maps.value)
        for panel, (opened, answer) in zip(self.panels, found, strict=False):
            self.status.value = f"{opened.architecture} looks for {MAPS[kind]} …"
            panel.show_maps(opened, answer, kind)

    # What is marked

    def _how_marks_count(self) -> str:
        counts = "; ".join(f"{each.architecture}: {each.told_weights}" for each in self.engines)
        return escape(f"marked: {self.marks}. Weights: {counts}")

    def _mark(self, position: int, as_what: str | None) -> None:
        if not self.is_busy and self.marks.of(position) != as_what:
            self.history.append(self.marks.mark(position, as_what))
            self.status.value = f"marked: {self.marks}; now search again"

    def _export(self) -> None:
        """Keep what was asked and marked, by names that mean something."""
        if not self.marks.all:
            self.status.value = "nothing is marked: ✓ positive, ✗ negative"
            return
        opened = self.engines[0]
        names = opened.gallery.names
        is_own = isinstance(self.asked, dict)
        query = f"{next(iter(self.asked))}, uploaded" if is_own else opened.query_names[self.asked]
        told = {
            "study": self.study.value, "architectures": list(self.architectures.value),
            "search": self.search.value, "query": query,
            "positive": [names[each] for each in self.marks.positive],
            "negative": [names[each] for each in self.marks.negative],
            "weights": {each.architecture: vars(each.weights) for each in self.engines},
        }  # fmt: skip
        self.status.value = f"{keep_marks(told)} written"
