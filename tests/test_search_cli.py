"""Searching a finished study: the searcher, galleries of folders, `cbir search`, `cbir index`."""

import csv
import html
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CNN, ROOT, STUDY, cbir, write_pictures, write_study
from PIL import Image

from cbir import StudyError, cbir_command
from cbir.__main__ import main
from cbir.cache import write_text
from cbir.images.dataset import describe_changes
from cbir.images.folders import HIDDEN, NOT_A_PICTURE, LeftOut
from cbir.images.pictures import DAMAGED
from cbir.reporting.feedback import describe_weights
from cbir.reporting.runs import read_run
from cbir.retrieval.feedback import Rocchio
from cbir.search import answers, cli, galleries, searchers
from cbir.search.searchers import open_searcher

QUERY = "data/shapes/circle/circle-00.png"


@pytest.fixture(scope="module")
def searcher(finished_study):
    return open_searcher("tiny", "cnn")


@pytest.fixture
def folder(finished_study, tmp_path):
    """A folder of six pictures."""
    write_pictures(tmp_path / "mine", classes=("circle", "cross"), count=3)
    yield tmp_path / "mine"
    shutil.rmtree(finished_study / "artifacts" / "galleries", ignore_errors=True)


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


# The searcher


@pytest.mark.parametrize("architecture", ["cnn", "whitened"])
def test_network_embeds_the_studys_images_as_the_study_did(finished_study, architecture):
    searcher = open_searcher("tiny", architecture)
    vectors, probabilities = searcher.encode(searcher.run.dataset.images[:20])
    np.testing.assert_allclose(vectors, searcher.run.embeddings.vectors[:20], atol=1e-4)
    np.testing.assert_allclose(probabilities, searcher.run.embeddings.probabilities[:20], atol=1e-4)


# Whitening enlarges differences.
@pytest.mark.parametrize(("architecture", "most"), [("cnn", 1e-5), ("whitened", 1e-4)])
def test_exported_graph_embeds_as_keras_does(finished_study, architecture, most, capfd):
    pytest.importorskip("openvino")
    from cbir.networks.inference import make_encoder

    run = open_searcher("tiny", architecture).run
    images = run.dataset.images[:300]
    outputs = (
        searchers.graph_encoder(run)(images),
        make_encoder(run.network, run.embeddings)(images),
    )
    for graph, keras in zip(*outputs, strict=True):
        np.testing.assert_allclose(graph, keras, atol=most)
    assert "exporting the network" in capfd.readouterr().out
    assert searchers.graph_encoder(read_run("tiny", architecture)) is not None
    assert capfd.readouterr().out == ""


def test_network_that_cannot_be_exported_is_run_by_keras(finished_study, monkeypatch, capfd):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    monkeypatch.setattr(searchers, "find", lambda **_: None)
    monkeypatch.setattr(searchers, "cached", lambda **_: 1 / 0)
    searcher = open_searcher("tiny", "cnn")
    vectors, _ = searcher.encode(searcher.run.dataset.images[:2])
    np.testing.assert_allclose(vectors, searcher.run.embeddings.vectors[:2], atol=1e-4)
    assert "cannot be exported (division by zero): searching with Keras" in capfd.readouterr().out


def test_default_architecture_has_the_highest_map(finished_study):
    scores = {
        name: read_run("tiny", name).per_query.query("search == 'unrestricted'")
        for name in ("cnn", "whitened")
    }
    means = {name: rows["average_precision"].mean() for name, rows in scores.items()}
    assert open_searcher("tiny").run.architecture == max(means, key=means.get)
    assert len(set(means.values())) == 2


def test_gallery_is_searched_as_the_study_searched_it(searcher):
    run = read_run("tiny", "cnn")
    positions, similarities = searcher.gallery.search(searcher.run.embeddings.query, 10)
    assert (positions == run.rankings["unrestricted"]).all()
    np.testing.assert_allclose(similarities, run.similarities["unrestricted"], atol=1e-6)


@pytest.mark.parametrize("search", ["predicted_class", "soft"])
def test_some_classes_are_searched_as_the_study_searched_them(searcher, search):
    run = read_run("tiny", "cnn")
    searchable = searcher.searchable(searcher.run.embeddings.query_probabilities, search)
    positions, _ = searcher.gallery.search(searcher.run.embeddings.query, 10, searchable)
    assert (positions == run.rankings[search]).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("nothing", ""), "no study 'nothing': `make report DATA=path/to/folder` makes one"),
        (
            ("tiny", "vgg16"),
            "no trained architecture 'vgg16' in reports/tiny: choose from cnn, whi",
        ),
    ],
)
def test_missing_run_is_an_error(finished_study, names, message):
    with pytest.raises(StudyError, match=message):
        open_searcher(*names)


def test_error_for_changed_pictures_and_lost_artifacts_names_the_command(finished_study, tmp_path):
    project = tmp_path / "copy"
    shutil.copytree(finished_study, project)
    (project / "params" / "tiny").mkdir()
    again = 'run `make report STUDY=tiny ARCHITECTURES="cnn"` again'
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        training = project / read_run("tiny", "cnn").summary["artifacts"]["training"]
        (training / "final.weights.h5").unlink()
        with pytest.raises(StudyError, match=again):
            open_searcher("tiny", "cnn").encode(np.zeros((1, 32, 32, 3), np.uint8))
        embeddings = project / read_run("tiny", "cnn").summary["artifacts"]["embeddings"]
        shutil.rmtree(embeddings)
        with pytest.raises(
            StudyError, match=f"cnn .*the embeddings are missing or damaged: {again}"
        ):
            _ = open_searcher("tiny", "cnn").gallery.vectors
        Image.new("RGB", (24, 24)).save(project / QUERY)
        shutil.rmtree(project / "artifacts" / "images")
        with pytest.raises(StudyError, match=f"pictures have changed .*{again}"):
            _ = open_searcher("tiny", "cnn").gallery


