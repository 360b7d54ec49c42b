"""The explorer in JupyterLab: search a finished study, mark results, search again.

Data flows one way. What a person does changes `Explorer.choice`, plain values that a cell can keep.
From them, `Explorer` computes all that is shown, its other traits, which explorer.js draws.
"""

import base64
import functools
import itertools
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import anywidget
import numpy as np
from PIL import Image
from traitlets import Bool, Dict, List, Unicode

from cbir import StudyError, project_root
from cbir.images.leaks import find_leaks
from cbir.images.pictures import read_picture
from cbir.reporting import tables
from cbir.reporting.display import PROJECTIONS
from cbir.reporting.montages import overlay
from cbir.reporting.runs import trained_runs
from cbir.retrieval.projections import TSNE_FROM, project_queries
from cbir.search import answers
from cbir.search.answers import Answer, Picture, Result
from cbir.search.searchers import (
    DEFAULT_STUDY,
    SEARCHES,
    Searcher,
    architectures,
    best_architecture,
    first_finished,
    open_searcher,
)

QUERIES_PER_PAGE = 60
MOST_RESULTS = 100
IN_ORDER, WORST = "in order", "worst first"
# Heat maps by their kind, a name in `explain.KINDS`.
MAPS = {"": "off", "similarity": "similarity", "attention": "attention"}
# What is chosen unless the person chooses otherwise. Pictures are positions: of a query, or of
# gallery images for marks. An uploaded query is a data URL of its image. `used` are the marks of
# the last search: positive, negative.
DEFAULTS = {
    "study": "", "architectures": [], "search": SEARCHES[0], "k": 10, "query": 0,
    "positive": [], "negative": [], "used": [[], []],
    "label": "", "order": IN_ORDER, "page": 0, "is_map": False, "heat_maps": "",
}  # fmt: skip
# Sides of pictures in pixels: to choose from, and of results. Images up to `EXACT` are sent as PNG.
SMALL, LARGE, EXACT = 48, 192, 64
# Tiles in a row of the pictures of the map's points.
SPRITES = 32


