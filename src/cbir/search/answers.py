"""Search a gallery with a picture: its predicted class and the most similar gallery images."""

import base64
import functools
import io
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from cbir import StudyError
from cbir.images.folders import LeftOut, find_files, readable_name
from cbir.images.pictures import read_picture
from cbir.networks.embeddings import normalise
from cbir.retrieval.feedback import refine
from cbir.search.searchers import Gallery, Searcher

STDIN = "-"
# The number of classes that a prediction lists with their probabilities.
NAMED_CLASSES = 3


@dataclass(frozen=True)
class Picture:
    """A query: a picture and what the network computes from it.

    Attributes:
        name: its path, or a description if it is not a file.
        image: (size, size, 3) uint8, as the network sees it.
        vector: (d,) float32 of unit length, its embedding.
        probabilities: (n_classes,) float32 predicted class probabilities.
    """

    name: str
    image: np.ndarray
    vector: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Result:
    """A gallery image returned for a query.

    Attributes:
        rank: starting at 1.
        similarity: cosine similarity to the query, from -1 to 1.
        label: name of its class, or of its predicted class in a gallery without classes.
        name: unique in the gallery, such as its path.
        position: in the gallery.
        gallery: the gallery.
    """

    rank: int
    similarity: float
    label: str
    name: str
    position: int
    gallery: Gallery = field(repr=False)

    @functools.cached_property
    def image(self) -> np.ndarray:
        """(size, size, 3) uint8; read on first use."""
        return self.gallery.image(self.position)


@dataclass(frozen=True)
class Answer:
    """The prediction and the results for one query.

    Attributes:
        picture: the query.
        probabilities: by class name, the most probable class first.
        results: the most similar first.
        label_kind: the kind of the results' labels, "class" or "predicted class".
        nearest: the similarity of the nearest image; None if no image was searched.
        usual_similarity: as in `Searcher`.
    """

    picture: Picture
    probabilities: dict[str, float]
    results: list[Result]
    label_kind: str
    nearest: float | None = None
    usual_similarity: float | None = None

    @property
    def is_near(self) -> bool | None:
        """Whether the nearest image is as near as usual; None if that is not known."""
        if self.nearest is None or self.usual_similarity is None:
            return None
        return self.nearest >= self.usual_similarity

    @property
    def warning(self) -> str:
        """A sentence that says so if no image is as near as usual, else an empty text."""
        if self.is_near in (True, None):
            return ""
        return (
            "The nearest image is less similar than usual: its similarity is "
            f"{self.nearest:.3f}, while 95 % of the study's validation images have a training "
            f"image with one of at least {self.usual_similarity:.3f}. The picture may belong to "
            "none of the classes."
        )

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def prediction(self) -> str:
        """The most probable classes with their probabilities, as text."""
        most_probable = list(self.probabilities.items())[:NAMED_CLASSES]
        return ", ".join(f"{name} ({100 * value:.0f} %)" for name, value in most_probable)


def read_pictures(
    searcher: Searcher, named: dict[str, Path | BinaryIO], option: str = ""
) -> tuple[list[Picture], list[LeftOut], list[LeftOut]]:
    """Read and embed pictures named on the command line, as the study read its own.

    Args:
        named: files by name, as from `find_pictures`.
        option: an option whose pictures must all be readable, such as "--like".

    Returns:
        The pictures, the files that cannot be read, and those used with a remark.

    Raises:
        StudyError: a picture of `option` cannot be read.
    """
    images, left_out, remarks = {}, [], []
    for name, file in named.items():
        image, remark = read_picture(file, **searcher.reading)
        if image is None and option:
            raise StudyError(f"{option}: {name}: {remark}: leave this example out")
        if image is not None:
            images[name] = image
        if remark:
            (left_out if image is None else remarks).append(LeftOut(name, remark))
    return embed_pictures(searcher, images), left_out, remarks


def embed_pictures(searcher: Searcher, images: dict[str, np.ndarray]) -> list[Picture]:
    """Embed (size, size, 3) uint8 images, given by name."""
    if not images:
        return []
    vectors, probabilities = searcher.encode(np.stack(list(images.values())))
    rows = zip(images, images.values(), vectors, probabilities, strict=True)
    return [Picture(*row) for row in rows]


