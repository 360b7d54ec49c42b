"""docs/results.md, which is made only from the files under reports/published/."""

import json
import re
import shutil
from pathlib import Path

import invented
import nbformat
import pandas as pd
import pytest
from conftest import ROOT, make_project, write_study
from nbformat import v4

from cbir import StudyError, cache
from cbir.__main__ import main
from cbir.reporting import measurements, notebook_html, publish, runs

MACHINE = {"cpu": "a processor", "cores": 2, "gpus": [], "system": "Linux"}


def rows(architecture: str, measured: dict, seeds=(0,), epoch=None) -> list[dict]:
    """Rows of metrics.csv: every value with an interval of 0.01 to both sides."""
    rows_of_metrics = []
    for index, seed in enumerate(seeds):
        for (metric, search, k), value in measured.items():
            rows_of_metrics.append(
                {"study": "small", "architecture": architecture, "seed": seed, "epoch": epoch,
                 "protocol": "closed", "search": search, "metric": metric, "k": k,
                 "value": value + index / 10, "ci_low": value - 0.01, "ci_high": value + 0.01,
                 "n_queries": 10}
            )  # fmt: skip
    return rows_of_metrics


def run_entry(
    weights=None, epochs=None, seconds=None, variant="", head_epochs=0, **changes
) -> dict:
    """The entry of an architecture in a manifest."""
    parameters = {"protocols": ["closed"], "train": "all", "head_epochs": head_epochs} | changes
    return {
        "parameters": parameters, "variant": variant, "epochs": epochs, "head_epochs": head_epochs,
        "weights": {"source": weights} if weights else None, "training_seconds": seconds,
        "speed": {"images_per_second": 1234.4, "query_milliseconds": 2},
    }  # fmt: skip


MEASURED = {
    ("accuracy", None, None): 0.8123,
    ("mean_average_precision", "unrestricted", None): 0.6,
    ("mean_average_precision", "predicted_class", None): 0.8123,
    ("mean_average_precision", "label_lookup", None): 0.7,
    ("precision", "unrestricted", 10): 0.75,
}
ANYWHERE = {key: value for key, value in MEASURED.items() if key[1] == "unrestricted"}


@pytest.fixture
def project(tmp_path):
    """The study `small`, published: a network, its state after 3 epochs, a baseline."""
    folder = tmp_path / "reports" / "published" / "small"
    folder.mkdir(parents=True)
    metrics = [*rows("cnn", MEASURED), *rows("cnn", MEASURED | {("accuracy", None, None): 0.5},
             epoch=3), *rows("random", ANYWHERE)]  # fmt: skip
    held_out = [row | {"protocol": "held_out_gallery", "value": 0.99} for row in metrics]
    in_class = [row | {"class": "cat", "value": 0.98} for row in metrics]
    table = pd.DataFrame([*metrics, *held_out, *in_class]).reindex(columns=measurements.COLUMNS)
    measurements.write_csv(measurements.sort(table), folder / "metrics.csv")
    manifest = {
        "command": "make report STUDY=small",
        "data": {"queries": 10, "gallery": 50_000},
        "machine": MACHINE,
        "architectures": {"cnn": run_entry("none", 7, 3700), "random": run_entry()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def write_runs(project, **runs: dict) -> None:
    """Replace the architectures in the manifest of the study `small`."""
    path = project / "reports" / "published" / "small" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"architectures": runs}))


def cells(project, start: str) -> list[str]:
    """The cells of the only row of the table whose first cell is `start`."""
    lines = publish.results_page(project).splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_committed_page_of_results_is_up_to_date():
    assert (ROOT / publish.RESULTS).read_text("utf-8") == publish.results_page(ROOT)


def test_published_metrics_are_small_and_cover_all_queries():
    paths = list((ROOT / "reports" / "published").glob("*/metrics.csv"))
    assert max(path.stat().st_size for path in paths) < 200_000
    assert all(measurements.read_csv(path)["class"].isna().all() for path in paths)


def test_published_pages_are_small_and_self_contained():
    for path in (ROOT / "reports" / "published").glob("*/index.html"):
        html = path.read_text("utf-8")
        assert path.stat().st_size <= notebook_html.LARGEST_COPY
        files = set(re.findall(r'href="([^"#:]+)"', html))
        assert all((path.parent / file).exists() for file in files)
        assert not re.search(r"(?<![\w/+])/(home|root|tmp|Users)/", html)


