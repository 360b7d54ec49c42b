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


# Sources of networks whose backbones expect scaled pixels.
SCALED = ("none", "study:tiny-imagenet-32")


def run(source: str, *, protocols=("closed",), embedding_dim=256, summary=None, **parameters):
    """The run of a network that started from the weights `source`."""
    frames = [rows([0.5], protocol=protocol) for protocol in protocols]
    started_from = "random" if source == "none" else SHA
    network_run = result(
        *frames,
        weights={"source": source, "started from": started_from},
        parameters=PARAMETERS
        | {"backbone": source, "pixels": "scaled" if source in SCALED else "imagenet"}
        | parameters,
        embedding_dim=embedding_dim,
        **(summary or {}),
    )
    network_run.summary["dataset"]["train"] = 400
    return network_run


def runs(*names: str) -> dict:
    return {name: run(SOURCES[name]) for name in names}


BASELINE = {"random": result(rows([0.5]), baseline=True)}
NO_IMAGENET = " No ImageNet weights were used."


@pytest.mark.parametrize(
    ("names", "label"),
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
def test_the_label_of_results_names_the_initial_weights(names, label):
    assert provenance.weights_label(runs(*names)) == label
    # A baseline has no weights to start from.
    assert provenance.weights_label(runs(*names) | BASELINE) == label


PRUNED, VGG16, MOBILENET = provenance.KNOWN_WEIGHTS


@pytest.mark.parametrize(
    ("digest", "name"),
    [
        (PRUNED, "ImageNet (pruned, 8-bit)"), (VGG16, "ImageNet"), (MOBILENET, "ImageNet"),
        (SHA, "b.h5"),
    ],
)  # fmt: skip
def test_known_weights_files_are_named_in_labels_tables_and_texts(digest, name):
    weights = {"source": "/home/me/a/b.h5", "started from": digest}
    networks = {"net": run("imagenet"), "cnn": run("none")}
    networks["net"].summary["weights"] = weights
    weights_text = f"{name}, {digest[:12]}…"
    assert provenance.weights_and_digest(weights) == weights_text
    assert provenance.networks_table(networks).loc["net", "weights"] == weights_text
    start = "a weights file"
    if digest != SHA:
        start = f"{name} weights (SHA-256 {digest[:12]}…)"
    label = f"Started from {start}: net; from random weights: cnn."
    assert provenance.weights_label(networks) == label
    source = Weights(weights["source"], Path(weights["source"]), digest, "imagenet")
    assert f"the weights `{name}` (SHA-256 {digest[:12]}…)." in description_of(source, "all", False)


def test_known_files_are_recognised_by_complete_digests():
    assert {len(digest) for digest in provenance.KNOWN_WEIGHTS} == {64}
    weights = {"source": "a.h5", "started from": PRUNED[:12]}
    assert provenance.weights_name(weights) == "a.h5"


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
def test_the_treatment_follows_from_weights_and_training(source, digest, train, treatment):
    network = run(source, train=train)
    network.summary["weights"] = {"source": source, "started from": digest}
    assert provenance.treatment(network) == treatment


def test_results_of_only_baselines_have_no_label_of_weights():
    assert provenance.weights_label(BASELINE) == ""
    assert provenance.networks_table(BASELINE).empty


def test_the_label_names_every_source_study_once():
    networks = {"a": run("study:tiny"), "b": run("study:other/vgg16"), "c": run("study:tiny/vgg16")}
    assert provenance.weights_label(networks) == (
        "Started from a backbone trained in another study of this project (other): b; from a "
        "backbone trained in another study of this project (tiny): a, c."
    )


def test_the_table_describes_every_network_and_its_training():
    networks = {
        "cnn": run("none", backbone="cnn"),
        "vgg": run("imagenet", train="head", pooling="gem", precision="float32",
                   training=PARAMETERS["training"] | {"augmentation": []}),
        "resnet": run("study:tiny", train="last_blocks:2"),
        "mobile": run("weights/mobile.h5", embedding="pooled", embedding_dim=512),
    }  # fmt: skip
    table = provenance.networks_table(networks | BASELINE)
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


def training_changes(**changes) -> dict:
    return {"training": PARAMETERS["training"] | changes}


@pytest.mark.parametrize(
    ("changes", "column", "expected"),
    [
        (training_changes(weight_decay=5e-4), "weight decay", "0.0005"),
        (training_changes(label_smoothing=0.1), "label smoothing", "0.1"),
        (training_changes(early_stopping=5), "early stopping (epochs)", "5"),
        ({"dropout": 0.5}, "dropout", "0.5"),
    ],
)
def test_rare_settings_have_a_column_if_a_network_uses_them(changes, column, expected):
    plain = provenance.networks_table({"cnn": run("none")})
    table = provenance.networks_table({"cnn": run("none"), "other": run("none", **changes)})
    assert column not in plain
    assert set(table) - set(plain) == {column}
    assert table[column].to_dict() == {"cnn": "none", "other": expected}


@pytest.fixture
def artifact_paths(tmp_path, monkeypatch):
    """The paths of artifacts of a head that was trained first, and of embeddings."""
    monkeypatch.chdir(empty_project(tmp_path / "project"))
    parameters_of_steps = {
        "head": {"batch_size": 512, "learning_rate": 0.01, "epochs": 20},
        "embeddings": {"test_time_flips": True, "whitening": 64, "epoch": 3},
    }
    return {
        name: cache.cached(name, lambda folder: None, parameters=parameters, package="images")
        .folder.relative_to(tmp_path / "project").as_posix()
        for name, parameters in parameters_of_steps.items()
    }  # fmt: skip


def test_the_table_shows_the_training_of_a_head_before_the_backbone(artifact_paths):
    summary = {"artifacts": {"head": artifact_paths["head"]}, "head_epochs": 20}
    row = provenance.networks_table({"cnn": run("imagenet", summary=summary)}).loc["cnn"]
    assert row[["epochs", "batch", "learning rate"]].tolist() == [
        "20 head + 3", "512 head, 64", "0.01 head, 0.001",
    ]  # fmt: skip


def test_the_table_shows_how_embeddings_were_computed(artifact_paths):
    summary = {"artifacts": {"embeddings": artifact_paths["embeddings"]}}
    flips, whitening = "test-time flips", "whitening (dimensions)"
    table = provenance.networks_table({"cnn": run("none", summary=summary)})
    assert table.loc["cnn", [flips, whitening]].tolist() == ["yes", "64"]
    # Deleted embeddings have no entry, not even that they are plain.
    deleted = run("none", summary={"artifacts": {"embeddings": "artifacts/embeddings/gone"}})
    assert flips not in provenance.networks_table({"cnn": deleted})
    table_of_both = provenance.networks_table(
        {"cnn": run("none", summary=summary), "other": deleted}
    )
    assert table_of_both[flips].tolist() == ["yes", "–"]


@pytest.mark.parametrize(
    ("train", "head", "last", "expected"),
    [
        ("all", 0, 47, "47"),
        ("all", 20, 3, "20 head + 3"),
        ("last_blocks:1", 20, 3, "20 head + 3"),
        ("head", 0, 20, "20 head"),
    ],
)
def test_epochs_of_the_head_precede_those_of_the_backbone(train, head, last, expected):
    summary = {"parameters": {"train": train}, "epochs": last, "head_epochs": head}
    assert provenance.epochs(summary) == expected


def test_epochs_end_at_the_kept_weights_or_at_a_state():
    # With early stopping the best of the twenty epochs was the seventh.
    entry = {"parameters": {"train": "all", "head_epochs": 20}, "epochs": 3, "head_epochs": 7}
    assert provenance.epochs(entry) == "7 head + 3"
    assert provenance.epochs(entry, epoch=2) == "7 head + 2"


def manifest(**sources: str) -> dict:
    """The architectures of a manifest by their initial weights; `cnn_64` is a point `cnn-64`."""
    return {
        name.replace("_", "-"): {
            "weights": {"source": source} if source else None,
            "variant": f"input_size={name.partition('_')[2]}" if "_" in name else "",
        }
        for name, source in sources.items()
    }


@pytest.mark.parametrize(
    ("sources", "label"),
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
def test_a_manifest_has_the_same_label_as_results(sources, label):
    assert provenance.weights_label(manifest(**sources)) == label


def test_weights_of_an_architecture_include_the_name_of_its_study():
    table = provenance.networks_table({"cnn": run("study:tiny-imagenet-32/vgg16")})
    assert "tiny-imagenet-32/vgg16" in table.loc["cnn", "weights"]


@pytest.mark.parametrize("protocols", [["closed"], ["closed", "unseen_classes"]])
@pytest.mark.parametrize("source", SOURCES.values())
def test_pretrained_weights_have_a_warning_only_with_unseen_classes(protocols, source):
    frames = [rows([0.5], protocol=protocol) for protocol in protocols]
    baseline = result(*frames, baseline=True)
    warning = provenance.pretrained_warning(
        {"vgg16": run(source, protocols=protocols), "random": baseline}
    )
    assert bool(warning) == (source != "none" and "unseen_classes" in protocols)
    assert "random" not in warning
    if warning:
        assert warning.startswith("vgg16 started from pretrained weights")


def description_of(weights: Weights, train: str, was_frozen: bool) -> str:
    parameters = {"train": train, "was_frozen": was_frozen}
    return provenance.describe_network(SimpleNamespace(weights=weights, parameters=parameters))


def test_the_description_of_a_network_names_random_weights():
    weights = Weights("none", None, "", "scaled")
    assert description_of(weights, "all", False) == (
        "It starts from random weights. Training changes all layers."
    )


@pytest.mark.parametrize("source", [*SOURCES.values()][1:])
def test_the_description_of_a_network_names_its_weights_and_trained_layers(source):
    weights = Weights(source, Path("x.h5"), SHA, "imagenet")
    name = {"imagenet": "ImageNet", "weights/mobile.h5": "mobile.h5"}.get(source, source)
    start = f"It starts from the weights `{name}` (SHA-256 0123456789ab…). Training changes "
    assert description_of(weights, "head", True) == (start + "only the head, on a frozen backbone.")
    assert description_of(weights, "last_blocks:3", True) == (
        start + "the head and the last 3 blocks. The head is trained first, and batch "
        "normalisation stays in inference mode."
    )
    assert description_of(weights, "all", False) == start + "all layers."


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


def test_the_table_has_a_row_per_parameter_and_a_column_per_run(project):
    write_manifest(project)
    table = provenance.parameters_table("tiny")
    assert table["cnn"].to_dict() == {
        "epochs": "3", "seeds": "[0, 1]", "feature_maps": "false", "augmentation": "[]",
    }  # fmt: skip
    assert table["random"].tolist() == ["–", "[0]", "–", "–"]


def test_the_commands_check_out_the_commit_and_run_the_study(project):
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


def test_without_a_report_commands_and_table_are_empty(project):
    assert provenance.commands("tiny") == ""
    assert provenance.parameters_table("tiny").empty
