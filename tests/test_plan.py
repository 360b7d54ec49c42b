"""What `make plan` reckons; what it finds in caches is tested with the studies that fill them."""

import dataclasses
import re
import shutil

import pytest
from conftest import ROOT, STUDY, write_study

from cbir.networks.backbones import BACKBONES
from cbir.studies import plan
from cbir.studies.study import open_study

FROZEN = {"backbone": "mobilenet", "weights": "imagenet", "train": "head", "head_epochs": 1,
          "epochs": 0, "feature_maps": True, "seeds": [0, 1]}  # fmt: skip


@pytest.fixture
def minutes(tmp_path, monkeypatch):
    """Reckons a study of digits whose backbone embeds them in 17 minutes and trains in 10."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    rates = 1_294 / 600, 1_797 / 1_020
    row = dataclasses.replace(BACKBONES["mobilenet"], rates=rates)
    monkeypatch.setitem(BACKBONES, "mobilenet", row)
    monkeypatch.setattr(plan, "NOTEBOOK_SECONDS", 0)
    monkeypatch.setattr(plan, "EXPLAINED", 0)

    def reckoned(grid: dict | None = None, **changes) -> int:
        study = STUDY | {"dataset": "digits", "image_size": 32} | ({"grid": grid} if grid else {})
        write_study(tmp_path, "reckoned", study, {"mobilenet": FROZEN | changes})
        (said,) = re.findall("about (.*) in all", plan.describe(open_study(tmp_path, "reckoned")))
        units = dict(reversed(each) for each in re.findall(r"(\d+) (h|min)", said))
        return 60 * int(units.get("h", 0)) + int(units.get("min", 0))

    return reckoned


def test_a_frozen_backbone_sees_the_images_once_for_all_heads_of_a_grid(minutes):
    assert minutes() == 17
    assert minutes({"pooling": ["avg", "max", "gem", "attention"], "dropout": [0.1, 0.5]}) == 17
    # Pooled features are kept for each way of pooling.
    assert minutes({"pooling": ["avg", "max", "gem"]}, feature_maps=False) == 3 * 17


def test_each_seed_of_random_weights_is_a_backbone_of_its_own(minutes):
    assert minutes(weights="none") == 2 * 17


def test_a_trained_backbone_embeds_anew_after_each_training(minutes):
    given = {"train": "all", "epochs": 2, "head_epochs": 0, "weights": "none"}
    assert minutes(**given) == 2 * (2 * 10 + 17)
    # A head first: one more pass for both seeds.
    assert minutes(**given | {"weights": "imagenet", "head_epochs": 1}) == 2 * (2 * 10 + 17) + 17
