"""Explanations: which parts of a query and its nearest result are similar, and a test of the maps.

The test removes or restores pixels of the query in the order of a map, and compares the similarity
with that under random maps (Petsiuk, Das, Saenko, "RISE: randomized input sampling for explanation
of black-box models", 2018). Since the object of most images is in the middle, any map of the middle
beats random maps. Therefore, the test also compares with the map of another pair.
"""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from cbir import StudyError
from cbir.cache import Artifact, cached
from cbir.images.pictures import enlarge_map
from cbir.networks.embeddings import Embeddings, Encode
from cbir.networks.gradients import Maps, attention_maps, similarity_maps
from cbir.networks.inference import make_encoder
from cbir.networks.models import Network
from cbir.progress import progress

KINDS = ("similarity", "attention")
# The standard deviation of the blur that replaces removed pixels, as a share of the image's side.
BLUR = 0.25
# The similarities under the pair's own map, another pair's map, and random maps.
CURVES = [one + whose for one in ("deletion", "insertion") for whose in ("", "_other", "_random")]


@dataclass(frozen=True)
class Explanation:
    """Queries, their nearest results, the maps of both, and the test of the maps.

    Attributes:
        kind: of the maps, a name in `KINDS`.
        queries, results: (n,) int positions among the queries and in the gallery.
        similarities: (n,) float32 of each query and its result.
        curves: from `perturbation_curves`.
    """

    artifact: Artifact
    kind: str
    queries: np.ndarray
    results: np.ndarray
    similarities: np.ndarray
    maps: Maps
    curves: pd.DataFrame

    @functools.cached_property
    def faithfulness(self) -> pd.DataFrame:
        """A row per pair, from `faithfulness`."""
        return faithfulness(self.curves)


def explain_queries(
    network: Network,
    embeddings: Embeddings,
    rankings: np.ndarray,
    *,
    kind: str = "similarity",
    count: int = 40,
    steps: int = 8,
    random_maps: int = 2,
    seed: int = 0,
) -> Explanation:
    """Explain why queries match their nearest results; cached.

    With `test_time_flips`, maps are computed for the original images, not for mirror images; the
    test uses the embeddings of the study.

    Args:
        network: the network that computed the embeddings.
        rankings: (n_queries, k) gallery positions, as in an `Evaluation`.
        kind: "similarity", or "attention" for a network with attention pooling.
        count: number of queries, chosen by `alternate_classes`; those without a result are skipped.

    Raises:
        StudyError: the network has no such maps, or its feature maps are too small.
    """
    if kind not in KINDS:
        raise StudyError(f"unknown kind of map {kind!r}; known: {', '.join(KINDS)}")
    dataset = embeddings.dataset
    queries = alternate_classes(dataset.query_labels, count)
    queries = queries[rankings[queries, 0] >= 0]
    results = np.asarray(rankings[queries, 0], int)
    query_places, result_places = dataset.queries[queries], dataset.gallery[results]
    settings = {"steps": steps, "random_maps": random_maps, "seed": seed}

    def make(folder: Path) -> None:
        query_images, result_images = dataset.images[query_places], dataset.images[result_places]
        if kind == "attention":
            maps = attention_maps(network, query_images, result_images)
        else:
            maps = similarity_maps(network, query_images, result_images, embeddings.whitening)
        np.savez(folder / "maps.npz", **vars(maps))
        encode, vectors = make_encoder(network, embeddings), embeddings.vectors[result_places]
        curves = perturbation_curves(encode, query_images, vectors, maps.query, **settings)
        curves.to_parquet(folder / "curves.parquet")

    pairs = np.column_stack([query_places, result_places]).tolist()
    parameters, reads = settings | {"kind": kind, "pairs": pairs}, [embeddings.artifact.key]
    artifact = cached("explanations", make, parameters=parameters, reads=reads, package="explain")
    with np.load(artifact.folder / "maps.npz") as arrays:
        maps = Maps(arrays["query"], arrays["result"], str(arrays["layer"]))
    curves = pd.read_parquet(artifact.folder / "curves.parquet")
    products = embeddings.vectors[query_places] * embeddings.vectors[result_places]
    return Explanation(artifact, kind, queries, results, products.sum(axis=1), maps, curves)