def test_study_is_searched_after_its_pictures_have_changed_or_gone(finished_study, tmp_path):
    project = tmp_path / "copy"
    shutil.copytree(finished_study, project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        before = open_searcher("tiny", "cnn").gallery
        Image.new("RGB", (24, 24)).save(project / "data" / "shapes" / "circle" / "new.png")
        searcher = open_searcher("tiny", "cnn")
        assert searcher.gallery.names == before.names
        assert np.array_equal(searcher.gallery.image(0), before.image(0))
        assert describe_changes(searcher.run.dataset) == "1 new (circle/new.png)"
        (project / "data" / "shapes" / "circle" / "new.png").unlink()
        assert describe_changes(searcher.run.dataset) == ""
        (project / QUERY).unlink()
        assert describe_changes(searcher.run.dataset).startswith("1 gone (")
        shutil.rmtree(project / "data")
        assert open_searcher("tiny", "cnn").gallery.names == before.names
        assert "No such file" in describe_changes(searcher.run.dataset)


# Answers


def test_picture_of_the_gallery_is_not_returned_as_its_own_result(searcher, finished_study, capfd):
    path = searcher.gallery.names[0]
    code, out, _ = run(capfd, "search", path, "--study", "tiny", "-k", "3", "--json")
    assert code == 0
    results = json.loads(out)["answers"][0]["results"]
    assert [result["rank"] for result in results] == [1, 2, 3]
    assert path not in [result["path"] for result in results]


def test_search_within_the_predicted_class_returns_no_other(finished_study, capfd):
    arguments = ["search", QUERY, "--study", "tiny", "--within", "predicted_class", "--json"]
    code, out, _ = run(capfd, *arguments)
    (answer,) = json.loads(out)["answers"]
    assert code == 0
    assert {result["class"] for result in answer["results"]} == {answer["predicted"]}
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_feedback_moves_the_query_as_rocchio_defines(searcher, monkeypatch):
    monkeypatch.setitem(searcher.__dict__, "chosen_weights", Rocchio(1.0, 4.0, 1.0))
    gallery, labels = searcher.gallery, searcher.run.dataset.gallery_labels
    vector, probabilities = gallery.vectors[0], searcher.run.embeddings.probabilities[0]
    picture = answers.Picture("none", np.zeros((32, 32, 3), np.uint8), vector, probabilities)
    squares = gallery.vectors[labels == 2][:3]
    (plain,) = answers.search_all(searcher, gallery, [picture], 5)
    (moved,) = answers.search_all(
        searcher, gallery, [picture], 5, positive=squares, negative=[vector]
    )
    assert plain.results[0].position == 0
    assert {result.label for result in moved.results} == {"square"}
    refined = vector + 4 * squares.mean(axis=0) - vector
    positions, _ = gallery.search(refined[None] / np.linalg.norm(refined), 5)
    assert [result.position for result in moved.results] == positions[0].tolist()


def test_positive_examples_alone_are_the_query(finished_study, capfd):
    squares = [f"data/shapes/square/square-0{number}.png" for number in (1, 2)]
    arguments = ["--study", "tiny", "--architecture", "cnn", "--json", "-k", "4"]
    code, out, _ = run(capfd, "search", "--like", *squares, "--unlike", QUERY, *arguments)
    (answer,) = json.loads(out)["answers"]
    assert code == 0
    assert {result["class"] for result in answer["results"]} == {"square"}
    assert not {*squares, QUERY} & {result["path"] for result in answer["results"]}
    assert json.loads(out)["weights"] == vars(Rocchio())


def test_feedback_weights_and_their_origin_are_printed(finished_study, capfd):
    arguments = ["--like", QUERY, "--study", "tiny", "--architecture", "cnn", "-k", "1"]
    _, out, _ = run(capfd, "search", *arguments)
    origin = "(defaults, since the study has not chosen any)"
    assert out.splitlines()[0].endswith(f", weights: {describe_weights(Rocchio())} {origin}")
    searcher = open_searcher("tiny", "cnn")
    searcher.__dict__["chosen_weights"] = weights = Rocchio(1, 2, 0.5)
    assert searcher.describe_feedback_weights() == (
        f"{describe_weights(weights)} (chosen on validation images)"
    )
    _, out, _ = run(capfd, "search", QUERY, "--study", "tiny", "-k", "1")
    assert "weights" not in out.splitlines()[0]


# Queries and output


def test_folder_pattern_and_standard_input_name_pictures(finished_study, monkeypatch, capfd):
    arguments = ["--study", "tiny", "--json", "-k", "1"]
    files = sorted(str(path) for path in Path("data/shapes/cross").iterdir())
    for argument, names in (
        ("data/shapes/cross", files),
        ("data/shapes/cross/*-0?.png", files[:10]),
    ):
        _, out, _ = run(capfd, "search", argument, *arguments)
        assert [answer["picture"] for answer in json.loads(out)["answers"]] == names
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(QUERY).read_bytes())))
    code, out, _ = run(capfd, "search", "-", *arguments)
    assert code == 0
    assert json.loads(out)["answers"][0]["picture"] == "standard input"


