"""Galleries made of folders of pictures, embedded by a trained network of a study.

A gallery is the file `artifacts/galleries/<name>/pictures.parquet`, whose pages have checksums.
During an update, each batch of new embeddings is written to a separate file beside it; at the end,
a single file replaces them all. An interruption therefore loses at most one batch and leaves the
previous gallery intact.

A picture is embedded again only if its content or the network has changed. A file with the same
path, size and modification time counts as unchanged, unless a check is requested.
"""

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cbir import StudyError, cbir_command, project_root
from cbir.cache import digest
from cbir.files import disk_errors, file_digest, locked, replacing
from cbir.images.folders import LeftOut, file_state, find_files, readable_name
from cbir.images.pictures import read_picture, read_squares
from cbir.machine import SETTINGS
from cbir.progress import Ticker
from cbir.reporting import measurements, tables
from cbir.retrieval.engines import EXACT, check_engine, resolved
from cbir.search.searchers import (
    DEFAULT_STUDY,
    GROUP,
    Gallery,
    Searcher,
    first_finished,
    open_searcher,
)

BATCH = 256
# The value of --workers that embeds on Ray, and the number of pictures that it hands out at a time,
# a multiple of `BATCH`: sums of a network depend on the batch.
RAY, CHUNK = "ray", 4 * BATCH
# The key of a gallery's source in the file's metadata, and that of its checksum within the source.
SOURCE, CHECKSUM = b"source", "sha256"
# What a damaged file raises. Its pages have checksums, but its footer has none.
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


@dataclass
class Changes:
    """The changes made by an update of a gallery.

    Attributes:
        embedded, kept, removed: numbers of pictures that were embedded, unchanged (though perhaps
            renamed) or deleted.
        left_out: the files that are not used.
        remarks: the files that are used though something is odd about them.
        table: the CSV file that lists all of both.
    """

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[LeftOut] = field(default_factory=list)
    table: Path | None = None


class _Row(NamedTuple):
    """An embedded picture: state and SHA-256 of its file, its predicted class, its embedding."""

    state: str
    digest: str
    label: int
    vector: np.ndarray


class _Embedded(NamedTuple):
    """A picture that was read, a remark on it, and its predicted class and embedding, if any."""

    name: str
    remark: str
    output: tuple[int, np.ndarray] | None


def gallery_name(folder: Path, name: str = "") -> str:
    """The name of a folder's gallery, its own by default; StudyError if the given one is unsafe."""
    if re.search(r"[^\w.-]|^[.-]", name):
        raise StudyError(
            f"--name: {name!r}: use letters, digits, dots, hyphens and underscores, and begin with "
            "a letter, a digit or an underscore"
        )
    return name or re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip(".-") or "pictures"


def check_folder(folder: Path) -> None:
    """StudyError if there is no such folder."""
    if not (folder := folder.expanduser().resolve()).is_dir():
        raise StudyError(f"no folder {folder}: give the path of a folder of pictures")


def index_command(folder: str | Path, name: str, study: str, architecture: str = "") -> str:
    """The command that makes a gallery, for messages; `folder` may be a word in capitals."""
    words = [readable_name(str(folder)), "--name", name, "--study", study]
    words += ["--architecture", architecture] if architecture else []
    return cbir_command("index", *words)


def free_name(name: str) -> str:
    """The first of name-2, name-3, … that no gallery has."""
    names = (f"{name}-{number}" for number in itertools.count(2))
    return next(other for other in names if not _gallery_file(other).exists())


def read_source(name: str) -> dict:
    """The folder, engine, study, architecture and key of a gallery; empty if there is none, or if
    its file is damaged.
    """
    return _read_source(_gallery_file(name))


def index_folder(
    folder: Path,
    searcher: Searcher,
    name: str = "",
    *,
    check: bool = False,
    held_by: str = EXACT,
    workers: str = "",
) -> tuple[str, Changes]:
    """Bring the gallery of a folder up to date: embed new pictures, remove deleted ones.

    Args:
        folder: pictures without classes, at any depth.
        name: of the gallery; by default that of the folder.
        check: whether to compare the content of all files, even if size and time are the same.
        held_by: the engine that finds the nearest images, as for `engines.open_engine`.
        workers: what embeds the pictures: `RAY`, or this process by default.

    Returns the gallery's name, and the changes. StudyError if the folder does not exist or contains
    no readable picture, or the gallery with this name belongs to another folder.
    """
    folder = folder.expanduser().resolve()
    name = gallery_name(folder, name)
    check_engine(held_by)
    if workers == RAY and not importlib.util.find_spec("ray"):
        raise StudyError("--workers: Ray is not installed: run `make ray` first, or omit --workers")
    home = _gallery_file(name).parent
    states, left_out = _list_files(folder)
    with disk_errors(home), locked(home):
        home.mkdir(exist_ok=True)
        changes = _update(
            folder, states, left_out, searcher, name=name, check=check, held_by=resolved(held_by),
            workers=workers,
        )  # fmt: skip
        if held_by != EXACT:
            open_gallery(name)[1].index.close()
    return name, changes


