"""Kills, damaged files and a full disk never change a number of a report."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import invented
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import empty_project, write_pictures
from studies import BASELINE, BASELINES, DEEPER, make_study, report, shorten_notebooks
from test_study_networks import stop_at

from cbir import StudyError
from cbir.reporting.runs import read_run, read_runs
from cbir.search import galleries

pytestmark = pytest.mark.faults

STUDY_FILES = ("metrics.csv", "per_query.parquet")


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A project with a study of a baseline."""
    root = make_study(tmp_path / "tiny", {BASELINE: BASELINES})
    shorten_notebooks(root)
    return root


# Every run is a fork of a process that has imported all packages, and needs no kernel.
FORKED_RUNS = """
import os, random, signal, sys, time
import nbformat
from cbir.reporting import notebook_html
from cbir.studies import kernels, runner
from cbir.studies.study import open_study

def execute(study, page, executed, parameters):
    notebook, names = nbformat.read(page.notebook, as_version=4), {}
    for cell in notebook.cells:
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", ()):
            names |= parameters
    nbformat.write(notebook, executed)

def start(root):
    if process := os.fork():
        return process
    os.chdir(root)
    os._exit(0 if runner.bring_up_to_date(open_study(root, "tiny")) else 1)

def ends(processes):
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]

runner._execute, kernels.start_ahead = execute, lambda *arguments: None
roots = [runner.Path(root) for root in sys.argv[1:]]
study = open_study(roots[0], "tiny")
for notebook in [study.runs[0].notebook, study.pages[0].notebook]:
    exec(kernels._imports(notebook))
began = time.monotonic()
assert ends([start(roots[0])]) == [0]
seconds = time.monotonic() - began
for kill in range(6):
    processes, moment = [start(roots[1]) for _ in range(1 + kill % 2)], random.uniform(0, seconds)
    time.sleep(moment)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    print(f"killed after {moment:.2f} of {seconds:.2f} s", ends(processes), flush=True)
print(ends([start(roots[1]) for _ in range(2)]))
"""


def test_killed_and_concurrent_runs_produce_the_same_bytes(tiny):
    second_root = tiny.parent / "again"
    shutil.copytree(tiny, second_root)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", FORKED_RUNS, tiny, second_root], cwd=tiny, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(process.stdout)
    assert process.stdout.splitlines()[-1] == "[0, 0]", process.stderr
    for name in STUDY_FILES:
        before, after = (root / "reports" / "tiny" / name for root in (tiny, second_root))
        assert before.read_bytes() == after.read_bytes()


