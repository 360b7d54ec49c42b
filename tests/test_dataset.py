"""Images from every source are decoded once and split without overlap; errors are one line."""

import functools
import hashlib
import http.server
import io
import itertools
import os
import pickle
import re
import shlex
import shutil
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import STUDY, write_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from cbir import StudyError
from cbir.images import dataset, folders, pictures
from cbir.images.dataset import (
    Dataset,
    forget,
    is_cached,
    load_dataset,
    stored_dataset,
    take_rows,
)
from cbir.images.pictures import CIFAR10_CLASSES, DAMAGED, read_picture
from cbir.reporting import tables
from cbir.studies import params
from cbir.studies.configs import parse_overrides

LOADED_WITH = {
    "image_size": 16,
    "test_fraction": 0.25,
    "validation_fraction": 0.2,
    "split_seed": 0,
}
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty project."""
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(dataset="data/shapes", **changes) -> Dataset:
    return load_dataset(dataset, **LOADED_WITH | changes)


def error_of(dataset="data/shapes", **changes) -> str:
    """The error line of loading a data set."""
    with pytest.raises(StudyError) as caught:
        load(dataset, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_colours(folder: Path, counts: dict[str, int]) -> None:
    """Write classes named for a colour, with pictures of that colour, no two alike."""
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture = Image.new("RGB", (20, 20), colours[name])
            picture.putpixel((number, 0), (0, 0, 0))
            picture.save(folder / name / f"{number}.png")


def same(first: Dataset, second: Dataset) -> bool:
    """Whether two data sets have the same images, labels, names and split."""
    arrays = ("images", "labels", "train", "validation", "gallery", "queries")
    values = ("classes", "names", "fingerprint", "split_fingerprint", "search_fingerprint")
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    ) and all(getattr(first, name) == getattr(second, name) for name in values)


def names_of(dataset: Dataset, part: str) -> list[str]:
    """Names of the images that serve as `gallery`, `queries`, `train` or `validation`."""
    return [dataset.names[position] for position in getattr(dataset, part)]


def count_calls(monkeypatch, module, name: str) -> list:
    """Record the calls of a function of a module, which otherwise works as before."""
    calls, real = [], getattr(module, name)

    def counted(*arguments, **settings):
        calls.append(arguments)
        return real(*arguments, **settings)

    monkeypatch.setattr(module, name, counted)
    return calls


# Digits


def test_digits_have_ten_classes_in_rgb_of_the_requested_size(root):
    digits = load("digits")
    assert digits.classes == [str(digit) for digit in range(10)]
    assert digits.images.shape == (1797, 16, 16, 3)
    assert digits.images.dtype == np.uint8
    assert digits.labels.shape == (1797,)
    assert digits.labels.dtype == digits.gallery_labels.dtype == digits.query_labels.dtype
    assert digits.labels.dtype == np.int64
    assert len(set(digits.names)) == len(digits.names) == 1797
    assert digits.left_out == []
    assert (digits.protocol, digits.draw) == ("closed", None)


def test_digits_are_those_of_scikit_learn_with_their_labels(root):
    digits, original = load("digits", image_size=8), load_digits()
    rows = [int(name.removeprefix("digit-")) for name in digits.names]
    assert digits.labels.tolist() == original.target[rows].tolist()
    # 17 grey levels, 0 to 16, over 0 to 255; each channel the same.
    expected = (original.images[rows] * 255 / 16).round()[..., None].repeat(3, axis=3)
    assert (digits.images == expected).all()


def test_digits_are_the_same_in_another_project(root, tmp_path_factory, monkeypatch):
    first = load("digits")
    elsewhere = tmp_path_factory.mktemp("other")
    (elsewhere / "params").mkdir()
    (elsewhere / "notebooks").mkdir()
    monkeypatch.chdir(elsewhere)
    assert same(load("digits"), first)
    assert (elsewhere / "artifacts").is_dir()


def test_images_are_memory_mapped(root):
    assert isinstance(load("digits").images, np.memmap)


def test_counts_have_a_row_for_each_class(root):
    digits = load("digits")
    counts = digits.counts()
    assert list(counts.index) == [*digits.classes, "all"]
    assert (counts["training"] + counts["validation"] == counts["gallery"]).all()
    assert counts.loc["all", ["gallery", "queries"]].sum() == 1797
    original = np.bincount(load_digits().target)
    assert (counts["gallery"] + counts["queries"])[:-1].tolist() == original.tolist()
    # A quarter of each class, to the nearest picture.
    assert counts["queries"][:-1].tolist() == [round(0.25 * int(count)) for count in original]


# Folders


def test_a_folder_of_classes_is_split_class_by_class(project):
    shapes = load()
    assert shapes.classes == ["circle", "cross", "square"]
    # 16 a class: a quarter, 4, are queries; a fifth of the other 12, 2.4, validate.
    assert shapes.counts().loc["cross"].tolist() == [10, 2, 12, 4]
    assert shapes.counts().loc["all"].tolist() == [30, 6, 36, 12]


def test_classes_with_the_names_of_sums_keep_their_rows(root):
    write_pictures(root / "data" / "shapes", classes=("all", "none"), count=8)
    counts = load().counts()
    assert counts.index.tolist() == ["all", "none", "all"]
    assert counts["gallery"].tolist() == [6, 6, 12]


def test_names_that_are_not_utf8_are_escaped_and_stay_distinct(root):
    write_pictures(root / "data" / "shapes", classes=("red", "summer"), count=6)
    (root / "data" / "shapes" / "summer").rename(
        root / "data" / "shapes" / os.fsdecode(b"\xe9t\xe9")
    )
    for byte in (b"\xe8", b"\xe9"):
        first = root / "data" / "shapes" / "red" / "red-00.png"
        shutil.copy(first, first.with_name(os.fsdecode(byte + b".png")))
    shapes = load()
    assert shapes.classes == ["red", r"\xe9t\xe9"]
    assert {r"red/\xe8.png", r"red/\xe9.png", r"\xe9t\xe9/summer-00.png"} <= set(shapes.names)


def test_labels_and_pictures_match_their_names(root):
    write_colours(root / "data" / "shapes", {"red": 9, "green": 7, "blue": 8})
    shapes = load()
    assert shapes.classes == ["blue", "green", "red"]
    brightest = {"red": 0, "green": 1, "blue": 2}
    for image, label, name in zip(shapes.images, shapes.labels, shapes.names, strict=True):
        folder = name.partition("/")[0]
        assert shapes.classes[label] == folder
        assert image.mean(axis=(0, 1)).argmax() == brightest[folder]
    assert shapes.gallery_labels.tolist() == [shapes.labels[at] for at in shapes.gallery]
    assert shapes.query_labels.tolist() == [shapes.labels[at] for at in shapes.queries]


def test_train_and_test_folders_determine_the_split(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 6, "blue": 4})
    write_colours(root / "data" / "shapes" / "test", {"red": 1, "blue": 3})
    shapes = load(test_fraction=0.9)
    assert shapes.counts().loc[["blue", "red"], ["gallery", "queries"]].values.tolist() == [
        [4, 3], [6, 1],
    ]  # fmt: skip
    assert [name.partition("/")[0] for name in shapes.names] == ["train"] * 10 + ["test"] * 4
    assert shapes.gallery.tolist() == list(range(10))
    assert shapes.queries.tolist() == list(range(10, 14))


def test_a_train_folder_without_a_test_folder_is_split(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 8, "blue": 8})
    assert load().counts().loc["all", ["gallery", "queries"]].tolist() == [12, 4]


def test_pictures_are_found_in_nested_folders_and_with_other_suffixes(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 4, "blue": 4})
    write_colours(folder / ".hidden", {"green": 4})
    (folder / "blue" / "more").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "blue" / "more" / "one.JPG")
    Image.new("RGB", (9, 9)).save(folder / "blue" / "two.jpeg")
    (folder / "blue" / "notes.txt").write_text("not a picture")
    (folder / "README").write_text("not a class")
    (folder / "empty").mkdir()
    shapes = load()
    assert shapes.classes == ["blue", "red"]
    assert len(shapes.names) == 10
    assert {"blue/more/one.JPG", "blue/two.jpeg"} <= set(shapes.names)


def test_a_folder_outside_the_project_is_read(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_colours(folder, {"red": 4, "blue": 4})
    assert len(load(str(folder)).gallery) == 6


def test_cifar10_is_read_from_its_folder_if_there_is_one(root, monkeypatch):
    def refuse():
        raise AssertionError("Keras was called")

    monkeypatch.setattr(dataset, "cifar10_pictures", refuse)
    folder = root / "data" / "cifar10"
    names = CIFAR10_CLASSES
    write_pictures(folder / "train", names[:8], count=3, size=32)
    write_pictures(folder / "test", names[:8], count=1, size=32)
    write_pictures(folder / "train", names[8:], count=4, size=32)
    write_pictures(folder / "test", names[8:], count=2, size=32)
    cifar = load("cifar10", image_size=32)
    assert cifar.classes == names
    assert np.bincount(cifar.gallery_labels).tolist() == [3] * 8 + [4] * 2
    assert np.bincount(cifar.query_labels).tolist() == [1] * 8 + [2] * 2
    # Pictures of the requested size are taken pixel by pixel.
    with Image.open(folder / cifar.names[cifar.queries[5]]) as picture:
        assert (cifar.images[cifar.queries[5]] == np.asarray(picture)).all()


# Used and unused files


def reasons(dataset: Dataset) -> dict[str, str]:
    return {file.name: file.reason for file in dataset.left_out}


def save_copy(path: Path, suffix: str = "PNG", seed: int = 0) -> None:
    """A picture of noise; its suffix need not match its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, suffix)