def picture_of_query(searcher: Searcher, query: int) -> Picture:
    """One of the study's own queries, with its stored embedding."""
    embeddings, dataset = searcher.run.embeddings, searcher.run.dataset
    position = dataset.queries[query]
    return Picture(
        searcher.run.image_names[position],
        np.asarray(dataset.images[position]),
        np.asarray(embeddings.vectors[position]),
        np.asarray(embeddings.probabilities[position]),
    )


def mean_picture(pictures: list[Picture]) -> Picture:
    """The mean of positive examples, which is the query if no picture is given."""
    vector = np.mean([picture.vector for picture in pictures], axis=0)
    return Picture(
        ", ".join(picture.name for picture in pictures),
        pictures[0].image,
        normalise(vector[None])[0],
        np.mean([picture.probabilities for picture in pictures], axis=0),
    )


def search_all(
    searcher: Searcher,
    gallery: Gallery,
    pictures: list[Picture],
    k: int,
    *,
    search: str = "unrestricted",
    positive: np.ndarray = (),
    negative: np.ndarray = (),
    left_out: Sequence[Collection[int]] = (),
    min_similarity: float = -1.0,
) -> list[Answer]:
    """Search a gallery with pictures and the feedback given so far.

    Args:
        k: the number of results.
        search: a name in `searchers.SEARCHES`.
        positive, negative: (n, d) float32 embeddings of positive and negative examples, weighted
            by `Searcher.feedback_weights`.
        left_out: gallery positions that are not returned, by query, such as the query itself.
        min_similarity: the least similarity of a result.
    """
    if not pictures:
        return []
    left_out = left_out or [()] * len(pictures)
    vectors = [picture.vector for picture in pictures]
    if len(positive) or len(negative):
        weights = searcher.feedback_weights
        vectors = [refine(vector, positive, negative, weights) for vector in vectors]
    probabilities = np.stack([picture.probabilities for picture in pictures])
    searchable = searcher.searchable(probabilities, search)
    n_results = k + max(map(len, left_out))
    rankings = gallery.search(np.stack(vectors), n_results, searchable)
    answers = []
    for picture, excluded, positions, similarities in zip(
        pictures, left_out, *rankings, strict=True
    ):
        ranked = [
            (position, similarity)
            for position, similarity in zip(positions.tolist(), similarities.tolist(), strict=True)
            if position >= 0 and position not in excluded
        ][:k]
        results = [
            Result(
                rank, similarity, searcher.classes[gallery.labels[position]],
                gallery.names[position], position, gallery,
            )
            for rank, (position, similarity) in enumerate(ranked, start=1)
            if similarity >= min_similarity
        ]  # fmt: skip
        order = np.argsort(-picture.probabilities, kind="stable")
        probable = {searcher.classes[label]: float(picture.probabilities[label]) for label in order}
        nearest = ranked[0][1] if ranked else None
        answers.append(
            Answer(
                picture, probable, results, gallery.label_kind, nearest, searcher.usual_similarity
            )
        )
    return answers


def data_url(image: np.ndarray) -> str:
    """(h, w, 3) uint8 pixels as a PNG in a data URL, for the `src` of an HTML image."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def find_pictures(arguments: Iterable[str]) -> tuple[dict[str, Path | BinaryIO], list[LeftOut]]:
    """The files that the arguments name, by name, and those in their folders that are left out.

    Arguments are files, folders, patterns such as "*.jpg", or "-" for a picture on standard input.
    StudyError if one of them matches no file.
    """
    named, left_out = {}, []
    for argument in arguments:
        if argument == STDIN:
            if sys.stdin is None:
                raise StudyError("-: standard input is closed: send it a picture, or name a file")
            named["standard input"] = io.BytesIO(sys.stdin.buffer.read())
            continue
        path = Path(argument).expanduser()
        if path.is_dir():
            names, _, others = find_files(path)
            files = [path / name for name in names]
            left_out += [one._replace(name=readable_name(f"{path}/{one.name}")) for one in others]
        elif path.exists():
            files = [path]
        else:
            # The shell does not expand a pattern that is quoted or matches nothing.
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            files = [file for file in matches if file.is_file()]
        if not files:
            raise StudyError(f"no {'files in' if path.is_dir() else 'picture'} {argument}")
        named |= {readable_name(str(file)): file for file in files}
    return named, left_out
