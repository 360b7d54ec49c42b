"""Parameter files of a study: their contents, and errors in one line."""

import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from conftest import CNN, DEFAULTS, ROOT, STUDY, write_study

from cbir import StudyError
from cbir.networks import baselines
from cbir.studies import configs, params

FILE, SHARED = "params/tiny/cnn.yaml", "params/tiny/study.yaml"
MEASURED = {key: STUDY[key] for key in params.MEASUREMENT}
BASELINE = {"notebook": "baseline", "baseline": "random"}


@pytest.fixture
def project(tmp_path):
    """The real notebooks and the study `tiny`, without pictures."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    others = {name: CNN | {"backbone": name} for name in ("resnet50", "vgg16")}
    write_study(tmp_path, "tiny", STUDY, {"cnn": CNN} | others)
    return tmp_path


def cnn_of(root, **arguments) -> dict:
    """Parameters of the architecture cnn in the study tiny."""
    runs = configs.load(root, "tiny", **arguments)
    return next(run.parameters for run in runs if run.architecture == "cnn")


def error_of(root, **arguments) -> str:
    """The error line of loading the study tiny."""
    with pytest.raises(StudyError) as caught:
        configs.load(root, "tiny", **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_line(root, line: str, drop: str = "") -> None:
    """Replace the parameter `drop` in cnn.yaml by a line of YAML as a user would type it."""
    remaining = {key: value for key, value in CNN.items() if key != drop}
    (root / FILE).write_text(yaml.safe_dump(remaining) + line + "\n")


def write_value(root, key: str, value: str) -> str:
    """Set a parameter in its file, as a user would type it, and return the file."""
    file, content = (SHARED, STUDY) if key in STUDY else (FILE, CNN)
    remaining = {name: entry for name, entry in content.items() if name != key}
    (root / file).write_text(yaml.safe_dump(remaining) + f"{key}: {value}\n")
    return file


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("study", configs.studies(ROOT))
def test_parameters_of_a_study_combine_its_layers(study):
    folder = ROOT / "params" / study
    shared = read(folder / "study.yaml")
    study_grid = shared.pop("grid", {})
    runs = configs.load(ROOT, study)
    assert {run.file for run in runs} == {path.stem for path in folder.glob("*.yaml")} - {"study"}
    assert len({run.architecture for run in runs}) == len(runs)
    for run in runs:
        own_parameters = read(folder / f"{run.file}.yaml")
        own_parameters.pop("notebook", None)
        grid = own_parameters.pop("grid", study_grid)
        grids = grid if isinstance(grid, list) else [grid]
        known = set(params.names_for(own_parameters))
        assert own_parameters.keys() <= known
        assert not shared.keys() & own_parameters.keys() - set(params.MEASUREMENT)
        point = {key: run.parameters[key] for key in grids[0] if key in known}
        assert any(all(value in grid[key] for key, value in point.items()) for grid in grids)
        layers = DEFAULTS | shared | own_parameters | point
        expected = {key: value for key, value in layers.items() if key in known}
        expected |= {"study": study, "variant": configs.variant(point)}
        assert run.parameters == expected | {"architecture": configs.point_name(run.file, point)}
        assert run.is_baseline == (run.file in baselines.BASELINES)
        assert run.parameters.get("baseline", run.file) == run.file


@pytest.mark.parametrize(
    ("study", "networks"),
    [
        ("digits", ["cnn", "resnet50", "vgg16"]),
        ("folder", ["cnn", "mobilenet", "resnet50", "vgg16"]),
        (
            "cifar10",
            [
                "cnn",
                "cnn_strong",
                "mobilenet",
                "resnet50",
                "resnet50_64",
                "resnet50_finetuned",
                "vgg16",
                "vgg16_finetuned",
            ],
        ),
    ],
)
def test_a_study_without_a_grid_has_one_run_per_file_and_baselines_last(study, networks):
    names = [run.architecture for run in configs.load(ROOT, study)]
    assert names == [*networks, "hand_crafted", "random", "raw_pixels"]


def test_each_layer_overrides_the_previous_one(project):
    def batch_size(**arguments) -> int:
        run = next(run for run in configs.load(project, "tiny", **arguments) if run.file == "cnn")
        return run.parameters["batch_size"]

    shared, cnn = STUDY, {key: value for key, value in CNN.items() if key != "batch_size"}
    write_study(project, "tiny", shared, {"cnn": cnn})
    assert batch_size() == DEFAULTS["batch_size"] == 64
    shared = shared | {"batch_size": 2}
    write_study(project, "tiny", shared, {"cnn": cnn})
    assert batch_size() == 2
    cnn = cnn | {"batch_size": 3}
    write_study(project, "tiny", shared, {"cnn": cnn})
    assert batch_size() == 3
    write_study(project, "tiny", shared | {"grid": {"batch_size": [4]}}, {"cnn": cnn})
    assert batch_size() == 4
    assert batch_size(overrides="batch_size=5") == 5


def test_an_architecture_may_have_its_own_seeds(project):
    write_study(project, "tiny", STUDY, {"cnn": CNN | {"seeds": [0, 1, 2]}})
    seeds = {run.file: run.parameters["seeds"] for run in configs.load(project, "tiny")}
    assert seeds == {"cnn": [0, 1, 2], "resnet50": [0], "vgg16": [0]}


def test_defaults_apply_to_networks_and_not_to_baselines(project):
    minimal = {name: {"backbone": name, "epochs": 1} for name in ("cnn", "resnet50", "vgg16")}
    write_study(project, "tiny", STUDY, minimal | {"chance": BASELINE})
    *networks, chance = configs.load(project, "tiny")
    assert len(networks) == 3
    for run in networks:
        expected = DEFAULTS | STUDY | minimal[run.file]
        assert {key: run.parameters[key] for key in expected} == expected
    assert chance.parameters.keys() == {*STUDY, *params.PLACED, "baseline"}


def test_set_applies_to_every_architecture(project):
    runs = configs.load(project, "tiny", overrides="epochs=7 ks=[2,3]")
    assert len(runs) == 3
    for run in runs:
        assert (run.parameters["epochs"], run.parameters["ks"]) == (7, [2, 3])


def test_a_dataset_overrides_the_study_s(project):
    assert cnn_of(project)["dataset"] == "data/shapes"
    assert cnn_of(project, dataset="elsewhere")["dataset"] == "elsewhere"
    assert cnn_of(project, dataset="1e5")["dataset"] == "1e5"


def test_study_and_architecture_come_from_the_paths_of_the_files(project):
    parameters = cnn_of(project)
    assert (parameters["study"], parameters["architecture"]) == ("tiny", "cnn")
    assert cnn_of(project, report="tiny-trial")["study"] == "tiny-trial"


def test_runs_are_in_the_order_of_their_files(project):
    write_study(project, "tiny", STUDY, {"alpha": CNN | {"notebook": "cnn"}})
    names = [run.architecture for run in configs.load(project, "tiny")]
    assert names == ["alpha", "cnn", "resnet50", "vgg16"]


def test_baselines_come_last_in_the_order_of_their_files(project):
    write_study(project, "tiny", STUDY, {"a_random": BASELINE, "pixels": BASELINE})
    runs = configs.load(project, "tiny")
    assert [run.architecture for run in runs] == ["cnn", "resnet50", "vgg16", "a_random", "pixels"]
    assert [run.is_baseline for run in runs] == [False] * 3 + [True] * 2
    assert runs[-1].weights == ("", "none")
    assert runs[0].weights == ("cnn", "none")
    assert all(run.notebook_parameters["measurement"] == MEASURED for run in runs)


def test_an_architecture_may_have_its_own_measurement(project):
    measurement = {"seeds": [3, 4], "protocols": ["closed", "held_out_gallery"]}
    write_study(project, "tiny", STUDY, {"cnn": CNN | measurement})
    first, second, _ = configs.load(project, "tiny")
    assert first.notebook_parameters["measurement"] == MEASURED | measurement
    assert second.notebook_parameters["measurement"] == MEASURED


def test_shared_parameters_apply_only_to_runs_that_have_them(project):
    write_study(project, "tiny", STUDY | {"epochs": 9}, {"chance": BASELINE})
    (project / FILE).write_text(yaml.safe_dump({k: CNN[k] for k in CNN if k != "epochs"}))
    cnn, *_, chance = configs.load(project, "tiny", overrides="batch_size=2 draws=7")
    assert (cnn.parameters["epochs"], cnn.parameters["batch_size"]) == (9, 2)
    assert chance.parameters.keys().isdisjoint(CNN)
    assert (cnn.parameters["draws"], chance.parameters["draws"]) == (7, 7)


def test_an_unknown_parameter_of_a_baseline_is_refused(project):
    write_study(project, "tiny", STUDY, {"chance": BASELINE | {"epochs": 3}})
    assert error_of(project).startswith("params/tiny/chance.yaml: unknown parameter 'epochs'")


def test_a_study_of_baselines_needs_no_network_parameters(project):
    write_study(project, "bounds", STUDY, {"chance": BASELINE})
    (run,) = configs.load(project, "bounds")
    assert run.is_baseline
    with pytest.raises(StudyError, match="SET: unknown parameter 'epochs'"):
        configs.load(project, "bounds", overrides="epochs=3")


def test_overrides_must_be_valid_only_for_the_chosen_architectures(project):
    changes = {"overrides": "weights=imagenet head_epochs=1"}
    assert "weights: cnn has no ImageNet weights" in error_of(project, **changes)
    assert "weights: cnn" in error_of(project, architectures=["cnn"], **changes)
    runs = configs.load(project, "tiny", architectures=["vgg16"], **changes)
    assert [run.architecture for run in runs] == ["resnet50", "vgg16"]
    assert "'epoch'" in error_of(project, architectures=["vgg16"], overrides="epoch=1")
    # An error in a file is reported whichever architectures are chosen.
    write_line(project, "epochs: -1", "epochs")
    assert error_of(project, architectures=["vgg16"], **changes).startswith(f"{FILE}: epochs")


def test_only_the_baseline_vectors_has_the_parameter_vectors(project):
    dino = {"baseline": "vectors", "vectors": "data/dino.npz"}
    write_study(project, "tiny", STUDY, {"chance": BASELINE, "dino": dino})
    cnn, *_, chance, vectors = configs.load(project, "tiny", overrides="vectors=clip.parquet")
    assert vectors.is_baseline
    assert vectors.vectors == vectors.parameters["vectors"] == "clip.parquet"
    assert vectors.notebook == project / "notebooks" / "baseline.ipynb"
    parameters = vectors.notebook_parameters
    assert (parameters["baseline"], parameters["vectors"]) == ("vectors", "clip.parquet")
    for run in (cnn, chance):
        assert run.vectors == ""
        assert "vectors" not in run.parameters
        assert "vectors" not in run.notebook_parameters


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"baseline": "vectors"}, "missing parameter vectors: add it"),
        (BASELINE | {"vectors": "dino.npz"}, "unknown parameter 'vectors'"),
        (CNN | {"vectors": "dino.npz"}, "unknown parameter 'vectors'"),
    ],
)
def test_vectors_is_required_by_its_baseline_and_refused_elsewhere(content, reason, project):
    write_study(project, "tiny", STUDY, {"one": content})
    assert reason in error_of(project)


@pytest.mark.parametrize("value", ["chance", "''", "Random"])
def test_an_unknown_baseline_is_refused_with_the_known_ones(project, value):
    write_study(project, "tiny", STUDY, {"chance": BASELINE | {"baseline": value}})
    message = error_of(project)
    assert message.startswith("params/tiny/chance.yaml: baseline must be one of random, raw_pixels")


def test_hashing_1k_is_refused_for_data_sets_other_than_cifar10(project):
    overrides = "protocols=[closed,hashing_1k]"
    message = error_of(project, overrides=overrides)
    assert message.startswith("cnn: protocols: hashing_1k requires cifar10")
    assert message.endswith("remove it for data/shapes")
    parameters = cnn_of(project, overrides=overrides, dataset="cifar10")
    assert parameters["protocols"] == ["closed", "hashing_1k"]


def test_all_architectures_must_have_the_same_first_protocol(project):
    others = ["held_out_gallery", "closed"]
    write_study(project, "tiny", STUDY, {"vgg16": CNN | {"protocols": others}})
    message = error_of(project)
    assert message.startswith("vgg16: protocols: must begin with closed, as for cnn:")
    write_study(project, "tiny", STUDY, {"vgg16": CNN | {"protocols": ["closed", *others[:1]]}})
    assert len(configs.load(project, "tiny")) == 3


@pytest.mark.parametrize("key", ["backbone", "dataset", "seeds", "protocols"])
def test_a_missing_parameter_is_reported_with_both_files(project, key):
    shared = {name: value for name, value in STUDY.items() if name != key}
    cnn = {name: value for name, value in CNN.items() if name != key}
    write_study(project, "tiny", shared, {"cnn": cnn})
    message = error_of(project)
    assert FILE in message
    assert SHARED in message
    assert f"missing parameter {key}:" in message


def test_all_missing_parameters_are_reported_at_once(project):
    write_study(project, "tiny", {"dataset": "digits"}, {"cnn": {"epochs": 1}})
    missing = {"backbone", "seeds", "protocols"}
    names = error_of(project).partition("missing parameter ")[2].partition(":")[0]
    assert set(names.split(", ")) == missing


@pytest.mark.parametrize("key", sorted((STUDY | CNN).keys() - {"ks"}))
def test_a_misspelt_parameter_is_refused_with_file_and_suggestion(project, key):
    misspelt = key[:2] + key[3:]
    write_line(project, f"{misspelt}: 1")
    message = error_of(project)
    assert message.startswith(f"{FILE}: unknown parameter {misspelt!r}")
    assert message.endswith(f"did you mean {key!r}?")


def test_a_misspelt_parameter_of_the_study_is_reported_with_study_yaml(project):
    write_study(project, "tiny", STUDY | {"spilt_seed": 1}, {})
    message = error_of(project)
    assert message == f"{SHARED}: unknown parameter 'spilt_seed', did you mean 'split_seed'?"


def test_a_misspelt_parameter_in_set_is_reported_with_set(project):
    message = error_of(project, overrides="epoch=3")
    assert message == "SET: unknown parameter 'epoch', did you mean 'epochs'?"


def test_an_unknown_parameter_is_refused_with_the_known_ones(project):
    write_line(project, "zzzz: 1")
    known = error_of(project).partition("known: ")[2].split(", ")
    assert sorted(known) == sorted(STUDY | CNN)


@pytest.mark.parametrize("key", params.PLACED)
def test_study_and_architecture_cannot_be_set(project, key):
    assert f"unknown parameter {key!r}" in error_of(project, overrides=f"{key}=other")


@pytest.mark.parametrize("key", [*params.DATA, "unseen"])
def test_data_parameters_belong_in_study_yaml(project, key):
    (project / FILE).write_text(yaml.safe_dump(CNN | {key: STUDY[key]}))
    assert error_of(project).startswith(f"{FILE}: {key} belongs in study.yaml")


@pytest.mark.parametrize("key", ["1", "1.5", "true", "null"])
def test_a_key_that_is_not_text_is_an_unknown_parameter(project, key):
    write_line(project, f"{key}: 3")
    assert error_of(project).startswith(f"{FILE}: unknown parameter")


ILL_TYPED = [
    ("epochs", "'3'", "int"),
    ("epochs", "2.5", "int"),
    ("epochs", "1e1", "int"),
    ("epochs", "true", "int"),
    ("epochs", "", "int"),
    ("epochs", "[3]", "int"),
    ("seeds", "0", "list[int]"),
    ("seeds", "[false]", "list[int]"),
    ("protocols", "closed", "list[str]"),
    ("protocols", "[closed, 1]", "list[str]"),
    ("unseen", "[2]", "int"),
    ("draws", "2.5", "int"),
    ("ks", "5", "list[int]"),
    ("ks", "[1, 2.5]", "list[int]"),
    ("ks", "[true]", "list[int]"),
    ("ks", "[[1]]", "list[int]"),
    ("measured_epochs", "{1: 2}", "list[int]"),
    ("dropout", "half", "float"),
    ("dropout", "true", "float"),
    ("learning_rate", "[0.1]", "float"),
    ("weights", "3", "str"),
    ("backbone", "null", "str"),
    ("train", "true", "str"),
    ("dataset", "[a]", "str"),
]


@pytest.mark.parametrize(("key", "value", "kind"), ILL_TYPED)
def test_a_value_of_the_wrong_type_is_refused_with_key_file_and_type(project, key, value, kind):
    file = write_value(project, key, value)
    assert error_of(project).startswith(f"{file}: {key} must be {kind}, not ")


NINES = "9" * 20
MALICIOUS = [
    ("epochs: 032", "epochs must be int, not '032'"),
    ("epochs: 1:30", "epochs must be int, not '1:30'"),
    ("epochs: 0x10", "epochs must be int, not '0x10'"),
    ("epochs: 1_000", "epochs must be int, not '1_000'"),
    ("epochs: 100001", "epochs must be from 0 to 100,000, not 100001"),
    (f"epochs: 1{'0' * 22}", f"epochs must be int, not '1{'0' * 22}'"),
    (f"seeds: [{NINES}]", f"seeds must be list[int], not ['{NINES}']"),
    ("seeds: [4294967296]", "seeds must contain 1 to 100 seeds from 0 to 4,294,967,295,"),
    ("learning_rate: 1e999", "learning_rate must be greater than 0 and at most 100, not inf"),
    ("train: last_blocks:" + "9" * 5000, "train must be head, last_blocks:<n> or all, not"),
    ('weights: "a\\0b"', r"weights must not contain control characters, not 'a\x00b'"),
    ('weights: "\\ud800"', r"weights must not contain control characters, not '\ud800'"),
    ("x: 1\nx: 2", "line 1: 'x' is set twice: keep one"),
    ("weights: &a none", "line 1: anchors, aliases and tags are not supported: write the value"),
    ("weights: !!python/name:os.system", "line 1: anchors, aliases and tags are not supported"),
    ("grid: &a [*a]", "line 1: anchors, aliases and tags are not supported"),
    ("grid: " + 3000 * "[" + 3000 * "]", "line 1: lists and mappings must not be nested more"),
    ("- " * 3000, "line 1: lists and mappings must not be nested more than 8 deep"),
    ("notebook: [a]", "notebook must be the name of a file in notebooks/, without its ending"),
    ("notebook: ../cnn", "notebook must be the name of a file in notebooks/, without its ending"),
    (f"grid: {{epochs: {[*range(1, 1002)]}}}", "grid: must have at most 1,000 points, not 1,001"),
    (f"grid: {{train: [{'a' * 101}]}}", "grid: a point must have a name of at most 100 letters"),
    (f"zzz: {'a' * 65_536}", "must be a file of at most 65,536 bytes"),
    ("[]", "must contain lines of the form `key: value`"),
    ("0", "must contain lines of the form `key: value`"),
]  # fmt: skip
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize(("text", "reason"), [*MALICIOUS, (BOMB, "line 1: anchors, aliases and")])
def test_a_malicious_file_is_refused_in_one_line_within_a_second(project, text, reason):
    (project / FILE).write_text(text)
    start = time.process_time()
    message = error_of(project)
    assert time.process_time() - start < 1
    assert message.startswith(f"{FILE}: {reason}")
    assert len(message) < 800


def test_a_pipe_is_refused_as_a_file_of_parameters(project):
    (project / FILE).unlink()
    os.mkfifo(project / FILE)
    assert error_of(project) == f"{FILE}: must be a file of at most 65,536 bytes"


def test_a_malicious_set_is_refused_in_one_line(project):
    assert error_of(project, overrides="epochs=3 epochs=4").startswith("SET: 'epochs' is set twice")
    assert "anchors, aliases and tags" in error_of(project, overrides="weights=*a")
    assert error_of(project, overrides="epochs=032") == "SET: epochs must be int, not '032'"
    assert "nested more than 8" in error_of(project, overrides=f"ks={'[' * 3000}")


def test_set_is_checked_like_files(project):
    message = error_of(project, overrides="batch_size=0")
    assert message.startswith("SET: batch_size must be from 1 to 65,536, not 0")
    assert error_of(project, overrides="epochs=many").startswith("SET: epochs must be int")


def test_contradicting_parameters_are_reported_with_their_files(project):
    message = error_of(project, overrides="head_epochs=2")
    assert message.startswith(f"{FILE} or SET: head_epochs: must be 0 if weights is none")
    write_line(project, "early_stopping: 2", drop="early_stopping")
    assert error_of(project).startswith(f"{FILE}: measured_epochs: must be [] with early_stopping")


def test_a_trial_of_fewer_epochs_omits_later_measured_epochs(project):
    write_study(project, "tiny", STUDY, {"cnn": CNN | {"epochs": 9, "measured_epochs": [2, 5]}})
    assert cnn_of(project, overrides="epochs=4")["measured_epochs"] == [2]
    assert cnn_of(project, overrides="epochs=5")["measured_epochs"] == [2, 5]
    message = error_of(project, overrides="epochs=4 measured_epochs=[5]")
    assert "measured_epochs: [5] is greater than epochs: 4" in message


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001"])
def test_a_number_with_an_exponent_is_a_float(project, text):
    write_line(project, f"learning_rate: {text}", drop="learning_rate")
    assert cnn_of(project)["learning_rate"] == 0.001
    assert cnn_of(project, overrides=f"learning_rate={text}")["learning_rate"] == 0.001


def test_a_whole_number_is_accepted_as_a_float(project):
    parameters = cnn_of(project, overrides="dropout=0 learning_rate=1")
    assert type(parameters["dropout"]) is type(parameters["learning_rate"]) is float


def test_a_text_with_an_e_remains_a_text(project):
    assert cnn_of(project, overrides="dataset=data/e5 weights=none")["dataset"] == "data/e5"


@pytest.mark.parametrize("value", ["1", "'true'", "[true]"])
def test_an_int_is_refused_as_a_bool(project, value):
    write_line(project, f"test_time_flips: {value}", drop="test_time_flips")
    assert error_of(project).startswith(f"{FILE}: test_time_flips must be bool, not ")


def test_the_key_notebook_names_the_notebook_and_is_not_a_parameter(project):
    write_study(project, "tiny", STUDY, {"wide": CNN | {"notebook": "cnn", "embedding_dim": 99}})
    run = next(run for run in configs.load(project, "tiny") if run.architecture == "wide")
    assert run.notebook == project / "notebooks" / "cnn.ipynb"
    assert "notebook" not in run.parameters
    assert (run.parameters["architecture"], run.parameters["embedding_dim"]) == ("wide", 99)


def test_an_architecture_without_its_own_notebook_runs_the_generic_one(project):
    write_study(project, "tiny", STUDY, {"wide": CNN, "chance": {"baseline": "random"}})
    generic = project / "notebooks" / "architecture.ipynb"
    generic.touch()
    notebooks = {run.file: run.notebook for run in configs.load(project, "tiny")}
    assert notebooks["wide"] == generic
    assert notebooks["cnn"] == project / "notebooks" / "cnn.ipynb"
    assert notebooks["chance"] == project / "notebooks" / "baseline.ipynb"


def test_a_missing_notebook_is_reported_with_the_key_notebook(project):
    write_study(project, "tiny", STUDY, {"wide": CNN | {"notebook": "broad"}})
    message = error_of(project)
    assert message.startswith("params/tiny/wide.yaml: no notebook broad.ipynb")
    assert "`notebook`" in message


def test_a_notebook_receives_its_study_and_groups_of_parameters(project):
    write_study(project, "tiny", STUDY, {"chance": BASELINE})
    cnn, *_, chance = configs.load(project, "tiny")
    groups = cnn.notebook_parameters
    assert {key: groups.pop(key) for key in params.PLACED} == {
        "study": "tiny", "architecture": "cnn", "variant": "",
    }  # fmt: skip
    assert list(groups) == ["data", "network", "training", "embedding", "measurement"]
    assert groups["measurement"] == MEASURED
    flat = {key: value for group in groups.values() for key, value in group.items()}
    assert flat == {key: cnn.parameters[key] for key in params.OF_NETWORKS}
    assert vars(params.complete(**groups)) == groups
    groups = chance.notebook_parameters
    assert groups.keys() == {*params.PLACED, "baseline", "data", "measurement"}
    assert groups["baseline"] == "random"


def test_an_unknown_study_is_refused_with_the_known_ones(project):
    write_study(project, "another", STUDY, {"cnn": CNN})
    with pytest.raises(StudyError) as caught:
        configs.load(project, "tyni")
    assert str(caught.value) == "unknown study 'tyni': params/ contains another, tiny"


def test_a_folder_without_study_yaml_is_not_a_study(project):
    (project / "params" / "notes").mkdir()
    (project / "params" / "notes" / "cnn.yaml").write_text("epochs: 3\n")
    assert configs.studies(project) == ["tiny"]


def test_a_study_without_an_architecture_is_refused_with_what_to_add(project):
    write_study(project, "bare", STUDY, {})
    with pytest.raises(StudyError, match="params/bare/ has no architecture: add a file"):
        configs.load(project, "bare")


@pytest.mark.parametrize("text", ["epochs", "=3", "epochs=", "epochs= 3", "epochs=3 batch_size"])
def test_set_without_key_value_is_refused_with_an_example(project, text):
    message = error_of(project, overrides=text)
    assert message.startswith("SET: ")
    assert 'SET="epochs=3 ks=[1,10]"' in message


@pytest.mark.parametrize("text", ["ks=[1, 10]", "ks=[1,10", "dataset=@here", "weights='none"])
def test_a_value_in_set_that_is_not_yaml_is_refused(project, text):
    assert error_of(project, overrides=text).startswith("SET: ")


def test_set_reads_values_as_yaml():
    text = "epochs=3 ks=[1,10] dropout=0.5 weights=a=b learning_rate=1e-2 measured_epochs=[]"
    assert configs.parse_overrides(text) == {
        "epochs": 3,
        "ks": [1, 10],
        "dropout": 0.5,
        "weights": "a=b",
        "learning_rate": 0.01,
        "measured_epochs": [],
    }
    assert configs.parse_overrides("  ") == {}


NOT_YAML = [
    b"epochs: [1",
    b"epochs: 3: 4",
    b"a: 'b",
    b"epochs:\t- 3\n\t- 4",
    b"\xff\xfe\x00",
    b"a\x00",
]


@pytest.mark.parametrize("content", NOT_YAML)
@pytest.mark.parametrize("file", [FILE, SHARED])
def test_a_file_that_is_not_yaml_is_reported_in_one_line(project, file, content):
    (project / file).write_bytes(content)
    assert error_of(project).startswith(f"{file}: not YAML: ")


@pytest.mark.parametrize("content", ["- epochs\n- 3\n", "epochs 3\n", "3\n"])
def test_a_file_without_keys_is_refused_with_the_expected_form(project, content):
    (project / FILE).write_text(content)
    assert error_of(project) == f"{FILE}: must contain lines of the form `key: value`"


def test_an_empty_file_sets_nothing(project):
    (project / FILE).write_text("# nothing yet\n")
    assert "missing parameter" in error_of(project)


def test_a_study_can_have_further_pages_with_parameters(project):
    pages = {"scale": {"sizes": [100], "engines": {"exact": 100}}}
    (project / SHARED).write_text(yaml.safe_dump(STUDY | {"pages": pages}))
    assert configs.further_pages(project, "tiny") == pages
    assert "pages" not in cnn_of(project)


@pytest.mark.parametrize("pages", ["scale", ["scale"], {"scale": None}, {"nosuch": {}}])
def test_further_pages_need_a_notebook_and_parameters(project, pages):
    (project / SHARED).write_text(yaml.safe_dump(STUDY | {"pages": pages}))
    with pytest.raises(StudyError, match=f"^{SHARED}: pages: must name a notebook"):
        configs.further_pages(project, "tiny")
