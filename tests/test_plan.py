"""The estimates of `make plan`; tests of studies also cover the steps that it finds cached."""

import dataclasses
import re
import shutil

import pytest
from conftest import ROOT, STUDY, write_pictures, write_study

from cbir import StudyError
from cbir.networks.backbones import BACKBONES
from cbir.studies import plan
from cbir.studies.study import open_study

FROZEN = {"backbone": "mobilenet", "weights": "imagenet", "train": "head", "head_epochs": 1,
          "epochs": 0, "feature_maps": True, "seeds": [0, 1]}  # fmt: skip


@pytest.fixture
def minutes(tmp_path, monkeypatch):
    """Estimates a study of digits whose backbone embeds them in 17 minutes and trains in 10."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    rates = 1_294 / 600, 1_797 / 1_020
    row = dataclasses.replace(BACKBONES["mobilenet"], rates=rates)
    monkeypatch.setitem(BACKBONES, "mobilenet", row)
    monkeypatch.setattr(plan, "NOTEBOOK_SECONDS", 0)
    monkeypatch.setattr(plan, "MASKED_IMAGES", 0)

    def estimate(grid: dict | None = None, **changes) -> int:
        study = STUDY | {"dataset": "digits", "image_size": 32} | ({"grid": grid} if grid else {})
        write_study(tmp_path, "estimated", study, {"mobilenet": FROZEN | changes})
        (text,) = re.findall(
            "about (.*) in total", plan.plan_text(open_study(tmp_path, "estimated"))
        )
        units = {unit: int(number) for number, unit in re.findall(r"(\d+) (h|min)", text)}
        return 60 * units.get("h", 0) + units.get("min", 0)

    return estimate


def test_a_frozen_backbone_embeds_the_images_once_for_all_seeds(minutes):
    assert minutes() == 17
    assert minutes({"pooling": ["avg", "max", "gem"]}) == 3 * 17


def test_a_trained_backbone_embeds_again_after_every_training(minutes):
    training = {"train": "all", "epochs": 2, "head_epochs": 0, "weights": "none"}
    assert minutes(**training) == 2 * (2 * 10 + 17)
    # Both seeds share the features for a head that is trained first.
    assert minutes(**training | {"weights": "imagenet", "head_epochs": 1}) == 2 * 37 + 17


def test_every_split_needs_a_training(minutes):
    training = {"train": "all", "epochs": 1, "head_epochs": 0, "weights": "none", "seeds": [0]}
    # Another gallery has the same training images, but both draws have other ones.
    protocols = ["closed", "held_out_gallery", "unseen_classes"]
    assert minutes(**training, protocols=protocols) == 3 * 27


def test_plan_of_a_folder_names_classes_parts_and_every_file(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere" / "pets"
    write_pictures(folder / "Train", ["cat", "dog"], count=6)
    write_pictures(folder / "val", ["cat", "dog"], count=2)
    (folder / "Train" / "cat" / "notes.txt").write_text("notes")
    (folder / "Train" / "dog" / "broken.png").write_bytes(b"no picture")
    (folder / "Train" / "dog" / "0.nef").write_bytes(b"II*\0" + bytes(30))
    write_pictures(folder / "Train" / "dog", [".thumbnails"], count=3)
    study = STUDY | {"dataset": "elsewhere/pets"}
    write_study(tmp_path, "planned", study, {"raw_pixels": {"baseline": "raw_pixels"}})
    text = plan.plan_text(open_study(tmp_path, "planned"))
    assert "17 pictures, not decoded yet, in 2 classes: cat (8), dog (9)\n" in text
    assert "training images from Train/, validation images from val/; test images are" in text
    assert "22 files found, 17 not decoded yet, 5 left out:\n" in text
    assert re.findall(r"^ +(\d+)  .*\((.*)\)$", text, re.MULTILINE) == [
        ("3", "Train/dog/.thumbnails/"), ("1", "Train/cat/notes.txt"), ("1", "Train/dog/0.nef"),
    ]  # fmt: skip
    assert not (tmp_path / "artifacts").exists()
    study |= {"test_fraction": 0.1, "protocols": ["closed", "held_out_gallery"]}
    write_study(tmp_path, "small", study, {"raw_pixels": {"baseline": "raw_pixels"}})
    with pytest.raises(StudyError, match=r'set SET="protocols=\[closed\]"'):
        plan.plan_text(open_study(tmp_path, "small"))
