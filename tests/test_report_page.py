"""The page of a report: well-formed, self-contained, with the store's numbers, and harmless whatever the rows say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from penstock.errors import ConfigError
from penstock.jobs.prefix_picture import PrefixNode
from penstock.jobs.report_facts import Facts, gather
from penstock.jobs.report_page import headline, page, write_page
from penstock.jobs.timeline import Prediction
from tests.job_runs import ToyModel, job_at, row, run_job, write_rows
from tests.report_jobs import PREDICTION, MadeRun, add_tree, answer, error, made_job, resumed_job, sample, whole_job

TREE = PrefixNode(40, 4, (PrefixNode(60, 3, (PrefixNode(5, 3, (), "own"),)), PrefixNode(30, 1, (), "own")))
HOSTILE = "</p><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> & \x00\x1b[31m \ud800 \u202e"


class Seen(HTMLParser):
    """The page as a browser's parser sees it: every tag opened and closed in order, its text, its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data.replace("\u00a0", " "))


def see(html: str) -> Seen:
    seen = Seen()
    seen.feed(html)
    seen.close()
    assert seen.open == []
    return seen


def words(html: str) -> str:
    return " ".join(" ".join(see(html).text).split())


def first_sentence(facts: Facts) -> str:
    return words(headline(facts))


def the_jobs(folder: Path) -> list[tuple[str, Path]]:
    """Jobs of every shape."""
    makers: dict[str, Callable[[Path], Path]] = {
        "whole": whole_job,
        "resumed": resumed_job,
        "no rows": lambda f: made_job(f, MadeRun([sample(0.0, 0)]), rows=0),
        "not begun": lambda f: made_job(f, rows=3),
        "one row": lambda f: made_job(f, MadeRun([sample(0.5, 1)], [answer(0, 1)]), rows=1),
        "only errors": lambda f: made_job(f, MadeRun([sample(0.1, 1)], [error(0, "internal", HOSTILE)]), rows=1),
        "no time": lambda f: made_job(f, MadeRun(results=[answer(0)]), rows=1),
        "no KV": lambda f: made_job(f, MadeRun([sample(1.0, 1, kv_total_tokens=0)], [answer(0)]), rows=1),
        "said nothing": lambda f: whole_job(f, Prediction(4, 0.0, 0.0, 0.0, 0.0, 0, 0, 0)),
    }
    found: list[tuple[str, Path]] = []
    for name, make in makers.items():
        (folder / name).mkdir()
        found.append((name, make(folder / name)))
    return found


def test_every_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    for name, path in the_jobs(tmp_path):
        for tree in (None, TREE):
            if tree is not None:
                add_tree(path, tree)
            html = page(gather(path), job=path)
            assert ElementTree.fromstring(html.removeprefix("<!doctype html>")) is not None, name
            seen = see(html)
            assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(seen.tags), name
            names = {attribute for attribute, _ in seen.attributes}
            assert not {"src", "href", "srcset", "action", "xlink:href"} & names, name
            assert not [attribute for attribute in names if attribute.startswith("on")], name
            if name != "only errors":  # whose row names an address: text, which the tags and attributes show
                assert not re.search(r"https?:|url\(|@import|//", html), name
            assert "nan" not in re.findall(r"[\w.]+", html), name


def test_the_numbers_on_the_page_are_the_stores(tmp_path: Path) -> None:
    path = whole_job(tmp_path)
    text = words(page(gather(path), job=path))
    for said in (
        "Answered 3 of 4 rows",
        "Failed 1 25 % of those done",
        "Prompt tokens 300 25 % reused",
        "Output tokens 35 5 a second",
        "Most KV in use 10 % of 1,000 tokens",
        "Preemptions 0 in 100 steps",
        "Finished · 2.5 s of loading and 500 ms of planning not counted · model toy · begun 2026-11-20 19:00 UTC",
        "In all: 300 prefill (68 %), 40 decode (9.1 %), 100 reused from the prefix cache (23 %).",
        "Predicted 8 s (between 6 s and 12 s) for 4 rows; it took 10 s, 25 % more.",
        "Half have at most 10 tokens, 95 % at most 20, the longest 20.",
        "invalid_field 1 line 4: a <b>bold</b> claim & more",
        "1 2026-11-20 19:00 UTC finished 4 10 s 2.5 s 500 ms 100 0 3",
    ):
        assert said in text


def test_the_first_sentence_says_how_well_it_went(tmp_path: Path) -> None:
    sentence = "4 rows in 10 s , 50 % of what this machine could do; 10 % went to steps beyond the limits and 10 % to "
    assert first_sentence(gather(whole_job(tmp_path))).startswith(sentence)


def test_without_a_prediction_the_first_sentence_says_where_all_of_it_went(tmp_path: Path) -> None:
    path = whole_job(tmp_path, None)
    assert first_sentence(gather(path)) == "4 rows in 10 s : 60 % computing and 10 % committing."
    text = words(page(gather(path), job=path))
    assert "The share of optimal is not known: no prediction was recorded." in text
    assert "No prediction was recorded for this job, so this is only what happened." in text


def test_a_job_that_is_not_done_says_how_far_it_is(tmp_path: Path) -> None:
    path = made_job(tmp_path, MadeRun([sample(1.0, 1)], [answer(0)], outcome=None), rows=2000)
    assert first_sentence(gather(path)).startswith("1 of 2,000 rows in 1 s")
    assert first_sentence(gather(made_job(_in(tmp_path, "new"), rows=3))) == (
        "0 of 3 rows ; how long they took was not recorded."
    )