def test_published_figures_are_small_and_on_the_page():
    folders = [path.parent for path in (ROOT / "reports" / "published").glob("*/manifest.json")]
    figures = [folder / "results.png" for folder in folders]
    assert sum(figure.stat().st_size for figure in figures) < 2_000_000
    page = publish.results_page(ROOT)
    assert all(figure.relative_to(ROOT).as_posix() in page for figure in figures)


def test_pictures_of_the_readme_exist_and_are_small_and_described():
    text = (ROOT / "README.md").read_text("utf-8")
    images = re.findall(r'<img src="([^"]+)"[^>]* alt="([^"]+)"', text)
    assert images
    for source, alt in images:
        assert (ROOT / source).stat().st_size < 300_000
        assert len(alt) > 30


def test_the_row_of_a_network_shows_its_final_state_under_the_first_protocol(project):
    lines = publish.results_page(project).splitlines()
    final, state = [line for line in lines if line.startswith("| cnn |")]
    row = [cell.strip() for cell in final.strip("|").split("|")]
    assert row[:4] == ["cnn", "random", "7", "0.812 [0.802,\u00a00.822]"]
    assert row[4:8] == [
        "0.600 [0.590,\u00a00.610]", "0.812 [0.802,\u00a00.822]", "0.700 [0.690,\u00a00.710]",
        "0.750 [0.740,\u00a00.760]",
    ]  # fmt: skip
    assert row[8:] == ["1 h 01 min", "1,234"]
    assert "| cnn | random | 3 | 0.500 [0.490,\u00a00.510] |" in state
    assert state.endswith("| – | – |")


@pytest.mark.parametrize(
    ("parameters", "epochs"),
    [({"train": "head"}, "7 head"), ({"head_epochs": 20}, "20 head + 7"), ({}, "7")],
)
def test_epochs_of_the_head_are_marked(parameters, epochs, project):
    write_runs(project, cnn=run_entry("imagenet", 7, 3700, **parameters))
    final, *states = [line for line in publish.results_page(project).splitlines()
                      if line.startswith("| cnn |")]  # fmt: skip
    assert final.startswith(f"| cnn | ImageNet | {epochs} |")
    if "head_epochs" in parameters:
        assert states[0].startswith("| cnn | ImageNet | 20 head + 3 |")


def test_tables_name_the_weights_that_networks_started_from(project):
    text = publish.results_page(project).partition("| architecture |")[0]
    assert text.rstrip().endswith(
        "2 cores. All networks started from random weights. No ImageNet weights were used."
    )
    write_runs(project, cnn=run_entry("none", 7, 3700), vgg16=run_entry("study:elsewhere", 7, 3700))
    text = publish.results_page(project).partition("| architecture |")[0]
    assert "study of this project (elsewhere): vgg16; from random weights: cnn." in text
    write_runs(project, random=run_entry())
    assert "started" not in publish.results_page(project)


def test_a_baseline_has_neither_weights_nor_accuracy(project):
    row = cells(project, "random")
    assert row[:4] == ["random", "–", "–", "–"]
    assert row[4] == "0.600 [0.590,\u00a00.610]"
    assert row[8] == "–"


def test_several_seeds_are_shown_as_mean_lowest_and_highest(project):
    path = project / "reports" / "published" / "small" / "metrics.csv"
    table = pd.DataFrame(rows("cnn", MEASURED, seeds=(0, 1, 2))).reindex(
        columns=measurements.COLUMNS
    )
    measurements.write_csv(measurements.sort(table), path)
    assert cells(project, "cnn")[3] == "0.912 (0.812 to 1.012, 3 seeds)"


def test_a_point_of_a_grid_is_named_by_its_values(project):
    write_runs(project, **{"cnn-gem": run_entry("imagenet", 2, 5, variant="pooling=gem")})
    assert cells(project, "cnn, pooling=gem")[1:3] == ["ImageNet", "2"]


def test_a_section_names_the_command_data_and_machine(project):
    text = publish.results_page(project)
    assert "## small\n\n`make report STUDY=small`: protocol `closed`" in text
    assert "10 queries, 50,000 gallery images; a processor, 2 cores." in text
    assert "![Results of small](../reports/published/small/results.png)" in text


def test_published_values_of_the_paper_appear_only_for_cifar10(project):
    assert "0.7861" not in publish.results_page(project)
    folder = project / "reports" / "published"
    (folder / "small").rename(folder / "cifar10-small")
    text = publish.results_page(project)
    assert "0.7616 after 29 epochs and 0.7861 after 47" in text
    assert "`hashing_1k`" in text