def test_a_command_continues_after_it_is_killed_with_its_kernels(tiny):
    process = subprocess.Popen(
        [sys.executable, "-m", "cbir", "report", "--study", "tiny"], cwd=tiny,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    while ": running notebooks/" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(random.uniform(0, 3))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    done = report(tiny).done
    assert done.returncode == 0, done.stderr
    assert "reports/tiny/index.html written in" in done.stdout


def test_an_interruption_ends_both_running_pages(tiny):
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
    parameters = nbformat.v4.new_code_cell('study = ""\narchitectures = []\nmissing = []')
    parameters.metadata["tags"] = ["parameters"]
    sleep = nbformat.v4.new_code_cell('import time\nprint("asleep", flush=True)\ntime.sleep(60)')
    notebook = nbformat.v4.new_notebook(cells=[parameters, sleep], metadata=kernel)
    for name in DEEPER[:3]:
        nbformat.write(notebook, tiny / "notebooks" / f"{name}.ipynb")
    stopped = stop_at(tiny, "asleep", signal.SIGINT)
    assert stopped.stderr == "interrupted: run the same command again to continue\n"
    assert stopped.returncode == 130
    assert stopped.left == []
    assert stopped.stdout.count(": running notebooks/") == 4
    reports = tiny / "reports" / "tiny"
    assert (reports / "index" / "manifest.json").exists()
    assert not any((reports / name / "manifest.json").exists() for name in DEEPER[:3])


def test_a_full_disk_is_reported_in_one_line_per_architecture(tiny):
    (tiny / "reports").mkdir()
    mount = 'mount -t tmpfs -o size=100k tmpfs reports || exit 77; exec "$0" "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, "-m", "cbir", "report"]
    process = subprocess.run(
        [*command, "--study", "tiny"], cwd=tiny, capture_output=True, text=True, check=False
    )
    if process.returncode == 77 or "unshare" in process.stderr:
        pytest.skip("no file system can be mounted here")
    assert process.returncode == 1
    assert process.stderr.startswith(
        ("raw_pixels: failed: disk full while writing", "error: disk full")
    )
    assert "Traceback" not in process.stdout + process.stderr


# Damage to every file between two runs of the same steps


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Path:
    """A project with the steps of a baseline and of an invented network."""
    root = empty_project(tmp_path / "project")
    write_pictures(root / "data" / "shapes")
    monkeypatch.chdir(root)
    return root


def measure() -> list[pd.DataFrame]:
    runs = [invented.save_baseline(BASELINE), invented.save_network("cnn", 2.0, epochs=())]
    return [run.metrics for run in runs]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1 << 4
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "a hole": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_do_not_change_numbers(measured, damage, capsys):
    before = measure()
    files = [path for path in (measured / "artifacts").rglob("*") if path.stat().st_size]
    files = [path for path in files if path.is_file() and "backbones" not in path.parts]
    assert len(files) > 20
    for path in files:
        damage(path)
    after = measure()
    for metrics_before, metrics_after in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(metrics_before, metrics_after)
    # Without a manifest, a folder is unfinished anyway.
    if damage is not Path.unlink:
        assert capsys.readouterr().out.count("it counts as unfinished") >= 8


def test_exchanged_rankings_do_not_change_numbers(measured):
    before = measure()
    folders = sorted((measured / "artifacts" / "rankings").iterdir())
    names = [folder.name for folder in folders]
    for folder in folders:
        folder.rename(folder.with_name(f"{folder.name}-aside"))
    for name, new_name in zip(names, [*names[1:], names[0]], strict=True):
        folders[0].with_name(f"{name}-aside").rename(folders[0].with_name(new_name))
    for metrics_before, metrics_after in zip(before, measure(), strict=True):
        pd.testing.assert_frame_equal(metrics_before, metrics_after)


def test_search_rejects_embeddings_with_a_flipped_bit(measured):
    measure()
    run = read_run("tiny", "cnn")
    flip(measured / run.summary["artifacts"]["embeddings"] / "vectors.npy")
    with pytest.raises(StudyError, match="embeddings are missing or damaged: run `make report"):
        _ = run.embeddings


def test_runs_of_different_pictures_are_not_compared(measured):
    measure()
    names = [BASELINE, "cnn"]
    assert list(read_runs("tiny", names, [])) == names
    (measured / "data" / "shapes" / "circle" / "circle-00.png").unlink()
    invented.save_network("cnn", 2.0, epochs=())
    with pytest.raises(StudyError, match="cnn and raw_pixels .* different images and cannot be"):
        read_runs("tiny", names, [])


# Galleries


@pytest.fixture
def searcher() -> SimpleNamespace:
    """Embeds pictures by their first pixel."""

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.05)
        vectors = images[:, :2, 0, 0].astype(np.float32) + 1
        return vectors, vectors

    run = SimpleNamespace(study="tiny", architecture="cnn")
    return SimpleNamespace(run=run, key="key", reading={"size": 8}, encode=encode)


def test_a_folder_indexed_twice_concurrently_is_embedded_once(measured, searcher, capsys):
    changes, folder = [], measured / "data" / "shapes"

    def index() -> None:
        changes.append(galleries.index_folder(folder, searcher)[1])

    threads = [threading.Thread(target=index) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(change.embedded for change in changes) == [0, 48]
    assert "waiting for " in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_gallery_is_embedded_again(measured, searcher, damage, capsys):
    folder = measured / "data" / "shapes"
    name, _ = galleries.index_folder(folder, searcher)
    for path in (measured / "artifacts" / "galleries" / name).glob("*"):
        damage(path)
    assert galleries.index_folder(folder, searcher)[1].embedded == 48
    assert galleries.index_folder(folder, searcher)[1].kept == 48


# The machine and the user's settings

TRAINING = """
import hashlib
from conftest import build_network, load_shapes, train_network

network = build_network()
train_network(network, load_shapes(), epochs=1)
weights = b"".join(weight.tobytes() for weight in network.model.get_weights())
print(network.model.dtype, hashlib.sha256(weights).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS binds no process to a core")
def test_neither_cores_nor_keras_json_change_a_training(measured):
    def train(home: str, cores: set[int]) -> str:
        process = subprocess.run(
            [sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False,
            env={**os.environ, "KERAS_HOME": home,
                 "PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()[-1]

    settings = {"floatx": "float16", "epsilon": 1e-3, "image_data_format": "channels_first"}
    for name, content in (("usual", {}), ("other", settings)):
        (measured / name).mkdir()
        (measured / name / "keras.json").write_text(json.dumps(content))
    cores = os.sched_getaffinity(0)
    usual = train(str(measured / "usual"), cores)
    shutil.rmtree(measured / "artifacts")
    assert train(str(measured / "other"), {min(cores)}) == usual
    assert usual.startswith("float32 ")
