"""What a report was made from: weights, settings, parameters and commands."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import empty_project
from invented import result, rows

from cbir import cache
from cbir.networks.weights import Weights
from cbir.reporting import provenance

SHA = "0123456789abcdef" * 4
SOURCES = {
    "cnn": "none",
    "vgg16": "imagenet",
    "resnet50": "study:tiny-imagenet-32",
    "mobilenet": "weights/mobile.h5",
}
PARAMETERS = {
    "backbone": "cnn",
    "pixels": "scaled",
    "train": "all",
    "input_size": 32,
    "pooling": "avg",
    "embedding": "penultimate",
    "precision": "mixed_bfloat16",
    "dropout": 0.0,
    "training": {
        "batch_size": 64,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "schedule": "cosine",
        "augmentation": ["flip", "shift"],
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "early_stopping": 0,
    },
}


# What a network that started from random weights sees, and hands on to who starts from it.
SCALED = ("none", "study:tiny-imagenet-32")


def run(source: str, *, protocols=("closed",), embedding_dim=256, summary=None, **parameters):
    """A network that started from there."""
    frames = [rows([0.5], protocol=each) for each in protocols]
    started_from = "random" if source == "none" else SHA
    found = result(
        *frames,
        weights={"source": source, "started from": started_from},
        parameters=PARAMETERS
        | {"backbone": source, "pixels": "scaled" if source in SCALED else "imagenet"}
        | parameters,
        embedding_dim=embedding_dim,
        **(summary or {}),
    )
    found.summary["dataset"]["train"] = 400
    return found


def runs(*names: str) -> dict:
    return {name: run(SOURCES[name]) for name in names}


BASELINE = {"random": result(rows([0.5]), baseline=True)}
NO_IMAGENET = " No ImageNet weights were used."


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cnn"], "All networks started from random weights." + NO_IMAGENET),
        (["vgg16"], "All networks started from ImageNet weights."),
        (
            ["resnet50"],
            "All networks started from a backbone trained in another study of this project "
            "(tiny-imagenet-32).",
        ),
        (["mobilenet"], "All networks started from a weights file."),
        (["cnn", "vgg16"], "Started from ImageNet weights: vgg16; from random weights: cnn."),
        (
            ["cnn", "resnet50"],
            "Started from a backbone trained in another study of this project "
            "(tiny-imagenet-32): resnet50; from random weights: cnn.",
        ),
        (
            ["mobilenet", "cnn"],
            "Started from a weights file: mobilenet; from random weights: cnn.",
        ),
    ],
)
def test_results_are_labelled_with_what_they_started_from(names, said):
    assert provenance.weights_label(runs(*names)) == said
    # A baseline has no weights to start from.
    assert provenance.weights_label(runs(*names) | BASELINE) == said


PRUNED, VGG16, MOBILENET = provenance.KNOWN_WEIGHTS


@pytest.mark.parametrize(
    ("digest", "name"),
    [
        (PRUNED, "ImageNet (pruned, 8-bit)"), (VGG16, "ImageNet"), (MOBILENET, "ImageNet"),
        (SHA, "b.h5"),
    ],
)  # fmt: skip
def test_a_file_is_shown_by_what_it_is_wherever_weights_are_named(digest, name):
    weights = {"source": "/home/me/a/b.h5", "started from": digest}
    networks = {"net": run("imagenet"), "cnn": run("none")}
    networks["net"].summary["weights"] = weights
    label = f"{name}, {digest[:12]}…"
    assert provenance.weights_and_digest(weights) == label
    assert provenance.networks_table(networks).loc["net", "weights"] == label
    start = "a weights file"
    if digest != SHA:
        start = f"{name} weights (SHA-256 {digest[:12]}…)"
    said = f"Started from {start}: net; from random weights: cnn."
    assert provenance.weights_label(networks) == said
    source = Weights(weights["source"], Path(weights["source"]), digest, "imagenet")
    assert f"the weights `{name}` (SHA-256 {digest[:12]}…)." in of_network(source, "all", False)


def test_known_files_are_named_by_whole_digests():
    assert {len(digest) for digest in provenance.KNOWN_WEIGHTS} == {64}
    cut = {"source": "a.h5", "started from": PRUNED[:12]}
    assert provenance.weights_name(cut) == "a.h5"


@pytest.mark.parametrize(
    ("source", "digest", "train", "treatment"),
    [
        ("none", "random", "all", "from random weights"),
        ("none", "random", "last_blocks:2", "from random weights"),
        ("none", "random", "head", "frozen, from random weights"),
        ("imagenet", SHA, "head", "frozen, from ImageNet weights"),
        ("a/b.h5", PRUNED, "head", "frozen, from ImageNet weights"),
        ("a/b.h5", VGG16, "last_blocks:2", "fine-tuned, from ImageNet weights"),
        ("imagenet", SHA, "all", "fine-tuned, from ImageNet weights"),
        ("a/b.h5", SHA, "all", "fine-tuned, from a weights file"),
        (
            "study:tiny/vgg16", SHA, "all",
            "fine-tuned, from a backbone trained in another study of this project (tiny)",
        ),
    ],
)  # fmt: skip
def test_a_treatment_is_read_from_parameters(source, digest, train, treatment):
    network = run(source, train=train)
    network.summary["weights"] = {"source": source, "started from": digest}
    assert provenance.treatment(network) == treatment


def test_baselines_alone_started_from_nothing():
    assert provenance.weights_label(BASELINE) == ""
    assert provenance.networks_table(BASELINE).empty


def test_each_study_that_was_learnt_in_is_named_once():
    found = {"a": run("study:tiny"), "b": run("study:other/vgg16"), "c": run("study:tiny/vgg16")}
    assert provenance.weights_label(found) == (
        "Started from a backbone trained in another study of this project (other): b; from a "
        "backbone trained in another study of this project (tiny): a, c."
    )


def test_the_table_says_what_each_network_is_and_was_trained_from():
    found = {
        "cnn": run("none", backbone="cnn"),
        "vgg": run("imagenet", train="head", pooling="gem", precision="float32",
                   training=PARAMETERS["training"] | {"augmentation": []}),
        "resnet": run("study:tiny", train="last_blocks:2"),
        "mobile": run("weights/mobile.h5", embedding="pooled", embedding_dim=512),
    }  # fmt: skip
    table = provenance.networks_table(found | BASELINE)
    assert table.index.tolist() == ["cnn", "vgg", "resnet", "mobile"]
    assert table["weights"].tolist() == [
        "random",
        "ImageNet, 0123456789ab…",
        "study:tiny, 0123456789ab…",
        "mobile.h5, 0123456789ab…",
    ]
    assert table["trained"].tolist() == [
        "all layers",
        "only the head, on a frozen backbone",
        "the head and the last 2 blocks",
        "all layers",
    ]
    assert table["embedding"].tolist() == ["penultimate, 256"] * 3 + ["pooled, 512"]
    assert table["augmentation"].tolist() == ["flip, shift", "none", "flip, shift", "flip, shift"]
    assert table["precision"].tolist() == ["bfloat16", "float32", "bfloat16", "bfloat16"]
    assert table["batch"].tolist() == ["64", "64 head", "64", "64"]
    assert table.loc["cnn"].drop(["weights", "trained", "embedding"]).to_dict() == {
        "backbone": "cnn",
        "input (px)": 32,
        "pooling": "avg",
        "training images": 400,
        "epochs": "3",
        "batch": "64",
        "optimizer": "adam, cosine",
        "learning rate": "0.001",
        "augmentation": "flip, shift",
        "precision": "bfloat16",
    }


def trained(**changes) -> dict:
    return {"training": PARAMETERS["training"] | changes}


@pytest.mark.parametrize(
    ("changes", "column", "told"),
    [
        (trained(weight_decay=5e-4), "weight decay", "0.0005"),
        (trained(label_smoothing=0.1), "label smoothing", "0.1"),
        (trained(early_stopping=5), "early stopping (epochs)", "5"),
        ({"dropout": 0.5}, "dropout", "0.5"),
    ],
)
def test_what_few_networks_use_is_told_where_one_does(changes, column, told):
    plain = provenance.networks_table({"cnn": run("none")})
    table = provenance.networks_table({"cnn": run("none"), "other": run("none", **changes)})
    assert column not in plain
    assert set(table) - set(plain) == {column}
    assert table[column].to_dict() == {"cnn": "none", "other": told}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Artifacts of a head before a backbone, and of embeddings; where they stand."""
    monkeypatch.chdir(empty_project(tmp_path / "project"))
    made = {
        "head": {"batch_size": 512, "learning_rate": 0.01, "epochs": 20},
        "embeddings": {"test_time_flips": True, "whitening": 64, "epoch": 3},
    }
    return {
        name: cache.cached(name, lambda folder: None, parameters=given, package="images")
        .folder.relative_to(tmp_path / "project").as_posix()
        for name, given in made.items()
    }  # fmt: skip


