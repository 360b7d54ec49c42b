"""A study's images and embeddings as tables for other programs: one Parquet file per run.

Embedding Atlas (https://apple.github.io/embedding-atlas) shows these files, and another study can
use them as `vectors`, because they have the columns that `vector_files` reads.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cbir import StudyError, report_command
from cbir.images.dataset import Dataset
from cbir.networks.vector_files import PATH, PROBABILITIES, VECTOR
from cbir.progress import progress
from cbir.reporting import examples, measurements
from cbir.reporting.runs import Run, read_manifest, read_run, run_folder, shared_dataset
from cbir.retrieval import ranking
from cbir.retrieval.evaluation import N_RESULTS
from cbir.retrieval.projections import project

FOLDER = "export"


def export_study(study: str) -> list[Path]:
    """Write reports/<study>/export/<run>.parquet for every run; earlier exports are removed.

    StudyError if there is no report, or a run's images or embeddings are missing.
    """
    folder = run_folder(study) / FOLDER
    if not (names := read_manifest(folder.parent).get("architectures")):
        raise StudyError(f"no results in {folder.parent}: run `{report_command(study)}` first")
    runs = {name: read_run(study, name) for name in names}
    images = encode_images(shared_dataset(runs))
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.parquet"):
        path.unlink()
    paths = [folder / f"{name}.parquet" for name in runs]
    for run, path in zip(runs.values(), paths, strict=True):
        measurements.write_parquet(export_frame(run, images), path)
    return paths


def export_frame(run: Run, images: list[bytes]) -> pd.DataFrame:
    """All images of a study with their embeddings by a run's first seed, under its first protocol.

    `images` are those of `encode_images`.

    Returns:
        A row per image, in the order of `Dataset.images`: path (as in `Run.image_names`), image (a
        JPEG file), class, split (as from `splits`),
        average_precision (of the unrestricted search; NaN except for queries), predicted_class
        (only with a classifier), x and y (the first two principal components), neighbours (as from
        `neighbours`), vector (of unit length), probabilities (only with a classifier).
    """
    dataset, embeddings = run.dataset, run.embeddings
    classes, scores = np.array(dataset.classes), examples.query_scores(run)
    frame = pd.DataFrame({PATH: run.image_names, "image": images, "class": classes[dataset.labels]})
    frame["split"] = splits(dataset)
    frame.loc[scores["query"], "average_precision"] = scores["average_precision"].to_numpy()
    if embeddings.probabilities is not None:
        frame["predicted_class"] = classes[embeddings.probabilities.argmax(axis=1)]
    frame[["x", "y"]], _ = project(embeddings.vectors)
    frame["neighbours"] = neighbours(dataset, embeddings.vectors)
    frame[VECTOR] = list(embeddings.vectors)
    if embeddings.probabilities is not None:
        frame[PROBABILITIES] = list(embeddings.probabilities)
    return frame


def splits(dataset: Dataset) -> np.ndarray:
    """(n,) what each image is used for: "training", "validation", "query", else "gallery"."""
    names = np.full(len(dataset.labels), "gallery", object)
    parts = {"query": dataset.queries, "training": dataset.train, "validation": dataset.validation}
    for name, positions in parts.items():
        names[positions] = name
    return names


def neighbours(dataset: Dataset, vectors: np.ndarray) -> list[dict[str, list]]:
    """The ten gallery images that are most similar to each image, without the image itself.

    For (n, d) float32 vectors of unit length, n dictionaries: ids (positions among all images,
    nearest first) and distances (1 - cosine similarity).
    """
    gallery_places = np.full(len(vectors), -1)
    gallery_places[dataset.gallery] = np.arange(len(dataset.gallery))
    rankings, similarities = ranking.search(
        vectors, vectors[dataset.gallery], N_RESULTS, exclude=gallery_places
    )
    return [
        {"ids": dataset.gallery[row[row >= 0]].tolist(),
         "distances": (1 - values[row >= 0]).tolist()}
        for row, values in zip(rankings, similarities, strict=True)
    ]  # fmt: skip


def encode_images(dataset: Dataset) -> list[bytes]:
    """Each image as a JPEG file, in the size that the study uses."""
    files = []
    for image in progress(dataset.images, len(dataset.images), "encoding images"):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=90, subsampling=0)
        files.append(stream.getvalue())
    return files
