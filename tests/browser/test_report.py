"""Pages of a report in a browser: accessibility, narrow screens, the dark scheme, and print.

The tests check pages made for them and, if `make report` has written it, the whole report of the
digits.
"""

import io
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from . import made

pytestmark = pytest.mark.browser

MADE = ["architecture", "comparison", "grid", "no results", "search"]
REPORT = ROOT / "reports" / "digits"
PAGES = [*MADE, *(path.name for path in sorted(REPORT.glob("*.html")))]
A4 = 672  # CSS pixels between the margins of a sheet
PHONE, DESK = 400, 1400
LOOKS = [("light", DESK), ("dark", PHONE), ("dark", DESK), ("light", PHONE)]
# All pages have the same style sheet: pages of the report are opened in two looks, which have both
# schemes and both widths.
OPENED = [(name, *look) for name in PAGES for look in (LOOKS if name in MADE else LOOKS[:2])]
MOST_BYTES = 4_000_000
# The window in which the answer is visible without scrolling.
FIRST_SCREEN = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def made_pages(tmp_path_factory) -> dict[str, Path]:
    return made.write(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def made_page(made_pages) -> Path:
    return made_pages["architecture"]


def open_page(browser, path: Path, **settings) -> SimpleNamespace:
    """A page in a new window; requests are recorded, and refused if not to a file."""
    window = browser.new_context(**settings)
    requests, errors = [], []

    def answer(route):
        is_here = route.request.url.startswith("file:")
        route.continue_() if is_here else route.abort()

    window.route("**/*", answer)
    page = window.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    return SimpleNamespace(
        path=path, page=page, requests=requests, errors=errors, close=window.close
    )


@pytest.fixture(scope="module", params=PAGES)
def path(request, made_pages) -> Path:
    return made_pages.get(request.param, REPORT / request.param)


@pytest.fixture(scope="module", params=OPENED, ids=lambda opened: "-".join(map(str, opened)))
def opened(request, browser, made_pages):
    name, scheme, width = request.param
    path = made_pages.get(name, REPORT / name)
    window = open_page(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})
    window.scheme, window.width = scheme, width
    yield window
    window.close()