def test_a_head_before_the_backbone_is_told_beside_it(steps):
    summary = {"artifacts": {"head": steps["head"]}, "head_epochs": 20}
    row = provenance.networks_table({"cnn": run("imagenet", summary=summary)}).loc["cnn"]
    assert row[["epochs", "batch", "learning rate"]].tolist() == [
        "20 head + 3", "512 head, 64", "0.01 head, 0.001",
    ]  # fmt: skip


def test_how_embeddings_were_made_is_told(steps):
    summary = {"artifacts": {"embeddings": steps["embeddings"]}}
    flips, whitening = "test-time flips", "whitening (dimensions)"
    table = provenance.networks_table({"cnn": run("none", summary=summary)})
    assert table.loc["cnn", [flips, whitening]].tolist() == ["yes", "64"]
    # Of embeddings that are gone nothing is said, not even that they are plain.
    gone = run("none", summary={"artifacts": {"embeddings": "artifacts/embeddings/gone"}})
    assert flips not in provenance.networks_table({"cnn": gone})
    both = provenance.networks_table({"cnn": run("none", summary=summary), "other": gone})
    assert both[flips].tolist() == ["yes", "–"]


@pytest.mark.parametrize(
    ("train", "head", "last", "told"),
    [
        ("all", 0, 47, "47"),
        ("all", 20, 3, "20 head + 3"),
        ("last_blocks:1", 20, 3, "20 head + 3"),
        ("head", 0, 20, "20 head"),
    ],
)
def test_epochs_of_the_head_stand_before_those_of_the_backbone(train, head, last, told):
    summary = {"parameters": {"train": train}, "epochs": last, "head_epochs": head}
    assert provenance.epochs(summary) == told