def test_pictures_are_recognised_by_their_content(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 4})
    for number in range(4):
        save_copy(folder / "plain" / f"IMG_{number}", "JPEG", number)
        save_copy(folder / "query" / f"{number}.png?width=400", "PNG", number)
        save_copy(folder / "webp" / f"{number}.download", "WEBP", number)
    # Texts that begin like a Python file, a bitmap and a header of C.
    for number, text in enumerate(("Python", "BMW cars", "#define width 3", "")):
        (folder / "docs").mkdir(exist_ok=True)
        (folder / "docs" / f"{number}.txt").write_text(text)
    shapes = load()
    assert shapes.classes == ["plain", "query", "red", "webp"]
    assert len(shapes.names) == 16
    assert reasons(shapes) == {
        "docs/0.txt": folders.NOT_A_PICTURE,
        "docs/1.txt": folders.NOT_A_PICTURE,
        "docs/2.txt": folders.NOT_A_PICTURE,
        "docs/3.txt": "empty file",
        "docs/": "folder without pictures",
    }


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


def test_a_class_in_an_unsupported_format_is_refused_with_the_remedy(root, monkeypatch):
    # Simulates a missing pillow-heif.
    monkeypatch.setattr(folders, "MARKED", [name for name in folders.MARKED if name != "HEIF"])
    monkeypatch.setattr(folders, "HEIC_IS_READ", False)
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 4, "blue": 4, "cat": 0, "raw": 0})
    for number in range(5):
        (folder / "cat" / f"{number}.{('HEIC', 'jpg')[number % 2]}").write_bytes(HEIC)
        (folder / "raw" / f"{number}.NEF").write_bytes(b"II*\0")
    message = error_of()
    assert (
        "'cat' (0 images, needs 3; 5 unreadable: HEIC needs pillow-heif: run `make heic`" in message
    )
    assert "'raw' (0 images, needs 3; 5 unreadable: camera raw" in message
    shapes = load(min_images=1)
    assert shapes.classes == ["blue", "red"]
    assert len(reasons(shapes)) == 12


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "`git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><body>404", "web page"),
        (b"<html>404", "web page"),
    ],
)
def test_other_files_with_the_suffix_of_a_picture_are_identified(root, content, reason):
    write_colours(root / "data" / "shapes", {"red": 4, "blue": 4})
    path = root / "data" / "shapes" / "red" / "9.jpg"
    path.write_bytes(content)
    assert reason in reasons(load())["red/9.jpg"]
    assert reason in read_picture(path, 16).remark


