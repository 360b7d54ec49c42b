"""One headless browser for all tests of this folder, or the reason why there is none."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A container has no sandbox and no GPU; the rest keeps a fresh Chromium from calling home.
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LACKING = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def browser(request):
    """Chromium, as Playwright drives it; without either, tests that ask for it are skipped."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        _skip(request.config, "no Chromium: install Debian's package chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip(request.config, "no Playwright: `make test-browser` installs it")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=FLAGS, ignore_default_args=["--headless"]
        )
        yield chromium
        chromium.close()


def _skip(config: pytest.Config, reason: str) -> None:
    config.stash[LACKING] = reason
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Report it in a section of its own, since a run in which all tests are skipped passes."""
    if reason := config.stash.get(LACKING, ""):
        terminalreporter.section("NOTHING WAS CHECKED IN A BROWSER", sep="!", red=True)
        terminalreporter.line(reason, red=True)
