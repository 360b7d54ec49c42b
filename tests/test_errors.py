"""User errors: one line says what to change, and earlier results stay as they were."""

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
def place(tmp_path_factory) -> Path:
    """A project with a finished report, which no refused command may touch."""
    root = make_project(tmp_path_factory.mktemp("project"))
    folder = root / "reports" / "tiny"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("an earlier report")
    (folder / "metrics.csv").write_text("study\n")
    return root


def real(root: Path, *arguments: str) -> tuple[int, str, str]:
    """The real command in a process of its own: exit status, standard output and error."""
    done = cbir(root, *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def refused(monkeypatch, capfd):
    """Run a command that must be refused; its one line, after checks that hold for them all."""

    def within(root: Path, *arguments: str) -> tuple[int, str, str]:
        # As the command does it, but without the seconds that its imports take.
        monkeypatch.chdir(root)
        monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
        return main([*arguments]), *capfd.readouterr()

    def check(root: Path, *arguments: str, run=within) -> str:
        before = {path: path.read_bytes() for path in root.glob("reports/tiny/*") if path.is_file()}
        status, output, error = run(root, *arguments)
        assert status == 1
        assert "Traceback" not in output + error
        lines = error.splitlines()
        assert len(lines) == 1, error
        assert lines[0].startswith("error: ")
        after = {path: path.read_bytes() for path in root.glob("reports/tiny/*") if path.is_file()}
        assert after == before
        return lines[0]

    return check


def test_an_unknown_study_is_answered_with_those_that_are_known(place, refused):
    line = refused(place, "report", "--study", "tyni", run=real)
    assert "unknown study 'tyni'" in line
    assert "tiny" in line.partition("params/ contains")[2]


def test_an_unknown_architecture_is_answered_with_those_that_are_known(place, refused):
    line = refused(place, "report", "--study", "tiny", "--architectures", "cnn alexnet")
    assert "unknown architecture 'alexnet'" in line
    assert "cnn, resnet50, vgg16" in line


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_a_parameter_that_does_not_fit_is_named(given, expected, place, refused):
    assert expected in refused(place, "report", "--study", "tiny", "--set", given)


def test_vectors_that_do_not_fit_are_refused_before_anything_runs(place, refused):
    dino = {"baseline": "vectors", "vectors": "data/dino.npz"}
    write_study(place, "vectors", STUDY, {"cnn": CNN, "dino": dino})
    arguments = ("report", "--study", "vectors")
    assert "vectors: no readable file" in refused(place, *arguments)
    np.savez(place / "data" / "dino.npz", path=np.array(["a.png"]), vector=np.ones((1, 2)))
    line = refused(place, *arguments)
    assert "dino.npz: no row for 48 of 48 images, the first is 'circle/circle-" in line
    assert line.endswith("its paths are like 'a.png'")
    assert not [*(place / "reports" / "vectors").glob("*.html")]


@pytest.mark.parametrize(
    ("given", "architectures", "expected"),
    [
        ("epochs=5", "resnet50 vgg16",
         "SET: epochs has no effect on resnet50, vgg16: if train is head, use head_epochs"),
        ("head_learning_rate=0.1", "cnn", "SET: head_learning_rate has no effect on cnn"),
        ("train=head head_epochs=1 measured_epochs=[] batch_size=2", "cnn",
         "SET: batch_size has no effect on cnn: if train is head, use head_batch_size"),
        ("embedding=pooled embedding_dim=7", "cnn", "SET: embedding_dim has no effect on cnn"),
    ],
)  # fmt: skip
def test_a_trial_of_a_parameter_that_decides_nothing_is_refused(
    given, architectures, expected, place, refused
):
    arguments = ("--study", "tiny", "--architectures", architectures, "--set", given)
    assert refused(place, "report", *arguments).endswith(expected)


def test_a_trial_may_change_some_architectures_alone(place, monkeypatch):
    monkeypatch.chdir(place)
    study = open_study(place, "tiny", overrides="epochs=5")
    assert study.chosen == ["cnn", "resnet50", "vgg16"]


def test_a_misspelt_key_in_a_file_is_named_with_its_file(place, refused):
    write_study(place, "misspelt", STUDY, {"cnn": {"learning_rat": 0.1}})
    line = refused(place, "report", "--study", "misspelt")
    assert "params/misspelt/cnn.yaml: unknown parameter 'learning_rat'" in line
    assert "did you mean 'learning_rate'?" in line


def test_a_point_that_a_grid_does_not_have_is_answered_with_the_architectures(place, refused):
    given = yaml.safe_load((place / "params" / "tiny" / "cnn.yaml").read_text())
    write_study(place, "sizes", STUDY | {"grid": {"input_size": [32, 48]}}, {"cnn": given})
    line = refused(place, "report", "--study", "sizes", "--architectures", "cnn-32 cnn-64")
    assert line == "error: unknown architecture 'cnn-64': params/sizes/ contains cnn"


def test_a_grid_that_is_no_grid_is_answered_with_the_form(place, refused):
    write_study(place, "sizes", STUDY | {"grid": {"input_size": 32}}, {})
    line = refused(place, "report", "--study", "sizes")
    assert "params/sizes/study.yaml: grid must have a list of values for each parameter" in line


def test_weights_of_a_study_that_was_not_run_are_named_by_a_plan(place, monkeypatch, capfd):
    given = yaml.safe_load((place / "params" / "tiny" / "cnn.yaml").read_text())
    transfer = {"notebook": "cnn", "weights": "study:elsewhere", "head_epochs": 1}
    write_study(place, "transfer", STUDY, {"alone": given | {"notebook": "cnn"},
                                           "transfer": given | transfer})  # fmt: skip
    monkeypatch.chdir(place)
    monkeypatch.setenv("KERAS_HOME", str(place / "keras"))
    before = {*place.glob("artifacts/*/*"), *place.glob("reports/*")}
    assert main(["plan", "--study", "transfer"]) == 0
    output, error = capfd.readouterr()
    assert error == ""
    first, second = output.split("\nalone: ")[1].split("\ntransfer: ")
    assert "will run, about" in first
    assert "cannot run: weights: study:elsewhere: " in second
    assert "run `make report DATA=path/to/folder` first" in second
    assert "will run, about" not in second
    assert {*place.glob("artifacts/*/*"), *place.glob("reports/*")} == before


def test_a_key_that_is_no_word_is_named(place, refused):
    write_study(place, "number", STUDY, {"cnn": {}})
    (place / "params" / "number" / "cnn.yaml").write_text("1: 2\n")
    assert "params/number/cnn.yaml" in refused(place, "report", "--study", "number")


def test_a_file_that_is_not_yaml_is_named(place, refused):
    write_study(place, "broken", STUDY, {"cnn": {}})
    (place / "params" / "broken" / "cnn.yaml").write_text("epochs: [1\n")
    assert "params/broken/cnn.yaml: not YAML" in refused(place, "report", "--study", "broken")


def with_pictures_from(place: Path, name: str) -> str:
    """A study of pictures in data/<name>, called <name>."""
    given = yaml.safe_load((place / "params" / "tiny" / "cnn.yaml").read_text())
    write_study(place, name, STUDY | {"dataset": f"data/{name}"}, {"cnn": given})
    return name


def test_a_missing_folder_is_named(place, refused):
    line = refused(place, "report", "--study", with_pictures_from(place, "absent"))
    assert "data/absent" in line
    assert "<class>/" in line


def test_an_empty_folder_is_named_with_the_layout(place, refused):
    (place / "data" / "empty").mkdir()
    line = refused(place, "report", "--study", with_pictures_from(place, "empty"))
    assert "data/empty" in line
    assert "<class>/" in line


def test_one_class_alone_is_refused_by_name(place, refused):
    write_pictures(place / "data" / "lonely", classes=("circle",))
    line = refused(place, "report", "--study", with_pictures_from(place, "lonely"))
    assert "only one class (circle)" in line


def test_too_few_pictures_are_refused_with_the_class(place, refused):
    write_pictures(place / "data" / "few", count=8)
    for path in sorted((place / "data" / "few" / "cross").iterdir())[2:]:
        path.unlink()
    line = refused(place, "report", "--study", with_pictures_from(place, "few"))
    assert "'cross'" in line


def test_pictures_that_none_can_read_are_refused(place, refused):
    for name in ("circle", "cross"):
        folder = place / "data" / "damaged" / name
        folder.mkdir(parents=True)
        for number in range(6):
            (folder / f"{number}.png").write_text("no picture")
    line = refused(place, "report", "--study", with_pictures_from(place, "damaged"))
    assert "'circle' (0 images, needs 3; 6 unreadable: not a picture" in line


def test_a_class_in_test_that_train_lacks_is_named(place, refused):
    write_pictures(place / "data" / "parted" / "train", count=4)
    write_pictures(place / "data" / "parted" / "test", classes=("circle", "star"), count=4)
    line = refused(place, "report", "--study", with_pictures_from(place, "parted"))
    assert "star" in line


def test_cifar10_that_cannot_be_had_says_where_to_put_it(place, refused, monkeypatch):
    given = yaml.safe_load((place / "params" / "tiny" / "cnn.yaml").read_text())
    write_study(place, "cifar", STUDY | {"dataset": "cifar10"}, {"cnn": given})
    for name, value in {
        "https_proxy": CLOSED_PORT,
        "http_proxy": CLOSED_PORT,
        "no_proxy": "",
    }.items():
        monkeypatch.setenv(name, value)
    # An opener that urllib made before has other proxies.
    monkeypatch.setattr(urllib.request, "_opener", None)
    line = refused(place, "report", "--study", "cifar")
    assert "data/cifar10/{train,test}/<class>/" in line
    assert "needs no download" in line


def test_a_folder_without_a_project_is_refused(tmp_path, refused):
    assert "no project found at" in refused(tmp_path, "report")


def test_reports_that_is_no_folder_is_refused(tmp_path, refused):
    root = make_project(tmp_path / "project")
    (root / "reports").write_text("in the way")
    line = refused(root, "report", "--study", "tiny")
    assert "cannot write to" in line
    assert "reports" in line
    assert (root / "reports").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_reports_that_are_read_only_are_refused(place, refused):
    folder = place / "reports" / "tiny"
    folder.chmod(0o555)
    try:
        assert "cannot write to" in refused(place, "report", "--study", "tiny")
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("arguments", [(), ("repot",), ("report", "--stdy", "tiny")])
def test_a_wrong_call_shows_how_to_call(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert caught.value.code == 2
    assert f"usage: {cbir_command()}" in capsys.readouterr().err