@pytest.mark.parametrize("name", ["Red", "red ", "blue"])
def test_a_class_that_only_one_part_has_is_reported(root, name):
    write_colours(root / "data" / "shapes" / "train", {"red": 4, "green": 4})
    write_colours(root / "data" / "shapes" / "val", {"red": 2, "green": 2})
    save_copy(root / "data" / "shapes" / "val" / name / "0.png")
    assert f"validation has a class that train lacks: {name!r}: " in error_of()


def test_a_class_without_validation_images_is_reported(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 4, "green": 4})
    write_colours(root / "data" / "shapes" / "val", {"red": 2, "green": 0})
    assert "'green' (0 validation images, needs 1)" in error_of()


@pytest.mark.parametrize(
    "names", ["train val", "Train valid Test", "training_set images-validation seg_test"]
)
def test_folders_named_for_parts_determine_the_split(root, names):
    train, validation, *test = names.split()
    write_colours(root / "data" / "shapes" / train, {"red": 8, "blue": 6})
    for number in range(3):
        save_copy(root / "data" / "shapes" / validation / "red" / f"v{number}.png", seed=number)
        save_copy(
            root / "data" / "shapes" / validation / "blue" / f"v{number}.png", seed=9 + number
        )
    if test:
        write_colours(root / "data" / "shapes" / test[0], {"red": 2, "blue": 2})
    shapes = load()
    assert names_of(shapes, "validation") == [
        f"{validation}/{name}/v{number}.png" for name in ("blue", "red") for number in range(3)
    ]
    assert all(name.startswith(f"{train}/") for name in names_of(shapes, "train"))
    part = test[0] if test else train
    assert all(name.startswith(f"{part}/") for name in names_of(shapes, "queries"))
    assert len(shapes.names) == 20 + 4 * len(test)
    assert f"validation images from {validation}/" in shapes.layout
    assert shapes.counts().loc["all", "validation"].tolist() == 6
    # Fewer training images take the same share of every part.
    assert load(training_images=10).counts().loc["red", "validation"] in (1, 2)
    assert same(stored_dataset(shapes.fingerprint, **shapes.parameters), shapes)


def test_validation_images_are_part_of_the_fingerprint(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 6, "blue": 6})
    write_colours(root / "data" / "shapes" / "test", {"red": 2, "blue": 2})
    before = load()
    for name in ("red", "blue"):
        moved = root / "data" / "shapes" / "val" / name
        moved.mkdir(parents=True)
        (root / "data" / "shapes" / "train" / name / "5.png").rename(moved / "5.png")
    after = load()
    assert (after.images[after.queries] == before.images[before.queries]).all()
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("Train/a.png Train/b.png Test/c.png", "no class folders with pictures in Test/, Train/"),
        ("test/red/a.png test/blue/b.png", "no training folder beside test/"),
        ("train/red/a.png train/blue/b.png test/c.png", "test/ has no class folders with pictures"),
        ("train/red/a.png train/blue/b.png test/", "test/ has no class folders with pictures"),
        ("train/red/a.png train/blue/b.png val/c.png", "val/ has no class folders with pictures"),
        (
            "train/red/a.png train/blue/b.png val/red/a.png valid/red/a.png",
            "val/, valid/ both mean",
        ),
    ],
)
def test_an_unclear_layout_is_refused_with_the_supported_ones(root, files, message):
    for name in files.split():
        if name.endswith("/"):
            (root / "data" / "shapes" / name).mkdir()
        else:
            save_copy(root / "data" / "shapes" / name)
    error = error_of()
    assert re.search(message, error)
    assert "keep one" in error or "{train,val,test}/<class>/*.png, or a CSV file" in error


def test_a_folder_around_the_data_set_is_refused_with_the_right_path(root):
    write_colours(root / "data" / "shapes" / "My Pets", {"red": 4, "blue": 4})
    (root / "data" / "shapes" / "notes").mkdir()
    (advice,) = re.findall("without pictures: notes/; .* DATA=(.*), with blue, red", error_of())
    assert load(*shlex.split(advice)).classes == ["blue", "red"]
    (advice,) = re.findall("did you mean DATA=(.*), with blue, red", error_of("data"))
    assert load(*shlex.split(advice)).classes == ["blue", "red"]


def test_subfolders_common_to_all_classes_are_reported(root):
    for fold in ("fold 1", "fold 2"):
        write_colours(root / "data" / "shapes" / fold, {"red": 3, "blue": 3})
    shapes = load()
    assert shapes.classes == ["fold 1", "fold 2"]
    assert shapes.layout.startswith("All classes have the same subfolders (blue, red)")
    save_copy(root / "data" / "shapes" / "fold 2" / "green" / "0.png")
    assert load().layout == ""


def test_parts_inside_class_folders_determine_the_split(root):
    for name in ("red", "blue"):
        for part, count in (("train", 5), ("test", 2)):
            for number in range(count):
                save_copy(root / "data" / "shapes" / name / part / f"{number}.png", seed=number)
    shapes = load()
    assert shapes.classes == ["blue", "red"]
    assert {name.split("/")[1] for name in names_of(shapes, "queries")} == {"test"}
    assert {name.split("/")[1] for name in names_of(shapes, "gallery")} == {"train"}


def test_a_class_may_be_named_train(root):
    for name in ("train", "car", "bus"):
        for number in range(3):
            save_copy(root / "data" / "shapes" / name / f"{number}.png", seed=number)
    assert load().classes == ["bus", "car", "train"]


def test_hidden_and_system_folders_are_left_out_and_counted(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 4, "blue": 4})
    hidden = ("red/.ipynb_checkpoints", "red/.thumbnails", "blue/@eaDir", ".git/a/b", "__MACOSX")
    for number, name in enumerate(hidden):
        for copy in range(number + 1):
            save_copy(folder / name / f"{copy}.png")
    save_copy(folder / "blue" / "._0.png")
    (folder / "blue" / "Thumbs.db").write_bytes(b"")
    shapes = load()
    assert len(shapes.names) == 8
    assert {file.name: file.files for file in shapes.left_out} == {
        "red/.ipynb_checkpoints/": 1, "red/.thumbnails/": 2, "blue/@eaDir/": 3, ".git/": 4,
        "__MACOSX/": 5, "blue/._0.png": 1, "blue/Thumbs.db": 1,
    }  # fmt: skip
    assert set(reasons(shapes).values()) == {folders.HIDDEN}


