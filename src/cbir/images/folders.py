"""Folders of pictures: which files are used, in which class and part, and which are left out.

Every file is accounted for. A file counts as a picture if its name has the extension of a picture
format, or if its content is a picture, whatever its name. `images.pictures` finds out later whether
a picture can be decoded.
"""

import contextlib
import csv
import io
import os
import re
import shlex
import unicodedata
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cbir import StudyError, project_root
from cbir.cache import digest

with contextlib.suppress(ImportError):  # an optional extra
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
HEIC_IS_READ = "HEIF" in Image.OPEN
# Pillow recognises these formats, but has no decoder, or calls another program (EPS).
NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
SUFFIXES = {
    suffix
    for suffix, image_format in Image.registered_extensions().items()
    if image_format in Image.OPEN and image_format not in NO_DECODER
}
# The formats that are recognised by content; Pillow mistakes other files for those without a mark.
MARKED = [name for name, (_, mark) in Image.OPEN.items() if mark and name not in NO_DECODER]
# The first bytes of the usual formats: JPEG, PNG, TIFF.
USUAL = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")
# The number of first bytes that identify a format.
HEAD = 32
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Pillow would read the small preview in the files of cameras.
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}
HEIC = "HEIC needs pillow-heif: run `make heic` once"
RAW = "camera raw: export it as JPEG, PNG or TIFF"
HIDDEN = "hidden, or made by the system"
LISTED_DIFFERENTLY = "listed again with another class or part; the first line counts"
NOT_A_PICTURE = "not a picture, or in a format that is not read"
SYSTEM = {
    "@eaDir", "@Recycle", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", "Thumbs.db", "desktop.ini",
}  # fmt: skip
# Files that are often named like a picture, by their first bytes.
OTHERS = {
    b"version https://git-lfs": "placeholder of Git LFS: run `git lfs pull`",
    b"<!doctype html": "web page, such as that of a failed download",
    b"<html": "web page, such as that of a failed download",
}
PARTS = ("train", "validation", "test")
ROLES = ("training", "validation", "test")
# The names of folders, and of values of a column `split`, that name a part; case is ignored.
PART_OF = {
    "train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2,
}  # fmt: skip
# What may surround such a name, as in training_set, test-images and seg_train.
AROUND_PART = r"(?:set|data|images?|pictures?|photos?|seg|split|\d|[\W_])*"
# The data sets that are available without a folder.
PACKAGED = ("digits", "cifar10")
# The extensions of a file that lists pictures with their classes.
TABLES = (".csv", ".tsv")
LAYOUTS = (
    "<class>/*.png, {train,test}/<class>/*.png, {train,val,test}/<class>/*.png, or a CSV file "
    "with the columns path, class and, optionally, split"
)


class LeftOut(NamedTuple):
    """A file or folder that is not used: its path relative to the data set's folder (that of a
    folder ends in a slash), the reason, and the number of files that this is about.
    """

    name: str
    reason: str
    files: int = 1


