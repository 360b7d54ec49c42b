"""User errors: one line says what to change, and earlier results remain unchanged."""

import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import CNN, STUDY, cbir, make_project, write_pictures, write_study

from cbir import cbir_command
from cbir.__main__ import main
from cbir.studies.study import open_study

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A project with a finished report, which no failing command may change."""
    project = make_project(tmp_path_factory.mktemp("project"))
    folder = project / "reports" / "tiny"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("an earlier report")
    (folder / "metrics.csv").write_text("study\n")
    return project


def run_in_a_process(root: Path, *arguments: str) -> tuple[int, str, str]:
    """The command in a separate process: exit status, standard output and error."""
    process = cbir(root, *arguments)
    return process.returncode, process.stdout, process.stderr


@pytest.fixture
def error_of(monkeypatch, capfd):
    """Runs a command that must fail, checks what all errors share, returns the error line."""

    def run_here(root: Path, *arguments: str) -> tuple[int, str, str]:
        # In this process, which saves the seconds that imports take.
        monkeypatch.chdir(root)
        monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
        return main([*arguments]), *capfd.readouterr()

    def check(root: Path, *arguments: str, run_command=run_here) -> str:
        before = {path: path.read_bytes() for path in root.glob("reports/tiny/*") if path.is_file()}
        status, output, error = run_command(root, *arguments)
        assert status == 1
        assert "Traceback" not in output + error
        lines = error.splitlines()
        assert len(lines) == 1, error
        assert lines[0].startswith("error: ")
        after = {path: path.read_bytes() for path in root.glob("reports/tiny/*") if path.is_file()}
        assert after == before
        return lines[0]

    return check


def test_an_unknown_study_is_refused_with_the_known_ones(root, error_of):
    line = error_of(root, "report", "--study", "tyni", run_command=run_in_a_process)
    assert "unknown study 'tyni'" in line
    assert "tiny" in line.partition("params/ contains")[2]


def test_an_unknown_architecture_is_refused_with_the_known_ones(root, error_of):
    line = error_of(root, "report", "--study", "tiny", "--architectures", "cnn alexnet")
    assert "unknown architecture 'alexnet'" in line
    assert "cnn, resnet50, vgg16" in line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("epoch=3", "unknown parameter 'epoch', did you mean 'epochs'?"),
        ("epochs=many", "epochs must be int, not 'many'"),
        ("dropout=1", "dropout must be at least 0 and less than 1, not 1"),
        ("epochs", "'epochs' is not key=value"),
        ("pooling=mean", "SET: pooling must be one of avg, max, gem, attention, flatten"),
        ("train=last_blocks:0", "SET: train must be head, last_blocks:<n> or all"),
        ("head_epochs=2", "params/tiny/cnn.yaml or SET: head_epochs: must be 0 if weights is"),
        ("early_stopping=1", "measured_epochs: must be [] with early_stopping"),
        ("training_images=3", "too few images left to hold some out for validation: 'circle' (1)"),
        ("ks=[1, 5]", "ks=[1,"),
        (
            "protocols=[unseen_classes]",
            "protocols must contain one or more of closed",
        ),
        ("protocols=[closed,hashing_1k]", "hashing_1k requires cifar10"),
        ("protocols=[closed,unseen_classes] unseen=2", "3 classes without 2 leave fewer than two"),
    ],
)
def test_an_invalid_parameter_is_reported(overrides, expected, root, error_of):
    assert expected in error_of(root, "report", "--study", "tiny", "--set", overrides)


def test_unsuitable_vectors_are_refused_before_anything_runs(root, error_of):
    dino = {"baseline": "vectors", "vectors": "data/dino.npz"}
    write_study(root, "vectors", STUDY, {"cnn": CNN, "dino": dino})
    arguments = ("report", "--study", "vectors")
    assert "vectors: no readable file" in error_of(root, *arguments)
    np.savez(root / "data" / "dino.npz", path=np.array(["a.png"]), vector=np.ones((1, 2)))
    line = error_of(root, *arguments)
    assert "dino.npz: no row for 48 of 48 images, the first is 'circle/circle-" in line
    assert line.endswith("its paths are like 'a.png'")
    assert not [*(root / "reports" / "vectors").glob("*.html")]


@pytest.mark.parametrize(
    ("overrides", "architectures", "expected"),
    [
        ("epochs=5", "resnet50 vgg16",
         "SET: epochs has no effect on resnet50, vgg16: if train is head, use head_epochs"),
        ("head_learning_rate=0.1", "cnn", "SET: head_learning_rate has no effect on cnn"),
        ("train=head head_epochs=1 measured_epochs=[] batch_size=2", "cnn",
         "SET: batch_size has no effect on cnn: if train is head, use head_batch_size"),
        ("embedding=pooled embedding_dim=7", "cnn", "SET: embedding_dim has no effect on cnn"),
    ],
)  # fmt: skip
def test_a_trial_of_a_parameter_without_effect_is_refused(
    overrides, architectures, expected, root, error_of
):
    arguments = ("--study", "tiny", "--architectures", architectures, "--set", overrides)
    assert error_of(root, "report", *arguments).endswith(expected)


def test_a_trial_may_affect_only_some_architectures(root, monkeypatch):
    monkeypatch.chdir(root)
    study = open_study(root, "tiny", overrides="epochs=5")
    assert study.chosen == ["cnn", "resnet50", "vgg16"]


def test_a_misspelt_key_is_reported_with_its_file(root, error_of):
    write_study(root, "misspelt", STUDY, {"cnn": {"learning_rat": 0.1}})
    line = error_of(root, "report", "--study", "misspelt")
    assert "params/misspelt/cnn.yaml: unknown parameter 'learning_rat'" in line
    assert "did you mean 'learning_rate'?" in line


def test_an_unknown_point_of_a_grid_is_refused_with_the_architectures(root, error_of):
    cnn = yaml.safe_load((root / "params" / "tiny" / "cnn.yaml").read_text())
    write_study(root, "sizes", STUDY | {"grid": {"input_size": [32, 48]}}, {"cnn": cnn})
    line = error_of(root, "report", "--study", "sizes", "--architectures", "cnn-32 cnn-64")
    assert line == "error: unknown architecture 'cnn-64': params/sizes/ contains cnn"


def test_an_invalid_grid_is_refused_with_the_expected_form(root, error_of):
    write_study(root, "sizes", STUDY | {"grid": {"input_size": 32}}, {})
    line = error_of(root, "report", "--study", "sizes")
    assert "params/sizes/study.yaml: grid must have a list of values for each parameter" in line


def test_a_plan_reports_weights_of_a_study_without_results(root, monkeypatch, capfd):
    cnn = yaml.safe_load((root / "params" / "tiny" / "cnn.yaml").read_text())
    transfer = {"notebook": "cnn", "weights": "study:elsewhere", "head_epochs": 1}
    write_study(root, "transfer", STUDY, {"alone": cnn | {"notebook": "cnn"},
                                           "transfer": cnn | transfer})  # fmt: skip
    monkeypatch.chdir(root)
    monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
    before = {*root.glob("artifacts/*/*"), *root.glob("reports/*")}
    assert main(["plan", "--study", "transfer"]) == 0
    output, error = capfd.readouterr()
    assert error == ""
    first, second = output.split("\nalone: ")[1].split("\ntransfer: ")
    assert "will run, about" in first
    assert "cannot run: weights: study:elsewhere: " in second
    assert "run `make report DATA=path/to/folder` first" in second
    assert "will run, about" not in second
    assert {*root.glob("artifacts/*/*"), *root.glob("reports/*")} == before


def test_a_key_that_is_a_number_is_reported(root, error_of):
    write_study(root, "number", STUDY, {"cnn": {}})
    (root / "params" / "number" / "cnn.yaml").write_text("1: 2\n")
    assert "params/number/cnn.yaml" in error_of(root, "report", "--study", "number")


def test_a_file_that_is_not_yaml_is_reported(root, error_of):
    write_study(root, "broken", STUDY, {"cnn": {}})
    (root / "params" / "broken" / "cnn.yaml").write_text("epochs: [1\n")
    assert "params/broken/cnn.yaml: not YAML" in error_of(root, "report", "--study", "broken")


def study_of_pictures(root: Path, name: str) -> str:
    """A study of pictures in data/<name>, called <name>."""
    cnn = yaml.safe_load((root / "params" / "tiny" / "cnn.yaml").read_text())
    write_study(root, name, STUDY | {"dataset": f"data/{name}"}, {"cnn": cnn})
    return name


def test_a_missing_folder_is_reported(root, error_of):
    line = error_of(root, "report", "--study", study_of_pictures(root, "absent"))
    assert "data/absent" in line
    assert "<class>/" in line


def test_an_empty_folder_is_reported_with_the_expected_layout(root, error_of):
    (root / "data" / "empty").mkdir()
    line = error_of(root, "report", "--study", study_of_pictures(root, "empty"))
    assert "data/empty" in line
    assert "<class>/" in line


def test_a_single_class_is_refused(root, error_of):
    write_pictures(root / "data" / "lonely", classes=("circle",))
    line = error_of(root, "report", "--study", study_of_pictures(root, "lonely"))
    assert "only one class (circle)" in line


def test_a_class_with_too_few_pictures_is_refused(root, error_of):
    write_pictures(root / "data" / "few", count=8)
    for path in sorted((root / "data" / "few" / "cross").iterdir())[2:]:
        path.unlink()
    line = error_of(root, "report", "--study", study_of_pictures(root, "few"))
    assert "'cross'" in line


def test_a_class_of_unreadable_pictures_is_refused(root, error_of):
    for name in ("circle", "cross"):
        folder = root / "data" / "damaged" / name
        folder.mkdir(parents=True)
        for number in range(6):
            (folder / f"{number}.png").write_text("no picture")
    line = error_of(root, "report", "--study", study_of_pictures(root, "damaged"))
    assert "'circle' (0 images, needs 3; 6 unreadable: not a picture" in line


def test_a_class_only_in_test_is_reported(root, error_of):
    write_pictures(root / "data" / "parted" / "train", count=4)
    write_pictures(root / "data" / "parted" / "test", classes=("circle", "star"), count=4)
    line = error_of(root, "report", "--study", study_of_pictures(root, "parted"))
    assert "star" in line


def test_a_failed_download_of_cifar10_says_where_to_put_its_pictures(root, error_of, monkeypatch):
    cnn = yaml.safe_load((root / "params" / "tiny" / "cnn.yaml").read_text())
    write_study(root, "cifar", STUDY | {"dataset": "cifar10"}, {"cnn": cnn})
    for name, value in {
        "https_proxy": CLOSED_PORT,
        "http_proxy": CLOSED_PORT,
        "no_proxy": "",
    }.items():
        monkeypatch.setenv(name, value)
    # An opener that urllib made earlier has other proxies.
    monkeypatch.setattr(urllib.request, "_opener", None)
    line = error_of(root, "report", "--study", "cifar")
    assert "data/cifar10/{train,test}/<class>/" in line
    assert "needs no download" in line


def test_a_folder_without_a_project_is_refused(tmp_path, error_of):
    assert "no project found at" in error_of(tmp_path, "report")


def test_a_file_named_reports_is_refused(tmp_path, error_of):
    root = make_project(tmp_path / "project")
    (root / "reports").write_text("in the way")
    line = error_of(root, "report", "--study", "tiny")
    assert "cannot write to" in line
    assert "reports" in line
    assert (root / "reports").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_report_folder_is_refused(root, error_of):
    folder = root / "reports" / "tiny"
    folder.chmod(0o555)
    try:
        assert "cannot write to" in error_of(root, "report", "--study", "tiny")
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("arguments", [(), ("repot",), ("report", "--stdy", "tiny")])
def test_an_invalid_call_prints_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert caught.value.code == 2
    assert f"usage: {cbir_command()}" in capsys.readouterr().err