def test_links_are_followed_once_and_loops_are_skipped(root, tmp_path_factory):
    folder, elsewhere = root / "data" / "shapes", tmp_path_factory.mktemp("elsewhere")
    write_colours(folder, {"red": 3, "blue": 3})
    write_colours(elsewhere, {"green": 3})
    (folder / "green").symlink_to(elsewhere / "green")
    (folder / "again").symlink_to(folder / "red")
    (folder / "red" / "deep").mkdir()
    (folder / "red" / "deep" / "up").symlink_to("..")
    (folder / "red" / "root").symlink_to("/")
    (folder / "red" / "gone.png").symlink_to("nowhere.png")
    (folder / "red" / "self.png").symlink_to("self.png")
    (folder / "blue" / "linked.png").symlink_to(elsewhere / "green" / "0.png")
    os.mkfifo(folder / "blue" / "pipe.png")
    shapes = load()
    assert shapes.counts()["gallery"].add(shapes.counts()["queries"]).to_dict() == {
        "blue": 4, "green": 3, "red": 3, "all": 10,
    }  # fmt: skip
    assert reasons(shapes) == {
        "again/": "link to a folder that is read elsewhere",
        "red/deep/up/": "link to a folder that is read elsewhere",
        "red/root/": "link to a folder that is read elsewhere",
        "red/gone.png": "broken link",
        "red/self.png": "broken link",
        "red/deep/": "folder without pictures",
        "blue/pipe.png": "pipe, socket or device",
    }


def test_an_unreadable_subfolder_is_reported_and_the_rest_is_used(root, monkeypatch):
    write_colours(root / "data" / "shapes", {"red": 4, "blue": 4})
    save_copy(root / "data" / "shapes" / "blue" / "secret" / "0.png")
    forbid(monkeypatch, "secret")
    shapes = load()
    assert len(shapes.names) == 8
    assert reasons(shapes) == {"blue/secret/": "folder that cannot be read (Permission denied)"}


def test_files_beside_the_class_folders_are_reported(root):
    folder = root / "data" / "shapes"
    write_colours(folder / "train", {"red": 4, "blue": 4})
    for name in ("loose.png", "train/loose.png", "extra/red/0.png"):
        save_copy(folder / name)
    shapes = load()
    assert len(shapes.names) == 8
    assert set(reasons(shapes)) == {"loose.png", "train/loose.png", "extra/red/0.png"}


def test_line_breaks_in_names_are_escaped(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 4, "blue": 4})
    (folder / "red" / "a\nb\x1b[31m.txt").write_text("notes")
    text = folders.describe_files(8, load().left_out)
    assert len(text.splitlines()) == 2
    assert r"red/a\nb\x1b[31m.txt" in text


def test_unicode_forms_of_a_name_are_one_class(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 4})
    write_colours(root / "data" / "shapes" / "test", {"red": 1})
    for number in range(4):
        # Decomposed, as macOS writes it; the test folder has the composed form.
        save_copy(root / "data" / "shapes" / "train" / "cafe\u0301" / f"{number}.png", seed=number)
    save_copy(root / "data" / "shapes" / "test" / "caf\u00e9" / "0.png")
    assert load().classes == ["caf\u00e9", "red"]


def test_small_classes_are_left_out_on_request(root):
    write_colours(root / "data" / "shapes", {"red": 9, "green": 5, "blue": 1})
    shapes = load(min_images=3)
    assert shapes.classes == ["green", "red"]
    assert set(shapes.labels) == {0, 1}
    assert [(file.name, file.files) for file in shapes.left_out] == [
        ("'blue' (1 image, needs 3)", 1)
    ]
    assert "fewer than two classes" in error_of(min_images=6)
    # The fingerprint is that of a folder without the class.
    shutil.rmtree(root / "data" / "shapes" / "blue")
    assert load().fingerprint == shapes.fingerprint


def test_a_class_without_test_images_is_left_out_on_request(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 4, "green": 4, "blue": 4})
    write_colours(root / "data" / "shapes" / "test", {"red": 2, "blue": 2})
    assert load(min_images=1).classes == ["blue", "red"]


def test_numbers_of_files_add_up(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 8, "blue": 8, "green": 1})
    (folder / "red" / "0.png").write_bytes(b"broken")
    (folder / "red" / "notes.txt").write_text("notes")
    save_copy(folder / ".hidden" / "0.png")
    shapes = load(training_images=4, test_images=2, min_images=3)
    n_files = sum(path.is_file() for path in folder.rglob("*"))
    assert len(shapes.names) + sum(file.files for file in shapes.left_out) == n_files
    text = folders.describe_files(len(shapes.names), shapes.left_out)
    assert text.startswith(f"{n_files} files found, {len(shapes.names)} used, ")
    table = tables.files(shapes)
    assert table["number"][:2].tolist() == [n_files, len(shapes.names)]
    assert table["number"][2:].sum() == n_files - len(shapes.names)


# A CSV file instead of class folders


