"""HTML report in a real browser, at phone and desktop width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

from benchmarks.override_resistance.run_report.build import build_comparison
from benchmarks.override_resistance.run_report.html import render_comparison
from tests.benchmarks.study.browser import Browser, find_browser
from tests.benchmarks.study.drawn import study
from tests.benchmarks.study.test_html import HOSTILE, spoiled

WIDTHS = (360, 390, 1280)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(browser: Browser) -> Path:
    """Fourteen mechanisms, three seeds, two sizes."""
    path = browser.folder / "study.html"
    path.write_text(render_comparison(build_comparison(study())), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_the_screen(browser: Browser, page: Path, width: int) -> None:
    """The page never scrolls sideways; wide tables do so within their own container."""
    found: Any = browser.measure(page, width)
    assert found["errors"] == []
    assert found["width"] == width
    assert found["content"] <= width, f"the page is {found['content']} wide: {found['wide']}"
    assert found["wide"] == []
    assert found["images"] == found["drawn"] == 2 * (1 + 4)
    assert found["colours"] > 20, "the heatmap has no colours"
    assert (found["scrolls"] > 0) == (width < 1000)
    assert found["smallest"] >= (9.0 if width < 1000 else 10.0), "too small to read"


@pytest.mark.parametrize(
    ("text", "width"),
    [("<script>ran = 1</script><img src=x onerror='ran = 1'>", 1280), *((text, 390) for text in HOSTILE[-3:])],
    ids=["script", "invisible", "endless", "heap"],
)
def test_page_hostile_text_is_inert_and_fits(browser: Browser, text: str, width: int) -> None:
    path = browser.folder / "hostile.html"
    results = spoiled(study(("plain", "channel"), (0,), ("0.2M",)), text)
    path.write_text(render_comparison(build_comparison(results)), encoding="utf-8")
    found: Any = browser.measure(path, width)
    assert (found["scripts"], found["ran"]) == (0, "undefined")
    assert found["content"] <= width, f"{text[:20]!a} makes the page {found['content']} wide: {found['wide']}"
    assert browser.complaints(path) == []


def test_page_writes_no_console_message(browser: Browser, page: Path) -> None:
    assert browser.complaints(page) == []


def test_console_messages_are_read(browser: Browser) -> None:
    """Guards the test above: a violation of the policy is reported."""
    path = browser.folder / "loud.html"
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    path.write_text(f"<!doctype html><html>{policy}<body><img src='x.png'></body></html>", encoding="utf-8")
    assert len(browser.complaints(path)) == 1


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_screenshot_has_many_colours(browser: Browser, page: Path, width: int, height: int) -> None:
    found = browser.screenshot(page, width, height)
    assert found[1] == height
    assert found[0] >= width, "some browsers have a least width"
    assert found[2] > 30, "a page with text has many shades"
