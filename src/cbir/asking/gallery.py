"""A gallery as a picture of one's own is searched in it."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbir import project_root
from cbir.retrieval import ranking


@dataclass(frozen=True)
class Gallery:
    """What is searched.

    Attributes:
        name: of the study, or of the gallery made of a folder.
        vectors: (n, d) float32 of unit length.
        labels: (n,) int64: the images' classes; of a folder without classes, those predicted.
        kind: what the labels are, "class" or "predicted class".
        names: what tells an image from all others, such as its path.
        image: position -> (size, size, 3) uint8.
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    names: list[str]
    image: Callable[[int], np.ndarray]
    kind: str = "class"

    @functools.cached_property
    def first_of_equals(self) -> np.ndarray:
        """As `ranking.search` takes it; computed once."""
        return ranking.first_of_equals(self.vectors)

    def positions(self, paths: Iterable[Path]) -> set[int]:
        """Where the images of these files stand; files that are not of the gallery do not count."""
        wanted = {path.resolve() for path in paths}
        root = project_root()
        # Folder by folder: to resolve each file would ask the disk for all of the gallery.
        resolved = functools.cache(lambda folder: folder.resolve())
        places = [root / name for name in self.names]
        return {at for at, each in enumerate(places) if resolved(each.parent) / each.name in wanted}

    def search(
        self, vectors: np.ndarray, k: int, searchable: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each query: positions and similarities, as `ranking.search`.

        Args:
            vectors: (n_queries, d) float32 of unit length.
            k: how many.
            searchable: (n_queries, n_classes) bool, the classes that each may find; all by default.
        """
        return ranking.search(
            vectors,
            self.vectors,
            k,
            gallery_labels=self.labels,
            restrict_to=searchable,
            first=self.first_of_equals,
        )