def write_table(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_classes_are_read_from_a_csv_file(root, delimiter, encoding):
    lines = ["Path,class,split,note"]
    for number in range(12):
        save_copy(root / "data" / "in" / f"{number}.png", seed=number)
        # None of these is a number or a missing value.
        name, split = ("007", "None")[number % 2], ("train", "val", "Test")[number // 2 % 3]
        lines.append(rf"in{'/' if number else chr(92)}{number}.png,{name},{split},x")
    lines += [
        "in/0.png,007,train,",
        "in/1.png,007,train,",
        "in/99.png,007,train,",
        "in/2.png,,val,",
    ]
    save_copy(root / "data" / "in" / "unlisted.png")
    text = "\r\n".join(lines).replace(",", delimiter)
    write_table(root / "data" / "labels.csv", text, encoding)
    shapes = load("data/labels.csv")
    assert shapes.classes == ["007", "None"]
    assert sorted(shapes.names) == sorted(f"in/{number}.png" for number in range(12))
    assert names_of(shapes, "queries") == ["in/4.png", "in/10.png", "in/5.png", "in/11.png"]
    assert names_of(shapes, "validation") == ["in/2.png", "in/8.png", "in/3.png", "in/9.png"]
    assert reasons(shapes) == {
        "in/0.png": "listed twice",
        "in/1.png": folders.LISTED_DIFFERENTLY,
        "in/2.png": "listed without a class",
        "in/99.png": "listed, but no such file",
    }
    assert "column split of labels.csv" in shapes.layout


def test_a_csv_file_without_splits_is_split(root):
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        save_copy(root / "data" / name, seed=number)
    lines = ["class,path", *(f"{'ab'[number % 2]},{name}" for number, name in enumerate(names))]
    lines[3] = lines[3].replace(names[2], str(root / "data" / names[2]))
    write_table(root / "data" / "labels.csv", "\n".join(lines))
    shapes = load("data/labels.csv")
    assert shapes.counts().loc["all", ["gallery", "queries"]].tolist() == [6, 2]
    assert shapes.layout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns path, class and, optionally, split; it has: none"),
        ("file,label\na.png,cat", "it has: file, label"),
        ("path,class,split\na.png,cat,holdout", "split of a.png is 'holdout'"),
        ("path,class\na.png,cat\nb.png,cat", "only one class"),
        ("path,class\nnowhere,cat\n,\nb,dog", "none of the 2 listed pictures exists"),
        ('path,class\n"a.png,cat\nb.png,dog', "a.png,cat\\nb.png,dog"),
    ],
)
def test_an_invalid_csv_file_is_refused_in_one_line(root, text, message):
    save_copy(root / "a.png")
    save_copy(root / "b.png")
    write_table(root / "labels.csv", text)
    assert message in error_of("labels.csv")


def test_a_missing_or_binary_csv_file_is_refused_in_one_line(root):
    assert "labels.csv (No such file" in error_of("labels.csv")
    (root / "labels.csv").write_bytes(b"path,class\ncaf\xe9.png,a")
    assert "in UTF-8" in error_of("labels.csv")


# Changed pictures


def test_a_moved_folder_is_not_decoded_again(project, monkeypatch):
    before = load()
    calls = count_calls(monkeypatch, dataset, "decode_pictures")
    (project / "data" / "shapes").rename(project / "data" / "moved")
    assert same(load("data/moved"), before)
    assert not calls


def test_a_replaced_file_of_equal_size_and_time_is_read_after_forget(project):
    before = load()
    path = project / "data" / "shapes" / before.names[0]
    status = path.stat()
    content = bytearray(path.read_bytes())
    Image.new("RGB", (24, 24), RED).save(path)
    assert path.stat().st_size < len(content)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(load(), before)
    parameters = {key: before.parameters[key] for key in params.DATA}
    assert forget(parameters) == before.fingerprint
    after = load()
    assert after.fingerprint != before.fingerprint
    assert (after.images[0] == RED).all()
    assert forget(parameters) == after.fingerprint
    assert same(load(), after)
    assert forget(parameters | {"image_size": 99}) == ""


# Splits


def test_the_gallery_is_training_and_validation_images_without_queries(project):
    shapes = load()
    together = np.sort(np.concatenate([shapes.train, shapes.validation]))
    assert together.tolist() == shapes.gallery.tolist() == list(range(36))
    assert shapes.queries.tolist() == list(range(36, 48))
    assert (shapes.exclude == -1).all()
    everything = [path.relative_to(project / "data/shapes").as_posix()
                  for path in (project / "data/shapes").rglob("*.png")]  # fmt: skip
    assert sorted(shapes.names) == sorted(everything)


def test_split_does_not_depend_on_the_seeds_of_a_run(project):
    from cbir.studies.study import open_study

    first, second, reshuffled = (
        open_study(project, "tiny", overrides=text).dataset
        for text in ("seeds=[0]", "seeds=[7,8]", "split_seed=7")
    )
    assert same(first, second)
    assert first.split_fingerprint != reshuffled.split_fingerprint
    assert names_of(first, "queries") != names_of(reshuffled, "queries")


def test_the_validation_fraction_does_not_change_the_queries(project):
    small, large = load(validation_fraction=0.2), load(validation_fraction=0.5)
    assert names_of(small, "queries") == names_of(large, "queries")
    assert small.fingerprint == large.fingerprint
    assert small.search_fingerprint == large.search_fingerprint
    assert small.split_fingerprint != large.split_fingerprint
    assert len(small.validation) < len(large.validation)


def test_a_dataset_keeps_the_parameters_it_was_loaded_with(project):
    parameters = {key: STUDY[key] for key in params.DATA} | {
        "training_images": 18,
        "test_images": 6,
    }
    shapes = load_dataset(**parameters)
    assert shapes.parameters == parameters
    assert same(load_dataset(**shapes.parameters), shapes)


# Fewer images


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        # Each class has 12 training images, a fifth of which validate, and 4 test images.
        ({"training_images": 18}, [5, 1, 6, 4]),
        ({"training_images": 27}, [7, 2, 9, 4]),
        ({"test_images": 6}, [10, 2, 12, 2]),
        ({"training_images": 9, "test_images": 3}, [2, 1, 3, 1]),
        ({"training_images": 18, "test_images": 1}, [5, 1, 6, 1]),
        ({"training_images": 36, "test_images": 12}, [10, 2, 12, 4]),
        ({"training_images": 999, "test_images": 999}, [10, 2, 12, 4]),
    ],
)
def test_limits_keep_equally_many_images_of_each_class(project, limits, counts):
    shapes = load(**limits)
    assert shapes.counts().loc[shapes.classes].to_numpy().tolist() == [counts] * 3
    assert shapes.images.shape[0] == len(shapes.labels) == len(shapes.names)
    assert shapes.gallery.tolist() == list(range(3 * counts[2]))


def test_classes_of_unequal_size_keep_equal_shares(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 12, "green": 8, "blue": 4})
    write_colours(root / "data" / "shapes" / "test", {"red": 6, "green": 4, "blue": 2})
    counts = load(training_images=12, test_images=6).counts()
    assert counts.loc[["red", "green", "blue"], "gallery"].tolist() == [6, 4, 2]
    assert counts.loc[["red", "green", "blue"], "queries"].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("part", "other_part", "key"),
    [("gallery", "queries", "training_images"), ("queries", "gallery", "test_images")],
)
def test_images_kept_by_limits_are_nested_and_change_the_fingerprints(
    project, part, other_part, key
):
    everything, more, fewer = load(), load(**{key: 9}), load(**{key: 6})
    assert set(names_of(fewer, part)) < set(names_of(more, part)) < set(names_of(everything, part))
    assert names_of(fewer, other_part) == names_of(everything, other_part)
    for value in ("fingerprint", "split_fingerprint", "search_fingerprint"):
        assert len({getattr(shapes, value) for shapes in (everything, more, fewer)}) == 3
    # Each remaining name has its picture and label.
    for position, name in enumerate(fewer.names):
        before = everything.names.index(name)
        assert (fewer.images[position] == everything.images[before]).all()
        assert fewer.labels[position] == everything.labels[before]


