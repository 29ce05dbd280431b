"""The page of a report in a real browser: nothing runs out of the page, no label into another, nothing is fetched.

Skipped where no browser is installed. The browser opens the page in frames of the width of a phone and of a desk, and
a script beside them measures what they show.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from penstock.jobs.prefix_picture import PrefixNode
from penstock.jobs.report_facts import gather
from penstock.jobs.report_page import page
from tests.report_jobs import PREDICTION, MadeRun, add_tree, answer, error, made_job, sample

pytestmark = pytest.mark.browser
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("no browser (chromium or google-chrome) is installed", allow_module_level=True)

LONG = "a_very_long_name_without_any_space_" * 8

MEASURE = """<!doctype html><meta charset="utf-8"><pre id="found"></pre><script>
const measure = (frame) => {
  const page = frame.contentDocument, root = page.documentElement, found = {};
  const all = (what, within) => [...(within || page).querySelectorAll(what)];
  const box = (e) => e.getBoundingClientRect();
  const style = (e) => frame.contentWindow.getComputedStyle(e);
  const shown = (e) => box(e).width > 0 && box(e).height > 0;
  const names = (elements) => elements.map((e) => e.outerHTML.slice(0, 99));
  found.width = root.clientWidth;
  found.scroll_width = root.scrollWidth;
  found.outside = names(all("main *").filter(shown).filter((e) => !e.closest(".wide") && !e.closest(".room"))
    .filter((e) => box(e).left < -1 || box(e).right > root.clientWidth + 1));
  found.overlapping = [];
  for (const plot of all(".plot")) {
    for (const kind of [".x", ".y", ".marked"]) {
      const labels = all(kind, plot);
      labels.forEach((a, i) => labels.slice(i + 1).forEach((b) => {
        const p = box(a), q = box(b);
        if (p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom)
          found.overlapping.push(a.textContent + " / " + b.textContent);
      }));
    }
  }
  found.cut = names(all(".tiles div, section, .name, .headline, h1").filter((e) => e.scrollWidth > e.clientWidth + 1));
  found.plots = all(".plot svg").map((e) => [Math.round(box(e).width), Math.round(box(e).height)]);
  found.small = names(all("main *").filter(shown).filter((e) => e.children.length === 0 && e.textContent.trim()
    && e.tagName !== "title" && parseFloat(style(e).fontSize) < 12));
  found.fetched = frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name);
  found.paper = style(page.body).backgroundColor;
  found.ink = style(page.body).color;
  return found;
};
const found = [], widths = [390, 1440];
const next = () => {
  if (found.length === widths.length) {
    document.getElementById("found").textContent = JSON.stringify(found);
    return;
  }
  const frame = document.createElement("iframe");
  frame.style = `width:${widths[found.length]}px;height:800px;border:0`;
  frame.onload = () => { if (frame.contentDocument.title) { found.push(measure(frame)); next(); } };
  frame.src = "report.html";
  document.body.append(frame);
};
next();
</script>"""


def full_job(folder: Path) -> Path:
    """Every section has something in it, and some of it is long."""
    results = [answer(n, 1 + n * n % 300) for n in range(90)]
    results += [error(90 + n, f"{LONG[: 30 + n]}", f"{LONG} <b>{n}</b>") for n in range(9)]
    samples = [sample(n / 3, n, decode_tokens=n * n, kv_used_tokens=n * 10) for n in range(90)]
    first = MadeRun(samples, results[:90], PREDICTION._replace(rows=100, predicted_s=20, most_s=70), None)
    later = [MadeRun([sample(0.5, 0), sample(2.0, n)], results[90 + n : 91 + n], outcome=None) for n in range(9)]
    return made_job(folder, first, *later, rows=12_345_678, model=LONG)


def measure(folder: Path, html: str, *flags: str) -> list[dict[str, Any]]:
    """What a browser shows at the width of a phone and at that of a desk."""
    assert BROWSER is not None
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "measure.html").write_text(MEASURE)
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'browser'}",
        "--window-size=1600,1200",
        "--virtual-time-budget=5000",
        "--dump-dom",
        *flags,
        (folder / "measure.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stdout[-500:]
    assert match[1], done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(unescape(match[1]))
    return found


@pytest.mark.parametrize(
    ("flag", "paper", "ink"),
    [
        ("--blink-settings=preferredColorScheme=1", "rgb(247, 246, 242)", "rgb(34, 38, 43)"),
        ("--blink-settings=preferredColorScheme=0", "rgb(21, 24, 28)", "rgb(228, 230, 232)"),
    ],
    ids=["light", "dark"],
)
def test_it_fits_a_phone_and_a_desk(tmp_path: Path, flag: str, paper: str, ink: str) -> None:
    path = full_job(tmp_path)
    questions = tuple(PrefixNode(40 + 30 * n, 5 + n, (PrefixNode(60, 5 + n, (), "own"),)) for n in range(12))
    add_tree(path, PrefixNode(0, 378, tuple(PrefixNode(300 + 50 * n, 126, questions) for n in range(3))))
    found = measure(tmp_path, page(gather(path), job=path), flag)
    assert [seen["width"] for seen in found] == [390, 1440]
    for seen in found:
        assert seen["scroll_width"] == seen["width"]
        for trouble in ("outside", "overlapping", "cut", "small", "fetched"):
            assert seen[trouble] == [], trouble
        assert len(seen["plots"]) == 6
        assert all(200 < width < seen["width"] and height >= 80 for width, height in seen["plots"])
        assert (seen["paper"], seen["ink"]) == (paper, ink)