def test_notes_follow_the_table_of_their_study(project):
    folder = project / "reports" / "published" / "small"
    (folder / "notes.md").write_text("`cnn` ran *beside* other work.\n")
    text = publish.results_page(project)
    assert "|\n\n`cnn` ran *beside* other work.\n\n![Results of small]" in text


def test_the_page_is_written_only_if_it_changed(project):
    assert publish.write_results(project)
    text = (project / "docs" / "results.md").read_text("utf-8")
    assert text.startswith("# Results\n")
    assert "\n## small\n" in text
    assert not publish.write_results(project)


def test_a_study_without_a_report_cannot_be_published(tmp_path, monkeypatch, capfd):
    write_study(tmp_path, "tiny", {}, {})
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "--study", "tiny"]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: no results in {tmp_path}/reports/tiny: run `make report")
    assert not (tmp_path / "reports").exists()


TRAINING = {"train": "all", "head_epochs": 0}
PARAMETERS = {"protocols": ["closed"], "seeds": [0]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study `tiny` with the report of two networks and a baseline with invented results."""
    root = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        names = ["cnn", "vgg16", "random"]
        for name, blur in (("cnn", 2.0), ("vgg16", 3.0)):
            invented.save_network(name, blur, epochs=())
        invented.save_baseline("random")
        for name in names:
            run = {"parameters": PARAMETERS | (TRAINING if name != "random" else {})}
            path = root / "reports" / "tiny" / name / "manifest.json"
            path.write_text(json.dumps(run | {"seconds": 1.0, "versions": {"keras": "3"}}))
        about = {"study": "tiny", "command": "make report STUDY=tiny", "failures": {}}
        about["versions"] = {"keras": "3"}
        runs.write_study(root / "reports" / "tiny", names, about)
        write_index(root)
        yield root


def write_index(root: Path) -> None:
    """The first page of the study `tiny`."""
    text = f"# Which one?\n\nSee [failures](failures.html) and {root}/data/shapes."
    notebook = root / "reports" / "tiny" / "comparison.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(text)]), notebook)
    links = [("Comparison", "index.html"), ("cnn", "cnn.html")]
    page = notebook.with_name("index.html")
    notebook_html.write_page(notebook, page, report="tiny", title="tiny", links=links)


def publish_tiny(root: Path) -> Path:
    """Mark the first page of the study `tiny` as finished and publish the study."""
    folder = root / "reports" / "tiny"
    (folder / "index").mkdir(exist_ok=True)
    files = [folder / name for name in ("index.html", *runs.STUDY_FILES)]
    cache.write_manifest(folder / "index", files, key="key", seconds=1.0)
    return publish.publish_study(root, "tiny")


def test_published_files_hold_the_results_of_the_report(finished):
    folder = publish_tiny(finished)
    assert folder == finished / "reports" / "published" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.html", "manifest.json", "metrics.csv", "results.png",
    ]  # fmt: skip
    source = finished / "reports" / "tiny"
    assert (folder / "manifest.json").read_bytes() == (source / "manifest.json").read_bytes()
    rows = [line.split(",") for line in (source / "metrics.csv").read_text().splitlines()]
    expected = [row for row in rows if row[9] in ("", "10", "k") and row[10] in ("", "class")]
    assert len({row[9] for row in rows}) > 3  # other depths are left out
    published = (folder / "metrics.csv").read_text().splitlines()
    assert published == [",".join(row) for row in expected]
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in publish.results_page(finished).splitlines() if line.startswith("|")]
    table = measurements.read_csv(source / "metrics.csv")
    for name in ("cnn", "vgg16"):
        mean_ap = measurements.select(
            table[table["architecture"] == name], **publish.MEASURES["mAP"]
        )
        (line,) = [line for line in lines if line.startswith(f"| {name} | random | 3 |")]
        assert f"| {measurements.number(mean_ap)} |" in line
    assert any(line.startswith("| random | – | – |") for line in lines)


def test_a_study_with_a_failed_architecture_is_not_published(finished, tmp_path):
    shutil.copytree(finished / "reports" / "tiny", tmp_path / "reports" / "tiny")
    path = tmp_path / "reports" / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"failures": {"resnet50": "out of memory"}}))
    with pytest.raises(StudyError) as caught:
        publish_tiny(tmp_path)
    assert "resnet50: out of memory: fix this and run `make report STUDY=tiny`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "reports" / "published").exists()


@pytest.fixture(scope="module")
def published_in_part(finished, tmp_path_factory) -> Path:
    """The study `tiny` with vgg16 and the baseline published, and a report of only cnn."""
    root = tmp_path_factory.mktemp("parts")
    for name in ("params", "notebooks", "data", "reports/tiny", "artifacts"):
        shutil.copytree(finished / name, root / name)
    folder = root / "reports" / "tiny"
    manifest = json.loads((folder / "manifest.json").read_text())
    about = {key: manifest[key] for key in ("study", "command", "failures", "versions")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        runs.write_study(folder, ["vgg16", "random"], about)
        publish_tiny(root)
        runs.write_study(folder, ["cnn"], about)
    return root


@pytest.fixture
def partly_published(published_in_part, tmp_path, monkeypatch) -> Path:
    """A copy of `published_in_part` that a test may change."""
    shutil.copytree(published_in_part, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write_index(tmp_path)
    return tmp_path


def test_a_study_is_published_in_parts(partly_published, finished):
    folder = publish_tiny(partly_published)
    whole = json.loads((finished / "reports" / "tiny" / "manifest.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["architectures"] == whole["architectures"]
    assert list(manifest["architectures"]) == ["cnn", "vgg16", "random"]
    assert manifest["command"] == 'make report STUDY=tiny ARCHITECTURES="cnn vgg16 random"'
    rows = measurements.read_csv(finished / "reports" / "tiny" / "metrics.csv")
    of_all = rows["class"].isna() & (rows["k"].isna() | (rows["k"] == 10))
    rows = rows[of_all].reset_index(drop=True)
    pd.testing.assert_frame_equal(measurements.read_csv(folder / "metrics.csv"), rows)
    # A run that is published again replaces its earlier results.
    again = publish_tiny(partly_published)
    assert json.loads((again / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"queries": 3}}, "other data"),
        ({"protocols": ["hashing_1k", "closed"]}, "another first protocol"),
        ({"variant": "dropout=0.5"}, "a grid"),
    ],
)
def test_a_report_that_cannot_be_combined_is_not_published(changes, reason, partly_published):
    path = partly_published / "reports" / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        run = manifest["architectures"]["cnn"]
        sections = {"variant": run, "protocols": run["parameters"]}
        sections.get(key, manifest)[key] = value
    path.write_text(json.dumps(manifest))
    folder = partly_published / "reports" / "published" / "tiny"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StudyError) as caught:
        publish_tiny(partly_published)
    assert str(caught.value) == (
        f"{folder} contains vgg16, random, which this report lacks and which cannot be combined "
        f"with it ({reason}): run these too, or delete that folder"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_table_names_the_machines_of_its_runs(partly_published):
    path = partly_published / "reports" / "published" / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text())
    for run in manifest["architectures"].values():
        run |= {"machine": MACHINE, "versions": {"keras": "2"}}
    path.write_text(json.dumps(manifest))
    publish_tiny(partly_published)
    architectures = json.loads(path.read_text())["architectures"]
    assert architectures["vgg16"]["machine"] == MACHINE
    assert architectures["vgg16"]["versions"] == {"keras": "2"}
    here = architectures["cnn"]["machine"]
    assert here == cache.machine()
    text = publish.results_page(partly_published)
    assert "a processor, 2 cores (vgg16, random)." in text
    assert f"{here['cpu']}, {here['cores']} cores" in text
    assert " (cnn); " in text


def test_runs_may_differ_in_further_protocols(partly_published):
    path = partly_published / "reports" / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["architectures"]["cnn"]["parameters"]["protocols"] = ["closed", "unseen_classes"]
    path.write_text(json.dumps(manifest))
    published = json.loads((publish_tiny(partly_published) / "manifest.json").read_text())
    assert list(published["architectures"]) == ["cnn", "vgg16", "random"]


def test_an_architecture_may_have_more_seeds_than_another(partly_published):
    run = invented.save_network("cnn", 2.0, epochs=(), seeds=[0, 1, 2])
    folder = partly_published / "reports" / "tiny"
    run_manifest = {
        "parameters": PARAMETERS | TRAINING | {"seeds": [0, 1, 2]},
        "seconds": 1.0,
        "versions": {},
    }
    (folder / "cnn" / "manifest.json").write_text(json.dumps(run_manifest))
    about = {"study": "tiny", "command": "make report STUDY=tiny", "failures": {}, "versions": {}}
    # The other runs are either kept or published again together with it.
    for names in (["cnn"], ["cnn", "vgg16", "random"]):
        runs.write_study(folder, names, about)
        published = measurements.read_csv(publish_tiny(partly_published) / "metrics.csv")
        counts = published.groupby("architecture")["seed"].nunique()
        assert counts.to_dict() == {"cnn": 3, "vgg16": 1, "random": 1}
        lines = publish.results_page(partly_published).splitlines()
        (line,) = [line for line in lines if line.startswith("| cnn | random | 3 |")]
        selected = publish.MEASURES["mAP"]
        mean = measurements.number(measurements.select(run.averaged, **selected))
        values = sorted(measurements.select(run.metrics, **selected)["value"])
        assert f"| {mean} ({values[0]:.3f} to {values[-1]:.3f}, 3 seeds) |" in line
        assert any(line.startswith("| vgg16 | random | 3 | 0.") for line in lines)
        assert "seeds" not in next(line for line in lines if line.startswith("| vgg16 |"))
    # A published run of several seeds is also kept.
    runs.write_study(folder, ["vgg16"], about)
    republished = measurements.read_csv(publish_tiny(partly_published) / "metrics.csv")
    pd.testing.assert_frame_equal(republished, published)


def test_the_first_page_is_published_on_its_own(partly_published):
    folder = publish_tiny(partly_published)
    html = (folder / "index.html").read_text("utf-8")
    assert "See failures and data/shapes." in html
    assert "A copy of the page that <code>make report STUDY=tiny</code> wrote." in html
    assert not re.findall(r'href="(?!#|data:)', html)
    assert "[index.html](../reports/published/tiny/index.html)" in publish.results_page(
        partly_published
    )
    (partly_published / "reports" / "tiny" / "index.html").unlink()
    with pytest.raises(StudyError, match="index.html in .* is missing or .*: run `make report"):
        publish.publish_study(partly_published, "tiny")


