"""What a search answers: a table for the terminal, JSON, or a page."""

import base64
import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from cbir import StudyError
from cbir.asking.engine import Engine, Gallery
from cbir.images import formats, sources

STDIN = "-"
# Pixels of the pictures on a page.
THUMBNAIL = 96


@dataclass(frozen=True)
class Result:
    """An image that was found: its place from 1 on, similarity, class and path."""

    place: int
    similarity: float
    label: str
    path: str
    image: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What was found for a picture.

    Attributes:
        picture: its name.
        image: (size, size, 3) uint8, as the network sees it.
        predicted: the class of the highest probability.
        probabilities: by class, the highest first.
        results: the nearest first.
    """

    picture: str
    image: np.ndarray
    predicted: str
    probabilities: dict[str, float]
    results: list[Result]

    def as_json(self) -> dict:
        """What JSON can say of it; pictures by their paths."""
        return {
            "picture": self.picture,
            "predicted": self.predicted,
            "probabilities": self.probabilities,
            "results": [
                {"place": each.place, "path": each.path, "class": each.label,
                 "similarity": each.similarity}
                for each in self.results
            ],
        }  # fmt: skip


def read(asked: Iterable[str], size: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The pictures that are asked for, as squares, and "name: reason" of what cannot be read.

    Args:
        asked: files, folders, patterns such as "*.jpg", or "-" for a picture on standard input.
        size: pixels.

    Raises:
        StudyError: nothing of that name.
    """
    images, skipped = {}, []
    for name, picture in _find(asked):
        try:
            images[name] = formats.square(picture, size)
        except formats.Unreadable as error:
            skipped.append(f"{name}: {error}")
    return images, skipped


def search(
    engine: Engine, gallery: Gallery, images: dict[str, np.ndarray], k: int, *, within: bool = False
) -> list[Answer]:
    """The answer to each picture.

    Args:
        engine: that embedded the gallery.
        gallery: what to search.
        images: by name, (size, size, 3) uint8.
        k: how many results.
        within: search only the class that is predicted.
    """
    vectors, probabilities = engine.encode(np.stack(list(images.values())))
    predicted = probabilities.argmax(axis=1)
    found = gallery.search(vectors, k, predicted if within else None)
    answers = []
    for row, (name, image) in enumerate(images.items()):
        order = np.argsort(-probabilities[row], kind="stable")
        each = [part[row] for part in found]
        results = [
            Result(
                place,
                float(similarity),
                engine.classes[gallery.labels[position]],
                gallery.names[position],
                gallery.image(position),
            )
            for place, (position, similarity) in enumerate(zip(*each, strict=True), 1)
            if position >= 0
        ]
        answers.append(
            Answer(
                name,
                image,
                engine.classes[predicted[row]],
                {engine.classes[each]: float(probabilities[row, each]) for each in order},
                results,
            )
        )
    return answers


def table(answer: Answer) -> str:
    """An answer as lines for a terminal."""
    best = ", ".join(
        f"{name} {probability:.0%}" for name, probability in list(answer.probabilities.items())[:3]
    )
    width = max([len("class"), *(len(each.label) for each in answer.results)])
    lines = [f"{answer.picture}: {best}", f"  {'':>4}  similarity  {'class':<{width}}  picture"]
    lines += [
        f"  {each.place:>4}  {each.similarity:>10.3f}  {each.label:<{width}}  {each.path}"
        for each in answer.results
    ]
    if not answer.results:
        lines.append(f"  nothing in the gallery is of the class {answer.predicted}")
    return "\n".join(lines)


def page(answers: list[Answer], skipped: list[str], about: str) -> str:
    """Answers as an HTML page that needs nothing but itself.

    Args:
        about: one line that says what was searched.
    """
    import jinja2

    folder = Path(__file__).parent.parent / "reporting" / "template"
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True)
    templates.filters["picture"] = _data_address
    return templates.get_template("search.html.j2").render(
        answers=answers, skipped=skipped, about=about, side=THUMBNAIL
    )


def _find(asked: Iterable[str]) -> Iterable[tuple[str, Path | BinaryIO]]:
    for each in asked:
        path = Path(each).expanduser()
        if each == STDIN:
            yield "standard input", io.BytesIO(sys.stdin.buffer.read())
        elif path.is_dir():
            found = sources.files_below(path)
            if not found:
                raise StudyError(f"no files in {each}")
            yield from ((str(file), file) for file in found)
        elif path.exists():
            yield each, path
        else:
            # The shell leaves a pattern as it is where nothing matches, or where it is quoted.
            matches = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
            if not matches:
                raise StudyError(f"no picture {each}")
            yield from ((str(file), file) for file in matches if file.is_file())


def _data_address(image: np.ndarray) -> str:
    """A picture as the address of an `<img>`, at least `THUMBNAIL` pixels wide."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
