"""Headless browser: layout of a page, console messages and screenshots."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

import pytest
from PIL import Image  # comes with matplotlib

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

MEASURE = """
<script>
addEventListener("error", event => report.errors.push(String(event.message)));
const report = {errors: []};
onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, view = frame.contentWindow;
  if (OPEN) page.querySelectorAll("details").forEach(one => one.open = true);
  const width = page.documentElement.clientWidth;
  const inside = one => { for (let up = one.parentElement; up; up = up.parentElement)
    if (["auto", "scroll", "hidden"].includes(view.getComputedStyle(up).overflowX)) return true; return false; };
  const wide = [...page.body.querySelectorAll("*")].filter(one => {
    const box = one.getBoundingClientRect();
    return box.width > 0 && (box.right > width + 1 || box.left < -1) && !inside(one); });
  const scrolling = [...page.querySelectorAll(".wide")];
  Object.assign(report, {
    width, content: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    wide: wide.slice(0, 5).map(one => one.outerHTML.slice(0, 120)),
    images: page.images.length,
    drawn: [...page.images].filter(one => one.naturalWidth > 0 && one.getBoundingClientRect().height > 20).length,
    scrolls: scrolling.filter(one => one.scrollWidth > one.clientWidth).length,
    colours: new Set([...page.querySelectorAll("td.cell")].map(one => view.getComputedStyle(one).backgroundColor)).size,
    smallest: Math.min(...[...page.querySelectorAll("main *")].filter(one => one.childElementCount == 0
      && one.textContent.trim() && one.getBoundingClientRect().height > 0).map(one =>
        parseFloat(view.getComputedStyle(one).fontSize))),
    text: page.body.innerText.length, scripts: page.scripts.length, ran: typeof view.ran,
  });
  document.body.dataset.report = JSON.stringify(report);
};
</script>
"""


@dataclass(frozen=True)
class Browser:
    """Program of a browser, and a folder for its files."""

    program: str
    folder: Path

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            self.program,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
            f"--user-data-dir={self.folder / 'profile'}",
            *("--enable-logging=stderr", "--v=0"),
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    def complaints(self, page: Path) -> list[str]:
        """Return the console messages of a page."""
        done = self._run("--virtual-time-budget=3000", "--dump-dom", page.as_uri())
        assert "</html>" in done.stdout
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def measure(self, page: Path, width: int, *, opened: bool = True) -> dict[str, object]:
        """Return sizes of the page in a frame of `width` pixels, with all details open if `opened`."""
        source = escape(page.read_text(encoding="utf-8"), quote=True)
        frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{source}"></iframe>'
        script = MEASURE.replace("OPEN", "true" if opened else "false")
        harness = self.folder / f"measure-{width}.html"
        harness.write_text(f'<!doctype html><meta charset="utf-8">{script}<body>{frame}</body>', encoding="utf-8")
        done = self._run(
            f"--window-size={max(width, 600)},1000", "--virtual-time-budget=8000", "--dump-dom", harness.as_uri()
        )
        found = re.search(r'data-report="([^"]*)"', done.stdout)
        assert found is not None, done.stderr[-2000:]
        report: dict[str, object] = json.loads(unescape(found.group(1)))
        return report

    def screenshot(self, page: Path, width: int, height: int) -> tuple[int, int, int]:
        """Return width, height and number of colours of a screenshot."""
        target = self.folder / f"page-{width}.png"
        self._run(f"--window-size={width},{height}", f"--screenshot={target}", page.as_uri())
        with Image.open(target) as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
            return (*picture.size, len(colours))


def find_browser(folder: Path) -> Browser:
    """Return a browser, or skip the test."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    return Browser(program, folder)
