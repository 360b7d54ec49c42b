"""A finished study as a search engine, galleries of one's own pictures, and their commands."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pictures
from PIL import Image

from cbir import StudyError
from cbir.__main__ import main
from cbir.reporting.runs import read_run
from cbir.retrieval.feedback import Rocchio
from cbir.search import answers, engine, galleries

QUERY = "data/shapes/circle/circle-00.png"


@pytest.fixture(scope="module")
def opened(finished_study):
    return engine.open_engine("tiny", "cnn")


@pytest.fixture
def folder(finished_study, tmp_path):
    """Six pictures of one's own."""
    write_pictures(tmp_path / "mine", classes=("circle", "cross"), count=3)
    yield tmp_path / "mine"
    shutil.rmtree(finished_study / "artifacts" / "galleries", ignore_errors=True)


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


# The engine


@pytest.mark.parametrize("architecture", ["cnn", "whitened"])
def test_network_makes_of_the_studys_images_what_the_study_made(finished_study, architecture):
    found = engine.open_engine("tiny", architecture)
    dataset = found.embeddings.dataset
    vectors, probabilities = found.encode(dataset.images[:20])
    np.testing.assert_allclose(vectors, found.embeddings.vectors[:20], atol=1e-4)
    np.testing.assert_allclose(probabilities, found.embeddings.probabilities[:20], atol=1e-4)


def test_architecture_of_the_highest_map_is_taken_where_none_is_named(finished_study):
    by_hand = {
        name: read_run("tiny", name).per_query.query("search == 'unrestricted'")
        for name in ("cnn", "whitened")
    }
    means = {name: rows["average_precision"].mean() for name, rows in by_hand.items()}
    assert engine.open_engine("tiny").architecture == max(means, key=means.get)
    assert len(set(means.values())) == 2


def test_gallery_is_searched_as_the_study_searched_it(opened):
    result = read_run("tiny", "cnn")
    positions, similarities = opened.gallery.search(opened.embeddings.query, 10)
    assert (positions == result.rankings["unrestricted"]).all()
    np.testing.assert_allclose(similarities, result.similarities["unrestricted"], atol=1e-6)


@pytest.mark.parametrize("search", ["predicted_class", "soft"])
def test_searching_some_classes_is_what_the_study_did(opened, search):
    result = read_run("tiny", "cnn")
    searchable = opened.searchable(opened.embeddings.query_probabilities, search)
    positions, _ = opened.gallery.search(opened.embeddings.query, 10, searchable)
    assert (positions == result.rankings[search]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("nothing", ""), "no trained architecture in .*nothing: run `make report"),
        (("tiny", "vgg16"), "no trained architecture 'vgg16' in reports/tiny: there are cnn, whi"),
    ],
)
def test_what_is_not_there_is_named(finished_study, given, message):
    with pytest.raises(StudyError, match=message):
        engine.open_engine(*given)


def test_changed_pictures_and_lost_artifacts_say_what_makes_them_again(finished_study, tmp_path):
    project = tmp_path / "copy"
    shutil.copytree(finished_study, project)
    again = 'run `make report STUDY=tiny ARCHITECTURES="cnn"` again'
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        training = project / read_run("tiny", "cnn").summary["artifacts"]["training"]
        (training / "final.weights.h5").unlink()
        with pytest.raises(StudyError, match=again):
            engine.open_engine("tiny", "cnn").encode(np.zeros((1, 32, 32, 3), np.uint8))
        embedded = project / read_run("tiny", "cnn").summary["artifacts"]["embeddings"]
        shutil.rmtree(embedded)
        with pytest.raises(StudyError, match=again):
            engine.open_engine("tiny", "cnn")
        Image.new("RGB", (24, 24)).save(project / QUERY)
        with pytest.raises(StudyError, match=f"pictures have changed .*{again}"):
            engine.open_engine("tiny", "cnn")


# Answers


