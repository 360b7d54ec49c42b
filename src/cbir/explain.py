"""Why queries match their results: maps of both, and whether the maps are right.

A map that looks right may be wrong, so it is tried: what it marks is taken from the query, or put
back first, and the similarity is followed beside that of maps of chance (Petsiuk, Das, Saenko,
"RISE: randomized input sampling for explanation of black-box models", 2018). Pictures mostly have
something to see in their middle, which is better than chance and explains nothing: so it is
followed beside that of another pair's map too.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from cbir import StudyError
from cbir.cache import Artifact, cached
from cbir.networks.embeddings import Embeddings, Encode, make_encoder
from cbir.networks.gradients import Maps, attention_maps, similarity_maps
from cbir.networks.models import Network
from cbir.progress import progress

KINDS = ("similarity", "attention")
# Of the blur that stands for what is taken away: its standard deviation, as a share of the side.
BLUR = 0.25
# By a pair's own map, by that of another pair, by maps of chance.
CURVES = [f"{way}{of}" for way in ("deletion", "insertion") for of in ("", "_other", "_random")]


@dataclass(frozen=True)
class Explanation:
    """Queries, the result nearest to each, maps of both, and how the maps stood the test.

    Attributes:
        artifact: where it stands, and what it was made from.
        kind: of map, a name in `KINDS`.
        queries, results: (n,) int positions among the queries and in the gallery.
        similarities: (n,) float32 of each query and its result.
        maps: of each query and its result.
        curves: from `curves`.
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
        """A row per pair, as `faithfulness` gives it."""
        return faithfulness(self.curves)