def test_epochs_are_those_that_were_kept_or_those_up_to_a_state():
    # With early stopping the best of the twenty epochs was the seventh.
    entry = {"parameters": {"train": "all", "head_epochs": 20}, "epochs": 3, "head_epochs": 7}
    assert provenance.epochs(entry) == "7 head + 3"
    assert provenance.epochs(entry, epoch=2) == "7 head + 2"


def manifest(**sources: str) -> dict:
    """Architectures of a manifest by what they started from; points as in `cnn-64`."""
    return {
        name.replace("_", "-"): {
            "weights": {"source": source} if source else None,
            "variant": f"input_size={name.partition('_')[2]}" if "_" in name else "",
        }
        for name, source in sources.items()
    }


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({"cnn": "none", "random": ""}, "All networks started from random weights." + NO_IMAGENET),
        ({"vgg16": "imagenet", "random": ""}, "All networks started from ImageNet weights."),
        (
            {"vgg16": "study:tiny-imagenet-32", "cnn": "none"},
            "Started from a backbone trained in another study of this project "
            "(tiny-imagenet-32): vgg16; from random weights: cnn.",
        ),
        (
            {"vgg_32": "imagenet", "vgg_64": "imagenet", "cnn_32": "none", "cnn_64": "none"},
            "Started from ImageNet weights: vgg; from random weights: cnn.",
        ),
        (
            {"vgg_32": "imagenet", "vgg_64": "none", "cnn_32": "none", "cnn_64": "none"},
            "Started from ImageNet weights: vgg-32; from random weights: vgg-64, cnn.",
        ),
        ({"random": ""}, ""),
    ],
)
def test_a_manifest_is_labelled_as_results_are(sources, said):
    assert provenance.weights_label(manifest(**sources)) == said