def test_picture_of_the_gallery_does_not_find_itself(opened, finished_study, capfd):
    path = opened.gallery.names[0]
    code, out, _ = run(capfd, "search", path, "--study", "tiny", "-k", "3", "--json")
    assert code == 0
    found = json.loads(out)["answers"][0]["results"]
    assert [each["place"] for each in found] == [1, 2, 3]
    assert path not in [each["path"] for each in found]


def test_search_within_the_predicted_class_finds_no_other(finished_study, capfd):
    arguments = ["search", QUERY, "--study", "tiny", "--within", "predicted_class", "--json"]
    code, out, _ = run(capfd, *arguments)
    (answer,) = json.loads(out)["answers"]
    assert code == 0
    assert {each["class"] for each in answer["results"]} == {answer["predicted"]}
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_marks_move_the_search_as_rocchio_says(opened, monkeypatch):
    monkeypatch.setitem(opened.__dict__, "chosen_weights", Rocchio(positive=4.0, negative=1.0))
    gallery, labels = opened.gallery, opened.embeddings.dataset.gallery_labels
    vector, probabilities = gallery.vectors[0], opened.embeddings.probabilities[0]
    picture = answers.Picture("none", np.zeros((32, 32, 3), np.uint8), vector, probabilities)
    liked = gallery.vectors[labels == 2][:3]
    plain = answers.search(opened, gallery, picture, 5)
    moved = answers.search(opened, gallery, picture, 5, positive=liked, negative=[vector])
    assert plain.results[0].position == 0
    assert {each.label for each in moved.results} == {"square"}
    by_hand = vector + 4 * liked.mean(axis=0) - vector
    wanted, _ = gallery.search(by_hand[None] / np.linalg.norm(by_hand), 5)
    assert [each.position for each in moved.results] == wanted[0].tolist()


def test_without_a_picture_the_positive_examples_are_searched_for(finished_study, capfd):
    squares = [f"data/shapes/square/square-0{number}.png" for number in (1, 2)]
    arguments = ["--study", "tiny", "--architecture", "cnn", "--json", "-k", "4"]
    code, out, _ = run(capfd, "search", "--like", *squares, "--unlike", QUERY, *arguments)
    (answer,) = json.loads(out)["answers"]
    assert code == 0
    assert {each["class"] for each in answer["results"]} == {"square"}
    assert not {*squares, QUERY} & {each["path"] for each in answer["results"]}
    assert json.loads(out)["weights"] == vars(Rocchio())


def test_how_much_marks_count_is_printed_and_where_that_comes_from(finished_study, capfd):
    asked = ["search", "--like", QUERY, "--study", "tiny", "--architecture", "cnn", "-k", "1"]
    _, out, _ = run(capfd, *asked)
    origin = "(the usual ones, since the study has chosen none)"
    assert out.splitlines()[0].endswith(f", for {Rocchio()} {origin}")
    opened = engine.open_engine("tiny", "cnn")
    opened.__dict__["chosen_weights"] = Rocchio(1, 2, 0.5)
    assert (
        opened.told_weights == "1 query + 2 positive − 0.5 negative (chosen on validation images)"
    )
    _, out, _ = run(capfd, "search", QUERY, "--study", "tiny", "-k", "1")
    assert " for " not in out.splitlines()[0]


# What can be asked with


def test_folder_pattern_and_standard_input_are_pictures_too(finished_study, monkeypatch, capfd):
    arguments = ["--study", "tiny", "--json", "-k", "1"]
    names = {}
    for asked in ("data/shapes/cross", "data/shapes/cross/*-0?.png"):
        _, out, _ = run(capfd, "search", asked, *arguments)
        names[asked] = [each["picture"] for each in json.loads(out)["answers"]]
    every = sorted(str(path) for path in Path("data/shapes/cross").iterdir())
    assert names["data/shapes/cross"] == every
    assert names["data/shapes/cross/*-0?.png"] == every[:10]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(QUERY).read_bytes())))
    code, out, _ = run(capfd, "search", "-", *arguments)
    assert code == 0
    assert json.loads(out)["answers"][0]["picture"] == "standard input"


