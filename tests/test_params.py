"""The list of parameters: bounds, defaults, contradictions, groups, documentation."""

import shutil

import pytest
import yaml
from conftest import CNN, DEFAULTS, ROOT, STUDY, write_study

from cbir import StudyError
from cbir.networks import choices
from cbir.networks.backbones import BACKBONES
from cbir.networks.baselines import BASELINES
from cbir.networks.vector_files import VECTORS
from cbir.studies import configs, params

BASELINE = {"notebook": "baseline", "baseline": "random"}
# YAML texts of the smallest and the largest allowed value, or of every name.
ALLOWED = {
    "backbone": [*BACKBONES],
    "baseline": [*BASELINES, VECTORS],
    "vectors": ["data/dino.npz", "/data/dino v2.parquet"],
    "dataset": ["digits", "032", "2001-99-99", "1:30", "猫"],
    "image_size": ["8", "4096"],
    "training_images": ["0", "1", "1000000000"],
    "test_images": ["0", "1", "1000000000"],
    "test_fraction": ["0.001", "0.999"],
    "validation_fraction": ["0.001", "0.999"],
    "split_seed": ["0", "4294967295"],
    "seeds": ["[0]", "[2, 0, 4294967295]"],
    "protocols": [
        "[closed]",
        "[held_out_gallery, unseen_classes]",
        "[closed, held_out_gallery, unseen_classes, hashing_1k]",
        "[hashing_1k]",
    ],
    "unseen": ["1", "1000000"],
    "draws": ["1", "1000"],
    "ks": ["[1]", "[10, 1, 1000000000]", str([*range(1, 101)])],
    "weights": ["none", "imagenet", "study:digits", "study:digits/cnn", "data/a.weights.h5"],
    "train": ["all", "head", "last_blocks:1", "last_blocks:3"],
    "input_size": ["32", "4096"],
    "min_images": ["0", "1000000000"],
    "damaged": ["use", "skip"],
    "max_megapixels": ["1", "10000"],
    "pooling": [*choices.POOLINGS],
    "embedding": [*choices.EMBEDDINGS],
    "embedding_dim": ["1", "65536"],
    "dropout": ["0", "0.0", "0.999"],
    "whitening": ["0", "1", "16"],
    "learn_from": ["0", "1", "1000000000"],
    "head_epochs": ["1", "100000"],
    "head_batch_size": ["1", "65536"],
    "head_learning_rate": ["1e-9", "1", "100"],
    "epochs": ["1", "100000"],
    "measured_epochs": ["[]", "[1]", "[3, 1]"],
    "batch_size": ["1", "65536"],
    "optimizer": [*choices.OPTIMIZERS],
    "learning_rate": ["1e-9", "1", "100"],
    "schedule": [*choices.SCHEDULES],
    "weight_decay": ["0", "5.0e-4", "0.999"],
    "augmentation": ["[]", *(f"[{name}]" for name in choices.AUGMENTATIONS), "[shift, flip]"],
    "label_smoothing": ["0", "0.1", "0.999"],
    "early_stopping": ["0", "1", "100000"],
}
REJECTED = {
    "backbone": ["alexnet", "CNN", "''"],
    "baseline": ["chance", "Random", "''"],
    "vectors": ["''", "data/dino.csv", "data/dino.npz.gz"],
    "dataset": ["''"],
    "image_size": ["7", "0", "-32", "4097"],
    "training_images": ["-1", "1000000001"],
    "test_images": ["-1", "1000000001"],
    "test_fraction": ["0", "1", "-0.1", "1.5", ".nan"],
    "validation_fraction": ["0", "1", "-0.1", ".nan"],
    "split_seed": ["-1", "4294967296"],
    "seeds": ["[]", "[-1]", "[0, 1, 0]", "[4294967296]"],
    "protocols": ["[]", "[open]", "[closed, closed]", "[unseen_classes, closed]"],
    "unseen": ["0", "-1", "1000001"],
    "draws": ["0", "-1", "1001"],
    "ks": ["[]", "[0]", "[-5]", "[1, 5, 1]", str([*range(1, 102)])],
    "weights": ["''", "'study:'"],
    "train": ["some", "''", "last_blocks", "'last_blocks:'", "last_blocks:0", "last_blocks:-1",
              "last_blocks:1.5", "last_blocks:two", "last_blocks:1000", "heads"],
    "input_size": ["31", "0", "-64", "4097"],
    "min_images": ["-1", "1000000001"],
    "damaged": ["keep", "''"],
    "max_megapixels": ["0", "10001", "1.5"],
    "pooling": ["mean", "''", "GeM"],
    "embedding": ["last", "''"],
    "embedding_dim": ["0", "-1", "65537"],
    "dropout": ["1", "-0.1", ".nan"],
    "whitening": ["-1", "65537"],
    "learn_from": ["-1", "1000000001"],
    "head_epochs": ["-1", "100001"],
    "head_batch_size": ["0", "-1", "65537"],
    "head_learning_rate": ["0", "-1e-3", ".nan", ".inf", "100.1"],
    "epochs": ["-1", "100001"],
    "measured_epochs": ["[0]", "[-1]", "[2, 2]", "[100001]"],
    "batch_size": ["0", "-1", "65537"],
    "optimizer": ["rmsprop", "''", "Adam"],
    "learning_rate": ["0", "-1e-3", ".nan", ".inf", "100.1"],
    "schedule": ["linear", "''"],
    "weight_decay": ["1", "-0.1", ".nan"],
    "augmentation": ["[mirror]", "[flip, flip]", "['']"],
    "label_smoothing": ["1", "-0.1", ".nan"],
    "early_stopping": ["-1", "100001"],
}  # fmt: skip
# Other parameters that a value needs to avoid contradictions.
# A backbone from a file, whose head is trained first.
FROM_FILE = {"weights": "backbone.h5", "head_epochs": 1}
HEAD = {"train": "head", "head_epochs": 2, "epochs": 0, "measured_epochs": []}
NEEDS = {
    ("train", "head"): HEAD,
    **{("train", value): FROM_FILE for value in ALLOWED["train"][2:]},
    **{("weights", value): {"head_epochs": 1} for value in ALLOWED["weights"][2:]},
    ("weights", "imagenet"): {"backbone": "vgg16", "head_epochs": 1},
    **{("head_epochs", value): HEAD for value in ALLOWED["head_epochs"]},
    **{("early_stopping", value): {"measured_epochs": []} for value in ("1", "100000")},
    ("baseline", VECTORS): {"vectors": "dino.npz"},
    **{("protocols", ALLOWED["protocols"][index]): {"dataset": "cifar10"} for index in (2, 3)},
}


def pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(key, value) for key, values in table.items() for value in values]


def load(root, key: str, value: str) -> tuple[str, dict]:
    """The file with a parameter, and the parameters of its run."""
    architecture = {"baseline": BASELINE, "vectors": {"baseline": VECTORS}}.get(key, CNN)
    needs = NEEDS.get((key, value), {})
    architecture = {name: None for name in needs if name == "vectors"} | architecture
    layers = {
        "study": {name: needs.get(name, default) for name, default in STUDY.items()},
        "cnn": {name: needs.get(name, default) for name, default in architecture.items()},
    }
    file = "study" if key in STUDY else "cnn"
    layers[file].pop(key, None)
    write_study(root, "tiny", layers["study"], {"cnn": layers["cnn"]})
    path = root / "params" / "tiny" / f"{file}.yaml"
    path.write_text(f"{path.read_text()}{key}: {value}\n")
    (run,) = configs.load(root, "tiny")
    return f"params/tiny/{file}.yaml", run.parameters


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project without pictures; `load` writes its study `tiny`."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    return folder


def test_every_bounded_parameter_has_values_to_try():
    bounded = {key for key, row in params.PARAMETERS.items() if row.bound}
    assert ALLOWED.keys() == REJECTED.keys() == bounded
    kinds = {key: row.type for key, row in params.PARAMETERS.items() if key not in bounded}
    assert {kinds[key] for key in kinds.keys() - {"dataset"}} == {"bool"}


@pytest.mark.parametrize(("key", "value"), pairs(ALLOWED))
def test_allowed_values_are_accepted(root, key, value):
    _, parameters = load(root, key, value)
    # YAML 1.1 reads 1e-9 as text, and texts of digits as octal numbers, times and dates.
    expected = value if key == "dataset" else 1e-9 if value == "1e-9" else yaml.safe_load(value)
    assert parameters[key] == expected


@pytest.mark.parametrize(("key", "value"), pairs(REJECTED))
def test_invalid_values_are_rejected_with_their_file_and_name(root, key, value):
    file = "study" if key in STUDY else "cnn"
    with pytest.raises(StudyError) as caught:
        load(root, key, value)
    message = str(caught.value)
    assert message.startswith(f"params/tiny/{file}.yaml: {key} must ")
    assert ", not " in message
    assert "\n" not in message


@pytest.mark.parametrize("row", params.PARAMETERS.values(), ids=params.PARAMETERS)
def test_a_default_is_within_the_bounds(row):
    assert row.group in params.GROUPS
    assert row.default is None or row.error(row.default) == ""


