"""Grids: a run for every combination of some parameters' values, each with a name of its own."""

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
    """The runs of a study with these architectures, and this grid for all of them."""
    write_study(root, "tiny", STUDY, architectures)
    if grid is not None:
        path = root / "params" / "tiny" / "study.yaml"
        # Dimensions stand in the order of the file.
        path.write_text(path.read_text() + yaml.safe_dump({"grid": grid}, sort_keys=False))
    return configs.load(root, "tiny", **arguments)


def error_of(root, architectures: dict, grid=None, **arguments) -> str:
    """The one line that loading such a study ends with."""
    with pytest.raises(StudyError) as caught:
        load(root, architectures, grid, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_of(runs: list[configs.RunConfig]) -> list[str]:
    return [run.architecture for run in runs]


def test_points_are_all_combinations_the_last_dimension_first_to_change():
    grid = {"input_size": [32, 64, 96], "train": ["head", "all"]}
    assert configs.points([grid]) == [
        {"input_size": 32, "train": "head"},
        {"input_size": 32, "train": "all"},
        {"input_size": 64, "train": "head"},
        {"input_size": 64, "train": "all"},
        {"input_size": 96, "train": "head"},
        {"input_size": 96, "train": "all"},
    ]


def test_what_set_sets_is_no_dimension():
    grid = {"input_size": [32, 64], "train": ["head", "all"]}
    assert configs.points([grid], {"input_size": 48, "epochs": 3}) == [
        {"train": "head"}, {"train": "all"},
    ]  # fmt: skip
    assert configs.points([grid], {"input_size": 48, "train": "all"}) == [{}]


def test_no_grid_is_one_empty_point():
    assert configs.points([{}], {"epochs": 3}) == [{}]
    assert (configs.point_name("cnn", {}), configs.variant({})) == ("cnn", "")


def test_a_point_gives_a_run_its_name_and_its_words():
    point = {"input_size": 96, "train": "head"}
    assert configs.point_name("mobilenet", point) == "mobilenet-96-head"
    assert configs.variant(point) == "input_size=96 train=head"


@pytest.mark.parametrize("value", ["study:a/b", "data/a b.h5", [1, 2], "last_blocks:3", "../up"])
def test_a_name_is_one_that_a_folder_can_have(value):
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
def test_architecture_and_point_are_read_back_from_name_and_words(point):
    for file in ("cnn", "cnn_strong", "mobilenet-96"):
        architecture, found = parse_point(configs.point_name(file, point), configs.variant(point))
        assert architecture == file
        assert found.keys() == point.keys()
        is_listed = {key: isinstance(value, list) for key, value in point.items()}
        assert all(found[key] == str(point[key]) for key in point if not is_listed[key])


def test_every_architecture_runs_at_every_point(root):
    networks = {"cnn": CNN, "vgg16": CNN | {"backbone": "vgg16"}}
    runs = load(root, networks, BOTH)
    points = [(32, 0.0), (32, 0.5), (64, 0.0), (64, 0.5)]
    words = ["32-0", "32-0.5", "64-0", "64-0.5"]
    assert names_of(runs) == [f"{file}-{each}" for file in networks for each in words]
    for run, (size, dropout) in zip(runs, points * 2, strict=True):
        given = run.parameters
        assert (given["input_size"], given["dropout"]) == (size, dropout)
        assert given["backbone"] == run.file
        assert given["architecture"] == run.architecture
        assert run.notebook.stem == run.file
    assert runs[1].parameters["variant"] == "input_size=32 dropout=0.5"
    assert not any("grid" in run.parameters for run in runs)


def test_a_point_lies_over_its_file_and_under_set(root):
    assert CNN["batch_size"] == 8
    own = {"cnn": CNN}
    runs = load(root, own, SIZES | {"batch_size": [2, 3]})
    assert [run.parameters["batch_size"] for run in runs] == [2, 3, 2, 3]
    runs = load(root, own, SIZES | {"batch_size": [2, 3]}, overrides="batch_size=4")
    assert [run.parameters["batch_size"] for run in runs] == [4, 4]
    assert names_of(runs) == ["cnn-32", "cnn-64"]
    assert [run.parameters["input_size"] for run in runs] == [32, 64]
    (run,) = load(root, own, SIZES, overrides="input_size=48")
    assert (run.architecture, run.parameters["variant"]) == ("cnn", "")
    assert run.parameters["input_size"] == 48


def test_an_architecture_s_own_grid_takes_the_place_of_the_study_s(root):
    vgg16 = CNN | {"backbone": "vgg16", "grid": {"dropout": [0.1, 0.2]}}
    assert names_of(load(root, {"cnn": CNN, "vgg16": vgg16}, SIZES)) == [
        "cnn-32", "cnn-64", "vgg16-0.1", "vgg16-0.2",
    ]  # fmt: skip
    without = {"cnn": CNN, "vgg16": vgg16 | {"grid": {}}}
    assert names_of(load(root, without, SIZES)) == ["cnn-32", "cnn-64", "vgg16"]
    alone = {"cnn": CNN, "vgg16": vgg16}
    assert names_of(load(root, alone)) == ["cnn", "vgg16-0.1", "vgg16-0.2"]


SEVERAL = [{"dropout": [0.1], "input_size": [32, 64]}, {"dropout": [0.2], "input_size": [32]}]


@pytest.mark.parametrize("is_own", [False, True], ids=["of the study", "of an architecture"])
def test_several_grids_of_the_same_parameters_stand_in_a_list(root, is_own):
    own = {"cnn": CNN | {"grid": SEVERAL} if is_own else CNN, "baseline": BASELINE}
    given = [own, None if is_own else SEVERAL]
    assert names_of(load(root, *given)) == ["cnn-0.1-32", "cnn-0.1-64", "cnn-0.2-32", "baseline"]
    # SET leaves two of them the same point.
    assert names_of(load(root, *given, overrides="dropout=0")) == ["cnn-32", "cnn-64", "baseline"]
    assert names_of(load(root, *given, overrides="input_size=96 dropout=0")) == ["cnn", "baseline"]


@pytest.mark.parametrize("other", [{"input_size": [96]}, {"input_size": [32], "dropout": [0.3]}])
def test_grids_of_other_parameters_are_refused(root, other):
    assert error_of(root, {"cnn": CNN}, [*SEVERAL, other]) == (
        "params/tiny/study.yaml: grid: all grids must have the same parameters, in the same order"
    )


def test_frozen_networks_have_a_cell_for_every_input_size_of_the_project():
    runs = configs.load(ROOT, "cifar10-input-size")
    frozen = {(run.file, run.parameters["input_size"]) for run in runs
              if run.parameters["train"] == "head"}  # fmt: skip
    files, sizes = ({each[place] for each in frozen} for place in (0, 1))
    assert len(sizes) == 4
    assert len(frozen) == len(files) * len(sizes)


def test_nothing_stops_early_where_overfitting_is_studied():
    runs = configs.load(ROOT, "cifar10-training-size")
    assert {run.parameters["early_stopping"] for run in runs} == {0}
    from_random = [run for run in runs if run.parameters["weights"] == "none"]
    assert {run.file for run in from_random} >= {"cnn", "cnn_strong", "resnet50", "vgg16"}
    assert len({run.parameters["epochs"] for run in from_random}) == 1


def test_a_baseline_is_not_touched_by_a_grid_that_it_does_not_know(root):
    runs = load(root, {"a_baseline": BASELINE, "cnn": CNN}, SIZES)
    assert names_of(runs) == ["cnn-32", "cnn-64", "a_baseline"]
    assert runs[-1].parameters["variant"] == ""
    assert "input_size" not in runs[-1].parameters


@pytest.mark.parametrize("key", [*params.DATA, *params.MEASUREMENT])
def test_what_all_of_a_study_share_is_no_dimension(root, key):
    grid = {"input_size": [32], key: [STUDY[key]]}
    rule = f"grid: {key} must be the same for all runs of a study"
    assert error_of(root, {"cnn": CNN}, grid) == f"params/tiny/study.yaml: {rule}"
    assert error_of(root, {"cnn": CNN | {"grid": grid}}) == f"params/tiny/cnn.yaml: {rule}"


@pytest.mark.parametrize(
    "grid", [3, "input_size", [32, 64], {"input_size": 32}, {"input_size": []}, {"train": "all"}]
)
def test_a_grid_without_lists_is_answered_with_the_form(root, grid):
    rule = (
        "grid must have a list of values for each parameter, as in `grid: {input_size: [32, 64]}`"
    )
    assert error_of(root, {"cnn": CNN}, grid) == f"params/tiny/study.yaml: {rule}"
    assert error_of(root, {"cnn": CNN | {"grid": grid}}) == f"params/tiny/cnn.yaml: {rule}"


def test_a_grid_without_anything_is_answered_with_the_form(root):
    write_study(root, "tiny", STUDY, {"cnn": CNN})
    path = root / "params" / "tiny" / "study.yaml"
    path.write_text(path.read_text() + "grid:\n")
    with pytest.raises(StudyError, match="study.yaml: grid must have a list of values"):
        configs.load(root, "tiny")


def test_all_images_are_named_by_their_number_in_a_grid(root):
    assert error_of(root, {"cnn": {}}, {"learn_from": [500, 0]}) == (
        "params/tiny/study.yaml: grid: learn_from: replace 0 (all images) by their number, "
        "because 0 would be sorted as the smallest"
    )


@pytest.mark.parametrize("is_own", [False, True], ids=["of the study", "of an architecture"])
def test_an_unknown_parameter_in_a_grid_is_answered_with_the_nearest_one(root, is_own):
    grid = {"poling": ["avg", "max"]}
    given = ({"cnn": CNN | {"grid": grid}}, None) if is_own else ({"cnn": CNN}, grid)
    message = error_of(root, *given)
    assert "unknown parameter 'poling', did you mean 'pooling'?" in message
    assert message.startswith("params/tiny/")


@pytest.mark.parametrize("key", params.PLACED)
def test_where_a_run_stands_is_no_dimension(root, key):
    assert f"unknown parameter {key!r}" in error_of(root, {"cnn": CNN}, {key: ["one", "other"]})


def test_a_value_that_does_not_fit_names_the_grid(root):
    message = error_of(root, {"cnn": CNN}, {"input_size": [32, 16]})
    assert (
        message
        == "params/tiny/cnn.yaml, grid: input_size must be from 32 to 4,096 (pixels), not 16"
    )
    message = error_of(root, {"cnn": CNN}, {"input_size": [32, "large"]})
    assert message == "params/tiny/cnn.yaml, grid: input_size must be int, not 'large'"


def test_a_point_that_contradicts_its_file_is_refused(root):
    message = error_of(root, {"cnn": CNN | {"measured_epochs": []}}, {"train": ["all", "head"]})
    assert message.startswith("params/tiny/cnn.yaml or params/tiny/cnn.yaml, grid: head_epochs: ")


@pytest.mark.parametrize("values", [[32, 32], [64, 32, 64]])
def test_two_runs_of_one_name_are_refused(root, values):
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
def test_a_point_that_there_is_not_is_answered_with_the_files(root, names):
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
    found = [run.architecture for run in configs.load(ROOT, study) if run.file == architecture]
    assert found == [f"{architecture}-{point}" for point in points.split()]


@pytest.mark.parametrize(
    ("study", "count"),
    [
        ("cifar10-input-size", 8 + 7 + 7),
        ("cifar10-pooling", 3 * 4),
        ("cifar10-training-size", 6 * 4 + 2 * 3 + 2 * 2),
    ],
)
def test_the_studies_of_this_project_have_so_many_runs(study, count):
    names = names_of(configs.load(ROOT, study))
    assert len(names) == len(set(names)) == count