def test_table_names_class_similarity_and_path(finished_study, capfd):
    code, out, _ = run(capfd, "search", QUERY, "--study", "tiny", "-k", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("Searched: 36 images of tiny, by ")
    assert lines[2].startswith(f"{QUERY}: circle ")
    assert "similarity" in lines[3]
    assert lines[4].split()[0] == "1"
    assert lines[4].split()[-1].startswith("data/shapes/")


def test_unreadable_pictures_are_counted_and_named(finished_study, tmp_path, capfd):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    code, out, _ = run(capfd, "search", QUERY, str(tmp_path), "--study", "tiny")
    assert code == 0
    assert "skipped 1 that could not be read" in out
    assert f"{tmp_path / 'broken.png'}: not a picture, or of a format" in out
    code, _, err = run(capfd, "search", str(tmp_path), "--study", "tiny")
    assert code == 1
    assert "error: none of the pictures could be read" in err


def test_page_holds_the_pictures_and_fetches_nothing(finished_study, tmp_path, capfd):
    page = tmp_path / "found.html"
    code, out, _ = run(capfd, "search", QUERY, "--study", "tiny", "-k", "4", "--html", str(page))
    html = page.read_text("utf-8")
    assert code == 0
    assert f"{page} written" in out
    assert html.count("<img ") == 5
    assert html.count('src="data:image/png;base64,') == 5
    assert "http" not in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "missing.png"], "no picture missing.png"),
        (["search", QUERY, "--html", "no/such/folder.html"], "--html: no folder no/such"),
        (["search", QUERY, "--gallery", "none"], "no gallery 'none': make one with `cbir index"),
        (["index", "missing"], "no folder .*missing"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(finished_study, capfd, arguments, message):
    arguments += [] if "--gallery" in arguments else ["--study", "tiny"]
    code, out, err = run(capfd, *arguments)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    "arguments", [["search"], ["search", "-k", "0"], ["search", "--within", "x"], ["x"]]
)
def test_wrong_call_ends_with_2(arguments, capfd):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


# Galleries of one's own pictures