def _in(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_a_resumed_job_shows_each_run_behind_the_other(tmp_path: Path) -> None:
    path = resumed_job(tmp_path)
    html = page(gather(path), job=path)
    text = words(html)
    assert "Run 1: predicted 8 s (between 6 s and 12 s) for 4 rows; it finished 2 of them in 4 s." in text
    assert "Runs 2 to 3: no prediction was recorded." in text
    assert "Run 1 died: what was done after the last sample is not on the disk" in text
    assert '<span class="marked" style="left:33.33%">run 2</span>' in html  # of the 12 s that were predicted
    [line] = re.findall(r'<path class="line actual" d="M([^"]*)"', html)
    points = [tuple(map(float, point.split())) for point in line.split(" L")]
    assert [round(12 * x / 1000, 3) for x, _ in points] == [0, 2, 4, 7, 10]
    heights = [400 - y for _, y in points]
    assert [round(4 * y / heights[-1]) for y in heights] == [0, 1, 2, 3, 4]


def test_the_kv_memory_is_drawn_as_running_sequences_kept_prefixes_and_what_is_free(tmp_path: Path) -> None:
    path = whole_job(tmp_path)
    html = page(gather(path), job=path)
    for style, top in (("kv", 90), ("kept", 70), ("free", 0)):  # at the last sample 10 % and 20 % of it, and the rest
        [outline] = re.findall(rf'<path class="fill {style}" d="M([^"]*) Z"', html)
        points = [tuple(map(float, point.split())) for point in outline.split(" L")]
        assert min(y for x, y in points if x == 1000 and y < 400) == 4 * top
        assert f'<span class="key area {style}">' in html
    assert "not recorded" not in words(html)


def test_kept_prefixes_that_an_older_job_did_not_record_are_not_drawn_as_free(tmp_path: Path) -> None:
    old, new = sample(1.0, 1, kv_kept_tokens=None), sample(1.0, 1)
    path = made_job(tmp_path, MadeRun([old], [answer(0)], outcome=None), MadeRun([new], [answer(1)]), rows=2)
    html = page(gather(path), job=path)
    assert "Run 1: how much kept prefixes took was not recorded." in words(html)
    assert '<path class="fill kv"' in html
    assert '<path class="fill free"' not in html


def test_what_rows_and_names_say_does_nothing(tmp_path: Path) -> None:
    results = [error(0, "internal", HOSTILE)]
    path = made_job(tmp_path, MadeRun([sample(1.0, 1)], results), rows=1, model=HOSTILE)
    html = page(gather(path), job=path.with_name(f"{HOSTILE[:20].replace('/', '')}.job"))
    html.encode()
    assert "script" not in see(html).tags
    assert "<script" not in html
    assert "</p><script>alert('x')</script>" in words(html)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", html)


def test_a_very_long_message_is_cut(tmp_path: Path) -> None:
    path = made_job(tmp_path, MadeRun([sample(1.0, 1)], [error(0, "internal", "x" * 10**6)]), rows=1)
    assert len(page(gather(path), job=path)) < 40_000


def test_the_tree_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    path = whole_job(tmp_path)
    assert (
        "This job began without a plan, so its tree is not known. From the cache came 75 of 300 prompt tokens."
        in words(page(gather(path), job=path))
    )
    add_tree(path, TREE)
    html = page(gather(path), job=path)
    assert "60 tokens shared by 3 rows" in html
    assert "without a plan" not in html


def test_a_run_of_many_samples_is_a_small_page(tmp_path: Path) -> None:
    samples = [sample(n / 100, 0) for n in range(1000)]
    runs = [MadeRun(samples, outcome=None) for _ in range(10)]
    path = made_job(tmp_path, *runs, rows=5)
    assert len(page(gather(path), job=path)) < 300_000


def test_a_page_goes_over_an_earlier_report_and_nothing_else(tmp_path: Path) -> None:
    path = whole_job(tmp_path)
    report = tmp_path / "report.html"
    write_page(gather(path), report, job=path)
    write_page(gather(path), report, job=path)
    assert see(report.read_text()).text
    for other in (path, tmp_path):
        with pytest.raises(ConfigError, match="is no report of Penstock's"):
            write_page(gather(path), other, job=path)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(gather(path), tmp_path / "no" / "report.html", job=path)
    assert {found.name for found in tmp_path.iterdir() if "job-" not in found.name} == {"out.jsonl.job", "report.html"}


def test_the_report_of_a_job_that_ran(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row(f"r{n}", "p" * (n + 1), max_tokens=1 + n % 5) for n in range(40)] + ["{"])
    summary = run_job(job_at(tmp_path), ToyModel())
    path = job_at(tmp_path).path
    text = words(page(gather(path), job=path))
    assert f"Answered {summary.done - summary.failed} of {summary.rows} rows" in text
    assert f"Output tokens {summary.output_tokens}" in text
    assert f"Prompt tokens {summary.prompt_tokens}" in text
    assert f"in {summary.steps} steps" in text
    assert "invalid_json 1 line 41:" in text
    assert "0 to 40 rows, left to right" in text  # the tree of the plan, which is gone by now
    assert json.loads(job_at(tmp_path).errors.read_text())["error"]["message"][:20] in text


def test_a_prediction_without_a_curve_is_a_straight_line(tmp_path: Path) -> None:
    path = whole_job(tmp_path, PREDICTION._replace(curve=()))
    html = page(gather(path), job=path)
    [line] = re.findall(r'<path class="line predicted" d="M([^"]*)"', html)
    assert line.count(" L") == 1