# Changes to a plain CNN that is trained from random weights for three epochs.
CONFLICTS = {
    "a head that is not trained": (
        HEAD | {"head_epochs": 0},
        {"head_epochs": 1},
        "head_epochs: must be greater than 0 if train is head",
    ),
    "a network that is not trained": (
        {"epochs": 0, "measured_epochs": []},
        {"epochs": 1},
        "epochs: must be greater than 0 if train is all",
    ),
    "blocks that are not trained": (
        FROM_FILE | {"train": "last_blocks:2", "epochs": 0, "measured_epochs": []},
        {"epochs": 1},
        "epochs: must be greater than 0 if train is last_blocks:2",
    ),
    "a head before a backbone of random weights": (
        {"head_epochs": 1},
        {"weights": "backbone.h5"},
        "head_epochs: must be 0 if weights is none",
    ),
    "a head before blocks of random weights": (
        {"head_epochs": 1, "train": "last_blocks:1"},
        {"head_epochs": 0, "train": "all"},
        "head_epochs: must be 0 if weights is none",
    ),
    "a learnt backbone trained under a head of random weights": (
        {"weights": "backbone.h5"},
        {"head_epochs": 1},
        "head_epochs: must be greater than 0 if weights is backbone.h5 and train is all, "
        "because gradients through an untrained head",
    ),
    "learnt blocks trained under a head of random weights": (
        {"backbone": "vgg16", "weights": "imagenet", "train": "last_blocks:1"},
        {"train": "head", "epochs": 0, "measured_epochs": [], "head_epochs": 2},
        "head_epochs: must be greater than 0 if weights is imagenet and train is last_blocks:1",
    ),
    "more blocks than there are": (
        FROM_FILE | {"train": "last_blocks:4"},
        {"train": "last_blocks:3"},
        "train: last_blocks:4: cnn has only 3 blocks",
    ),
    "more blocks than another backbone has": (
        FROM_FILE | {"train": "last_blocks:6", "backbone": "vgg16"},
        {"train": "last_blocks:5"},
        "train: last_blocks:6: vgg16 has only 5 blocks",
    ),
    "blocks of random weights that are trained alone": (
        {"train": "last_blocks:1"},
        FROM_FILE,
        "train: last_blocks:1: must be all if weights is none, because the other blocks would keep "
        "random weights",
    ),
    "changed images for a frozen backbone": (
        HEAD | {"augmentation": ["flip"]},
        {"augmentation": []},
        "augmentation: impossible with a frozen backbone",
    ),
    "a measured epoch that does not come": (
        {"measured_epochs": [1, 4]},
        {"epochs": 4},
        "measured_epochs: [4] is greater than epochs: 3",
    ),
    "a measured epoch that may not come": (
        {"early_stopping": 1},
        {"measured_epochs": []},
        "measured_epochs: must be [] with early_stopping",
    ),
    "a measured epoch of a frozen backbone, which has none": (
        HEAD | {"epochs": 3, "measured_epochs": [1]},
        {"measured_epochs": []},
        "measured_epochs: ",
    ),
    "more dimensions than an embedding has": (
        {"whitening": 17},
        {"whitening": 16},
        "whitening: 17 is greater than embedding_dim: 16",
    ),
    "more dimensions than a layer has that pooled features are not": (
        {"whitening": 17},
        {"embedding": "pooled"},
        "whitening: 17 is greater than embedding_dim: 16",
    ),
}


@pytest.mark.parametrize(("broken", "fixed", "message"), CONFLICTS.values(), ids=CONFLICTS)
def test_contradictions_are_rejected_until_they_are_fixed(broken, fixed, message):
    assert params.conflict(CNN) == ""
    error = params.conflict(CNN | broken)
    assert error.startswith(message)
    assert "\n" not in error
    assert params.conflict(CNN | broken | fixed) == ""


def test_epochs_are_ignored_if_the_backbone_is_frozen():
    assert params.conflict(CNN | HEAD) == params.conflict(CNN | HEAD | {"epochs": 5}) == ""


def test_groups_are_completed_with_defaults():
    settings = params.complete(
        data={"dataset": "digits"},
        network={"backbone": "cnn", "dropout": 0},
        training={"epochs": 3},
        measurement={"seeds": [1], "protocols": ["closed"]},
    )
    assert settings.data.keys() == set(params.names_in("data"))
    assert settings.data["image_size"] == 32
    assert settings.network["pooling"] == "avg"
    assert type(settings.network["dropout"]) is float
    assert settings.training == {key: DEFAULTS[key] for key in params.names_in("training")} | {
        "epochs": 3
    }
    assert settings.embedding == {"test_time_flips": False, "whitening": 0}
    assert settings.measurement["ks"] == [1, 5, 10, 100]


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("network", {"poling": 1}, "network: unknown parameter 'poling', did you mean 'pooling'"),
        ("network", {"epochs": 3}, "network: epochs belongs to training"),
        ("network", {}, "network: missing parameter backbone"),
        ("training", {"epochs": 0}, "epochs: must be greater than 0 if train is all"),
        ("training", {"epochs": "3"}, "training: epochs must be int, not '3'"),
        ("measurement", {"seeds": [-1]}, "measurement: seeds must contain 1 to 100 seeds"),
    ],
)
def test_groups_are_checked_like_files(group, values, message):
    groups = {
        "data": {"dataset": "digits"},
        "network": {"backbone": "cnn"},
        "training": {"epochs": 3},
        "measurement": {"seeds": [1], "protocols": ["closed"]},
    }
    with pytest.raises(StudyError) as caught:
        params.complete(**groups | {group: values})
    assert str(caught.value).startswith(message)


def test_the_documentation_lists_every_parameter():
    assert (ROOT / "docs" / "parameters.md").read_text("utf-8") == params.document(), (
        "docs/parameters.md is out of date: run `make docs`"
    )