def test_weights_of_a_studys_architecture_keep_the_name_of_the_study():
    table = provenance.networks_table({"cnn": run("study:tiny-imagenet-32/vgg16")})
    assert "tiny-imagenet-32/vgg16" in table.loc["cnn", "weights"]


@pytest.mark.parametrize("asked", [["closed"], ["closed", "unseen_classes"]])
@pytest.mark.parametrize("source", SOURCES.values())
def test_pretraining_is_warned_of_only_where_classes_are_called_unseen(asked, source):
    frames = [rows([0.5], protocol=each) for each in asked]
    baseline = result(*frames, baseline=True)
    said = provenance.pretrained_warning(
        {"vgg16": run(source, protocols=asked), "random": baseline}
    )
    assert bool(said) == (source != "none" and "unseen_classes" in asked)
    assert "random" not in said
    if said:
        assert said.startswith("vgg16 started from pretrained weights")


def of_network(weights: Weights, train: str, was_frozen: bool) -> str:
    parameters = {"train": train, "was_frozen": was_frozen}
    return provenance.describe_network(SimpleNamespace(weights=weights, parameters=parameters))


def test_a_network_of_random_weights_says_so():
    weights = Weights("none", None, "", "scaled")
    assert of_network(weights, "all", False) == (
        "It starts from random weights. Training changes all layers."
    )


@pytest.mark.parametrize("source", [*SOURCES.values()][1:])
def test_a_network_names_its_weights_and_what_of_it_is_trained(source):
    weights = Weights(source, Path("x.h5"), SHA, "imagenet")
    name = {"imagenet": "ImageNet", "weights/mobile.h5": "mobile.h5"}.get(source, source)
    start = f"It starts from the weights `{name}` (SHA-256 0123456789ab…). Training changes "
    assert of_network(weights, "head", True) == (start + "only the head, on a frozen backbone.")
    assert of_network(weights, "last_blocks:3", True) == (
        start + "the head and the last 3 blocks. The head is trained first, and batch "
        "normalisation stays in inference mode."
    )
    assert of_network(weights, "all", False) == start + "all layers."


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(empty_project(tmp_path))
    return tmp_path


def write_manifest(project, **changes) -> None:
    run = {"study": "tiny", "architecture": "cnn", "epochs": 3, "seeds": [0, 1]}
    content = {
        "command": "make report STUDY=tiny",
        "git": {"commit": "abc123", "clean": True},
        "architectures": {
            "cnn": {"parameters": run | {"feature_maps": False, "augmentation": []}},
            "random": {"parameters": {"study": "tiny", "architecture": "random", "seeds": [0]}},
        },
    }
    folder = project / "reports" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content | changes))


def test_parameters_stand_in_rows_and_runs_in_columns(project):
    write_manifest(project)
    table = provenance.parameters_table("tiny")
    assert table["cnn"].to_dict() == {
        "epochs": "3", "seeds": "[0, 1]", "feature_maps": "false", "augmentation": "[]",
    }  # fmt: skip
    assert table["random"].tolist() == ["–", "[0]", "–", "–"]


def test_the_commands_check_the_commit_out_and_run_the_study(project):
    write_manifest(project)
    assert (
        provenance.commands("tiny")
        == "To repeat this report:\n\n```\ngit checkout abc123\nmake report STUDY=tiny\n```"
    )
    write_manifest(project, git={"commit": "abc123", "clean": False})
    assert provenance.commands("tiny").endswith("there were uncommitted changes.")
    write_manifest(project, git={"commit": None, "clean": None})
    assert (
        provenance.commands("tiny") == "To repeat this report:\n\n```\nmake report STUDY=tiny\n```"
    )


def test_without_a_report_there_is_nothing_to_tell(project):
    assert provenance.commands("tiny") == ""
    assert provenance.parameters_table("tiny").empty