def test_table_names_class_similarity_and_path(finished_study, capfd):
    code, out, _ = run(capfd, "search", QUERY, "--study", "tiny", "-k", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("Searched 36 images of tiny with ")
    assert lines[2].startswith(f"{QUERY}: circle ")
    assert "similarity" in lines[3]
    assert lines[4].split()[0] == "1"
    assert lines[4].split()[-1].startswith("data/shapes/")


def test_every_file_is_counted_as_used_or_left_out(finished_study, tmp_path, capfd):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / ".hidden.png").write_bytes(b"")
    cut = tmp_path / "cut.jpg"
    with Image.open(QUERY) as picture:
        picture.save(cut)
    os.truncate(cut, cut.stat().st_size - 40)
    arguments = ("search", QUERY, str(tmp_path), "--like", str(cut), "--study", "tiny")
    code, out, _ = run(capfd, *arguments, "--html", str(tmp_path / "page.html"))
    assert code == 0
    assert "5 files found, 3 used, 2 left out:" in out
    page = (tmp_path / "page.html").read_text("utf-8")
    (tmp_path / "page.html").unlink()
    content = json.loads(run(capfd, *arguments, "--json")[1])
    assert content["left_out"] == [
        f"{tmp_path / '.hidden.png'}: {HIDDEN}", f"{tmp_path / 'broken.png'}: {NOT_A_PICTURE}",
    ]  # fmt: skip
    assert content["remarks"] == [f"{cut}: {DAMAGED}"] * 2
    for reason in (HIDDEN, NOT_A_PICTURE, DAMAGED):
        assert reason in out
        assert reason in page
    cut.unlink()
    code, _, err = run(capfd, "search", str(tmp_path), "--study", "tiny")
    assert code == 1
    assert "error: none of the pictures could be read" in err


def test_pictures_are_read_with_the_parameters_of_the_study(searcher, folder, monkeypatch):
    parameters = searcher.run.summary["dataset"]["parameters"]
    truncated = folder / "circle" / "circle-00.png"
    os.truncate(truncated, truncated.stat().st_size - 40)
    for damaged, used in (("use", 1), ("skip", 0)):
        monkeypatch.setitem(parameters, "damaged", damaged)
        pictures, *files = answers.read_pictures(searcher, {"cut": truncated})
        assert len(pictures) == used
        assert files[used] == [LeftOut("cut", DAMAGED)]
        # Pictures that were read otherwise are embedded again.
        _, changes = galleries.index_folder(folder, searcher)
        assert changes.embedded == 5 + used
    monkeypatch.setitem(parameters, "max_megapixels", 0)
    assert "max_megapixels" in answers.read_pictures(searcher, {"query": Path(QUERY)})[1][0].reason


def test_html_page_holds_the_pictures_and_loads_nothing(finished_study, tmp_path, capfd):
    page = tmp_path / "results.html"
    code, out, _ = run(capfd, "search", QUERY, "--study", "tiny", "-k", "4", "--html", str(page))
    text = page.read_text("utf-8")
    assert code == 0
    assert f"{page} written" in out
    assert text.count("<img ") == 5
    assert text.count('src="data:image/png;base64,') == 5
    assert "http" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "missing.png"], "no picture missing.png"),
        (["search", QUERY, "--html", "no/such/folder.html"], "--html: cannot write folder.html"),
        (["search", QUERY, "--html", "data"], "--html: data is a folder: .* data/page.html"),
        (["search", QUERY, "--gallery", "none"], "no gallery 'none': make one with `.*cbir index"),
        (["index", "missing"], "no folder .*missing"),
    ],
    ids=str,
)
def test_error_is_one_line(finished_study, capfd, arguments, message):
    arguments += [] if "--gallery" in arguments else ["--study", "tiny"]
    code, out, err = run(capfd, *arguments)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    "arguments", [["search"], ["search", "-k", "0"], ["search", "--within", "x"], ["x"]]
)
def test_wrong_call_exits_with_2(arguments, capfd):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


# Pictures that have changed since the study


def test_changed_pictures_are_reported_and_the_search_works(finished_study, tmp_path, capfd):
    project = tmp_path / "copy"
    shutil.copytree(finished_study, project)
    shapes = project / "data" / "shapes"
    arguments = ("search", "data/new.png", "--study", "tiny", "-k", "3")
    shutil.copy(shapes / "cross" / "cross-00.png", project / "data" / "new.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        before = run(capfd, *arguments)
        shutil.copy(shapes / "cross" / "cross-00.png", shapes / "circle" / "a.png")
        for number in (2, 3):
            (shapes / "square" / f"square-0{number}.png").unlink()
        code, out, _ = run(capfd, *arguments)
        heading, changes, *answer = out.splitlines()
        assert code == before[0] == 0
        assert [heading, *answer] == before[1].splitlines()
        assert changes == (
            "The pictures have changed since the study: 1 new (circle/a.png), 2 gone "
            "(square/square-02.png, square/square-03.png). These are the images of the study, "
            "until you run `make report DATA=path/to/folder`"
        )
        assert run(capfd, "index", "data/shapes/cross", "--study", "tiny")[0] == 0
        shutil.rmtree(shapes)
        code, out, _ = run(capfd, *arguments)
        heading, changes, *answer = out.splitlines()
        assert code == 0
        assert [heading, *answer] == before[1].splitlines()
        assert changes.startswith("The pictures have changed since the study: cannot read ")


def test_search_writes_nothing(finished_study, capfd):
    def state() -> dict[Path, int]:
        folders = ("artifacts", "reports", "data")
        paths = [path for folder in folders for path in (finished_study / folder).rglob("*")]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = state()
    assert run(capfd, "search", QUERY, "--study", "tiny", "--within", "soft")[0] == 0
    assert state() == before


def test_advised_commands_begin_with_a_program_that_the_shell_finds(tmp_path, monkeypatch):
    venv_folder, other_folder = tmp_path / "a project" / ".venv" / "bin", tmp_path / "other"
    for folder in (venv_folder, other_folder):
        folder.mkdir(parents=True)
        for name in ("cbir", "python"):
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(venv_folder / "python"))
    monkeypatch.chdir(tmp_path / "a project")
    for path, command in (
        (other_folder, ".venv/bin/cbir"),
        (venv_folder, "cbir"),
        (".venv/bin", "cbir"),
    ):
        monkeypatch.setenv("PATH", f"{path}:/bin")
        assert cbir_command("search", "a b") == f"{command} search 'a b'"
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.chdir("/")
    assert subprocess.run(cbir_command(), shell=True, check=False).returncode == 0