def test_paths_of_this_machine_are_not_published(partly_published):
    path = partly_published / "reports" / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text())
    command = 'make report STUDY=tiny DATA="/home/me/pictures"'
    manifest |= {"command": command}
    manifest["data"]["parameters"]["dataset"] = "/home/me/pictures"
    manifest["architectures"]["cnn"]["weights"]["source"] = "/home/me/weights/vgg.h5"
    path.write_text(json.dumps(manifest))
    (partly_published / "reports" / "published" / "tiny" / "manifest.json").unlink()
    page = path.with_name("index.html")
    page.write_text(page.read_text() + f"{command} {Path.home()}/other AB/home/me/pictures=")
    folder = publish_tiny(partly_published)
    for name in ("manifest.json", "index.html"):
        text = (folder / name).read_text("utf-8")
        assert str(partly_published) not in text
        assert f"{Path.home()}/" not in text
        # The data of an image stays, whatever its characters are.
        assert text.count("/home/me") == (name == "index.html")
    published = json.loads((folder / "manifest.json").read_text())
    assert published["command"] == 'make report STUDY=tiny DATA="pictures"'
    assert published["architectures"]["cnn"]["weights"]["source"] == "vgg.h5"


def test_a_training_on_another_machine_names_it(project):
    elsewhere = {"machine": MACHINE | {"gpus": ["A GPU", "A GPU"]}, "versions": {}}
    write_runs(project, cnn=run_entry("none", 7, 3700) | {"trained_on": elsewhere})
    assert cells(project, "cnn | random | 7")[-2] == "1 h 01 min (on A GPU)"


def test_metrics_that_differ_from_their_page_are_not_published(partly_published):
    publish_tiny(partly_published)
    path = partly_published / "reports" / "tiny" / "metrics.csv"
    path.write_text(path.read_text().replace(",0.", ",0.9", 1))
    with pytest.raises(StudyError, match="does not fit the numbers beside it: run `make report"):
        publish.publish_study(partly_published, "tiny")


def test_a_trial_is_not_published(finished, tmp_path):
    shutil.copytree(finished / "reports" / "tiny", tmp_path / "reports" / "tiny-trial-0a1b2c")
    with pytest.raises(StudyError, match="^tiny-trial-0a1b2c is a trial, .* put them into params/"):
        publish.publish_study(tmp_path, "tiny-trial-0a1b2c")
    assert not (tmp_path / "reports" / "published").exists()
