"""The explorer in a real JupyterLab, as somebody uses it: run all, choose, upload, mark."""

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
from cbir.search import answers, engine

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
    # What somebody types into the parameters cell.
    (cell,) = [
        each for each in content["cells"] if "parameters" in each["metadata"].get("tags", ())
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
    # So high that all cells are in sight: JupyterLab leaves out those that are not.
    window = browser.new_context(viewport={"width": 1400, "height": 5000})
    page = window.new_page()
    page.goto(f"{lab}/lab/tree/explore.ipynb?token={TOKEN}")
    page.locator(".jp-NotebookPanel .jp-Notebook").wait_for(timeout=SLOW)
    # Until its kernel is there, JupyterLab runs nothing.
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.get_by_text("| Idle").wait_for(timeout=SLOW)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.locator(".cbir-query img").wait_for(timeout=SLOW)
    yield page
    window.close()


def found(page) -> list[str]:
    """The lines under each result, in order."""
    shown = page.locator(".cbir-found .cbir-image").all_inner_texts()
    return [each.strip() for each in shown]


def lines_of(answer) -> list[str]:
    return [f"{each.place} · {each.similarity:.3f}\n{each.label}" for each in answer.results]


def answer_of(picture=None, k=10, **marks):
    opened = engine.open_engine("tiny")
    asked = answers.picture_of_query(opened, 0) if picture is None else picture
    return answers.search(opened, opened.gallery, asked, k, **marks)


def wait_until(page, wanted: list[str]) -> None:
    """Wait for results that are shown after a choice; what is shown instead, if they never are."""
    for _ in range(200):
        if found(page) == wanted:
            return
        page.wait_for_timeout(100)
    assert found(page) == wanted


def test_notebook_runs_and_shows_what_the_study_finds(page):
    assert page.locator(".jp-RenderedSVG, .jp-RenderedImage").count() == 1
    assert page.locator(".jp-RenderedText[data-mime-type*='stderr'], .jp-Error").count() == 0
    wait_until(page, lines_of(answer_of()))
    assert read_run("tiny", engine.best_architecture("tiny")).rankings["unrestricted"].size


def test_fewer_results_are_shown_for_a_smaller_k(page):
    k = page.locator(".cbir-k input")
    k.fill("4")
    k.press("Enter")
    wait_until(page, lines_of(answer_of(k=4)))


def test_marks_move_the_search_and_undo_takes_them_back(page):
    opened = engine.open_engine("tiny")
    before = answer_of(k=4)
    page.locator(".cbir-found button", has_text="✗").first.click()
    page.get_by_role("button", name="search again").click()
    first = before.results[0].position
    vectors = opened.gallery.vectors[[first]]
    wait_until(page, lines_of(answer_of(k=4, negative=vectors, left_out={first})))
    page.get_by_role("button", name="undo").click()
    wait_until(page, lines_of(before))


def test_picture_of_ones_own_is_uploaded_and_searched_with(page, tmp_path):
    pixels = np.random.default_rng(5).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    path = Path(tmp_path, "mine.png")
    Image.fromarray(pixels).save(path)
    page.get_by_role("button", name="a picture of my own").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="choose a picture").click()
    chooser.value.set_files(path)
    page.get_by_text("asked: mine.png").wait_for()
    (picture,) = answers.embed_pictures(engine.open_engine("tiny"), {"mine": pixels})
    wait_until(page, lines_of(answer_of(picture, k=4)))


def test_heat_maps_are_drawn_over_query_and_results(page):
    page.get_by_role("button", name="what makes them alike").click()
    page.get_by_text("in the query").first.wait_for()
    assert page.locator(".cbir-found .cbir-image img").count() == 8
