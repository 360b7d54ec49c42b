"""Grids: a separately named run for every combination of the values of some parameters."""

import shutil

import pytest
import yaml
from conftest import CNN, ROOT, STUDY, write_study

from cbir import StudyError
from cbir.reporting.runs import parse_point
from cbir.studies import configs, params
from cbir.studies.study import open_study

BASELINE = {"notebook": "baseline", "baseline": "random"}
SIZES = {"input_size": [32, 64]}
BOTH = SIZES | {"dropout": [0, 0.5]}


@pytest.fixture
def root(tmp_path):
    """The real notebooks, without pictures or studies."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def load(root, architectures: dict, grid=None, **arguments) -> list[configs.RunConfig]:
    """The runs of a study with these architectures and a grid shared by all of them."""
    write_study(root, "tiny", STUDY, architectures)
    if grid is not None:
        path = root / "params" / "tiny" / "study.yaml"
        # The file determines the order of dimensions.
        path.write_text(path.read_text() + yaml.safe_dump({"grid": grid}, sort_keys=False))
    return configs.load(root, "tiny", **arguments)


def error_of(root, architectures: dict, grid=None, **arguments) -> str:
    """The single line of the error that loading such a study raises."""
    with pytest.raises(StudyError) as caught:
        load(root, architectures, grid, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_of(runs: list[configs.RunConfig]) -> list[str]:
    return [run.architecture for run in runs]


def test_points_are_all_combinations_and_the_last_dimension_changes_first():
    grid = {"input_size": [32, 64, 96], "train": ["head", "all"]}
    assert configs.points([grid]) == [
        {"input_size": 32, "train": "head"},
        {"input_size": 32, "train": "all"},
        {"input_size": 64, "train": "head"},
        {"input_size": 64, "train": "all"},
        {"input_size": 96, "train": "head"},
        {"input_size": 96, "train": "all"},
    ]


def test_parameters_overridden_by_set_are_no_dimensions():
    grid = {"input_size": [32, 64], "train": ["head", "all"]}
    assert configs.points([grid], {"input_size": 48, "epochs": 3}) == [
        {"train": "head"}, {"train": "all"},
    ]  # fmt: skip
    assert configs.points([grid], {"input_size": 48, "train": "all"}) == [{}]


def test_an_empty_grid_is_one_empty_point():
    assert configs.points([{}], {"epochs": 3}) == [{}]
    assert (configs.point_name("cnn", {}), configs.variant({})) == ("cnn", "")


def test_a_point_determines_name_and_variant_of_a_run():
    point = {"input_size": 96, "train": "head"}
    assert configs.point_name("mobilenet", point) == "mobilenet-96-head"
    assert configs.variant(point) == "input_size=96 train=head"


@pytest.mark.parametrize("value", ["study:a/b", "data/a b.h5", [1, 2], "last_blocks:3", "../up"])
def test_names_of_points_are_valid_names_of_folders(value):
    assert set(configs.point_name("cnn", {"key": value})).isdisjoint("/\\:*?\"<>| [],'")


POINTS = {
    "none": {},
    "numbers": {"input_size": 96, "dropout": 0.25},
    "small numbers": {"learning_rate": 1e-05},
    "words": {"train": "last_blocks:3", "pooling": "gem"},
    "a study": {"weights": "study:tiny-imagenet-32/resnet50"},
    "a switch": {"mixed_precision": False},
    "a list": {"augmentation": ["flip"]},
    "a longer list": {"augmentation": ["flip", "shift"], "train": "all"},
    "an empty list": {"augmentation": [], "train": "all"},
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_architecture_and_point_are_parsed_from_name_and_variant(point):
    for file in ("cnn", "cnn_strong", "mobilenet-96"):
        architecture, parsed = parse_point(configs.point_name(file, point), configs.variant(point))
        assert architecture == file
        assert parsed.keys() == point.keys()
        is_listed = {key: isinstance(value, list) for key, value in point.items()}
        assert all(parsed[key] == str(point[key]) for key in point if not is_listed[key])


def test_every_architecture_runs_at_every_point(root):
    networks = {"cnn": CNN, "vgg16": CNN | {"backbone": "vgg16"}}
    runs = load(root, networks, BOTH)
    points = [(32, 0.0), (32, 0.5), (64, 0.0), (64, 0.5)]
    suffixes = ["32-0", "32-0.5", "64-0", "64-0.5"]
    assert names_of(runs) == [f"{file}-{suffix}" for file in networks for suffix in suffixes]
    for run, (size, dropout) in zip(runs, points * 2, strict=True):
        parameters = run.parameters
        assert (parameters["input_size"], parameters["dropout"]) == (size, dropout)
        assert parameters["backbone"] == run.file
        assert parameters["architecture"] == run.architecture
        assert run.notebook.stem == run.file
    assert runs[1].parameters["variant"] == "input_size=32 dropout=0.5"
    assert not any("grid" in run.parameters for run in runs)


def test_a_point_overrides_its_file_and_set_overrides_a_point(root):
    assert CNN["batch_size"] == 8
    architectures = {"cnn": CNN}
    runs = load(root, architectures, SIZES | {"batch_size": [2, 3]})
    assert [run.parameters["batch_size"] for run in runs] == [2, 3, 2, 3]
    runs = load(root, architectures, SIZES | {"batch_size": [2, 3]}, overrides="batch_size=4")
    assert [run.parameters["batch_size"] for run in runs] == [4, 4]
    assert names_of(runs) == ["cnn-32", "cnn-64"]
    assert [run.parameters["input_size"] for run in runs] == [32, 64]
    (run,) = load(root, architectures, SIZES, overrides="input_size=48")
    assert (run.architecture, run.parameters["variant"]) == ("cnn", "")
    assert run.parameters["input_size"] == 48


def test_the_grid_of_an_architecture_replaces_that_of_the_study(root):
    vgg16 = CNN | {"backbone": "vgg16", "grid": {"dropout": [0.1, 0.2]}}
    assert names_of(load(root, {"cnn": CNN, "vgg16": vgg16}, SIZES)) == [
        "cnn-32", "cnn-64", "vgg16-0.1", "vgg16-0.2",
    ]  # fmt: skip
    without = {"cnn": CNN, "vgg16": vgg16 | {"grid": {}}}
    assert names_of(load(root, without, SIZES)) == ["cnn-32", "cnn-64", "vgg16"]
    architectures = {"cnn": CNN, "vgg16": vgg16}
    assert names_of(load(root, architectures)) == ["cnn", "vgg16-0.1", "vgg16-0.2"]


SEVERAL = [{"dropout": [0.1], "input_size": [32, 64]}, {"dropout": [0.2], "input_size": [32]}]


@pytest.mark.parametrize(
    "is_of_architecture", [False, True], ids=["of the study", "of an architecture"]
)
def test_several_grids_of_the_same_parameters_are_written_as_a_list(root, is_of_architecture):
    architectures = {
        "cnn": CNN | {"grid": SEVERAL} if is_of_architecture else CNN,
        "baseline": BASELINE,
    }
    study = [architectures, None if is_of_architecture else SEVERAL]
    assert names_of(load(root, *study)) == ["cnn-0.1-32", "cnn-0.1-64", "cnn-0.2-32", "baseline"]
    # SET makes two points equal.
    assert names_of(load(root, *study, overrides="dropout=0")) == ["cnn-32", "cnn-64", "baseline"]
    assert names_of(load(root, *study, overrides="input_size=96 dropout=0")) == ["cnn", "baseline"]


@pytest.mark.parametrize(
    "other_grid", [{"input_size": [96]}, {"input_size": [32], "dropout": [0.3]}]
)
def test_grids_of_other_parameters_are_rejected(root, other_grid):
    assert error_of(root, {"cnn": CNN}, [*SEVERAL, other_grid]) == (
        "params/tiny/study.yaml: grid: all grids must have the same parameters, in the same order"
    )


def test_frozen_networks_run_at_every_input_size_of_the_project():
    runs = configs.load(ROOT, "cifar10-input-size")
    frozen = {(run.file, run.parameters["input_size"]) for run in runs
              if run.parameters["train"] == "head"}  # fmt: skip
    files, sizes = ({point[index] for point in frozen} for index in (0, 1))
    assert len(sizes) == 4
    assert len(frozen) == len(files) * len(sizes)


def test_studies_of_overfitting_have_no_early_stopping():
    runs = configs.load(ROOT, "cifar10-training-size")
    assert {run.parameters["early_stopping"] for run in runs} == {0}
    from_random = [run for run in runs if run.parameters["weights"] == "none"]
    assert {run.file for run in from_random} >= {"cnn", "cnn_strong", "resnet50", "vgg16"}
    assert len({run.parameters["epochs"] for run in from_random}) == 1


def test_a_grid_of_other_parameters_does_not_change_a_baseline(root):
    runs = load(root, {"a_baseline": BASELINE, "cnn": CNN}, SIZES)
    assert names_of(runs) == ["cnn-32", "cnn-64", "a_baseline"]
    assert runs[-1].parameters["variant"] == ""
    assert "input_size" not in runs[-1].parameters


@pytest.mark.parametrize("key", [*params.DATA, *params.MEASUREMENT])
def test_parameters_shared_by_a_study_cannot_be_dimensions(root, key):
    grid = {"input_size": [32], key: [STUDY[key]]}
    rule = f"grid: {key} must be the same for all runs of a study"
    assert error_of(root, {"cnn": CNN}, grid) == f"params/tiny/study.yaml: {rule}"
    assert error_of(root, {"cnn": CNN | {"grid": grid}}) == f"params/tiny/cnn.yaml: {rule}"


@pytest.mark.parametrize(
    "grid", [3, "input_size", [32, 64], {"input_size": 32}, {"input_size": []}, {"train": "all"}]
)
def test_a_grid_without_lists_is_rejected_with_an_example(root, grid):
    rule = (
        "grid must have a list of values for each parameter, as in `grid: {input_size: [32, 64]}`"
    )
    assert error_of(root, {"cnn": CNN}, grid) == f"params/tiny/study.yaml: {rule}"
    assert error_of(root, {"cnn": CNN | {"grid": grid}}) == f"params/tiny/cnn.yaml: {rule}"


def test_an_empty_grid_is_rejected_with_an_example(root):
    write_study(root, "tiny", STUDY, {"cnn": CNN})
    path = root / "params" / "tiny" / "study.yaml"
    path.write_text(path.read_text() + "grid:\n")
    with pytest.raises(StudyError, match="study.yaml: grid must have a list of values"):
        configs.load(root, "tiny")


def test_a_grid_must_give_the_number_of_all_images(root):
    assert error_of(root, {"cnn": {}}, {"learn_from": [500, 0]}) == (
        "params/tiny/study.yaml: grid: learn_from: replace 0 (all images) by their number, "
        "because 0 would be sorted as the smallest"
    )


@pytest.mark.parametrize(
    "is_of_architecture", [False, True], ids=["of the study", "of an architecture"]
)
def test_an_unknown_parameter_in_a_grid_is_rejected_with_the_nearest_name(root, is_of_architecture):
    grid = {"poling": ["avg", "max"]}
    study = ({"cnn": CNN | {"grid": grid}}, None) if is_of_architecture else ({"cnn": CNN}, grid)
    message = error_of(root, *study)
    assert "unknown parameter 'poling', did you mean 'pooling'?" in message
    assert message.startswith("params/tiny/")


@pytest.mark.parametrize("key", params.PLACED)
def test_identifying_parameters_of_a_run_cannot_be_dimensions(root, key):
    assert f"unknown parameter {key!r}" in error_of(root, {"cnn": CNN}, {key: ["one", "other"]})


def test_an_error_about_a_value_names_the_grid(root):
    message = error_of(root, {"cnn": CNN}, {"input_size": [32, 16]})
    assert (
        message
        == "params/tiny/cnn.yaml, grid: input_size must be from 32 to 4,096 (pixels), not 16"
    )
    message = error_of(root, {"cnn": CNN}, {"input_size": [32, "large"]})
    assert message == "params/tiny/cnn.yaml, grid: input_size must be int, not 'large'"


def test_a_point_that_contradicts_its_file_is_rejected(root):
    message = error_of(root, {"cnn": CNN | {"measured_epochs": []}}, {"train": ["all", "head"]})
    assert message.startswith("params/tiny/cnn.yaml or params/tiny/cnn.yaml, grid: head_epochs: ")


@pytest.mark.parametrize("values", [[32, 32], [64, 32, 64]])
def test_two_runs_with_the_same_name_are_rejected(root, values):
    assert "input_size" in error_of(root, {"cnn": CNN}, {"input_size": values})


@pytest.mark.parametrize(
    ("names", "chosen", "command"),
    [
        ("", ["cnn-32", "cnn-64", "vgg16-32", "vgg16-64"], ""),
        ("cnn vgg16", ["cnn-32", "cnn-64", "vgg16-32", "vgg16-64"], ""),
        ("cnn", ["cnn-32", "cnn-64"], ' ARCHITECTURES="cnn"'),
        ("cnn-64", ["cnn-64"], ' ARCHITECTURES="cnn-64"'),
        ("vgg16-32 cnn", ["cnn-32", "cnn-64", "vgg16-32"], ' ARCHITECTURES="cnn vgg16-32"'),
    ],
)
def test_files_and_single_points_can_be_chosen(root, names, chosen, command):
    load(root, {"cnn": CNN, "vgg16": CNN | {"backbone": "vgg16"}}, SIZES)
    study = open_study(root, "tiny", architectures=names)
    assert study.chosen == chosen
    assert study.command_for(chosen) == f"make report STUDY=tiny{command}"
    assert len(study.runs) == 4
    pages = [("cnn-32", "cnn-32.html"), ("cnn-64", "cnn-64.html"), ("vgg16-32", "vgg16-32.html")]
    pages += [("vgg16-64", "vgg16-64.html")]
    assert study.links[:5] == [("Comparison", "index.html"), *pages]
    assert study.links[-1] == ("Metrics", "metrics.html")
    assert study.pages[0].name == "grid"


@pytest.mark.parametrize("names", ["cnn-65", "cnn-", "cnn vgg"])
def test_an_unknown_point_is_rejected_with_the_files(root, names):
    load(root, {"cnn": CNN, "vgg16": CNN | {"backbone": "vgg16"}}, SIZES)
    with pytest.raises(StudyError) as caught:
        open_study(root, "tiny", architectures=names)
    assert str(caught.value).startswith(f"unknown architecture {names.split()[-1]!r}: ")
    assert str(caught.value).endswith("params/tiny/ contains cnn, vgg16")


@pytest.mark.parametrize(
    ("study", "architecture", "points"),
    [
        (
            "cifar10-input-size",
            "mobilenet",
            "32-head 32-all 64-head 64-all 96-head 96-all 160-head 160-all",
        ),
        (
            "cifar10-input-size",
            "vgg16",
            "32-head 64-head 96-head 160-head 32-all 64-all 96-all",
        ),
        ("cifar10-pooling", "resnet50", "avg max gem attention"),
        ("cifar10-training-size", "vgg16_frozen", "500 2000 10000 50000"),
    ],
)
def test_the_studies_of_this_project_have_these_points(study, architecture, points):
    names = [run.architecture for run in configs.load(ROOT, study) if run.file == architecture]
    assert names == [f"{architecture}-{point}" for point in points.split()]


@pytest.mark.parametrize(
    ("study", "count"),
    [
        ("cifar10-input-size", 8 + 7 + 7),
        ("cifar10-pooling", 3 * 4),
        ("cifar10-training-size", 6 * 4 + 2 * 3 + 2 * 2),
    ],
)
def test_the_studies_of_this_project_have_the_expected_number_of_runs(study, count):
    names = names_of(configs.load(ROOT, study))
    assert len(names) == len(set(names)) == count