def test_folder_becomes_a_gallery_that_is_searched(finished_study, folder, capfd):
    code, out, _ = run(capfd, "index", str(folder), "--study", "tiny", "--architecture", "cnn")
    assert code == 0
    assert "mine: 6 pictures" in out
    query = str(folder / "cross" / "cross-00.png")
    code, out, _ = run(capfd, "search", query, "--gallery", "mine", "-k", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["images"] == 6
    _, gallery = galleries.open_gallery("mine")
    similarities = gallery.vectors @ gallery.vectors[gallery.names.index(query)]
    nearest = np.argsort(-similarities)[1:3]  # the picture itself is not found again
    results = found["answers"][0]["results"]
    assert [each["path"] for each in results] == [gallery.names[at] for at in nearest]
    assert [each["similarity"] for each in results] == pytest.approx(
        similarities[nearest], abs=1e-5
    )


def test_only_what_is_new_or_changed_is_embedded(opened, folder):
    name, first = galleries.index_folder(folder, opened)
    assert (first.embedded, first.kept, first.dropped) == (6, 0, 0)
    _, second = galleries.index_folder(folder, opened)
    assert (second.embedded, second.kept, second.dropped) == (0, 6, 0)
    (folder / "circle" / "circle-00.png").unlink()
    Image.new("RGB", (9, 9), "red").save(folder / "new.png")
    changed = folder / "cross" / "cross-01.png"
    Image.new("RGB", (9, 9), "blue").save(changed)
    (folder / "notes.txt").write_text("not a picture")
    _, third = galleries.index_folder(folder, opened)
    assert (third.embedded, third.kept, third.dropped) == (2, 4, 1)
    assert [each.partition(":")[0] for each in third.skipped] == ["notes.txt"]
    _, gallery = galleries.open_gallery(name)
    assert len(gallery.names) == 6
    at = gallery.names.index(str(changed))
    assert (gallery.image(at) == (0, 0, 255)).all()
    by_hand, _ = opened.encode(gallery.image(at)[None])
    np.testing.assert_allclose(gallery.vectors[at], by_hand[0], atol=1e-5)


def test_what_was_embedded_before_a_kill_is_not_embedded_again(opened, folder, monkeypatch):
    monkeypatch.setattr(galleries, "BATCH", 2)
    asked, encode = [], opened.encode

    def killed(images):
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setitem(opened.__dict__, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        galleries.index_folder(folder, opened)
    with pytest.raises(StudyError, match="no gallery 'mine'"):
        galleries.open_gallery("mine")
    _, changes = galleries.index_folder(folder, opened)
    assert (changes.embedded, changes.kept) == (2, 4)
    assert asked == [2, 2, 2, 2]


def test_another_network_embeds_all_anew(opened, folder):
    galleries.index_folder(folder, opened)
    _, changes = galleries.index_folder(folder, engine.open_engine("tiny", "whitened"))
    assert (changes.embedded, changes.kept) == (6, 0)
    assert galleries.open_gallery("mine")[0].architecture == "whitened"


def test_broken_link_and_pipe_are_skipped_and_named(opened, folder):
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    _, changes = galleries.index_folder(folder, opened)
    assert changes.embedded == 6
    assert [each.partition(":")[0] for each in changes.skipped] == ["gone.png", "pipe.png"]


def test_class_of_a_picture_without_one_is_called_predicted(finished_study, folder, capfd):
    galleries.index_folder(folder, engine.open_engine("tiny", "cnn"))
    _, out, _ = run(capfd, "search", QUERY, "--gallery", "mine")
    assert "similarity  predicted class  picture" in out
    _, out, _ = run(capfd, "search", QUERY, "--gallery", "mine", "--json")
    assert "predicted_class" in json.loads(out)["answers"][0]["results"][0]


def test_picture_does_not_find_itself_behind_a_link_to_its_folder(opened, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    galleries.index_folder(folder, opened)
    _, gallery = galleries.open_gallery("mine")
    found = gallery.positions([tmp_path / "link" / "circle" / "circle-01.png"])
    assert [gallery.names[at] for at in found] == [str(folder / "circle" / "circle-01.png")]


def test_folder_that_lost_its_pictures_has_no_gallery_any_more(opened, folder):
    galleries.index_folder(folder, opened)
    for path in folder.glob("*/*"):
        path.unlink()
    with pytest.raises(StudyError, match="none of the 0 files"):
        galleries.index_folder(folder, opened)
    with pytest.raises(StudyError, match="no gallery 'mine'"):
        galleries.open_gallery("mine")


@pytest.mark.parametrize("name", ["../outside", "/tmp/x", ".hidden", "a b"])
def test_name_that_would_lead_elsewhere_is_refused(opened, folder, name):
    with pytest.raises(StudyError, match="--name: "):
        galleries.index_folder(folder, opened, name)


def test_name_of_another_folder_is_refused(opened, folder, tmp_path):
    galleries.index_folder(folder, opened)
    write_pictures(tmp_path / "other" / "mine", classes=("circle",), count=1)
    with pytest.raises(StudyError, match="gallery 'mine' is of .* another name with --name"):
        galleries.index_folder(tmp_path / "other" / "mine", opened)
    assert galleries.index_folder(tmp_path / "other" / "mine", opened, "second")[0] == "second"


def test_folder_without_a_picture_is_refused(opened, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="none of the 0 files"):
        galleries.index_folder(tmp_path / "empty", opened)


def test_files_are_read_whatever_their_name(opened, folder):
    (folder / "circle" / "circle-00.png").rename(folder / "circle" / "picture")
    _, changes = galleries.index_folder(folder, opened)
    assert (changes.embedded, changes.skipped) == (6, [])