def violations(page) -> str:
    """The violations that axe-core finds on a page with all its folds open; empty without any."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    report = Axe().run(page)
    # A page to which no rule applies would pass, too.
    assert len(report.response["passes"]) > 10
    return report.generate_report() if report.violations_count else ""


def test_axe_finds_no_violations(opened):
    assert violations(opened.page) == ""


def test_the_page_does_not_scroll_sideways(opened):
    widths = opened.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]


def test_a_page_loads_no_other_file_and_reports_no_errors(opened):
    assert {url.partition(":")[0] for url in opened.requests} <= {"file", "data"}
    assert [url for url in opened.requests if url.startswith("file")] == [opened.path.as_uri()]
    assert opened.errors == []


def test_the_background_follows_the_scheme(opened):
    ink, paper = opened.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (brightness(ink) > brightness(paper)) == (opened.scheme == "dark")


def brightness(colour: str) -> int:
    """The sum of the channels of a colour as browsers write it, such as rgb(1, 2, 3)."""
    return sum(int(channel) for channel in colour.strip("rgb()").split(",")[:3])


def test_contents_lead_to_every_section(opened):
    sections = opened.page.locator("main h2").all_inner_texts()
    links = opened.page.locator(
        ".contents > ol a" if opened.width == DESK else ".contents details a"
    )
    if len(sections) < 2 or opened.path.name == "search.html":
        assert links.count() == 0
        return
    opened.page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert [text for link in links.all() if (text := link.inner_text())] == sections
    for link in links.all():
        target = unquote(link.get_attribute("href")[1:])
        assert opened.page.locator(f'h2[id="{target}"]').count() == 1


def test_contents_are_beside_the_text_on_a_desk_and_folded_on_a_phone(browser, made_page):
    at_desk = open_page(browser, made_page, viewport={"width": DESK, "height": 900}).page
    at_desk.evaluate("scrollTo(0, 1500)")
    box = at_desk.locator(".contents > ol").bounding_box()
    text = at_desk.locator("main").bounding_box()
    assert 0 <= box["y"] < 900
    assert box["x"] + box["width"] <= text["x"] + 1
    at_phone = open_page(browser, made_page, viewport={"width": PHONE, "height": 900}).page
    assert at_phone.locator(".contents summary").is_visible()
    assert not at_phone.locator(".contents a").first.is_visible()


def test_wide_tables_and_figures_scroll_by_keyboard_in_their_box(browser, made_page):
    page = open_page(browser, made_page, viewport={"width": PHONE, "height": 900}).page
    boxes = page.locator(".scroll").all()
    wide_boxes = [box for box in boxes if box.evaluate("box => box.scrollWidth > box.clientWidth")]
    names = [box.get_attribute("aria-label") for box in wide_boxes]
    assert names == ["Table 1: Quality, with 95 % intervals.", "Figure 1"]
    for box in wide_boxes:
        box.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())


def test_every_figure_has_a_text_and_every_table_a_csv(opened):
    opened.page.evaluate(
        "Promise.all([...document.images].map(image => (image.loading = 'eager', image.decode())))"
    )
    for image in opened.page.locator("main img").all():
        assert image.get_attribute("alt").strip()
        assert image.evaluate("image => image.naturalWidth") > 0
    tables = opened.page.locator("main table")
    links = opened.page.locator(".table .copies a:last-child")
    assert links.count() == tables.locator("xpath=ancestor::*[@class='table']").count()
    targets = [
        unquote(link.get_attribute("href"))
        for link in opened.page.locator(".copies a:last-child").all()
    ]
    assert len(set(targets)) == len(targets)
    assert all((opened.path.parent / target).stat().st_size for target in targets)


def test_links_within_a_page_have_targets(opened):
    ids = opened.page.evaluate("[...document.querySelectorAll('[id]')].map(part => part.id)")
    links = opened.page.locator("a[href^='#']").all()
    targets = {unquote(link.get_attribute("href")[1:]) for link in links}
    assert targets <= {*ids}
    assert len(set(ids)) == len(ids)


def bottom(element) -> float:
    box = element.bounding_box()
    return box["y"] + box["height"]


@pytest.mark.parametrize("name", ["comparison", *(["index.html"] if REPORT.exists() else [])])
def test_the_first_screen_shows_only_the_answer(name, browser, made_pages):
    path = made_pages.get(name, REPORT / name)
    page = open_page(browser, path, viewport=FIRST_SCREEN).page
    first = page.locator(".celltag_answer")
    chart, pictures = first.locator("table.bars"), first.locator("figure img")
    assert first.locator("p strong").first.is_visible()
    assert first.locator(".output_markdown p").count() == 2
    assert page.locator("h1").bounding_box()["y"] > 0
    for part in (first.locator(".output_markdown p").last, chart, pictures):
        assert bottom(part) <= FIRST_SCREEN["height"]
    following = page.locator(".celltag_answer ~ .cell").first
    assert following.bounding_box()["y"] >= FIRST_SCREEN["height"] - 1


def test_tables_with_all_digits_are_folded_and_open_by_keyboard(browser, made_pages):
    page = open_page(browser, made_pages["comparison"], viewport=FIRST_SCREEN).page
    fold = page.locator("main .table summary")
    table = page.locator("main .table details table")
    assert not table.is_visible()
    assert "Table 2" in fold.inner_text()
    fold.focus()
    page.keyboard.press("Enter")
    assert table.is_visible()


def test_figures_below_the_first_screen_are_loaded_lazily(browser, made_pages):
    page = open_page(browser, made_pages["comparison"], viewport=FIRST_SCREEN).page
    loading = [image.get_attribute("loading") for image in page.locator("main img").all()]
    assert loading == [None, "lazy"]


def test_a_page_is_small_enough_to_send(path):
    assert path.stat().st_size <= MOST_BYTES


def test_print_has_no_navigation_and_is_black_on_white(browser, made_page):
    page = open_page(browser, made_page, color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    for hidden in (".pages", ".contents", ".skip", ".log", ".copies"):
        assert not any(element.is_visible() for element in page.locator(hidden).all())
    assert page.locator("main h1").is_visible()
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (brightness(ink), brightness(paper)) == (0, 3 * 255)


def test_folded_tables_are_printed(browser, made_pages):
    page = open_page(browser, made_pages["comparison"]).page
    is_visible = "table => table.checkVisibility()"
    assert not page.locator("main details table").evaluate(is_visible)
    page.emulate_media(media="print")
    assert page.locator("main details table").evaluate(is_visible)


def lightness(image) -> float:
    """The mean of the channels of an image on the screen, from 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(image.screenshot()))).mean()


@pytest.mark.parametrize("name", ["architecture", "grid"])
def test_charts_are_dark_in_the_dark_scheme_and_light_in_print(name, browser, made_pages):
    page = open_page(browser, made_pages[name], color_scheme="dark").page
    chart = page.locator("main figure img").first
    in_the_dark = lightness(chart)
    page.emulate_media(media="print", color_scheme="dark")
    assert in_the_dark < 80
    assert lightness(chart) > 200


def test_print_fits_the_width_of_a_sheet(browser, path):
    opened = open_page(browser, path, viewport={"width": A4, "height": 1000})
    opened.page.emulate_media(media="print")
    widths = opened.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    opened.close()
    assert widths[0] <= widths[1]


def test_the_keyboard_reaches_the_content_first(browser, made_page):
    page = open_page(browser, made_page).page
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.inner_text() == "Skip to content"
    assert focused.bounding_box()["x"] >= 0
    focused.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("main :focus").count() == 1
