"""The explorer in a real JupyterLab: running all cells, choosing, dropping and marking pictures."""

import base64
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

from cbir.images.pictures import read_picture
from cbir.search import answers
from cbir.search.searchers import best_architecture, open_searcher

pytestmark = pytest.mark.browser

SEARCH = ROOT / "src" / "cbir" / "search"
TOKEN = "of-the-test"
SLOW = 120_000  # milliseconds: a kernel that loads its libraries on a busy machine


@pytest.fixture(scope="module")
def lab(finished_study):
    """The address of a JupyterLab that serves the notebook of a small finished study."""
    folder = finished_study / "notebooks"
    shutil.copy(ROOT / "notebooks" / "explore.ipynb", folder)
    notebook = folder / "explore.ipynb"
    content = json.loads(notebook.read_text("utf-8"))
    # Edit the parameters cell as a person would.
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
    """The notebook, opened in JupyterLab, with all its cells run."""
    # JupyterLab renders only the cells in sight: this window is high enough for all.
    window = browser.new_context(viewport={"width": 1400, "height": 5000})
    window.set_default_timeout(SLOW)
    page = window.new_page()
    page.goto(f"{lab}/lab/tree/explore.ipynb?token={TOKEN}")
    page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
    # JupyterLab runs nothing before its kernel has started.
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.locator(".cbir-card img").wait_for()
    yield page
    window.close()


def results(page) -> list[str]:
    """The lines under each result, in order."""
    # JupyterLab stops drawing cells out of sight, and text that is not drawn keeps its indent.
    captions = page.locator(".cbir-tiles figcaption").all_inner_texts()
    return ["\n".join(line.strip() for line in text.strip().splitlines()) for text in captions]


def result_lines(answer) -> list[str]:
    return [
        f"{rank} · {result.similarity:.3f}\n{result.label}"
        for rank, result in enumerate(answer.results, start=1)
    ]


def search(picture=None, k=10, **feedback):
    searcher = open_searcher("tiny")
    picture = picture or answers.picture_of_query(searcher, 0)
    return answers.search_all(searcher, searcher.gallery, [picture], k, **feedback)[0]


def wait_until(page, lines: list[str]) -> None:
    """Wait until the page shows these results; otherwise fail with the results that it shows."""
    until = time.monotonic() + SLOW / 1000
    while results(page) != lines and time.monotonic() < until:
        page.wait_for_timeout(100)
    assert results(page) == lines


def picture_file(path: Path, side=32) -> tuple[Path, list[str]]:
    """A file with a picture of noise, and the lines of the results of a search for it."""
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    searcher = open_searcher("tiny")
    square = read_picture(path, searcher.image_size).image
    (picture,) = answers.embed_pictures(searcher, {"mine": square})
    return path, result_lines(search(picture, k=4))


NOTHING = {
    "choice": {"positive": [], "negative": [], "used": [[], []]}, "options": {}, "queries": {},
    "points": {}, "query": {}, "marked": [], "panels": [], "code": "", "status": "",
    "is_busy": False,
}  # fmt: skip


@pytest.fixture
def draw(browser):
    """A function that draws a state without a notebook, and returns the page."""
    windows = []

    def drawn(**state):
        windows.append(browser.new_context(viewport={"width": 1000, "height": 640}))
        page = windows[-1].new_page()
        page.set_content("<div></div>")
        page.add_style_tag(path=SEARCH / "explorer.css")
        script = base64.b64encode((SEARCH / "explorer.js").read_bytes()).decode()
        page.evaluate(
            """async ([script, state]) => {
                const {default: widget} = await import(`data:text/javascript;base64,${script}`);
                const model = {get: (name) => state[name], on() {}, off() {}};
                widget.render({model, el: document.querySelector("div")});
            }""",
            [script, NOTHING | state],
        )
        return page

    yield drawn
    for window in windows:
        window.close()


@pytest.mark.parametrize(
    ("state", "text", "is_problem"),
    [
        ({"is_busy": True}, "Waiting for the notebook’s kernel.", False),
        ({"is_busy": True, "status": "cnn embeds your picture …"}, "cnn embeds", False),
        ({"status": "No study is finished: run `make report` first."}, "make report", True),
        ({"panels": [{"architecture": "cnn", "lines": [], "results": []}]}, "No results:", False),
        ({"queries": {"start": 1, "total": 0, "pictures": []}}, "no queries", True),
    ],
)
def test_the_state_of_the_explorer_is_shown_as_text(draw, state, text, is_problem):
    page = draw(**state)
    assert page.get_by_text(text).is_visible()
    busy = page.locator("div").first.get_attribute("aria-busy")
    assert busy == str(state.get("is_busy", False)).lower()
    assert page.locator(".cbir-problem").count() == is_problem


def test_the_query_stays_visible_while_results_scroll(draw):
    result = {"rank": 1, "name": "a", "similarity": "0.9", "label": "cat", "is_hit": True,
              "copies": [], "image": "data:,"}  # fmt: skip
    results = [result | {"id": number} for number in range(60)]
    page = draw(
        query={"name": "mine", "label": "cat", "image": "data:,"},
        panels=[{"architecture": "cnn", "lines": [], "results": results}],
    )
    last, query = page.locator(".cbir-picture").last, page.locator(".cbir-card")
    assert last.bounding_box()["y"] > 640
    last.scroll_into_view_if_needed()
    assert last.bounding_box()["y"] < 640
    assert query.bounding_box()["y"] >= 0