def of(
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
    """Explain why queries match their nearest results; what is already done is not done again.

    With `test_time_flips` the maps are those of the images as they are, not mirrored; the
    similarities that test the maps are those of the study.

    Args:
        network: with the weights that the embeddings were made with.
        embeddings: of gallery and queries.
        rankings: (n_queries, k) gallery positions, as an `Evaluation` has them.
        kind: "similarity", or "attention" where the pooling is.
        count: how many queries, as `in_turn` takes them; those that find nothing are left out.
        steps, random_maps, seed: as for `curves`.

    Raises:
        StudyError: no such kind of map for this network, or its feature maps are too small.
    """
    if kind not in KINDS:
        raise StudyError(f"unknown kind of map {kind!r}: known are {', '.join(KINDS)}")
    dataset = embeddings.dataset
    queries = in_turn(dataset.query_labels, count)
    queries = queries[rankings[queries, 0] >= 0]
    results = np.asarray(rankings[queries, 0], int)
    query_places, result_places = dataset.queries[queries], dataset.gallery[results]

    def make(folder: Path) -> None:
        query_images, result_images = dataset.images[query_places], dataset.images[result_places]
        if kind == "attention":
            maps = attention_maps(network, query_images, result_images)
        else:
            maps = similarity_maps(network, query_images, result_images, embeddings.whitening)
        np.savez(folder / "maps.npz", **vars(maps))
        tested = curves(
            make_encoder(network, embeddings),
            query_images,
            embeddings.vectors[result_places],
            maps.query,
            steps=steps,
            random_maps=random_maps,
            seed=seed,
        )
        tested.to_parquet(folder / "curves.parquet")

    artifact = cached(
        "explanations",
        make,
        parameters={
            "kind": kind,
            "pairs": np.column_stack([query_places, result_places]).tolist(),
            "steps": steps,
            "random_maps": random_maps,
            "seed": seed,
        },
        reads=[embeddings.artifact.key],
        package="explain",
    )
    with np.load(artifact.folder / "maps.npz") as kept:
        maps = Maps(kept["query"], kept["result"], str(kept["layer"]))
    products = embeddings.vectors[query_places] * embeddings.vectors[result_places]
    return Explanation(
        artifact,
        kind,
        queries,
        results,
        products.sum(axis=1),
        maps,
        pd.read_parquet(artifact.folder / "curves.parquet"),
    )


def in_turn(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first of each class, then of the second of each, and so on, up to a count.

    Args:
        labels: (n,) int.
    """
    turn = pd.Series(labels).groupby(labels).cumcount()
    return np.lexsort((labels, turn))[:count]


def curves(
    encode: Encode,
    query_images: np.ndarray,
    result_vectors: np.ndarray,
    query_maps: np.ndarray,
    *,
    steps: int = 8,
    random_maps: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """How the similarity changes as what a map marks is taken from the query, or put back first.

    What is taken away is put by the same place of the query, strongly blurred: it keeps colour and
    light and loses shape, while one colour would bring edges of its own. A map of chance is the
    same map with its positions in random order, made as large in the same way, so that only the
    place differs. Another pair's map is that of the pair before. Costs
    2 (steps - 1) (2 + random_maps) + 2 embeddings a pair.

    Args:
        encode: as `embeddings.encoder` gives it.
        query_images: (n, size, size, 3) uint8.
        result_vectors: (n, d) float32 of unit length.
        query_maps: (n, h, w), high where the query is thought to matter.
        steps: how many equal shares of its pixels the query is divided into.
        random_maps: maps of chance for each pair, 1 or more; their similarities are averaged.
        seed: of these, and of the order of pixels that a map ranks alike.

    Returns:
        A row per pair and share: pair, share (of the pixels taken away or put back, from 0 to 1),
        and the similarities of `CURVES`.
    """
    shares = np.linspace(0, 1, steps + 1)
    generator = np.random.default_rng(seed)
    frames = []
    for pair, image in enumerate(progress(query_images, len(query_images), "explanations")):
        cells = query_maps[pair]
        tried = [cells, query_maps[pair - 1]]
        for _ in range(random_maps):
            tried.append(generator.permutation(cells.ravel()).reshape(cells.shape))
        ranks = np.stack([_ranks(each, len(image), generator) for each in tried])
        found = _similarities(encode, image, result_vectors[pair], ranks, shares)
        columns = [curve for way in found for curve in (way[0], way[1], way[2:].mean(axis=0))]
        by_name = dict(zip(CURVES, columns, strict=True))
        frames.append(pd.DataFrame({"pair": pair, "share": shares, **by_name}))
    return pd.concat(frames, ignore_index=True)


def faithfulness(curves: pd.DataFrame) -> pd.DataFrame:
    """How much better the maps are than others: the area under each curve, and between them.

    A good map has a small area of deletion and a large one of insertion.

    Args:
        curves: from `curves`.

    Returns:
        A row per pair: the areas, which are mean similarities, under the names of the curves;
        deletion_gain = deletion_random - deletion, insertion_gain = insertion - insertion_random,
        and deletion_gain_over_other and insertion_gain_over_other likewise, above 0 where the map
        is better.
    """
    wide = curves.pivot(index="pair", columns="share", values=CURVES)
    shares = wide[CURVES[0]].columns
    areas = pd.DataFrame(
        {name: np.trapezoid(wide[name], shares, axis=1) for name in CURVES}, index=wide.index
    )
    for gain, of in (("gain", "random"), ("gain_over_other", "other")):
        areas[f"deletion_{gain}"] = areas[f"deletion_{of}"] - areas["deletion"]
        areas[f"insertion_{gain}"] = areas["insertion"] - areas[f"insertion_{of}"]
    return areas


def enlarged(cells: np.ndarray, size: int) -> np.ndarray:
    """A (h, w) map at the size of an image, (size, size) float32, between positions bilinear."""
    image = Image.fromarray(np.asarray(cells, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _ranks(cells: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """(size, size) share of the pixels that a map ranks before each.

    Those it ranks alike are ordered by a map of chance, in patches as coarse as its own.
    """
    chance = enlarged(generator.random(cells.shape), size)
    order = np.lexsort((chance.ravel(), -enlarged(cells, size).ravel()))
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
    # All orders begin and end alike: these two are embedded once.
    is_marked = (ranks[:, None] < shares[1:-1, None, None])[..., None]
    changed = [np.where(is_marked, blurred, image), np.where(is_marked, image, blurred)]
    images = np.concatenate(changed).reshape(-1, *image.shape)
    whole, none, *inner = encode(np.concatenate([[image, blurred], images]))[0] @ vector
    found = np.empty((2, len(ranks), len(shares)))
    found[..., 1:-1] = np.reshape(inner, (2, len(ranks), -1))
    found[0, :, 0] = found[1, :, -1] = whole
    found[0, :, -1] = found[1, :, 0] = none
    return found