class Explorer(anywidget.AnyWidget):
    """The explorer as a widget.

    Args:
        study: the study shown first; another one if it is not finished.
        choice: further keys of `DEFAULTS`. Pictures may be given by their names instead of their
            positions, and the query also by the path of a file.

    Attributes:
        choice: what the person chose, the keys of `DEFAULTS`.
        code: the call that shows the same again.
        options: the names to choose from.
        queries: a page of queries to choose from.
        points: the queries on a map of the embedding of the first architecture.
        query: the picture that is searched for.
        marked: the marked gallery images.
        panels: the results of each architecture.
        status: one sentence on what happens, or went wrong.
        is_busy: whether it computes.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    choice = Dict().tag(sync=True)
    code = Unicode().tag(sync=True)
    options = Dict().tag(sync=True)
    queries = Dict().tag(sync=True)
    points = Dict().tag(sync=True)
    query = Dict().tag(sync=True)
    marked = List().tag(sync=True)
    panels = List().tag(sync=True)
    status = Unicode().tag(sync=True)
    is_busy = Bool().tag(sync=True)

    def __init__(self, study: str = "", **choice):
        super().__init__()
        # Each searcher is opened once, and going back to an earlier query costs nothing.
        self.open = functools.cache(open_searcher)
        for method in ("_picture", "_answer", "_overlays", "_map"):
            setattr(self, method, functools.lru_cache(64)(getattr(self, method)))
        self.upload = b""
        self.observe(lambda _: self._report(self._update), "choice")
        self.on_msg(lambda _, *message: self._report(self._receive, *message))
        if unknown := choice.keys() - DEFAULTS.keys():
            raise TypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(DEFAULTS)}")
        self.choice = {"study": study} | choice

    def _report(self, action: Callable, *arguments) -> None:
        """Call a function; show that it runs, and the error if it fails."""
        self.is_busy = True
        try:
            action(*arguments)
        # Jupyter does not show exceptions that are raised in a widget's callback.
        except Exception as error:
            self.queries, self.query, self.marked, self.panels = {}, {}, [], []
            is_known = isinstance(error, StudyError)
            self.status = str(error) if is_known else f"The search failed: {error!r}"
        finally:
            self.is_busy = False

    def _update(self) -> None:
        """Complete the choice, and show what it asks for."""
        self.status = "Searching …"
        self.options = self.options | {
            "studies": list(trained_runs()), "searches": SEARCHES, "orders": (IN_ORDER, WORST),
            "most_results": MOST_RESULTS,
        }  # fmt: skip
        choice = self._complete(self.choice)
        if choice == self.choice:
            self._show(choice)
            self.status = ""
        else:
            self.choice = choice  # calls this method again

    def _complete(self, choice: Mapping) -> dict:
        """A choice with all keys, and with positions instead of names."""
        study = first_finished(choice.get("study") or DEFAULT_STUDY)
        full = DEFAULTS | choice | {"study": study}
        full["architectures"] = full["architectures"] or [best_architecture(study)]
        searcher = self.open(study, full["architectures"][0])
        for sign in ("positive", "negative"):
            full[sign] = [_position(mark, searcher.gallery.names) for mark in full[sign]]
        if "used" not in choice:
            full["used"] = [full["positive"], full["negative"]]
        if isinstance(query := full["query"], str) and not query.startswith("data:"):
            names = [
                searcher.run.image_names[position] for position in searcher.run.dataset.queries
            ]
            full["query"] = (
                names.index(query) if query in names else _read(project_root() / query, searcher)
            )
        return full

    def _show(self, choice: dict) -> None:
        study, names = choice["study"], choice["architectures"]
        searchers = [self.open(study, name) for name in names]
        first = searchers[0]
        kinds = [kind for kind in MAPS if any(has_maps(searcher, kind) for searcher in searchers)]
        self.options = self.options | {
            "architectures": architectures(study), "classes": first.classes,
            "maps": {kind: MAPS[kind] for kind in kinds}, "is_exact": first.image_size <= EXACT,
        }  # fmt: skip
        self.code = self._call(choice, first)
        self.queries = _page(first, choice)
        picture = self._picture(study, names[0], choice["query"])
        label = _label(first, choice["query"])
        url = image_url(picture.image, LARGE)
        self.query = {"name": picture.name, "label": label, "image": url}
        self.marked = [
            {"id": position, "sign": sign, "image": image_url(first.gallery.image(position), SMALL)}
            for sign in ("positive", "negative")
            for position in choice[sign]
        ]
        panels = [self._panel(searcher, choice, label) for searcher in searchers]
        # Results under heat maps stay as they are while they are the same.
        if not choice["heat_maps"] or panels != [
            {key: panel[key] for key in panels[0]} for panel in self.panels
        ]:
            self.panels = panels
        if choice["is_map"]:
            self.status = "Drawing the map …"
        self.points = self._map(study, names[0]) if choice["is_map"] else {}
        if choice["heat_maps"]:
            for number, searcher in enumerate(searchers):
                self.status = f"{names[number]} computes heat maps …"
                panel = self.panels[number] | self._heat_maps(searcher, choice)
                self.panels = [*self.panels[:number], panel, *self.panels[number + 1 :]]

    def _picture(self, study: str, architecture: str, query: int | str) -> Picture:
        """The query with what an architecture computes from it."""
        searcher = self.open(study, architecture)
        if isinstance(query, int):
            return answers.picture_of_query(searcher, query)
        self.status = f"{architecture} embeds your picture …"
        about, _, content = query.partition(";base64,")
        reading = read_picture(BytesIO(base64.b64decode(content)), searcher.image_size)
        if reading.image is None:
            raise StudyError(reading.remark)
        name = re.search(";name=([^;]*)", about)
        return answers.embed_pictures(
            searcher, {name[1] if name else "your picture": reading.image}
        )[0]

    def _answer(
        self, study: str, architecture: str, query: int | str, search: str, k: int, *used: tuple
    ) -> tuple[Answer, list[list[Result]]]:
        """All results of one architecture, and the first k with their copies but no marked ones."""
        searcher, marked = self.open(study, architecture), set(itertools.chain(*used))
        gallery, picture = searcher.gallery, self._picture(study, architecture, query)
        # Under some protocols, the gallery contains the query itself; otherwise, this is -1.
        itself = searcher.run.dataset.exclude[query] if isinstance(query, int) else -1
        count = 2 * k + len(marked)
        while True:
            (answer,) = answers.search_all(
                searcher, gallery, [picture], count, search=search,
                positive=gallery.vectors[list(used[0])], negative=gallery.vectors[list(used[1])],
                left_out=[{int(itself)} - {-1}],
            )  # fmt: skip
            groups = [
                group for group in group_copies(answer.results)
                if marked.isdisjoint(result.position for result in group)
            ]  # fmt: skip
            if len(groups) >= k or len(answer.results) < count:
                return answer, groups[:k]
            count *= 2

    def _panel(self, searcher: Searcher, choice: dict, label: str) -> dict:
        """The prediction and the results of one architecture."""
        answer, groups = self._answer(*self._search(searcher, choice))
        results = [
            {
                "id": group[0].position, "rank": rank, "name": group[0].name,
                "similarity": f"{group[0].similarity:.3f}", "label": group[0].label,
                "is_hit": group[0].label == label if label else None,
                "copies": [result.position for result in group[1:]],
                "image": image_url(group[0].image, LARGE),
            }
            for rank, group in enumerate(groups, start=1)
        ]  # fmt: skip
        hits = sum(result["is_hit"] or False for result in results)
        lines = [f"Predicted: {answer.prediction}."]
        if label:
            lines.append(f"{hits} of {len(results)} results are of its class, {label}.")
        if any(choice["used"]):
            lines.append(f"Weights: {searcher.describe_feedback_weights()}.")
        return {"architecture": searcher.run.architecture, "lines": lines, "results": results}

    def _search(self, searcher: Searcher, choice: dict) -> tuple:
        """The arguments of `_answer`."""
        used = map(tuple, choice["used"])
        keys = (choice[key] for key in ("query", "search", "k"))
        return (choice["study"], searcher.run.architecture, *keys, *used)

    def _heat_maps(self, searcher: Searcher, choice: dict) -> dict:
        """What heat maps add to a panel: query and result of each pair under them, and a note."""
        kind = choice["heat_maps"]
        if not has_maps(searcher, kind):
            return {"note": "No attention pooling, so no attention maps."}
        from cbir.reporting import explanations  # imports Keras, which takes seconds

        trust = explanations.trust(searcher.run.study, searcher.run.architecture)
        overlays = self._overlays(kind, *self._search(searcher, choice))
        return {"overlays": overlays, "note": trust if kind == "similarity" else ""}

    def _overlays(self, kind: str, *search) -> list[list[str]]:
        answer, groups = self._answer(*search)
        pairs = map_overlays(self.open(*search[:2]), answer, [g[0] for g in groups], kind)
        return [[image_url(image, LARGE) for image in pair] for pair in pairs]

    def _map(self, study: str, architecture: str) -> dict:
        """The queries on a plane, with their pictures as tiles of one image."""
        searcher = self.open(study, architecture)
        dataset = searcher.run.dataset
        method = "tsne" if len(dataset.queries) >= TSNE_FROM else "pca"
        projection = project_queries(searcher.run.embeddings, method)
        low, high = projection.points.min(0), projection.points.max(0)
        points = 100 * (projection.points - low) / np.maximum(high - low, 1e-9)
        points[:, 1] = 100 - points[:, 1]  # on a screen, y points downwards
        images = dataset.images[dataset.queries[projection.queries]]
        rows = -(-len(images) // SPRITES)
        sheet = Image.new("RGB", (SPRITES * SMALL, rows * SMALL))
        for number, image in enumerate(images):
            row, column = divmod(number, SPRITES)
            tile = Image.fromarray(image).resize((SMALL, SMALL))
            sheet.paste(tile, (column * SMALL, row * SMALL))
        return {
            "ids": projection.queries.tolist(), "points": points.astype(float).round(1).tolist(),
            "labels": dataset.query_labels[projection.queries].tolist(),
            "sheet": image_url(np.asarray(sheet), max(sheet.size)), "columns": SPRITES,
            "caption": f"{architecture}: {PROJECTIONS[method]} of {len(points):,} queries",
        }  # fmt: skip

    def _call(self, choice: dict, searcher: Searcher) -> str:
        """The call that shows the same again, with pictures by their names."""
        arguments = {key: value for key, value in choice.items() if value != DEFAULTS[key]}
        # Without `used`, all marks are used.
        for key in ("study", "used", "page"):
            arguments.pop(key, None)
        if isinstance(query := choice["query"], int):
            arguments["query"] = searcher.run.image_names[searcher.run.dataset.queries[query]]
        names = searcher.gallery.names
        arguments |= {
            sign: [names[position] for position in choice[sign]]
            for sign in ("positive", "negative")
            if choice[sign]
        }
        lines = [f"    {key}={value!r}," for key, value in arguments.items()]
        return "\n".join([f"explorer.Explorer(\n    {choice['study']!r},", *lines, ")"])

    def _receive(self, content: dict, buffers: list) -> None:
        """Take a part of an uploaded file, and search with it once it is whole.

        Parts keep messages below the size at which JupyterLab closes the connection.
        """
        self.upload = b"".join([b"" if content["is_first"] else self.upload, *buffers])
        if not content["is_last"]:
            return
        self.status = "Reading your picture …"
        name, file, self.upload = content["name"], BytesIO(self.upload), b""
        searcher = self.open(self.choice["study"], self.choice["architectures"][0])
        image, remark = read_picture(file, **searcher.reading)
        if image is None:
            self.status = f"{name} cannot be read: {remark}. The previous query is still shown."
            return
        marks = {key: DEFAULTS[key] for key in ("positive", "negative", "used")}
        self.choice = self.choice | {"query": _data_url(name, image)} | marks
        if remark and not self.status:
            self.status = f"{name}: {remark}."


def has_maps(searcher: Searcher, kind: str) -> bool:
    """Whether a network has heat maps of this kind, a name in `MAPS`."""
    return kind != "attention" or searcher.run.summary["parameters"]["pooling"] == "attention"


def map_overlays(
    searcher: Searcher, answer: Answer, results: list[Result], kind: str = "similarity"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each of these results, the query and the result, (size, size, 3) uint8, under heat maps.

    Bright parts raise the similarity most (`explain.similarity_maps`) or, if the kind in `MAPS` is
    attention, have the largest weights (`explain.attention_maps`). StudyError for attention maps of
    a network without attention pooling.
    """
    from cbir.explain import attention_maps, similarity_maps  # imports Keras, too

    if not results:
        return []
    images = np.stack([result.image for result in results])
    queries = np.broadcast_to(answer.picture.image, images.shape)
    network, whitening = searcher.run.network, searcher.run.embeddings.whitening
    if kind == "attention":
        maps = attention_maps(network, queries, images)
    else:
        maps = similarity_maps(network, queries, images, whitening)
    of_queries, of_results = map(overlay, queries, maps.query), map(overlay, images, maps.result)
    return list(zip(of_queries, of_results, strict=True))