def test_limits_above_the_number_of_images_change_nothing(project):
    assert same(load(training_images=36, test_images=99), load())


def test_limits_keep_other_images_with_another_split_seed(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 12, "blue": 12})
    write_colours(root / "data" / "shapes" / "test", {"red": 2, "blue": 2})
    first, repeated, another = (load(training_images=8, split_seed=seed) for seed in (0, 0, 1))
    assert same(first, repeated)
    assert names_of(first, "gallery") != names_of(another, "gallery")


def test_too_few_training_images_to_validate_are_refused(project):
    assert "validation: 'circle' (1), 'cross' (1), 'square' (1)" in error_of(training_images=3)


@pytest.mark.parametrize(
    ("learn_from", "counts"),
    [(18, [5, 1]), (27, [8, 2]), (1, [1, 1]), (36, [10, 2]), (99, [10, 2])],
)
def test_learn_from_takes_equal_shares_of_the_classes(project, learn_from, counts):
    shapes = load(learn_from=learn_from)
    assert shapes.counts().loc[shapes.classes].to_numpy().tolist() == [[*counts, 12, 4]] * 3


def test_learn_from_takes_nested_images_and_keeps_gallery_and_queries(project):
    sizes = [1, 9, 18, 27, 0]
    loaded = [load(learn_from=size) for size in sizes]
    for fewer, more in itertools.pairwise(loaded):
        assert set(fewer.train) < set(more.train)
        assert set(fewer.validation) <= set(more.validation)
    assert len(loaded[0].validation) < len(loaded[-1].validation)
    for shapes in loaded:
        assert shapes.images.shape == loaded[-1].images.shape
        assert names_of(shapes, "gallery") == names_of(loaded[-1], "gallery")
        assert names_of(shapes, "queries") == names_of(loaded[-1], "queries")
        assert shapes.fingerprint == loaded[-1].fingerprint
        assert shapes.search_fingerprint == loaded[-1].search_fingerprint
    assert len({shapes.split_fingerprint for shapes in loaded}) == len(sizes)


def test_learn_from_decodes_nothing_again(project, monkeypatch):
    calls = count_calls(monkeypatch, dataset, "decode_pictures")
    load(learn_from=9)
    load(learn_from=18)
    load()
    assert len(calls) == 1
    load(training_images=18)
    load(test_images=6)
    assert len(calls) == 3


@settings(max_examples=50, deadline=None)
@given(positions=st.lists(st.integers(0, 9), min_size=1))
def test_rows_taken_by_position_are_those_rows(positions):
    array = np.arange(20).reshape(10, 2)
    assert np.array_equal(take_rows(array, np.array(positions)), array[positions])


def test_consecutive_rows_are_not_copied():
    array = np.arange(20).reshape(10, 2)
    assert np.shares_memory(take_rows(array, np.arange(3, 9)), array)
    assert not np.shares_memory(take_rows(array, np.array([3, 5])), array)


# Unreadable pictures


def picture_bytes(suffix: str) -> bytes:
    random = np.random.default_rng(0)
    stream = io.BytesIO()
    picture = Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8))
    picture.save(stream, "JPEG" if suffix == "jpg" else "PNG", exif=Image.Exif().tobytes())
    return stream.getvalue()


BROKEN = {
    "no picture": b"this is a text",
    "empty": b"",
    "header of a PNG": picture_bytes("png")[:50],
    "header of a JPEG": picture_bytes("jpg")[:400],
}


def test_a_damaged_picture_is_used_and_reported(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 6, "blue": 6})
    (folder / "blue" / "3.png").write_bytes(picture_bytes("png")[:400])
    shapes = load()
    assert ("blue/3.png", DAMAGED, 1) in shapes.remarks
    assert "blue/3.png" in shapes.names
    assert shapes.left_out == []


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_unreadable_picture_is_skipped_and_reported_with_a_reason(root, content):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 6, "blue": 6})
    (folder / "blue" / "3.png").write_bytes(content)
    shapes = load()
    ((name, reason, files),) = shapes.left_out
    assert (name, files) == ("blue/3.png", 1)
    assert reason
    assert "\n" not in reason
    assert len(shapes.names) == 11
    assert "blue/3.png" not in shapes.names
    # The pictures after it still have their labels.
    for image, label in zip(shapes.images, shapes.labels, strict=True):
        assert image.mean(axis=(0, 1)).argmax() == {"red": 0, "blue": 2}[shapes.classes[label]]


def test_unreadable_pictures_do_not_change_the_split_of_the_others(root):
    folder = root / "data" / "shapes"
    write_colours(folder, {"red": 8, "blue": 8})
    for name in ("red/2.png", "blue/0.png"):
        (folder / name).write_bytes(b"broken")
    broken, fewer = load(), load(training_images=6, test_images=2)
    # Unreadable files are reported in order, also those outside the limits.
    for shapes in (broken, fewer):
        names = [file.name for file in shapes.left_out if file.name]
        assert names == ["blue/0.png", "red/2.png"]
    for name in ("red/2.png", "blue/0.png"):
        (folder / name).unlink()
    assert same(broken, load())
    assert same(fewer, load(training_images=6, test_images=2))


# Errors


def test_a_missing_folder_is_reported_with_the_layout(root):
    message = error_of("data/nowhere")
    assert "data/nowhere" in message
    assert "<class>" in message


def test_a_file_instead_of_a_folder_is_reported(root):
    (root / "pictures.zip").write_bytes(b"PK")
    assert "pictures.zip" in error_of("pictures.zip")


def test_an_empty_folder_is_reported_with_the_layout(root):
    (root / "data" / "shapes").mkdir(parents=True)
    message = error_of()
    assert "no pictures in the subfolders of" in message
    assert "<class>/*.png" in message