def open_gallery(name: str, held_by: str = "") -> tuple[Searcher, Gallery]:
    """Open a gallery and the searcher that embedded it.

    Args:
        name: of the gallery.
        held_by: the engine that finds the nearest images, as for `engines.open_engine`; by default
            that of the last `index_folder`.

    Raises:
        StudyError: the gallery does not exist or is damaged, or its network has been trained again
            since.
    """
    path = _gallery_file(name)
    if not (source := _read_source(path)):
        is_there = path.exists()
        reason = f"{path} is damaged" if is_there else f"no gallery {name!r}"
        names = sorted(other.parent.name for other in path.parent.parent.glob(f"*/{path.name}"))
        if names and not is_there:
            raise StudyError(
                f"{reason}: choose from {', '.join(names)}, or make one with `cbir index`"
            )
        try:
            command = index_command("FOLDER", name, first_finished(DEFAULT_STUDY))
        except StudyError as error:
            raise StudyError(f"{reason}, and {error}") from None
        raise StudyError(f"{reason}: {'run' if is_there else 'make one with'} `{command}`")
    folder, study, architecture = source["folder"], source["study"], source["architecture"]
    searcher = open_searcher(study, architecture)
    again = f"run `{index_command(folder, name, study, architecture)}`"
    if searcher.key != source["key"]:
        raise StudyError(
            f"{architecture} of {study} has been trained again since the gallery was made: "
            f"{again} again"
        )

    @contextlib.contextmanager
    def report_damage() -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise StudyError(f"{path} is damaged: {again}") from error

    def groups() -> Iterator[np.ndarray]:
        with report_damage(), _open(path) as file:
            for group in range(file.num_row_groups):
                yield _vectors(file.read_row_group(group, ["vector"]))

    def ids() -> np.ndarray:
        with report_damage(), _open(path) as file:
            digests = file.read(["digest"])["digest"].to_pylist()
            numbers = bytes.fromhex("".join(text[:16].rjust(16, "0") for text in digests))
        numbers = pd.Series(np.frombuffer(numbers, np.int64))
        # Copies of a picture have the same embedding, but not the same number.
        return (numbers + numbers.groupby(numbers).cumcount()).to_numpy()

    with report_damage(), _open(path) as file:
        columns = file.read(["name", "label"])
        files, labels = columns["name"].to_pylist(), columns["label"].to_numpy()
    prefix = readable_name(folder)
    gallery = Gallery(
        name,
        groups,
        labels,
        [f"{prefix}/{file.decode('utf-8', 'backslashreplace')}" for file in files],
        lambda position: _image(Path(folder, os.fsdecode(files[position])), searcher),
        ids,
        label_kind="predicted class",
    )
    return searcher, gallery.held_by(held_by or source.get("engine", EXACT), name, searcher.key)


def _gallery_file(name: str) -> Path:
    return project_root() / "artifacts" / "galleries" / name / "pictures.parquet"