def alternate_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first image of each class, then of the second one, and so on, to a count."""
    rounds = pd.Series(labels).groupby(labels).cumcount()
    return np.lexsort((labels, rounds))[:count]


def perturbation_curves(
    encode: Encode,
    query_images: np.ndarray,
    result_vectors: np.ndarray,
    query_maps: np.ndarray,
    *,
    steps: int = 8,
    random_maps: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the similarity as pixels are removed, or restored, in the order of a map.

    A removed pixel takes its value from a strongly blurred copy of the query; a single colour would
    add edges. A random map is the pair's own map with its positions shuffled; another pair's map is
    that of the previous pair.

    Args:
        query_images: (n, size, size, 3) uint8.
        result_vectors: (n, d) float32 of unit length.
        query_maps: (n, h, w), large values for important parts of the query.
        steps: number of equal shares of the pixels.
        random_maps: for each pair, 1 or more; their similarities are averaged.
        seed: of the random maps and of the order of pixels with equal values in a map.

    Returns:
        A row per pair and share: pair, share (of the pixels removed or restored, from 0 to 1), and
        the similarities of `CURVES`.
    """
    shares = np.linspace(0, 1, steps + 1)
    generator = np.random.default_rng(seed)
    frames = []
    for pair, image in enumerate(progress(query_images, len(query_images), "explanations")):
        cells = query_maps[pair]
        maps = [cells, query_maps[pair - 1]]
        for _ in range(random_maps):
            maps.append(generator.permutation(cells.ravel()).reshape(cells.shape))
        ranks = np.stack([_pixel_ranks(cells, len(image), generator) for cells in maps])
        similarities = _similarities(encode, image, result_vectors[pair], ranks, shares)
        columns = [[*curves[:2], curves[2:].mean(axis=0)] for curves in similarities]
        by_name = dict(zip(CURVES, itertools.chain(*columns), strict=True))
        frames.append(pd.DataFrame({"pair": pair, "share": shares, **by_name}))
    return pd.concat(frames, ignore_index=True)


def faithfulness(curves: pd.DataFrame) -> pd.DataFrame:
    """The area under each of the `perturbation_curves`, and its gains over those of other maps.

    A good map has a small area of deletion and a large one of insertion. A row per pair: the areas,
    which are mean similarities, under the names of the curves; deletion_gain = deletion_random -
    deletion, insertion_gain = insertion - insertion_random, and the same with _over_other.
    """
    wide = curves.pivot(index="pair", columns="share", values=CURVES)
    shares = wide[CURVES[0]].columns
    areas = pd.DataFrame(
        {name: np.trapezoid(wide[name], shares, axis=1) for name in CURVES}, index=wide.index
    )
    for gain, other in (("gain", "random"), ("gain_over_other", "other")):
        areas[f"deletion_{gain}"] = areas[f"deletion_{other}"] - areas["deletion"]
        areas[f"insertion_{gain}"] = areas["insertion"] - areas[f"insertion_{other}"]
    return areas


def _pixel_ranks(cells: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """(size, size) share of the pixels that a map ranks before each pixel.

    A random map of the same resolution orders the pixels with equal values.
    """
    tie_breaker = enlarge_map(generator.random(cells.shape), size)
    order = np.lexsort((tie_breaker.ravel(), -enlarge_map(cells, size).ravel()))
    ranks = np.empty(size * size)
    ranks[order] = np.arange(size * size) / size**2
    return ranks.reshape(size, size)


def _similarities(
    encode: Encode, image: np.ndarray, vector: np.ndarray, ranks: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """(2, n, steps + 1) similarities of deletion and insertion, by n orders of the pixels."""
    deviation = BLUR * len(image)
    blurred = gaussian_filter(image.astype(np.float32), (deviation, deviation, 0), mode="nearest")
    blurred = blurred.round().astype(image.dtype)
    # The first and the last image are the same in every order, so they are embedded once.
    is_marked = (ranks[:, None] < shares[1:-1, None, None])[..., None]
    changed = [np.where(is_marked, blurred, image), np.where(is_marked, image, blurred)]
    images = np.concatenate(changed).reshape(-1, *image.shape)
    whole, none, *inner = encode(np.concatenate([[image, blurred], images]))[0] @ vector
    similarities = np.empty((2, len(ranks), len(shares)))
    similarities[..., 1:-1] = np.reshape(inner, (2, len(ranks), -1))
    similarities[0, :, 0] = similarities[1, :, -1] = whole
    similarities[0, :, -1] = similarities[1, :, 0] = none
    return similarities