def test_pictures_without_class_folders_are_refused_with_the_layout(root):
    (root / "data" / "shapes").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "data" / "shapes" / "one.png")
    assert "<class>/*.png" in error_of()


def forbid(monkeypatch, name: str) -> None:
    """Make folders of this name unreadable."""
    real = os.scandir

    def scandir(path):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_an_unreadable_folder_is_reported(root, monkeypatch):
    write_colours(root / "data" / "shapes", {"red": 4, "blue": 4})
    forbid(monkeypatch, "shapes")
    message = error_of()
    assert "data/shapes" in message
    assert "Permission denied" in message


def test_a_single_class_is_refused(root):
    write_colours(root / "data" / "shapes", {"red": 9})
    assert "only one class (red)" in error_of()


def test_all_classes_with_too_few_pictures_are_reported_in_one_line(root):
    write_colours(root / "data" / "shapes", {"red": 2, "blue": 1, "green": 3})
    message = error_of()
    assert "'blue' (1 image, needs 3), 'red' (2 images, needs 3): " in message
    for number in range(3):
        save_copy(root / "data" / "shapes" / "plain" / f"{number}.png", seed=number)
    (advice,) = re.findall('SET="(.*)"', message)
    assert load(**parse_overrides(advice)).classes == ["green", "plain"]


def test_three_pictures_per_class_are_enough(root):
    write_colours(root / "data" / "shapes", {"red": 3, "blue": 3})
    assert load().counts().loc["red"].tolist() == [1, 1, 2, 1]


def test_two_pictures_per_class_are_enough_beside_a_test_folder(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 2, "blue": 2})
    write_colours(root / "data" / "shapes" / "test", {"red": 1, "blue": 1})
    assert load().counts().loc["red"].tolist() == [1, 1, 2, 1]


def test_a_test_fraction_that_leaves_too_few_training_images_is_refused(root):
    write_colours(root / "data" / "shapes", {"red": 3, "blue": 20})
    assert "for validation: 'red' (1)" in error_of(test_fraction=0.9)


def test_a_test_class_that_train_lacks_is_reported(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 4, "blue": 4})
    write_colours(root / "data" / "shapes" / "test", {"red": 2, "green": 2})
    assert "class that train lacks: 'green'" in error_of()


def test_a_class_without_test_pictures_is_reported(root):
    write_colours(root / "data" / "shapes" / "train", {"red": 4, "blue": 4})
    write_colours(root / "data" / "shapes" / "test", {"red": 2})
    assert "'blue' (0 test images, needs 1)" in error_of()


def test_a_class_of_unreadable_pictures_is_reported(root):
    write_colours(root / "data" / "shapes", {"red": 5, "blue": 5})
    for path in (root / "data" / "shapes" / "blue").iterdir():
        path.write_bytes(b"broken")
    assert "'blue' (0 images, needs 3; 5 unreadable: not a picture" in error_of()


# Caching of decoded images


def test_images_are_decoded_once(project, monkeypatch):
    calls = count_calls(monkeypatch, dataset, "decode_pictures")
    first = load()
    second = load()
    assert len(calls) == 1
    assert same(first, second)


def test_another_size_or_split_is_decoded_again(project, monkeypatch):
    calls = count_calls(monkeypatch, dataset, "decode_pictures")
    assert load().images.shape[1] == 16
    assert load(image_size=24).images.shape[1] == 24
    load(split_seed=1)
    assert len(calls) == 3


def test_a_changed_picture_is_decoded_again_and_changes_the_fingerprint(project):
    before = load()
    name = before.names[0]
    Image.new("RGB", (24, 24), GREEN).save(project / "data" / "shapes" / name)
    after = load()
    assert (after.images[0] == GREEN).all()
    assert (before.images[0] != GREEN).any()
    assert after.fingerprint != before.fingerprint
    assert after.split_fingerprint != before.split_fingerprint
    assert after.search_fingerprint != before.search_fingerprint


def test_a_touched_picture_is_decoded_again_to_the_same_fingerprint(project, monkeypatch):
    calls = count_calls(monkeypatch, dataset, "decode_pictures")
    before = load()
    os.utime(project / "data" / "shapes" / before.names[0], (1, 1))
    after = load()
    assert len(calls) == 2
    assert same(before, after)


def test_added_and_removed_pictures_are_noticed(project):
    before = load()
    path = project / "data" / "shapes" / before.names[0]
    path.rename(path.with_name("zzz.png"))
    after = load()
    assert before.names[0] not in after.names
    path.with_name("zzz.png").unlink()
    assert len(load().names) == 47


def test_is_cached_decodes_nothing(project):
    parameters = LOADED_WITH | {"dataset": "data/shapes", "training_images": 0, "test_images": 0}
    parameters |= {"min_images": 0, "damaged": "use", "max_megapixels": 180}
    assert not is_cached(**parameters)
    assert not (project / "artifacts").exists()
    shapes = load()
    assert is_cached(**parameters)
    assert not is_cached(**parameters | {"image_size": 17})
    assert is_cached(**parameters | {"validation_fraction": 0.4})
    assert not is_cached(**parameters | {"training_images": 18})
    os.utime(project / "data" / "shapes" / shapes.names[-1], (1, 1))
    assert not is_cached(**parameters)