def _update(
    folder: Path,
    states: dict[str, str],
    left_out: list[LeftOut],
    searcher: Searcher,
    *,
    name: str,
    check: bool,
    held_by: str,
    workers: str,
) -> Changes:
    """Bring the file of a gallery up to date; `states` and `left_out` as from `_list_files`."""
    path = _gallery_file(name)
    files = {file: _read(file) for file in path.parent.glob("*.parquet")}
    previous_source, previous = files.get(path, ({}, {}))
    previous_folder = Path(previous_source.get("folder", folder))
    run = searcher.run
    if previous_folder != folder and previous_folder.is_dir():
        command = index_command(folder, free_name(name), run.study, run.architecture)
        raise StudyError(
            f"the gallery {name!r} contains {readable_name(str(previous_folder))}: choose another "
            f"name for this folder, as in `{command}`"
        )
    network = {"study": run.study, "architecture": run.architecture, "key": searcher.key}
    network |= searcher.reading
    source = {"folder": str(folder), "engine": held_by, **network}
    stored = {}
    for its_source, rows in files.values():
        # A folder that was moved is recognised by its content.
        stored |= rows if network.items() <= its_source.items() else {}
    unchanged = [file for file in states if file in stored and stored[file].state == states[file]]
    rows = {} if check else {file: stored[file] for file in unchanged}
    others = [file for file in states if file not in rows]
    digests = dict(zip(others, _digests(folder, others), strict=True))
    by_digest = {row.digest: row for row in stored.values() if row.digest}
    for file, content in digests.items():
        if content in by_digest:
            rows[file] = by_digest[content]._replace(state=states[file])
    changes = Changes(kept=len(rows), left_out=left_out)
    waiting = [file for file in others if file not in rows]
    batches = _embed(folder, waiting, searcher, changes, workers)
    for number, batch in enumerate(batches, start=len(list(path.parent.glob("batch-*")))):
        embedded = {
            file: _Row(states[file], digests[file], *output) for file, output in batch.items()
        }
        _write(path.with_name(f"batch-{number:06d}.parquet"), source, embedded)
        rows |= embedded
    changes.embedded = len(rows) - changes.kept
    present = {row.digest for row in rows.values()}
    changes.removed = sum(
        file not in states and row.digest not in present for file, row in previous.items()
    )
    if rows:
        _write(path, source, dict(sorted(rows.items())))
    else:
        path.unlink(missing_ok=True)
    for file in path.parent.glob("batch-*"):
        file.unlink()
    changes.table = path.with_name("files.csv")
    measurements.write_csv(tables.named_files(changes), changes.table)
    if not rows:
        raise StudyError(
            f"none of the {len(states):,} files in {folder} can be read as a picture: "
            f"{changes.table} lists the reasons"
        )
    return changes


def _list_files(folder: Path) -> tuple[dict[str, str], list[LeftOut]]:
    """`file_state` of every file in the folder, by its path in it, and what is left out."""
    check_folder(folder)
    try:
        names, _, left_out = find_files(folder)
    except OSError as error:
        raise StudyError(f"cannot read {error.filename} ({error.strerror})") from None
    left_out = [one._replace(name=readable_name(one.name)) for one in left_out]
    return {name: file_state(folder / name) for name in names}, left_out


def _digests(folder: Path, names: list[str]) -> list[str]:
    """SHA-256 of each file; empty for what cannot be read."""

    def of_file(name: str) -> str:
        path = folder / name
        with contextlib.suppress(OSError):
            return file_digest(path) if path.is_file() else ""  # reading a pipe would never end
        return ""

    with ThreadPoolExecutor() as threads:
        return list(threads.map(of_file, names))


def _embed(
    folder: Path, names: list[str], searcher: Searcher, changes: Changes, workers: str
) -> Iterator[dict[str, tuple[int, np.ndarray]]]:
    """Predict and embed readable files in batches; add the unreadable and odd ones to `changes`."""
    ticker, done = Ticker(len(names), "pictures"), 0
    batches = _embed_on_ray if workers == RAY else _embed_here
    for batch in batches(folder, names, searcher):
        for name, remark, output in batch:
            if remark:
                files = changes.left_out if output is None else changes.remarks
                files.append(LeftOut(readable_name(name), remark))
        if embedded := {name: output for name, _, output in batch if output is not None}:
            yield embedded
        done += len(batch)
        ticker.reached(done)


def _embed_here(folder: Path, names: list[str], searcher: Searcher) -> Iterator[list[_Embedded]]:
    """Read and embed pictures, in batches and in order."""
    squares = read_squares([folder / name for name in names], **searcher.reading)
    for start in range(0, len(names), BATCH):
        batch = list(zip(names[start : start + BATCH], squares, strict=False))
        images = [image for _, (image, _) in batch if image is not None]
        outputs = iter(())
        if images:
            vectors, probabilities = searcher.encode(np.stack(images))
            outputs = zip(probabilities.argmax(axis=1), vectors, strict=True)
        yield [
            _Embedded(name, str(remark), None if image is None else next(outputs))
            for name, (image, remark) in batch
        ]


