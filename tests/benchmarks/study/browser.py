"""A real browser without a window: what a page looks like and what it complains about."""

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
  const labels = [...page.querySelectorAll("svg")].flatMap(svg => { const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter(one => {
      const own = one.getBoundingClientRect();
      return own.width > 0 && (own.right > box.right + 2 || own.left < box.left - 2); })
    .map(one => one.textContent); });
  Object.assign(report, {
    width, content: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    wide: wide.slice(0, 5).map(one => one.outerHTML.slice(0, 120)), labels: labels.slice(0, 5),
    drawings: page.querySelectorAll("svg").length,
    drawn: [...page.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().height > 20).length,
    scrolls: scrolling.filter(one => one.scrollWidth > one.clientWidth).length,
    colours: new Set([...page.querySelectorAll("td.cell")].map(one => view.getComputedStyle(one).backgroundColor)).size,
    smallest: Math.min(...[...page.querySelectorAll("main *")].filter(one => one.childElementCount == 0
      && one.textContent.trim() && one.getBoundingClientRect().height > 0).map(one => {
        const svg = one.ownerSVGElement;
        const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
        return scale * parseFloat(view.getComputedStyle(one).fontSize); })),
    text: page.body.innerText.length, scripts: page.scripts.length, ran: typeof view.ran,
  });
  document.body.dataset.report = JSON.stringify(report);
};
</script>
"""


@dataclass(frozen=True)
class Browser:
    """A browser's program, and a folder for what it writes."""

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
        """What the page makes the browser write to its console."""
        done = self._run("--virtual-time-budget=3000", "--dump-dom", page.as_uri())
        assert "</html>" in done.stdout
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def measure(self, page: Path, width: int, *, opened: bool = True) -> dict[str, object]:
        """Sizes of the page in a frame of `width` pixels; `opened`: with all that can be folded out."""
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
        """Width and height of a picture of the page, and how many colours it has."""
        target = self.folder / f"page-{width}.png"
        self._run(f"--window-size={width},{height}", f"--screenshot={target}", page.as_uri())
        with Image.open(target) as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
            return (*picture.size, len(colours))


def find_browser(folder: Path) -> Browser:
    """A browser, or a skipped test that says why."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    return Browser(program, folder)
