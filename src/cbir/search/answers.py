"""What a search answers: for each picture its predicted class and the nearest images."""

import io
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cbir import StudyError
from cbir.images.pictures import Unreadable, files_below, read_square
from cbir.retrieval.feedback import refine
from cbir.search.engine import Engine
from cbir.search.galleries import Gallery

STDIN = "-"


@dataclass(frozen=True)
class Picture:
    """What is asked with: a name, a square, and what a network makes of it.

    Attributes:
        name: its path, or what stands for one.
        image: (size, size, 3) uint8, as the network sees it.
        vector: (d,) float32 of unit length.
        probabilities: (n_classes,) float32.
    """

    name: str
    image: np.ndarray
    vector: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Result:
    """An image that was found.

    Attributes:
        place: from 1 on.
        similarity: cosine, from -1 to 1.
        label: name of its class; in a gallery without classes, of the one predicted.
        name: what tells it from all others, such as its path.
        position: in the gallery.
        image: (size, size, 3) uint8.
    """

    place: int
    similarity: float
    label: str
    name: str
    position: int
    image: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What was found for a picture.

    Attributes:
        picture: what was asked with.
        probabilities: by name of the class, the highest first.
        results: the nearest first.
        kind: what their labels are, "class" or "predicted class".
    """

    picture: Picture
    probabilities: dict[str, float]
    results: list[Result]
    kind: str

    @property
    def predicted(self) -> str:
        """The class of the highest probability."""
        return next(iter(self.probabilities))


def read_pictures(asked: Iterable[str], size: int) -> tuple[dict[str, np.ndarray], list[str]]:
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
            images[name] = read_square(picture, size)
        except Unreadable as error:
            skipped.append(f"{name}: {error}")
    return images, skipped


def embed_pictures(engine: Engine, images: dict[str, np.ndarray]) -> list[Picture]:
    """What the engine's network makes of pictures, by name, as `read` gives them."""
    if not images:
        return []
    made = engine.encode(np.stack(list(images.values())))
    return [Picture(*each) for each in zip(images, images.values(), *made, strict=True)]


def picture_of_query(engine: Engine, query: int) -> Picture:
    """One of the study's own queries, which nothing need be made of anew."""
    found = engine.embeddings
    return Picture(
        engine.query_names[query],
        np.asarray(found.dataset.images[found.dataset.queries[query]]),
        np.asarray(found.query[query]),
        np.asarray(found.query_probabilities[query]),
    )


def search(
    engine: Engine,
    gallery: Gallery,
    picture: Picture,
    k: int,
    *,
    search: str = "unrestricted",
    positive: np.ndarray = (),
    negative: np.ndarray = (),
    left_out: Collection[int] = (),
) -> Answer:
    """What is found for a picture, and for what was marked so far.

    Args:
        engine: that embedded the gallery.
        gallery: what to search.
        picture: what to search for.
        k: how many results.
        search: a name in `engine.SEARCHES`.
        positive, negative: (n, d) float32, embeddings that were marked so; they count as
            `Engine.weights` says.
        left_out: gallery positions that are not returned, such as the picture itself.
    """
    vector = picture.vector
    if len(positive) or len(negative):
        vector = refine(vector, positive, negative, engine.weights)
    searchable = engine.searchable(picture.probabilities[None], search)
    positions, similarities = gallery.search(vector[None], k + len(left_out), searchable)
    found = [
        (position, similarity)
        for position, similarity in zip(positions[0], similarities[0], strict=True)
        if position >= 0 and position not in left_out
    ]
    results = [
        Result(
            place,
            float(similarity),
            engine.classes[gallery.labels[position]],
            gallery.names[position],
            int(position),
            gallery.image(position),
        )
        for place, (position, similarity) in enumerate(found[:k], start=1)
    ]
    order = np.argsort(-picture.probabilities, kind="stable")
    probabilities = {engine.classes[at]: float(picture.probabilities[at]) for at in order}
    return Answer(picture, probabilities, results, gallery.kind)


def mean_picture(pictures: list[Picture]) -> Picture:
    """The mean of the positive examples, for a search that has no picture."""
    vector = np.mean([each.vector for each in pictures], axis=0)
    return Picture(
        ", ".join(each.name for each in pictures),
        pictures[0].image,
        vector / max(np.linalg.norm(vector), 1e-12),
        np.mean([each.probabilities for each in pictures], axis=0),
    )


def _find(asked: Iterable[str]) -> Iterable[tuple[str, Path | BinaryIO]]:
    for each in asked:
        path = Path(each).expanduser()
        if each == STDIN:
            yield "standard input", io.BytesIO(sys.stdin.buffer.read())
        elif path.is_dir():
            found = files_below(path)
            if not found:
                raise StudyError(f"no files in {each}")
            yield from ((str(file), file) for file in found)
        elif path.exists():
            yield each, path
        else:
            # The shell leaves a pattern as it is where nothing matches, or where it is quoted.
            pattern = str(path.relative_to(path.anchor))
            matches = sorted(Path(path.anchor or ".").glob(pattern)) if pattern != "." else []
            files = [file for file in matches if file.is_file()]
            if not files:
                raise StudyError(f"no picture {each}")
            yield from ((str(file), file) for file in files)