def test_every_advised_command_works(finished_study, folder, tmp_path, monkeypatch, capfd):
    """Messages advise commands: each command runs and, where it can, removes the cause."""
    project = tmp_path / "copy"
    shutil.copytree(finished_study, project)
    for name in ("notebooks", "params"):
        shutil.rmtree(project / name)
        shutil.copytree(ROOT / name, project / name)
    odd_name = "it's $HOME; 1"
    for study in ("tiny", odd_name):
        write_study(project, study, STUDY, {"cnn": CNN, "whitened": CNN})
    monkeypatch.chdir(project)
    shutil.copytree(project / "reports" / "tiny", project / "reports" / "shapes-trial")
    for study in ("old", odd_name):
        shutil.copytree(project / "reports" / "tiny", project / "reports" / study)
    shutil.rmtree(project / "reports" / "shapes-trial" / "whitened")  # not in params/folder
    command = 'make report STUDY=folder DATA="data/shapes" SET="split_seed=1"'
    write_text(
        project / "reports" / "shapes-trial" / "manifest.json", json.dumps({"command": command})
    )
    messages = []

    def run_advised_commands() -> None:
        commands = [re.findall(r"`((?:\S*cbir|make) [^`]+)`", message) for message in messages]
        assert all(commands), messages
        messages.clear()
        for command in {
            command for commands_of_message in commands for command in commands_of_message
        }:
            filled = command.replace("FOLDER", str(folder)).replace("path/to/folder", "data/shapes")
            program, *words = shlex.split(filled.replace("PICTURE", QUERY.replace("00", "01")))
            assert program == "make" or shutil.which(program)
            if program == "make":
                assert words.pop(0) == "report"
                pairs = [word.partition("=")[::2] for word in words]
                words = ["plan", *(f"--{name.lower()}={value}" for name, value in pairs)]
            code, _, err = run(capfd, *words)
            assert code == 0, (command, err)

    def collect(*arguments: str) -> None:
        code, out, err = run(capfd, *arguments)
        messages.append(err if code else out)

    collect("search", QUERY, "--study", "missing")
    collect("search", QUERY, "--gallery", "mine")
    run(capfd, "index", str(folder), "--study", "tiny", "--architecture", "cnn")
    collect("search", QUERY, "--gallery", "mine", "--architecture", "whitened")
    run_advised_commands()
    write_pictures(tmp_path / odd_name / "mine", classes=("circle",), count=1)
    collect("index", str(tmp_path / odd_name / "mine"))
    collect("index", str(folder), "--architecture", "whitened")
    run_advised_commands()
    os.truncate("artifacts/galleries/mine/pictures.parquet", 0)
    collect("search", QUERY, "--gallery", "mine")
    (project / "data" / "shapes" / "circle" / "circle-00.png").unlink()
    for study in ("tiny", "shapes-trial", "old", odd_name):
        collect("search", QUERY.replace("00", "01"), "--study", study)
    run_advised_commands()
    for path in (project / "reports").glob("*/*/summary.json"):
        summary = json.loads(path.read_text("utf-8"))
        summary["artifacts"]["embeddings"] = "artifacts/embeddings/none"
        path.write_text(json.dumps(summary), "utf-8")
    for study in ("tiny", "shapes-trial", "old", odd_name):
        collect("search", QUERY.replace("00", "01"), "--study", study)
        collect("export", "--study", f"{study} missing")
    run_advised_commands()


# Pictures of another kind


@pytest.fixture
def few_validation_images(monkeypatch):
    """The study has fewer than 59 validation images."""
    monkeypatch.setattr("cbir.search.searchers.MIN_VALIDATION", 1)


@pytest.mark.usefixtures("few_validation_images")
def test_query_farther_from_the_gallery_than_usual_gets_a_warning(searcher, capfd, monkeypatch):
    usual = searcher.usual_similarity
    assert 0 < usual <= 1
    mean = searcher.gallery.vectors.mean(axis=0)
    image, probabilities = np.zeros((32, 32, 3), np.uint8), np.full(3, 1 / 3, np.float32)
    vectors = (-mean / np.linalg.norm(mean), searcher.gallery.vectors[5])
    queries = [answers.Picture("x", image, vector, probabilities) for vector in vectors]
    far, near = answers.search_all(searcher, searcher.gallery, queries, 3)
    assert far.nearest == far.results[0].similarity < usual
    assert f"similarity is {far.nearest:.3f}, while 95 %" in far.warning
    assert f"at least {usual:.3f}" in far.warning
    assert (near.nearest, near.warning) == (pytest.approx(1), "")
    assert cli.text_table(far).endswith(far.warning)
    assert far.warning in html.unescape(cli.html_page([far], [], [], "heading"))
    assert [cli.as_json(answer)["as_near_as_usual"] for answer in (far, near)] == [False, True]
    monkeypatch.setattr("cbir.search.searchers.MIN_VALIDATION", 59)
    assert searcher.usual_similarity is None


@pytest.mark.usefixtures("few_validation_images")
def test_results_below_a_similarity_are_left_out(searcher, monkeypatch, capfd):
    arguments = ("search", QUERY, "--study", "tiny", "--architecture", "cnn", "--json")
    content = json.loads(run(capfd, *arguments)[1])
    similarities = [result["similarity"] for result in content["answers"][0]["results"]]
    usual = content["usual_similarity"]
    assert usual == searcher.usual_similarity
    assert similarities[-1] < similarities[2]
    for minimum, value in ((repr(similarities[2]), similarities[2]), ("usual", usual)):
        answer = json.loads(run(capfd, *arguments, "--min-similarity", minimum)[1])["answers"][0]
        similarities_kept = [result["similarity"] for result in answer["results"]]
        assert similarities_kept == [
            similarity for similarity in similarities if similarity >= value
        ]
    with pytest.raises(SystemExit):
        main([*arguments, "--min-similarity", "2"])
    monkeypatch.setattr("cbir.search.searchers.Searcher.usual_similarity", None)
    code, _, err = run(capfd, *arguments, "--min-similarity", "usual")
    assert code == 1
    assert "the study cannot say what is usual" in err


