"""What makes a picture and its results alike, drawn over both."""

import numpy as np
from matplotlib import colormaps

from cbir.asking.answers import Answer
from cbir.asking.engine import Engine
from cbir.explain import enlarged
from cbir.networks.gradients import attention_maps, similarity_maps
from cbir.networks.vectors import whitening_of

COLOURS, OPACITY = "magma", 0.6


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
        whitening = whitening_of(opened.embeddings.artifact.folder)
        maps = similarity_maps(opened.network, asked, found, whitening)
    return [
        (overlay(answer.picture.image, of_query), overlay(result.image, of_result))
        for result, of_query, of_result in zip(answer.results, maps.query, maps.result, strict=True)
    ]


def overlay(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """An image, (size, size, 3) uint8, under a map of (h, w) values from 0 to 1."""
    colours = colormaps[COLOURS](enlarged(cells, len(image)))[..., :3] * 255
    return (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)
