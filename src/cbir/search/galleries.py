"""Galleries made of folders of pictures, embedded by a trained network of a study.

A gallery is the file `artifacts/galleries/<name>/pictures.npz`. During an update, each batch of new
embeddings is written to a separate file beside it; at the end, a single file replaces them all. An
interruption therefore loses at most one batch and leaves the previous gallery intact. A picture is
embedded again only if its size, its modification time or the network has changed.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cbir import StudyError, project_root
from cbir.cache import disk_errors, locked, replacing
from cbir.images.folders import file_state, list_files, readable_name
from cbir.images.pictures import Unreadable, read_square, read_squares
from cbir.progress import Ticker
from cbir.search.engine import Engine, Gallery, open_engine

BATCH = 256


@dataclass
class Changes:
    """The changes made by an update of a gallery.

    Attributes:
        embedded, kept, removed: numbers of pictures that were embedded, unchanged or deleted.
        skipped: "name: reason" of unreadable files.
        remarks: "name: remark" of files that are used though something is odd about them.
    """

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    skipped: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class _Row(NamedTuple):
    """An embedded picture: the state of its file, its embedding, its predicted class."""

    state: str
    vector: np.ndarray
    label: int


def index_folder(folder: Path, engine: Engine, name: str = "") -> tuple[str, Changes]:
    """Bring the gallery of a folder up to date: embed new pictures, remove deleted ones.

    Args:
        folder: pictures without classes, at any depth.
        engine: embeds the pictures.
        name: name of the gallery; the folder's name by default.

    Returns:
        The gallery's name, and the changes.

    Raises:
        StudyError: the folder does not exist or contains no readable picture, or the gallery with
            this name belongs to another folder.
    """
    folder = folder.expanduser().resolve()
    if re.search(r"[^\w.-]|^\.", name):
        raise StudyError(
            f"--name: {name!r}: use only letters, digits, dots, hyphens and underscores"
        )
    name = name or re.sub(r"[^\w.-]+|^\.+", "-", folder.name) or "pictures"
    gallery_file = _gallery_file(name)
    with disk_errors(gallery_file.parent), locked(gallery_file.parent):
        return name, _update(gallery_file, folder, engine)


def _update(gallery_file: Path, folder: Path, engine: Engine) -> Changes:
    name = gallery_file.parent.name
    home = gallery_file.parent
    files = _file_states(folder)
    previous_source, previous = _read(gallery_file)
    if previous_source and previous_source["folder"] != str(folder):
        raise StudyError(
            f"the gallery {name!r} contains {previous_source['folder']}: "
            "choose another name for this folder with --name"
        )
    source = {
        "folder": str(folder),
        "study": engine.run.study,
        "architecture": engine.run.architecture,
        "key": engine.key,
    }
    rows = {}
    for path in home.glob("*.npz"):
        its_source, stored = _read(path)
        if its_source == source:
            rows |= {file: row for file, row in stored.items() if files.get(file) == row.state}
    changes = Changes(kept=len(rows), removed=len(previous.keys() - files.keys()))
    waiting = {file: state for file, state in files.items() if file not in rows}
    home.mkdir(parents=True, exist_ok=True)
    batches = _embed(folder, waiting, engine, changes)
    for number, batch in enumerate(batches, start=len(list(home.glob("batch-*")))):
        _write(home / f"batch-{number:06d}.npz", source, batch)
        rows |= batch
    changes.embedded = len(rows) - changes.kept
    if rows:
        _write(gallery_file, source, dict(sorted(rows.items())))
    else:
        gallery_file.unlink(missing_ok=True)
    for path in home.glob("batch-*"):
        path.unlink()
    if not rows:
        raise StudyError(f"none of the {len(files):,} files in {folder} is a picture")
    return changes


def open_gallery(name: str) -> tuple[Engine, Gallery]:
    """Open a gallery and the engine that embedded it.

    Raises:
        StudyError: the gallery does not exist, or its network has been trained again since.
    """
    gallery_file = _gallery_file(name)
    source, rows = _read(gallery_file)
    if not source:
        others = gallery_file.parent.parent.glob(f"*/{gallery_file.name}")
        names = sorted(path.parent.name for path in others)
        raise StudyError(
            f"no gallery {name!r}: "
            + (f"existing: {', '.join(names)}" if names else "make one with `cbir index FOLDER`")
        )
    folder, study, architecture = source["folder"], source["study"], source["architecture"]
    engine = open_engine(study, architecture)
    if engine.key != source["key"]:
        raise StudyError(
            f"{architecture} of {study} has been trained again since the gallery was made: "
            f"run `cbir index {folder} --name {name} --study {study} "
            f"--architecture {architecture}` again"
        )
    paths = [Path(folder, file) for file in rows]
    _, vectors, labels = zip(*rows.values(), strict=True)
    return engine, Gallery(
        name,
        np.stack(vectors),
        np.array(labels),
        [readable_name(str(path)) for path in paths],
        lambda position: _image(paths[position], engine.image_size),
        label_kind="predicted class",
    )


def _gallery_file(name: str) -> Path:
    return project_root() / "artifacts" / "galleries" / name / "pictures.npz"


def _file_states(folder: Path) -> dict[str, str]:
    """`file_state` of every file in the folder, by its path in the folder."""
    if not folder.is_dir():
        raise StudyError(f"no folder {folder}")
    try:
        paths = list_files(folder)
    except OSError as error:
        raise StudyError(f"cannot read {error.filename} ({error.strerror})") from None
    return {path.relative_to(folder).as_posix(): file_state(path) for path in paths}


def _embed(
    folder: Path, files: dict[str, str], engine: Engine, changes: Changes
) -> Iterator[dict[str, _Row]]:
    """Embed readable files in batches, and add the unreadable and odd ones to `changes`."""
    names, ticker = list(files), Ticker(len(files), "pictures")
    squares = read_squares([folder / name for name in names], engine.image_size)
    for start in range(0, len(names), BATCH):
        batch = list(zip(names[start : start + BATCH], squares, strict=False))
        images = {name: image for name, (image, _) in batch if image is not None}
        for name, (image, remark) in batch:
            if remark:
                (changes.skipped if image is None else changes.remarks).append(
                    f"{readable_name(name)}: {remark}"
                )
        if images:
            vectors, probabilities = engine.encode(np.stack(list(images.values())))
            labels = probabilities.argmax(axis=1)
            yield {
                name: _Row(files[name], vector, label)
                for name, vector, label in zip(images, vectors, labels, strict=True)
            }
        ticker.reached(min(start + BATCH, len(names)))


def _write(path: Path, source: dict, rows: dict[str, _Row]) -> None:
    states, vectors, labels = zip(*rows.values(), strict=True)
    columns = {"names": list(rows), "states": states, "vectors": vectors, "labels": labels}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, about=json.dumps(source), **columns)


def _read(path: Path) -> tuple[dict | None, dict[str, _Row]]:
    """The source (folder, study, architecture, key) and the rows.

    None and {} without a file, or if it is damaged: its pictures are then embedded again.
    """
    if not path.exists():
        return None, {}
    try:
        with np.load(path) as file:  # checks the sums of a zip archive
            columns = [file[name] for name in ("names", "states", "vectors", "labels")]
            source = json.loads(str(file["about"]))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({error}): its pictures must be embedded again", flush=True)
        return None, {}
    rows = zip(*columns, strict=True)
    return source, {str(name): _Row(str(state), *values) for name, state, *values in rows}


def _image(path: Path, size: int) -> np.ndarray:
    try:
        return read_square(path, size)
    except Unreadable:  # deleted since it was embedded
        return np.full((size, size, 3), 255, np.uint8)