# Streams


def test_output_whose_reader_stops_early_is_no_error(finished_study, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(["search", QUERY, "--study", "tiny"]) == 141
    assert capfd.readouterr().err == ""


def test_closed_streams_do_not_crash_the_command(finished_study, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run(capfd, "search", "-", "--study", "tiny")
    assert (code, err) == (
        1,
        "error: -: standard input is closed: send it a picture, or name a file\n",
    )
    command = f"{sys.executable} -m cbir search -k 0"
    for closed in ("<&- >&- 2>&-", ">&-", "2>&-"):
        process = subprocess.run(
            f"{command} {closed}", shell=True, check=False, capture_output=True
        )
        assert process.returncode == 2
        assert (b"must be an integer" in process.stderr) == ("2>&-" not in closed)


def test_unreadable_example_is_an_error(finished_study, tmp_path, capfd):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for option in ("--like", "--unlike"):
        code, _, err = run(
            capfd, "search", QUERY, option, QUERY, str(tmp_path / "broken.png"), "--study", "tiny"
        )
        assert code == 1
        assert re.match(rf"error: {option}: .*broken.png: not a picture.*: leave this", err)


# Galleries of folders


def test_folder_becomes_a_gallery_that_is_searched(finished_study, folder, capfd):
    code, out, _ = run(capfd, "index", str(folder), "--study", "tiny", "--architecture", "cnn")
    assert code == 0
    assert "mine: 6 pictures" in out
    query = str(folder / "cross" / "cross-00.png")
    code, out, _ = run(capfd, "search", query, "--gallery", "mine", "-k", "2", "--json")
    content = json.loads(out)
    assert code == 0
    assert content["images"] == 6
    _, gallery = galleries.open_gallery("mine")
    similarities = gallery.vectors @ gallery.vectors[gallery.names.index(query)]
    nearest = np.argsort(-similarities)[1:3]  # the picture itself is left out
    results = content["answers"][0]["results"]
    assert [result["path"] for result in results] == [gallery.names[at] for at in nearest]
    assert [result["similarity"] for result in results] == pytest.approx(
        similarities[nearest], abs=1e-5
    )


def test_only_new_and_changed_pictures_are_embedded(searcher, folder):
    name, first = galleries.index_folder(folder, searcher)
    assert (first.embedded, first.kept, first.removed) == (6, 0, 0)
    _, second = galleries.index_folder(folder, searcher)
    assert (second.embedded, second.kept, second.removed) == (0, 6, 0)
    (folder / "circle" / "circle-00.png").unlink()
    Image.new("RGB", (9, 9), "red").save(folder / "new.png")
    changed = folder / "cross" / "cross-01.png"
    Image.new("RGB", (9, 9), "blue").save(changed)
    (folder / "notes.txt").write_text("not a picture")
    _, third = galleries.index_folder(folder, searcher)
    assert (third.embedded, third.kept, third.removed) == (2, 4, 1)
    assert [file.name for file in third.left_out] == ["notes.txt"]
    _, gallery = galleries.open_gallery(name)
    assert len(gallery.names) == 6
    position = gallery.names.index(str(changed))
    assert (gallery.image(position) == (0, 0, 255)).all()
    vectors, _ = searcher.encode(gallery.image(position)[None])
    np.testing.assert_allclose(gallery.vectors[position], vectors[0], atol=1e-5)


def test_interrupted_indexing_resumes(searcher, folder, monkeypatch):
    monkeypatch.setattr(galleries, "BATCH", 2)
    counts, encode = [], searcher.encode

    def interrupted_encode(images):
        counts.append(len(images))
        if len(counts) == 3:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setitem(searcher.__dict__, "encode", interrupted_encode)
    with pytest.raises(KeyboardInterrupt):
        galleries.index_folder(folder, searcher)
    with pytest.raises(StudyError, match="no gallery 'mine'"):
        galleries.open_gallery("mine")
    _, changes = galleries.index_folder(folder, searcher)
    assert (changes.embedded, changes.kept) == (2, 4)
    assert counts == [2, 2, 2, 2]


def test_another_network_embeds_all_pictures_again(searcher, folder):
    galleries.index_folder(folder, searcher)
    _, changes = galleries.index_folder(folder, open_searcher("tiny", "whitened"))
    assert (changes.embedded, changes.kept) == (6, 0)
    assert galleries.open_gallery("mine")[0].run.architecture == "whitened"


def test_broken_link_and_pipe_are_skipped(searcher, folder):
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    _, changes = galleries.index_folder(folder, searcher)
    assert changes.embedded == 6
    assert [file.name for file in changes.left_out] == ["gone.png", "pipe.png"]


def test_names_that_are_not_utf8_are_shown_escaped(finished_study, searcher, folder, capfd):
    picture = (folder / "circle" / "circle-00.png").rename(folder / os.fsdecode(b"\xe9.png"))
    (folder / os.fsdecode(b"\xea.png")).write_text("no picture")
    _, changes = galleries.index_folder(folder, searcher)
    assert changes.left_out[0].name == r"\xea.png"
    page = folder.parent / "page.html"
    arguments = ("search", str(picture), "--gallery", "mine", "--html", str(page))
    code, out, _ = run(capfd, *arguments)
    assert code == 0
    assert r"\xe9.png" in out
    assert r"\xe9.png" in page.read_text("utf-8")
    # The picture is not returned for itself.
    assert len(re.findall(r"(?m)^ +\d+ .*mine", out)) == 5
    _, gallery = galleries.open_gallery("mine")
    ((position,),) = gallery.positions([picture])
    assert gallery.names[position].endswith(r"/\xe9.png")


def test_gallery_of_a_folder_shows_predicted_classes(finished_study, folder, capfd):
    galleries.index_folder(folder, open_searcher("tiny", "cnn"))
    _, out, _ = run(capfd, "search", QUERY, "--gallery", "mine")
    assert "similarity  predicted class  picture" in out
    _, out, _ = run(capfd, "search", QUERY, "--gallery", "mine", "--json")
    assert "predicted_class" in json.loads(out)["answers"][0]["results"][0]


def test_picture_is_recognised_through_a_link_to_its_folder(searcher, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    galleries.index_folder(folder, searcher)
    _, gallery = galleries.open_gallery("mine")
    (positions,) = gallery.positions([tmp_path / "link" / "circle" / "circle-01.png"])
    assert [gallery.names[at] for at in positions] == [str(folder / "circle" / "circle-01.png")]


def test_emptied_folder_has_no_gallery(searcher, folder):
    galleries.index_folder(folder, searcher)
    for path in folder.glob("*/*"):
        path.unlink()
    with pytest.raises(StudyError, match="none of the 0 files"):
        galleries.index_folder(folder, searcher)
    with pytest.raises(StudyError, match="no gallery 'mine'"):
        galleries.open_gallery("mine")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("$x", "x"), ("(2)", "2"), (".a b", "a-b"), ("-été", "été"), ("…", "pictures")],
)
def test_name_of_a_gallery_is_a_word_of_the_shell(folder, name):
    assert galleries.gallery_name(Path("/", folder)) == name


@pytest.mark.parametrize("name", ["../outside", "/tmp/x", ".hidden", "a b", "-x"])
def test_unsafe_gallery_name_is_an_error(searcher, folder, name):
    with pytest.raises(StudyError, match="--name: "):
        galleries.index_folder(folder, searcher, name)


def test_gallery_name_of_another_folder_is_an_error(searcher, folder, tmp_path):
    galleries.index_folder(folder, searcher)
    write_pictures(tmp_path / "other" / "mine", classes=("circle",), count=1)
    with pytest.raises(StudyError, match="gallery 'mine' contains .* another name .* --name"):
        galleries.index_folder(tmp_path / "other" / "mine", searcher)
    assert galleries.index_folder(tmp_path / "other" / "mine", searcher, "second")[0] == "second"


def test_folder_without_a_picture_is_an_error(searcher, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="none of the 0 files"):
        galleries.index_folder(tmp_path / "empty", searcher)


def test_format_is_recognised_whatever_the_file_name(searcher, folder):
    (folder / "circle" / "circle-00.png").rename(folder / "circle" / "picture")
    _, changes = galleries.index_folder(folder, searcher)
    assert (changes.embedded, changes.left_out) == (6, [])


@pytest.mark.parametrize("search", ["unrestricted", "predicted_class"])
def test_search_in_groups_gives_the_same_results(searcher, folder, monkeypatch, search):
    galleries.index_folder(folder, searcher)
    queries = [answers.picture_of_query(searcher, query) for query in range(4)]
    expected_answers = answers.search_all(
        searcher, galleries.open_gallery("mine")[1], queries, 3, search=search
    )
    monkeypatch.setattr("cbir.search.searchers.GROUP", 2)
    monkeypatch.setattr(galleries, "GROUP", 2)
    galleries.index_folder(folder, searcher)
    _, gallery = galleries.open_gallery("mine")
    assert [len(group) for group in gallery.groups()] == [2, 2, 2]
    grouped_answers = answers.search_all(searcher, gallery, queries, 3, search=search)
    for expected, answer in zip(expected_answers, grouped_answers, strict=True):
        names, similarities = (
            [[getattr(result, field) for result in pair.results] for pair in (expected, answer)]
            for field in ("name", "similarity")
        )
        assert names[0] == names[1]
        np.testing.assert_allclose(*similarities, atol=1e-6)


def test_index_keeps_the_network_of_a_gallery(finished_study, folder, capfd):
    worst = next(
        name for name in ("cnn", "whitened") if name != open_searcher("tiny").run.architecture
    )
    run(capfd, "index", str(folder), "--study", "tiny", "--architecture", worst)
    code, out, _ = run(capfd, "index", str(folder))
    assert code == 0
    assert f"embedded by {worst} of the study tiny: 0 new or changed, 6 unchanged" in out
    code, out, _ = run(capfd, "index", str(folder), "--study", "tiny")
    assert f"embedded by {worst} of the study tiny: 0 new or changed, 6 unchanged" in out


def test_replaced_file_of_the_same_size_and_time_is_noticed_on_request(searcher, folder):
    path, other_path = (folder / "cross" / f"cross-0{number}.png" for number in (0, 1))
    size = max(path.stat().st_size, other_path.stat().st_size) + 1
    os.truncate(path, size)  # with zeros after the picture
    os.utime(path, (1, 1))
    galleries.index_folder(folder, searcher)
    path.write_bytes(other_path.read_bytes().ljust(size, b"\0"))
    os.utime(path, (1, 1))
    for check, embedded in ((False, 0), (True, 1), (True, 0)):
        _, changes = galleries.index_folder(folder, searcher, check=check)
        assert (changes.embedded, changes.kept) == (embedded, 6 - embedded)
    gallery = galleries.open_gallery("mine")[1]
    first, second = (gallery.vectors[gallery.names.index(str(file))] for file in (path, other_path))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_moved_and_renamed_pictures_are_not_embedded_again(searcher, folder, monkeypatch):
    galleries.index_folder(folder, searcher)
    new_folder = folder.parent / "new" / "mine"
    new_folder.parent.mkdir()
    folder.rename(new_folder)
    (new_folder / "cross" / "cross-00.png").rename(new_folder / "renamed.png")
    os.utime(new_folder / "renamed.png", (1, 1))
    monkeypatch.setitem(searcher.__dict__, "encode", None)
    _, changes = galleries.index_folder(new_folder, searcher)
    assert (changes.embedded, changes.kept, changes.removed) == (0, 6, 0)
    names = galleries.open_gallery("mine")[1].names
    assert str(new_folder / "renamed.png") in names
    assert all(name.startswith(str(new_folder)) for name in names)


def test_all_unreadable_files_are_listed(finished_study, folder, capfd):
    for number in range(25):
        (folder / f"={number:02d}.txt").write_text("text")
    _, out, _ = run(capfd, "index", str(folder), "--study", "tiny")
    path = finished_study / "artifacts" / "galleries" / "mine" / "files.csv"
    assert "31 files found, 6 used, 25 left out" in out
    assert f"all of these files: {path}" in out
    with path.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "use", "reason", "files"]
    assert rows[1:] == [
        [f"'={number:02d}.txt", "left out", NOT_A_PICTURE, "1"] for number in range(25)
    ]
    for file in folder.glob("*.txt"):
        file.unlink()
    run(capfd, "index", str(folder))
    assert path.read_text("utf-8") == "name,use,reason,files\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "missing.png", "--gallery", "none"], "no picture missing.png"),
        (["search", "a.png", "--like", "b.png"], "no picture b.png"),
        (["search", "a.png", "--gallery", "none"], "no gallery 'none', and no finished study in"),
        (["index", "missing"], "no folder .*missing"),
    ],
    ids=str,
)
def test_missing_pictures_galleries_and_folders_are_reported_without_a_finished_study(
    arguments, message, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    for name in ("params", "notebooks"):
        Path(name).mkdir()
    Path("a.png").touch()
    code, _, err = run(capfd, *arguments)
    assert code == 1
    assert re.fullmatch(f"error: {message}.*\n", err)


def test_damaged_gallery_is_reported_and_rebuilt(searcher, folder, capfd):
    galleries.index_folder(folder, searcher)
    path = Path("artifacts/galleries/mine/pictures.parquet").absolute()
    content = path.read_bytes()
    vectors = galleries.open_gallery("mine")[1].vectors
    at = content.index(vectors[3].tobytes())
    pages = [content[:at] + b"\x00" + content[at + 1 :], content[:-20], b""]
    # The last part of a file has no checksum.
    for old in (b'{"folder"', b'"study"', b'"key": "'):
        pages.append(content.replace(old, old[:-2] + bytes([old[-2] ^ 1]) + old[-1:]))
    for damaged in pages:
        path.write_bytes(damaged)
        code, _, err = run(capfd, "search", QUERY, "--gallery", "mine")
        assert code == 1
        assert re.fullmatch(r"error: .*pictures.parquet is damaged: run `.*cbir index .*`\n", err)
        _, changes = galleries.index_folder(folder, searcher)
        assert f"{path} is damaged: its pictures are embedded again" in capfd.readouterr().out
        assert changes.embedded == 6
        np.testing.assert_allclose(galleries.open_gallery("mine")[1].vectors, vectors, atol=1e-6)


def test_damaged_batch_is_embedded_again(searcher, folder):
    galleries.index_folder(folder, searcher)
    path = Path("artifacts/galleries/mine/pictures.parquet")
    for size in (path.stat().st_size - 9, 0):
        path.rename(path.with_name("batch-000000.parquet"))
        os.truncate(path.with_name("batch-000000.parquet"), size)
        _, changes = galleries.index_folder(folder, searcher)
        assert (changes.embedded, changes.kept) == (6, 0)


def test_second_index_of_a_folder_waits_for_the_first(searcher, folder, monkeypatch, capfd):
    encode, threads = searcher.encode, []

    def encode_while_another_starts(images):
        thread = threading.Thread(target=galleries.index_folder, args=(folder, second_searcher))
        thread.start()
        threads.append(thread)
        thread.join(1)
        return encode(images)

    second_searcher = open_searcher("tiny", "cnn")
    monkeypatch.setitem(searcher.__dict__, "encode", encode_while_another_starts)
    _, changes = galleries.index_folder(folder, searcher)
    threads[0].join(60)
    assert changes.embedded == 6
    assert f"in use by process {os.getpid()} on " in capfd.readouterr().out
    assert len(galleries.open_gallery("mine")[1].names) == 6
    assert sorted(path.name for path in Path("artifacts/galleries").rglob("*.*")) == [
        "files.csv", "pictures.parquet"
    ]  # fmt: skip


# Engines for large galleries


@pytest.mark.parametrize(
    "choice", ["faiss:Flat", pytest.param("milvus:lite", marks=pytest.mark.slow)]
)
def test_another_engine_finds_the_same_pictures(choice, finished_study, folder, capfd, monkeypatch):
    package = {"faiss": "faiss", "milvus": "pymilvus"}[choice.partition(":")[0]]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: `make scale` does it")
    search = ["search", QUERY, "--gallery", "mine", "-k", "6", "--json"]

    def output_of(*arguments: str) -> str:
        # Milvus Lite keeps threads that outlive a test.
        if choice != "faiss:Flat":
            return cbir(finished_study, *arguments).stdout
        code, output, _ = run(capfd, *arguments)
        assert code == 0
        return output

    output_of("index", str(folder), "--study", "tiny")
    exact = json.loads(output_of(*search))["answers"][0]["results"]
    output_of("index", str(folder), "--engine", choice)
    with monkeypatch.context() as patch:
        # An engine that holds the gallery needs none of the vectors.
        patch.setattr(searchers.Gallery, "vectors", None)
        results = json.loads(output_of(*search))["answers"][0]["results"]
    assert [result["path"] for result in results] == [result["path"] for result in exact]
    assert [result["similarity"] for result in results] == pytest.approx(
        [result["similarity"] for result in exact], abs=1e-5
    )
    # A deleted picture is no longer found, and a changed picture is found with its new content.
    first, second = (Path(result["path"]) for result in exact[:2])
    first.unlink()
    copies = [second, second.with_name("copy.png")]
    for path in copies:
        shutil.copy(finished_study / QUERY, path)
    output_of("index", str(folder))
    results = json.loads(output_of(*search))["answers"][0]["results"]
    assert len(results) == 6
    assert {result["path"] for result in results[:2]} == set(map(str, copies))
    assert [result["similarity"] for result in results[:2]] == pytest.approx([1, 1], abs=1e-4)


def test_gallery_of_a_study_can_be_searched_by_an_engine(finished_study, folder, capfd):
    pytest.importorskip("faiss")
    search, engine = ["search", QUERY, "--study", "tiny"], ["--engine", "faiss:Flat"]
    # The engine keeps a folder's gallery of the same name apart.
    _, out, _ = run(capfd, "index", str(folder), "--study", "tiny", "--name", "tiny", *engine)
    assert "of the study tiny, engine faiss:Flat: 6 new" in out
    files = {path: path.read_bytes() for path in Path("artifacts/engines").glob("*")}
    exact_output = json.loads(run(capfd, *search, "--json")[1])
    faiss_output = json.loads(run(capfd, *search, *engine, "--json")[1])
    paths = [
        [result["path"] for result in output["answers"][0]["results"]]
        for output in (faiss_output, exact_output)
    ]
    assert paths[0] == paths[1]
    assert (faiss_output["engine"], exact_output["engine"]) == ("faiss:Flat", "exact")
    assert {path: path.read_bytes() for path in files} == files
    assert ", engine faiss:Flat\n" in run(capfd, *search, *engine)[1]
    assert "engine" not in run(capfd, *search)[1]


def test_unknown_engine_is_refused_before_anything_is_embedded(finished_study, folder, capfd):
    code, _, error = run(capfd, "index", str(folder), "--study", "tiny", "--engine", "fais:Flat")
    assert code == 1
    assert "'fais:Flat' is unknown: use exact" in error
    assert not (finished_study / "artifacts" / "galleries").exists()


# Many pictures


@pytest.mark.slow
def test_commands_of_the_docs_on_large_galleries_run_as_written(finished_study, tmp_path):
    pytest.importorskip("pymilvus")
    pytest.importorskip("faiss")
    text = (ROOT / "docs" / "search.md").read_text("utf-8")
    block = text.partition("## Engines for large galleries")[2].split("```")[1]
    commands = [line for line in block.splitlines() if line.startswith("cbir ")]
    assert len(commands) == 3
    write_pictures(tmp_path / "Pictures", classes=("circle", "cross"), count=3)
    shutil.copy(QUERY, tmp_path / "cat.jpg")
    # The commands name another study, and the folder of the query is another.
    shutil.copytree(finished_study / "reports" / "tiny", finished_study / "reports" / "holiday")
    try:
        for command in commands:
            words = [word.replace("~", str(tmp_path)) for word in shlex.split(command)[1:]]
            words = [str(tmp_path / word) if word == "cat.jpg" else word for word in words]
            process = cbir(finished_study, *words)
            assert process.returncode == 0, process.stderr
        assert "Searched 6 images of Pictures" in process.stdout
        assert galleries.read_source("Pictures")["engine"].startswith("milvus:/")
    finally:
        for path in ("reports/holiday", "artifacts/galleries/Pictures", "pictures.db"):
            shutil.rmtree(finished_study / path, ignore_errors=True)


def workers_of_ray() -> list[int]:
    """Ids of the embedding processes of Ray that this process has started."""
    process_ids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" not in (process / "cmdline").read_bytes():
                continue
            ancestor = int(process.name)
            while ancestor not in (0, os.getpid()):
                status = Path("/proc", str(ancestor), "status").read_text()
                ancestor = int(re.search(r"PPid:\s+(\d+)", status)[1])
        except OSError:  # it has ended
            continue
        if ancestor:
            process_ids.append(int(process.name))
    return process_ids


@pytest.mark.faults
def test_processes_of_ray_embed_the_same_even_if_one_of_them_is_killed(
    searcher, tmp_path, finished_study, monkeypatch, capfd
):
    # Ray must not be imported yet: it reads its authentication settings then.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: `make ray` does it")
    folder = tmp_path / "many"
    write_pictures(folder, classes=("circle", "cross"), count=30)
    (folder / "circle" / "broken.png").write_bytes(b"no picture")
    # Batches of the processes are as small as those of one process, and are whole chunks.
    monkeypatch.setattr(galleries, "BATCH", 8)
    monkeypatch.setattr(galleries, "CHUNK", 8)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-" + 40 * "9")
    killed_ids = []

    def kill_one() -> None:
        while not killed_ids:
            killed_ids.extend(workers_of_ray()[:1])
            time.sleep(0.05)
        # Wait until some of the pictures are embedded.
        while not list((finished_study / "artifacts" / "galleries" / "ray").glob("batch-*")):
            time.sleep(0.01)
        os.kill(killed_ids[0], signal.SIGKILL)

    try:
        _, changes = galleries.index_folder(folder, searcher, "plain")
        watcher = threading.Thread(target=kill_one, daemon=True)
        watcher.start()
        _, on_ray = galleries.index_folder(folder, searcher, "ray", workers=galleries.RAY)
        watcher.join(5)
        assert not watcher.is_alive()
        folder_of_galleries = finished_study / "artifacts" / "galleries"
        plain, ray = (folder_of_galleries / name / "pictures.parquet" for name in ("plain", "ray"))
        assert plain.read_bytes() == ray.read_bytes()
        assert (on_ray.embedded, on_ray.left_out) == (changes.embedded, changes.left_out)
    finally:
        shutil.rmtree(finished_study / "artifacts" / "galleries", ignore_errors=True)
    assert "secret" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_unreachable_cluster_of_ray_is_reported_in_one_line(searcher, folder, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StudyError, match="Ray at 127.0.0.1:1 failed: .*check RAY_ADDRESS"):
        galleries.index_folder(folder, searcher, workers=galleries.RAY)


def test_missing_ray_is_reported_with_the_command_that_installs_it(searcher, folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="Ray is not installed: run `make ray`"):
        galleries.index_folder(folder, searcher, workers=galleries.RAY)
