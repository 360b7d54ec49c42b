"""The explorer in a real JupyterLab, used as a person does: run all cells, choose, upload, mark."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from cbir.reporting.runs import read_run
from cbir.search import answers
from cbir.search.engine import best_architecture, open_engine

pytestmark = pytest.mark.browser

TOKEN = "of-the-test"
SLOW = 120_000  # milliseconds: a kernel that loads its libraries on a busy machine


@pytest.fixture(scope="module")
def lab(finished_study):
    """The address of a JupyterLab that serves the notebook of a small finished study."""
    folder = finished_study / "notebooks"
    shutil.copy(ROOT / "notebooks" / "explore.ipynb", folder)
    notebook = folder / "explore.ipynb"
    content = json.loads(notebook.read_text("utf-8"))
    # As a person edits the parameters cell.
    (cell,) = [
        cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", ())
    ]
    cell["source"] = [line.replace('"digits"', '"tiny"') for line in cell["source"]]
    notebook.write_text(json.dumps(content), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
                f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={folder}",
                "--LabApp.news_url=None"]  # fmt: skip
    home = finished_study / "jupyter"
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *settings],
        env=os.environ | {"JUPYTER_CONFIG_DIR": str(home), "JUPYTER_DATA_DIR": str(home)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api?token={TOKEN}")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {address}")


@pytest.fixture(scope="module")
def page(browser, lab):
    """The notebook, open and with all its cells run."""
    # JupyterLab renders only the cells in sight: this window is high enough for all.
    window = browser.new_context(viewport={"width": 1400, "height": 5000})
    page = window.new_page()
    page.goto(f"{lab}/lab/tree/explore.ipynb?token={TOKEN}")
    page.locator(".jp-NotebookPanel .jp-Notebook").wait_for(timeout=SLOW)
    # JupyterLab runs nothing before its kernel has started.
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.get_by_text("| Idle").wait_for(timeout=SLOW)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.locator(".cbir-query img").wait_for(timeout=SLOW)
    yield page
    window.close()


def results(page) -> list[str]:
    """The lines under each result, in order."""
    return [text.strip() for text in page.locator(".cbir-results .cbir-image").all_inner_texts()]


def result_lines(answer) -> list[str]:
    return [f"{result.rank} · {result.similarity:.3f}\n{result.label}" for result in answer.results]


def search(picture=None, k=10, **feedback):
    engine = open_engine("tiny")
    picture = picture or answers.picture_of_query(engine, 0)
    return answers.search(engine, engine.gallery, picture, k, **feedback)


def wait_until(page, lines: list[str]) -> None:
    """Wait until the page shows these results; fail with what it shows instead."""
    for _ in range(200):
        if results(page) == lines:
            return
        page.wait_for_timeout(100)
    assert results(page) == lines


def test_notebook_runs_and_shows_results(page):
    assert page.locator(".jp-RenderedSVG, .jp-RenderedImage").count() == 1
    assert page.locator(".jp-RenderedText[data-mime-type*='stderr'], .jp-Error").count() == 0
    wait_until(page, result_lines(search()))
    assert read_run("tiny", best_architecture("tiny")).rankings["unrestricted"].size


def test_fewer_results_are_shown_for_a_smaller_k(page):
    k = page.locator(".cbir-k input")
    k.fill("4")
    k.press("Enter")
    wait_until(page, result_lines(search(k=4)))


def test_marks_move_the_query_and_can_be_undone(page):
    before = search(k=4)
    page.locator(".cbir-results button", has_text="✗").first.click()
    page.get_by_role("button", name="search again").click()
    first = before.results[0].position
    vectors = open_engine("tiny").gallery.vectors[[first]]
    wait_until(page, result_lines(search(k=4, negative=vectors, left_out={first})))
    page.get_by_role("button", name="undo").click()
    wait_until(page, result_lines(before))


def test_uploaded_picture_is_searched(page, tmp_path):
    pixels = np.random.default_rng(5).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    path = Path(tmp_path, "mine.png")
    Image.fromarray(pixels).save(path)
    page.get_by_role("button", name="my own picture").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="choose a picture").click()
    chooser.value.set_files(path)
    page.get_by_text("query: mine.png").wait_for()
    (picture,) = answers.embed_pictures(open_engine("tiny"), {"mine": pixels})
    wait_until(page, result_lines(search(picture, k=4)))


def test_similarity_maps_cover_query_and_results(page):
    page.get_by_role("button", name="similarity maps").click()
    page.locator(".cbir-results .cbir-image img").nth(7).wait_for()
    assert page.locator(".cbir-results .cbir-image img").count() == 8