def test_notebook_runs_and_shows_results(page):
    assert page.locator(".jp-RenderedSVG, .jp-RenderedImage").count() == 1
    assert page.locator(".jp-RenderedText[data-mime-type*='stderr'], .jp-Error").count() == 0
    wait_until(page, result_lines(search()))
    assert page.locator(".cbir-grid button").count() == 12


def test_axe_finds_no_violations_in_the_explorer(page):
    from axe_playwright_python.sync_playwright import Axe

    report = Axe().run(page, context=".cbir")
    assert len(report.response["passes"]) > 10
    assert report.violations_count == 0, report.generate_report()


def test_fewer_results_are_shown_for_a_smaller_k(page):
    k = page.get_by_role("spinbutton")
    k.fill("4")
    k.press("Enter")
    wait_until(page, result_lines(search(k=4)))


def test_marks_by_key_and_by_click_move_the_query_and_can_be_removed(page):
    before = search(k=4)
    cells = page.locator(".jp-Cell").count()
    page.locator(".cbir-picture").first.focus()
    # The last keys are commands of JupyterLab, which would cut and add cells.
    for key in ("-", "ArrowRight", "ArrowRight", "x", "a", "b"):
        page.keyboard.press(key)
    assert (
        page.locator(".cbir-picture")
        .nth(2)
        .evaluate("picture => picture === document.activeElement")
    )
    assert page.locator(".jp-Cell").count() == cells
    page.locator(".cbir-picture").nth(1).click()
    page.get_by_role("button", name="Search again with 2 marks").click()
    first, second, *_ = (result.position for result in before.results)
    vectors = open_searcher("tiny").gallery.vectors
    marks = {"negative": vectors[[first]], "positive": vectors[[second]]}
    wait_until(page, result_lines(search(k=4, **marks, left_out=[{first, second}])))
    for _ in marks:
        page.locator(".cbir-marked button").first.click()
    page.get_by_role("button", name="Search again with 0 marks").click()
    wait_until(page, result_lines(before))


@pytest.mark.parametrize("action", ["choose", "paste", "drop"])
def test_uploaded_picture_is_searched(page, tmp_path, action):
    path, lines = picture_file(tmp_path / f"{action}.png", 32 + len(action))
    if action == "choose":
        page.get_by_label("Your own picture").set_input_files(path)
    else:
        kind, data = {"paste": ("ClipboardEvent", "clipboardData"),
                      "drop": ("DragEvent", "dataTransfer")}[action]  # fmt: skip
        page.locator(".cbir-card").click()
        page.evaluate(
            """async ([bytes, name, way, kind, data]) => {
                const files = new DataTransfer();
                files.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
                const options = {[data]: files, bubbles: true, cancelable: true};
                document.activeElement.dispatchEvent(new window[kind](way, options));
            }""",
            [list(path.read_bytes()), path.name, action, kind, data],
        )
    page.locator(".cbir-card").get_by_text(path.name).wait_for()
    wait_until(page, lines)


def test_picture_above_the_size_of_a_message_is_searched(page, tmp_path):
    path, lines = picture_file(tmp_path / "large.png", 2000)
    assert path.stat().st_size > 10 * 1024**2  # at which JupyterLab closes the connection
    page.get_by_label("Your own picture").set_input_files(path)
    page.locator(".cbir-card").get_by_text(path.name).wait_for()
    wait_until(page, lines)


def test_files_that_are_not_pictures_or_too_large_are_refused(page, tmp_path):
    before, path = results(page), tmp_path / "huge.tif"
    with path.open("wb") as file:
        file.truncate(201 * 1024**2)
    page.get_by_label("Your own picture").set_input_files(path)
    page.get_by_text("huge.tif has 201 MB, but the explorer takes at most 200 MB").wait_for()
    path = tmp_path / "text.png"
    path.write_text("no picture")
    page.get_by_label("Your own picture").set_input_files(path)
    page.get_by_text("text.png cannot be read").wait_for()
    page.locator(".cbir[aria-busy=false]").wait_for()
    assert results(page) == before


def test_a_point_on_the_map_is_searched(page):
    page.get_by_role("button", name="map", exact=True).click()
    page.locator(".cbir-map").wait_for()
    assert page.locator(".cbir-map circle").count() == 12
    dot = page.locator(".cbir-map circle").first.bounding_box()
    page.mouse.click(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    wait_until(page, result_lines(search(k=4)))


def test_architectures_are_side_by_side_and_their_results_have_heat_maps(page):
    first_architecture = best_architecture("tiny")
    (other_architecture,) = {"cnn", "whitened"} - {first_architecture}
    page.get_by_role("button", name=other_architecture, exact=True).click()
    page.locator(".cbir-panel").nth(1).wait_for()
    left, right = (panel.bounding_box() for panel in page.locator(".cbir-panel").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    page.get_by_role("button", name="similarity", exact=True).click()
    page.locator("figure[data-query^='data:']").nth(7).wait_for()
    query = page.locator(".cbir-card img")
    image_alone = query.get_attribute("src")
    page.locator(".cbir-tiles figure").nth(5).hover()
    heat_map = page.locator(".cbir-tiles figure").nth(5).get_attribute("data-query")
    assert query.get_attribute("src") == heat_map != image_alone
    page.mouse.move(0, 0)
    assert query.get_attribute("src") == image_alone


def test_a_narrow_explorer_has_one_column_and_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 700, "height": 5000})
    page.wait_for_timeout(500)
    query, panel = (
        page.locator(selector).first.bounding_box() for selector in (".cbir-query", ".cbir-panel")
    )
    assert query["y"] + query["height"] <= panel["y"]
    widths = page.locator(".cbir-app").evaluate("app => [app.scrollWidth, app.clientWidth]")
    assert widths[0] <= widths[1]