def _embed_on_ray(folder: Path, names: list[str], searcher: Searcher) -> Iterator[list[_Embedded]]:
    """The same batches from parallel processes of Ray, here or on the cluster at RAY_ADDRESS.

    Ray starts a process that ended once more, and gives it the same pictures. StudyError if the
    cluster does not answer, or a process cannot embed.
    """
    if "RAY_AUTH_TOKEN" in os.environ:  # Ray would not use it otherwise
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    import ray.data

    run, threads = searcher.run, int(os.environ["TF_NUM_INTRAOP_THREADS"])
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    options = ray.data.DataContext.get_current()
    options.enable_progress_bars = options.print_on_execution_start = False
    options.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Names need not be UTF-8, which Arrow demands.
    chunks = [pickle.dumps(names[at : at + CHUNK]) for at in range(0, len(names), CHUNK)]
    try:
        ray.init(
            os.environ.get("RAY_ADDRESS") or "local", log_to_driver=False, logging_level="ERROR",
            ignore_reinit_error=True, runtime_env={"env_vars": settings},
        )  # fmt: skip
        most = max(1, min(len(chunks), int(ray.cluster_resources()["CPU"] // threads)))
        data = ray.data.from_items(chunks, override_num_blocks=max(1, len(chunks)))
        data = data.map_batches(
            _Worker, batch_size=1, num_cpus=min(threads, ray.cluster_resources()["CPU"]),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            fn_constructor_args=(project_root(), run.study, run.architecture, searcher.key, folder),
        )  # fmt: skip
        for row in data.iter_rows():
            yield from pickle.loads(row["batches"])
    except Exception as error:  # Ray raises bare exceptions, too
        where = os.environ.get("RAY_ADDRESS", "this machine")
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
        raise StudyError(
            f"Ray at {where} failed: {reason}: check RAY_ADDRESS and RAY_AUTH_TOKEN, and that each "
            "machine has this project and the pictures in the same folders; run the same command "
            "again to continue"
        ) from None
    finally:
        ray.shutdown()


class _Worker:
    """A process that embeds pictures for `_embed_on_ray`."""

    def __init__(self, root: Path, study: str, architecture: str, key: str, folder: Path):
        os.chdir(root)
        self._searcher, self._folder = open_searcher(study, architecture), folder
        if self._searcher.key != key:
            raise StudyError(f"{root} has another network {architecture} of the study {study}")

    def __call__(self, chunk: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        names = pickle.loads(chunk["item"][0])
        return {"batches": [pickle.dumps(list(_embed_here(self._folder, names, self._searcher)))]}


def _write(path: Path, source: dict, rows: dict[str, _Row]) -> None:
    width = rows[next(iter(rows))].vector.nbytes
    columns = [("name", pa.binary()), ("state", pa.string()), ("digest", pa.string())]
    columns += [("label", pa.int64()), ("vector", pa.binary(width))]
    content = json.dumps(source | {CHECKSUM: digest(source)})
    schema = pa.schema(columns, {SOURCE: content.encode()})
    names = list(rows)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary, schema, compression="none", use_dictionary=False, write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):  # fmt: skip
        for start in range(0, len(names), GROUP):
            group = names[start : start + GROUP]
            states, digests, labels, vectors = zip(*(rows[name] for name in group), strict=True)
            packed = [None, pa.py_buffer(np.stack(vectors))]
            vectors = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(group), packed)
            values = [list(map(os.fsencode, group)), states, digests, np.array(labels), vectors]
            writer.write_table(pa.table(dict(zip(schema.names, values, strict=True)), schema))


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _vectors(table: pa.Table) -> np.ndarray:
    """The (n, d) float32 embeddings of a table with this column."""
    column = table["vector"].combine_chunks()
    count = len(column) * column.type.byte_width // 4
    return np.frombuffer(column.buffers()[1], np.float32, count).reshape(len(table), -1)


def _read_source(path: Path) -> dict:
    """The source of a gallery's file; empty if there is no file, or if it is damaged."""
    try:
        with _open(path) as file:
            source = json.loads(file.metadata.metadata[SOURCE])
    except DAMAGE:
        return {}
    # Galleries of earlier versions have no checksum.
    return source if source.pop(CHECKSUM, digest(source)) == digest(source) else {}


def _read(path: Path) -> tuple[dict, dict[str, _Row]]:
    """The source and the rows of a file; both empty if it is damaged."""
    with contextlib.suppress(*DAMAGE), _open(path) as file:
        if source := _read_source(path):
            table = file.read()
            names = ("name", "state", "digest", "label")
            rows = zip(*(table[name].to_pylist() for name in names), _vectors(table), strict=True)
            return source, {os.fsdecode(name): _Row(*row) for name, *row in rows}
    print(f"{path} is damaged: its pictures are embedded again")
    return {}, {}


def _image(path: Path, searcher: Searcher) -> np.ndarray:
    """The image of a file; white if the file was deleted since it was embedded."""
    image, size = read_picture(path, **searcher.reading).image, searcher.image_size
    return np.full((size, size, 3), 255, np.uint8) if image is None else image