def group_copies(results: list[Result]) -> list[list[Result]]:
    """Results of the same picture and class in one group (`leaks.find_leaks`), in order."""
    if not results:
        return []
    images = np.stack([result.image for result in results])
    labels = np.unique([result.label for result in results], return_inverse=True)[1]
    pairs = find_leaks(images, labels, images, labels, np.arange(len(images)))
    first = list(range(len(images)))
    for pair in pairs[~pairs["is_conflict"]].itertuples():
        first[pair.query] = min(first[pair.query], first[min(pair.gallery, pair.query)])
    groups = {}
    for index, result in zip(first, results, strict=True):
        groups.setdefault(index, []).append(result)
    return list(groups.values())


def image_url(image: np.ndarray, most: int) -> str:
    """(h, w, 3) uint8 pixels as a data URL of at most `most` pixels a side."""
    picture, stream = Image.fromarray(image), BytesIO()
    picture.thumbnail((most, most))
    kind = "png" if max(picture.size) <= EXACT else "webp"
    picture.save(stream, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _data_url(name: str, image: np.ndarray) -> str:
    """An uploaded picture as the network sees it, with its name."""
    name = re.sub("[;,]", " ", name)
    return answers.data_url(image).replace(";base64,", f";name={name};base64,", 1)


def _read(path: Path, searcher: Searcher) -> str:
    if not path.is_file():
        raise StudyError(f"{path} is neither a query of the study nor a file: correct the name")
    image, remark = read_picture(path, **searcher.reading)
    if image is None:
        raise StudyError(f"{path} cannot be read: {remark}")
    return _data_url(path.name, image)


def _position(picture: int | str, names: list[str]) -> int:
    if isinstance(picture, int):
        return picture
    if picture not in names:
        raise StudyError(f"no picture {picture!r} in the gallery: use the name of a result")
    return names.index(picture)


def _label(searcher: Searcher, query: int | str) -> str:
    """The class of a query of the study; empty for an uploaded picture."""
    if isinstance(query, str):
        return ""
    return searcher.classes[searcher.run.dataset.query_labels[query]]


def _page(searcher: Searcher, choice: dict) -> dict:
    """A page of the study's queries, of one class or all, in order or the worst first."""
    run, dataset = searcher.run, searcher.run.dataset
    positions = np.arange(len(dataset.queries))
    if choice["order"] == WORST:
        scores = tables.average_precision_by_seed(run).mean(axis=1)
        worst = scores.sort_values(kind="stable").index
        positions = np.searchsorted(dataset.queries, worst)
    if choice["label"]:
        label = searcher.classes.index(choice["label"])
        positions = positions[dataset.query_labels[positions] == label]
    last = max(0, len(positions) - 1) // QUERIES_PER_PAGE
    start = min(choice["page"], last) * QUERIES_PER_PAGE
    queries = positions[start : start + QUERIES_PER_PAGE].tolist()
    return {
        "start": start + 1,
        "total": len(positions),
        "pictures": [
            {"id": query, "label": searcher.classes[dataset.query_labels[query]],
             "image": image_url(dataset.images[dataset.queries[query]], SMALL)}
            for query in queries
        ],
    }  # fmt: skip