def test_interrupted_decoding_can_be_repeated(project, monkeypatch):
    clean = load(image_size=17)
    for path in list((project / "artifacts").rglob("manifest.json")):
        path.unlink()
        path.parent.rename(path.parent.with_name(path.parent.name + "-away"))
    real = pictures.read_squares

    def interrupted(*arguments, **options):
        yield next(real(*arguments, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pictures, "read_squares", interrupted)
        load(image_size=17)
    assert same(load(image_size=17), clean)


# Downloads of CIFAR-10


def archive_of_cifar10(count: int) -> bytes:
    """cifar-10-python.tar.gz with black pictures, `count` a file; the first is green, a frog."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            pictures = np.zeros((count, 3072), np.uint8)
            labels = [row % 10 for row in range(count)]
            # Row by row, channel by channel: red, green, blue.
            pictures[0, 1024:2048] = 200
            labels[0] = CIFAR10_CLASSES.index("frog")
            content = pickle.dumps({b"data": pictures, b"labels": labels}, protocol=4)
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def redirect(monkeypatch, root: Path, *origins: str, content: bytes = b"") -> None:
    """Let CIFAR-10 be downloaded from `origins`, with the checksum of `content`."""
    from keras.src.datasets import cifar10

    real, sha256 = cifar10.get_file, hashlib.sha256(content).hexdigest()
    (root / "keras").mkdir(exist_ok=True)
    monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
    monkeypatch.setattr(pictures, "CIFAR10_ADDRESSES", origins)
    monkeypatch.setattr(pictures, "CIFAR10_SHA256", sha256)

    def get_file(**arguments):
        assert arguments["file_hash"]
        changes = {"origin": "nowhere", "file_hash": sha256, "cache_dir": str(root / "keras")}
        return real(**arguments | changes)

    monkeypatch.setattr(cifar10, "get_file", get_file)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Sends files or ranges of them; the first response ends early if `cut_at` is set."""

    cut_at = 0
    requested_ranges = ()

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.exists():
            return self.send_error(404)
        content, byte_range = path.read_bytes(), self.headers.get("Range")
        type(self).requested_ranges = (*self.requested_ranges, byte_range)
        start = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range else 0
        self.send_response(206 if byte_range else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut, type(self).cut_at = self.cut_at or len(content), 0
        return self.wfile.write(content[start:cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path_factory):
    """A server on this machine: its folder, its address, and how to stop it."""
    folder = tmp_path_factory.mktemp("server")
    handler = functools.partial(QuietHandler, directory=str(folder))
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=serving.serve_forever, args=[0.05])
    thread.start()

    def stop() -> None:
        serving.shutdown()
        serving.server_close()
        thread.join()

    yield folder, f"http://127.0.0.1:{serving.server_port}", stop
    if thread.is_alive():
        stop()


def check_advice(message: str) -> None:
    assert "data/cifar10/{train,test}/<class>" in message
    assert "`make report`" in message


def test_a_refused_connection_is_reported_with_the_alternative(root, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{closed.getsockname()[1]}/cifar.tar.gz"
        redirect(monkeypatch, root, origin)
        message = error_of("cifar10")
    check_advice(message)
    assert "refused" in message


def test_a_missing_archive_is_reported_with_the_alternative(root, monkeypatch, server):
    redirect(monkeypatch, root, f"{server[1]}/gone.tar.gz")
    message = error_of("cifar10")
    check_advice(message)
    assert "404" in message


def test_an_archive_with_a_wrong_checksum_is_refused(root, monkeypatch, server):
    folder, address, _ = server
    (folder / "cifar.tar.gz").write_bytes(archive_of_cifar10(10))
    redirect(monkeypatch, root, f"{address}/cifar.tar.gz")
    message = error_of("cifar10")
    check_advice(message)
    assert "corrupted" in message
    assert not list((root / "artifacts").glob("images/*/manifest.json"))


@pytest.mark.slow
def test_an_interrupted_download_continues(monkeypatch, tmp_path, server):
    folder, address, _ = server
    content = np.random.default_rng(0).bytes(300_000)
    (folder / "cifar.tar.gz").write_bytes(content)
    monkeypatch.setattr(pictures, "CIFAR10_ADDRESSES", (f"{address}/cifar.tar.gz",))
    monkeypatch.setattr(pictures, "CIFAR10_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(QuietHandler, "requested_ranges", ())
    monkeypatch.setattr(QuietHandler, "cut_at", 200_000)
    with pytest.raises(OSError, match="200,000 of 300,000 bytes"):
        pictures._download_cifar10(tmp_path)
    pictures._download_cifar10(tmp_path)
    assert QuietHandler.requested_ranges == (None, "bytes=200000-")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]
    pictures._download_cifar10(tmp_path)
    assert len(QuietHandler.requested_ranges) == 2


def test_a_slow_download_continues_from_another_host(monkeypatch, tmp_path, server, capsys):
    folder, address, _ = server
    content = np.random.default_rng(0).bytes(300_000)
    for name in ("slow", "fast"):
        (folder / name).write_bytes(content)
    addresses = (f"{address}/slow", f"{address}/fast")
    monkeypatch.setattr(pictures, "CIFAR10_ADDRESSES", addresses)
    monkeypatch.setattr(pictures, "CIFAR10_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(pictures, "PATIENCE", 0)
    monkeypatch.setattr(pictures, "SLOW", float("inf"))
    monkeypatch.setattr(QuietHandler, "requested_ranges", ())
    pictures._download_cifar10(tmp_path)
    assert QuietHandler.requested_ranges == (None, "bytes=65536-")
    assert (tmp_path / pictures.CIFAR10_ARCHIVE).read_bytes() == content
    out = capsys.readouterr().out
    assert "35 minutes" in out
    assert "data/cifar10" in out


@pytest.mark.slow
def test_the_downloaded_archive_is_converted_once(root, monkeypatch, server):
    import keras

    folder, address, stop = server
    content = archive_of_cifar10(10_000)
    (folder / "cifar.tar.gz").write_bytes(content)
    addresses = f"{address}/gone.tar.gz", f"{address}/cifar.tar.gz"
    redirect(monkeypatch, root, *addresses, content=content)
    calls = count_calls(monkeypatch, keras.datasets.cifar10, "load_data")
    first = load("cifar10", image_size=32)
    stop()
    second = load("cifar10", image_size=32)
    assert len(calls) == 1
    assert first.fingerprint == second.fingerprint
    assert first.classes == CIFAR10_CLASSES
    assert first.images.shape == (60_000, 32, 32, 3)
    assert (len(first.gallery), len(first.queries)) == (50_000, 10_000)
    assert (first.names[10_000], first.names[59_999]) == ("train-10000", "test-09999")
    # The files of Keras in order, the test images last.
    green = list(range(0, 60_000, 10_000))
    assert (first.images[green] == (0, 200, 0)).all()
    assert [first.classes[label] for label in first.labels[green]] == ["frog"] * 6
    for start in green:
        assert not first.images[start + 1 : start + 10_000].any()
        assert first.labels[start + 1 : start + 10].tolist() == list(range(1, 10))
    assert [*(root / "artifacts" / "images").glob("*/manifest.json")]
