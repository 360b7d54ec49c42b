"""Files of vectors that other programs made, and their match with a study's images by name.

A file has a row for each image: `path`, the image's name in the study or a path that ends in it,
`vector`, and optionally `probabilities`, the predicted class probabilities in the order of the
study's classes. It is a `.parquet` file with these columns, or a `.npz` file with these arrays.
The order of the rows does not matter, and rows of other images are ignored.
"""

import os
import zipfile
from pathlib import Path

import numpy as np

from cbir import StudyError, project_root
from cbir.cache import digest, file_digest
from cbir.images.dataset import Dataset

# The value of the parameter `baseline` for which the parameter `vectors` names such a file.
VECTORS = "vectors"
SUFFIXES = (".npz", ".parquet")
COLUMNS = PATH, VECTOR, PROBABILITIES = "path", "vector", "probabilities"
# The largest difference between a sum of probabilities and 1. In half precision, each has a
# relative error of up to 2**-11.
SUM_ERROR = 1e-3


def find(vectors: str) -> Path:
    """The path of a file, relative to the project or absolute; StudyError if it cannot be read."""
    path = project_root() / Path(vectors).expanduser()
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise StudyError(
            f"vectors: no readable file {path}: use the path of a .npz or .parquet file"
        )
    return path


def fingerprints(vectors: str, dataset: Dataset) -> list[str]:
    """SHA-256 of the file, and a digest of the names of the images, which are matched with it."""
    return [file_digest(find(vectors)), digest(dataset.names)]


def read(vectors: str, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the vectors of a study's images.

    Returns:
        (n, d) float32 of any length but zero, in the order of the images, and (n, n_classes)
        float32 probabilities, None if the file has none.

    Raises:
        StudyError: the file cannot be read, an image has no row or several, or its values are not
            vectors or probabilities.
    """
    path = find(vectors)
    try:
        columns = _columns(path)
        rows = _match(columns[PATH], dataset)
        values = _numbers(VECTOR, columns, rows, dataset.names)
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(values, axis=1)
        is_wrong = (lengths == 0) | np.isinf(lengths)
        _refuse(is_wrong, dataset.names, f"the length of {VECTOR!r} is 0 or infinite in float32")
        if PROBABILITIES not in columns:
            return values, None
        probabilities = _numbers(PROBABILITIES, columns, rows, dataset.names)
        _check_probabilities(probabilities, dataset)
        return values, probabilities
    except ValueError as error:
        raise StudyError(f"vectors: {path}: {error}") from error


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of `COLUMNS` in a file, each (n_rows, ...); ValueError if it cannot be read."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # only few studies need it

            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            table = file.read([name for name in COLUMNS if name in names]).to_pandas()
            columns = {name: table[name].to_numpy() for name in table}
        elif not zipfile.is_zipfile(path):
            raise ValueError("not a file of numpy.savez")
        else:
            # Arrays of Python objects are refused, because reading them could run code.
            with np.load(path, allow_pickle=False) as file:
                names = file.files
                columns = {name: file[name] for name in COLUMNS if name in names}
    except Exception as error:  # libraries raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot be read ({type(error).__name__}: {reason})") from error
    for name in (PATH, VECTOR):
        if name not in columns:
            raise ValueError(f"no column {name!r}, only {', '.join(map(repr, names)) or 'none'}")
    for name, values in columns.items():
        if values.shape[:1] != columns[PATH].shape[:1]:
            raise ValueError(
                f"{name!r} must have a row for each value of {PATH!r}, not the shape "
                f"{values.shape} for {columns[PATH].shape}"
            )
    return columns


def _match(paths: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(n,) the row of each image; ValueError if an image has no row, or more than one."""
    if paths.ndim != 1 or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{PATH!r} must be a text in each row, the name of an image")
    paths = [str(path) for path in paths]
    position_of = {name: position for position, name in enumerate(dataset.names)}
    rows = np.full(len(position_of), -1)
    for row, path in enumerate(paths):
        # The longest end of the path that is the name of an image.
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        position = next((position_of[end] for end in ends if end in position_of), None)
        if position is None:
            continue
        if rows[position] >= 0:
            raise ValueError(
                f"two rows for the image {dataset.names[position]!r}: {paths[rows[position]]!r} "
                f"and {path!r}: keep one"
            )
        rows[position] = row
    if (missing := np.flatnonzero(rows < 0)).size:
        given = f"its paths are like {paths[0]!r}" if paths else "it has no rows"
        raise ValueError(
            f"no row for {missing.size:,} of {len(rows):,} images, the first is "
            f"{dataset.names[missing[0]]!r}; {given}"
        )
    return rows


def _numbers(
    name: str, columns: dict[str, np.ndarray], rows: np.ndarray, names: list[str]
) -> np.ndarray:
    """The given rows of a column as (n, width) float32; ValueError if they are not vectors."""
    values = columns[name]
    if values.dtype == object:  # a column of lists
        lists = [np.asarray(values[row]) for row in rows]
        for image, one in zip(names, lists, strict=True):
            if one.shape != lists[0].shape:
                raise ValueError(
                    f"{name!r} must have the same length in each row, but has the shape "
                    f"{lists[0].shape} for {names[0]!r} and {one.shape} for {image!r}"
                )
    matched = np.array(lists) if values.dtype == object else values[rows]
    if matched.ndim != 2 or not matched.shape[1] or matched.dtype.kind not in "iuf":
        raise ValueError(f"{name!r} must be a list of numbers in each row")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
        matched = matched.astype(np.float32)
    _refuse(~np.isfinite(matched).all(axis=1), names, f"{name!r} is NaN, infinite or too large")
    return matched


def _check_probabilities(probabilities: np.ndarray, dataset: Dataset) -> None:
    classes, width = dataset.classes, probabilities.shape[1]
    if width != len(classes):
        raise ValueError(
            f"{PROBABILITIES!r} must have a value for each of the {len(classes)} classes, in the "
            f"order {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}, not {width}"
        )
    _refuse((probabilities < 0).any(axis=1), dataset.names, f"{PROBABILITIES!r} is negative")
    errors = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1)
    _refuse(errors > SUM_ERROR, dataset.names, f"the sum of {PROBABILITIES!r} is not 1")


def _refuse(is_wrong: np.ndarray, names: list[str], reason: str) -> None:
    """Raise ValueError if a row is wrong, with the number of such rows and the first image."""
    if (wrong := np.flatnonzero(is_wrong)).size:
        raise ValueError(
            f"{reason} for {wrong.size:,} of {len(names):,} images, the first is "
            f"{names[wrong[0]]!r}"
        )