@dataclass(frozen=True)
class Pictures:
    """The pictures of a data set, not yet decoded.

    Attributes:
        classes: class names; a label is an index into them.
        items: n paths, or arrays as for `read_picture`.
        labels: (n,) int64.
        names: n unique names, such as paths relative to the folder.
        parts: (n,) int64 indices into `PARTS`, or None if the data has no split.
        layout: a sentence on which folders are which part, or on what is odd about the folders.
        unreadable: reasons by position, of pictures that are known to be unreadable.
        left_out: all other files and folders.
    """

    classes: list[str]
    items: list
    labels: np.ndarray
    names: list[str]
    parts: np.ndarray | None = None
    layout: str = ""
    unreadable: dict[int, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def given_parts(self) -> set[str]:
        """The parts that the data itself has."""
        return set() if self.parts is None else {PARTS[part] for part in np.unique(self.parts)}


def data_place(dataset: str) -> Path:
    """The folder or CSV file of a data set, as for `load_dataset`; it need not exist."""
    place = "data/cifar10" if dataset == "cifar10" else dataset
    return Path(os.path.normpath(project_root() / place))


def dataset_folder(dataset: str) -> Path:
    """The folder that names of pictures are relative to, itself relative to the project's."""
    place = Path("data/cifar10" if dataset == "cifar10" else dataset)
    return place.parent if place.suffix.lower() in TABLES else place


def list_pictures(place: Path) -> Pictures:
    """The pictures of a folder, arranged as in `LAYOUTS`, or of a CSV file that lists them.

    StudyError if it is missing, unreadable or empty, has a single class, or its layout is unclear.
    """
    try:
        if place.suffix.lower() in TABLES and not place.is_dir():
            return _read_table(place)
        files, folders, left_out = find_files(place)
    except OSError as error:
        raise StudyError(
            f"cannot read {place} ({error.strerror}): arrange the pictures as {LAYOUTS}"
        ) from None
    reasons, others = _read_heads(place, files)
    rows, layout = _arrange(place, list(reasons), folders)
    paths = (name.split("/")[:-1] for name in reasons)
    parents = {"/".join(path[:depth]) + "/" for path in paths for depth in (1, 2)}
    empty = [folder for folder in folders if folder.count("/") <= 2 and folder not in parents]
    _check_classes(place, rows, empty)
    left_out += others
    left_out += [LeftOut(name, "outside the class folders") for name in reasons if name not in rows]
    left_out += [LeftOut(folder, "folder without pictures", 0) for folder in empty]
    return _pictures(place, rows, layout, reasons, left_out)


def find_files(folder: Path) -> tuple[list[str], list[str], list[LeftOut]]:
    """The files and folders below a folder, relative to it and sorted, and what is left out: hidden
    and system files, broken links, links to a folder that is read elsewhere, and pipes.

    Links to folders are followed, but no folder is read twice, nor one that contains `folder`.
    OSError if the folder itself cannot be read.
    """
    files, folders, left_out = [], [], []
    waiting, links = deque([""]), deque()
    read = {_identity(parent) for parent in folder.resolve(strict=True).parents}
    while waiting or links:
        # Links come last, so that a folder inside keeps its own name.
        place = waiting.popleft() if waiting else links.popleft()
        try:
            if (identity := _identity(folder / place)) in read:
                left_out.append(LeftOut(place, "link to a folder that is read elsewhere", 0))
                continue
            with os.scandir(folder / place) as scanned:
                entries = list(scanned)
            read.add(identity)
        except OSError as error:
            if not place:
                raise
            left_out.append(LeftOut(place, f"folder that cannot be read ({error.strerror})", 0))
            continue
        if place:
            folders.append(place)
        for entry in sorted(entries, key=lambda entry: entry.name):
            name, kind = place + entry.name, _kind(entry)
            if entry.name.startswith(".") or entry.name in SYSTEM:
                is_folder = kind == "folder"
                count = sum(len(inside) for *_, inside in os.walk(entry)) if is_folder else 1
                left_out.append(LeftOut(f"{name}/" if is_folder else name, HIDDEN, count))
            elif kind == "folder":
                (links if entry.is_symlink() else waiting).append(name + "/")
            elif kind == "file":
                files.append(name)
            else:
                left_out.append(LeftOut(name, kind))
    in_order = [sorted(names, key=lambda name: name.split("/")) for names in (files, folders)]
    return *in_order, left_out


def readable_name(name: str) -> str:
    """The name of a file or folder as text: each byte that is not UTF-8 as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unsupported(head: bytes) -> str:
    """Why Pillow does not recognise a file, from its first bytes."""
    if not head:
        return "empty file"
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS and not HEIC_IS_READ:
        return HEIC
    return next((reason for mark, reason in OTHERS.items() if mark in head.lower()), NOT_A_PICTURE)


def folder_state(pictures: Pictures) -> list[str]:
    """What the images of a folder depend on: a digest of its pictures' names, classes, parts, sizes
    and modification times, and whether HEIC is read.
    """
    parts = None if pictures.parts is None else pictures.parts.tolist()
    states = [file_state(path) for path in pictures.items]
    labels, unreadable = pictures.labels.tolist(), list(pictures.unreadable.items())
    state = [pictures.classes, pictures.names, labels, parts, states, unreadable]
    return [digest(state), str(HEIC_IS_READ)]


def file_state(path: Path) -> str:
    """The size and modification time of a file; "gone" if there is none, as for a broken link."""
    try:
        stat = path.stat()
    except OSError:
        return "gone"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry) -> str:
    """ "folder", "file", or why it is neither; links are followed."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself
        pass
    # Reading a pipe, for example, would never end.
    return "broken link" if entry.is_symlink() else "pipe, socket or device"


def _read_heads(place: Path, names: Iterable[str]) -> tuple[dict[str, str], list[LeftOut]]:
    """The pictures, with the reasons why some cannot be read, mostly empty; and all other files."""
    pictures, others, folder = {}, [], str(place)
    for name in names:
        suffix = f".{name.rpartition('.')[2].lower()}"
        # A path of pathlib would take longer than reading the file.
        path = os.path.join(folder, name)  # noqa: PTH118
        reason = RAW if suffix in RAW_SUFFIXES else _reason(path, suffix)
        if reason in ("", HEIC, RAW) or suffix in SUFFIXES:
            pictures[name] = reason
        else:
            others.append(LeftOut(name, reason))
    return pictures, others


def _reason(path: str, suffix: str) -> str:
    """Why a file cannot be read as a picture, from its first bytes; empty if it may be one."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            head = os.read(file, HEAD)
        finally:
            os.close(file)
        why_not = unsupported(head)
        if head.startswith(USUAL) or (suffix in SUFFIXES and why_not == NOT_A_PICTURE):
            return ""
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=MARKED):
            return ""
    except UnidentifiedImageError:
        return why_not
    except OSError as error:
        return f"file that cannot be read ({error.strerror or error})"
    except Exception:  # a picture with a broken header, or one that is too large
        return ""


def _arrange(
    place: Path, names: list[str], folders: list[str]
) -> tuple[dict[str, tuple[int | None, str]], str]:
    """Part and class of each picture in a class folder, and the layout in words.

    StudyError if it is unclear which folders are classes.
    """
    # macOS writes é as two characters, other systems as one: both are the same class.
    paths = {name: unicodedata.normalize("NFC", name).split("/") for name in names}
    tops = [folder[:-1] for folder in folders if folder.count("/") == 1]
    parts = {top: part for top in tops if (part := _part_of(top)) is not None}
    nested = {path[0] for path in paths.values() if len(path) > 2}
    if any(part == 0 and top in nested for top, part in parts.items()):
        return _arrange_parts(place, paths, parts, nested)
    has_train = 0 in parts.values()
    if parts and len(parts) == len(tops) or (has_train and len(parts) > 1):
        fault = "no class folders with pictures in" if has_train else "no training folder beside"
        tops = short_list(f"{top}/" for top in parts)
        raise StudyError(f"{place}: {fault} {tops}: arrange the pictures as {LAYOUTS}")
    inner = {path[1]: _part_of(path[1]) for path in paths.values() if len(path) > 1}
    if 0 in inner.values() and None not in inner.values():
        rows = {name: (inner[path[1]], path[0]) for name, path in paths.items() if len(path) > 2}
        words = short_list(f"{name}/" for name in sorted(inner, key=inner.get))
        return rows, f"The split is that of the folders {words} in each class."
    inner = {path[0]: set() for path in paths.values() if len(path) > 1}
    for path in paths.values():
        if len(path) > 2:
            inner[path[0]].add(path[1])
    first, *others = inner.values() or [set()]
    is_odd = len(first) > 1 and others and all(other == first for other in others)
    hint = f"All classes have the same subfolders ({short_list(sorted(first))}): are they classes?"
    rows = {name: (None, path[0]) for name, path in paths.items() if len(path) > 1}
    return rows, hint if is_odd else ""


def _part_of(name: str) -> int | None:
    """The part that the name of a folder, or a value of the column `split`, stands for."""
    match = re.fullmatch(f"{AROUND_PART}({'|'.join(PART_OF)}){AROUND_PART}", name.lower())
    return PART_OF[match[1]] if match else None


def _arrange_parts(
    place: Path, paths: dict[str, list[str]], parts: dict[str, int], nested: set[str]
) -> tuple[dict[str, tuple[int | None, str]], str]:
    """`_arrange` for a folder of parts, such as train/ and test/, with class folders in each."""
    for part, name in enumerate(PARTS):
        tops = [f"{top}/" for top in parts if parts[top] == part]
        if len(tops) > 1:
            raise StudyError(f"{place}: {short_list(tops)} both mean {name}: keep one of them")
    if flat := [f"{top}/" for top in parts if top not in nested]:
        names = short_list(flat)
        raise StudyError(
            f"{place}: {names} has no class folders with pictures: arrange the pictures as "
            f"{LAYOUTS}, or move {names} elsewhere to hold out a share of the training pictures"
        )
    rows = {
        name: (parts[path[0]], path[1])
        for name, path in paths.items()
        if path[0] in parts and len(path) > 2
    }
    ordered = sorted(parts, key=parts.get)
    words = [f"{ROLES[parts[top]]} images from {top}/" for top in ordered]
    rest = "" if 2 in parts.values() else "; test images are a share of the training images"
    return rows, f"The split is that of the folders: {short_list(words)}{rest}."


def _check_classes(place: Path, rows: dict, empty: Iterable[str] = ()) -> None:
    """Raise StudyError if there are not two classes, or if test has one that train lacks.

    `rows` are as from `_arrange`, and `empty` folders without pictures.
    """
    classes = sorted({name for _, name in rows.values()})
    if not classes:
        raise StudyError(f"no pictures in the subfolders of {place}: arrange them as {LAYOUTS}")
    if len(classes) < 2:
        hint = f"; without pictures: {short_list(empty)}" if empty else ""
        if place.is_dir() and not any(part is not None for part, _ in rows.values()):
            common = os.path.commonpath([os.path.dirname(name) for name in rows])  # noqa: PTH120
            below = {name[len(common) + 1 :].split("/")[0] for name in rows}
            inner = {name for name in below if f"{common}/{name}" not in rows}
            if inner:
                meant = shlex.quote(str(place / common))
                hint += f"; did you mean DATA={meant}, with {short_list(sorted(inner))}?"
        raise StudyError(
            f"{place} has only one class ({classes[0]}): a study needs at least two, arranged as "
            f"{LAYOUTS}{hint}"
        )
    in_train = {name for part, name in rows.values() if not part}
    for number, part in enumerate(PARTS[1:], start=1):
        in_part = {name for part_number, name in rows.values() if part_number == number}
        if unknown := in_part - in_train:
            names = short_list(map(repr, sorted(unknown)))
            raise StudyError(
                f"{place}: {part} has a class that train lacks: {names}: "
                "rename or remove it, or list the pictures in a CSV file with the columns path, "
                "class and split"
            )


def _pictures(
    place: Path,
    rows: dict[str, tuple[int | None, str]],
    layout: str,
    reasons: dict[str, str],
    left_out: list[LeftOut],
) -> Pictures:
    classes = sorted({name for _, name in rows.values()})
    labels = {name: label for label, name in enumerate(classes)}
    # Training images first.
    names = sorted(rows, key=lambda name: (rows[name][0] or 0, labels[rows[name][1]]))
    parts = [rows[name][0] for name in names]
    return Pictures(
        classes=list(map(readable_name, classes)),
        items=[place / name for name in names],
        labels=np.array([labels[rows[name][1]] for name in names], np.int64),
        names=list(map(readable_name, names)),
        parts=None if None in parts else np.array(parts, np.int64),
        layout=layout,
        unreadable={row: reasons[name] for row, name in enumerate(names) if reasons[name]},
        left_out=sorted(one._replace(name=readable_name(one.name)) for one in left_out),
    )


def _read_table(table: Path) -> Pictures:
    """The pictures that a CSV file lists, with paths relative to its folder."""
    needed = "must have the columns path, class and, optionally, split"
    try:
        text = table.read_text("utf-8-sig")
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count)
        )
        columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
        lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{table} {needed}, as a CSV file in UTF-8 ({error})") from None
    if not {"path", "class"} <= columns.keys():
        raise StudyError(f"{table} {needed}; it has: {short_list(columns) or 'none'}")
    rows, left_out = {}, []
    for line in lines:
        name, label, split = (
            (line.get(columns.get(column)) or "").strip() for column in ("path", "class", "split")
        )
        # Windows separates folders by backslashes.
        name = name if (table.parent / name).exists() else name.replace("\\", "/")
        row = _part_of(split), unicodedata.normalize("NFC", label)
        if "split" in columns and row[0] is None:
            raise StudyError(f"{table}: split of {name} is {split!r}: use train, val or test")
        if not name and not label:  # an empty line of a spreadsheet
            continue
        if not label:
            left_out.append(LeftOut(name, "listed without a class"))
        elif name in rows:
            again = "listed twice" if rows[name] == row else LISTED_DIFFERENTLY
            left_out.append(LeftOut(name, again, 0))
        elif not (table.parent / name).is_file():
            left_out.append(LeftOut(name, "listed, but no such file"))
        else:
            rows[name] = row
    if left_out and not rows:
        raise StudyError(
            f"{table}: none of the {len(left_out):,} listed pictures exists: paths must be "
            "relative to the CSV file and include the file extension; the first is "
            + short_list([str(table.parent / left_out[0].name)])
        )
    reasons, others = _read_heads(table.parent, rows)
    rows = {name: row for name, row in rows.items() if name in reasons}
    _check_classes(table, rows)
    layout = f"The split is the column split of {table.name}." if "split" in columns else ""
    return _pictures(table.parent, rows, layout, reasons, left_out + others)


def short_list(names: Iterable[str], most: int = 10) -> str:
    """The first names in one line, separated by commas, and the number of the others."""
    # A file's name may contain line breaks, and codes that change the terminal.
    names = [re.sub(r"[\x00-\x1f\x7f]", lambda sign: repr(sign[0])[1:-1], name) for name in names]
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def group_by_reason(left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """What is left out, by reason: the number of files, and the first names; most files first.

    Reasons that differ only in numbers count as one.
    """
    groups = {}
    for one in left_out:
        groups.setdefault(re.sub(r"\d+", "0", one.reason), []).append(one)
    rows = []
    for group in groups.values():
        names = short_list([one.name for one in group if one.name], 3)
        rows.append(LeftOut(names, group[0].reason, sum(one.files for one in group)))
    return sorted(rows, key=lambda row: -row.files)


def describe_files(
    n_used: int, left_out: Iterable[LeftOut], remarks: Iterable[LeftOut] = (), use: str = "used"
) -> str:
    """The files that are found, used and left out, and those used with a remark, as lines of text.

    `use` says what becomes of the `n_used` files. The text is empty if there is nothing to say but
    the number of files.
    """
    lines, n_left_out = [], sum(one.files for one in left_out)
    summary = f"{n_used + n_left_out:,} files found, {n_used:,} {use}, {n_left_out:,} left out"
    for title, files in ((summary, left_out), ("used, with a remark", remarks)):
        rows = group_by_reason(files)
        lines += [f"{title}:"] if rows else []
        lines += [
            f"{row.files or '–':>7}  {row.reason}" + (f" ({row.name})" if row.name else "")
            for row in rows
        ]
    return "\n".join(lines)
