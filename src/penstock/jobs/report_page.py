"""The report of a job as one HTML page, with everything in it: no script, no file, no address outside of itself.

Owns what the page says and in which order. The numbers are `report_facts.py`'s, the pictures `charts.py`'s.
One idea: the first sentence is the report, for whoever reads no further; each section below answers one question, and
says so plainly where the job file does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock import __version__
from penstock.errors import ConfigError
from penstock.jobs.charts import Bar, Frame, Mark, Portion, bar_rows, histogram, portions
from penstock.jobs.prefix_picture import draw
from penstock.jobs.report_facts import Facts, Failure, Spent, Stretch, optimal, spent, unknown_ends
from penstock.jobs.report_style import STYLE
from penstock.jobs.report_times import composition, kv_residency, progress, sequences
from penstock.jobs.wording import count, percent, plural, runs, safe, spell_s, whole_number

MARK = '<meta name="generator" content="penstock jobs report" />'  # what an earlier report may be known by
MOST_BARS = 40
MOST_NAME = 80
LEAST_TOLD = 0.01  # a smaller part of the time is not worth a place in the headline


def write_page(facts: Facts, path: Path, *, job: Path) -> None:
    """Write the page in one go, over nothing but an earlier report.

    Raises:
        ConfigError: the path is something else, or cannot be written.
    """
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:1000]):
        raise ConfigError(f"{path} is there and is no report of Penstock's; name another file with -o")
    beside = path.with_name(f"{path.name}.part")
    try:
        beside.write_text(page(facts, job=job), encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"the report {path} cannot be written: {error.strerror}") from error


def page(facts: Facts, *, job: Path) -> str:
    """The whole page."""
    cards = (
        _time_spent(facts),
        _card("Predicted against actual", "Rows finished over the time that the engine ran.", progress(facts)),
        _card(
            "What the steps were made of",
            "Tokens a second that were computed, and those that were found in the prefix cache instead.",
            composition(facts),
        ),
        _card("KV memory", "What its blocks hold, in shares of all.", kv_residency(facts), style="half"),
        _card("Sequences", "Running at once, and waiting in the engine.", sequences(facts), style="half"),
        _prefixes(facts),
        _answers(facts),
        _errors(facts),
        _runs(facts),
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8" />{MARK}'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\" />"
        f"<title>{safe(facts.name)}: job report</title><style>{STYLE}</style></head><body><main>"
        f'<header><p class="kind">Job report</p><h1>{safe(facts.name)}</h1>'
        f'<p class="headline">{headline(facts)}</p>{_below(facts)}</header>{_tiles(facts)}'
        f'<div class="cards">{"".join(cards)}</div>{_footer(facts, job)}</main></body></html>\n'
    )


# --- the top ----------------------------------------------------------------------------------------------------


def headline(facts: Facts) -> str:
    """The report in a sentence or two, as HTML."""
    done, rows = facts.totals.done, facts.about.rows
    what = plural(rows, "row") if done == rows else f"{count(done)} of {plural(rows, 'row')}"
    if not facts.engine_s:
        return f"<b>{what}</b>; how long they took was not recorded."
    return f"<b>{what}</b> in <b>{spell_s(facts.engine_s)}</b>{_how_well(facts)}"


def _how_well(facts: Facts) -> str:
    """The second half of the headline: the share of optimal and where the rest went, or where all of it went."""
    parts, whole = spent(facts), facts.engine_s
    others = sorted((p for p in parts if not p.is_optimal), key=lambda part: -part.seconds)
    told = [p for p in others if p.seconds >= LEAST_TOLD * whole][:2]
    least_s = optimal(facts).seconds
    if least_s is not None:
        went = " and ".join(f"{percent(p.seconds, whole)} to {p.name.lower()}" for p in told).replace(
            " to ", " went to ", 1
        )
        share = f", <b>{percent(least_s, whole)}</b> of what this machine could do"
        return f"{share}; {went}." if went else f"{share}."
    went = " and ".join(f"{percent(p.seconds, whole)} {p.name.lower()}" for p in told)
    return f": {went}." if went else "."


def _below(facts: Facts) -> str:
    about, least = facts.about, optimal(facts)
    said = [facts.state.capitalize()]
    if facts.load_s:
        planning = f" and {spell_s(facts.plan_s)} of planning" if facts.plan_s else ""
        said.append(f"{spell_s(facts.load_s)} of loading{planning} not counted")
    said.append(f"model {about.model if len(about.model) <= MOST_NAME else about.model[: MOST_NAME - 1] + '…'}")
    text = safe(" · ".join([*said, f"begun {_moment(about.created)}"]))
    unknown = f'<p class="quiet">The share of optimal is not known: {safe(least.why_not)}.</p>' if least.why_not else ""
    return f'<p class="quiet">{text}</p>{unknown}'


def _moment(created: str) -> str:
    """A time in ISO 8601 for people: 2026-11-20 19:00 UTC."""
    return created[:16].replace("T", " ") + (" UTC" if created.endswith("+00:00") else "")


def _tiles(facts: Facts) -> str:
    totals = facts.totals
    tiles = [
        ("Answered", count(totals.done - totals.failed), f"of {plural(facts.about.rows, 'row')}"),
        ("Failed", count(totals.failed), percent(totals.failed, totals.done) + " of those done"),
        ("Prompt tokens", count(totals.prompt_tokens), f"{percent(totals.cached_tokens, totals.prompt_tokens)} reused"),
        ("Output tokens", count(totals.output_tokens), _a_second(facts)),
        ("Most KV in use", *_most_kv(facts)),
        ("Preemptions", count(facts.sum("preemptions")), f"in {plural(facts.sum('steps'), 'step')}"),
    ]
    cells = "".join(
        f'<div><dt>{name}</dt><dd>{safe(number)}</dd><dd class="quiet">{safe(below)}</dd></div>'
        for name, number, below in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _a_second(facts: Facts) -> str:
    return f"{count(facts.sum('output_tokens') / facts.engine_s)} a second" if facts.engine_s else "speed not recorded"


def _most_kv(facts: Facts) -> tuple[str, str]:
    seen = [sample for s in facts.stretches for sample in s.history.samples if sample.kv_total_tokens]
    if not seen:
        return "-", "not recorded"
    most = max(seen, key=lambda sample: sample.kv_used_tokens / sample.kv_total_tokens)
    return percent(most.kv_used_tokens, most.kv_total_tokens), f"of {plural(most.kv_total_tokens, 'token')}"


# --- the sections -----------------------------------------------------------------------------------------------


def _card(title: str, lead: str, body: str, *, style: str = "full") -> str:
    return f'<section class="{style}"><h2>{safe(title)}</h2><p class="lead">{safe(lead)}</p>{body}</section>'


def _quiet(text: str) -> str:
    return f'<p class="quiet">{safe(text)}</p>'


def _time_spent(facts: Facts) -> str:
    if not facts.engine_s:
        return _card("Where the time went", "", _quiet("Not known: the runs of this job recorded no timeline."))
    whole = facts.engine_s
    parts = [part for part in spent(facts) if part.seconds > 0]
    drawn = portions([_portion(part, whole) for part in parts], title="where the time went")
    items = "".join(_part_line(part, whole) for part in parts)
    known = f"{spell_s(whole)} of engine time, without loading and planning."
    return _card("Where the time went", known, f'{drawn}<ul class="parts">{items}</ul>{_not_known(facts)}')


def _style_of(part: Spent) -> str:
    if part.is_optimal:
        return "optimal"
    word = part.name.lower().split()[0]
    return {"steps": "beyond", "not": "unknown"}.get(word, word)


def _portion(part: Spent, whole: float) -> Portion:
    return Portion(part.name, _style_of(part), part.seconds, f"{spell_s(part.seconds)}, {percent(part.seconds, whole)}")


def _part_line(part: Spent, whole: float) -> str:
    return (
        f'<li><i class="{_style_of(part)}"></i><span>{safe(part.name)}<small>{safe(part.meaning)}</small></span>'
        f'<span class="number">{percent(part.seconds, whole)}<small>{spell_s(part.seconds)}</small></span></li>'
    )


def _not_known(facts: Facts) -> str:
    died = unknown_ends(facts)
    if not died:
        return ""
    return _quiet(f"{runs(died)} died: what was done after the last sample is not on the disk, and not counted here.")


def _prefixes(facts: Facts) -> str:
    title, totals = "Prefixes that rows share", facts.totals
    if facts.tree is None:
        cached = f"{count(totals.cached_tokens)} of {plural(totals.prompt_tokens, 'prompt token')}"
        return _card(
            title, "", _quiet(f"This job began without a plan, so its tree is not known. From the cache came {cached}.")
        )
    lead = (
        "As wide as rows are many, as tall as tokens: what stands above is computed once for all below it. "
        "The numbers are tokens x rows."
    )
    keys = "".join(
        f'<span class="key node-key {style}">{name}</span>'
        for name, style in (("shared", "prefill"), ("of single rows", "own-key"), ("smaller branches", "unknown"))
    )
    return _card(title, lead, f'<div class="legend">{keys}</div>{draw(facts.tree)}')


def _answers(facts: Facts) -> str:
    title = "How long the answers are"
    if not facts.lengths:
        return _card(title, "", _quiet("No row has an answer."), style="half")
    number = sum(rows for _, rows in facts.lengths)
    middle, most_of = _quantile(facts.lengths, 0.5), _quantile(facts.lengths, 0.95)
    longest = facts.lengths[-1][0]
    lead = f"Half have at most {plural(middle, 'token')}, 95 % at most {count(most_of)}, the longest {count(longest)}."
    bars = _bars(facts.lengths)
    frame = Frame(
        bars[-1].end, max(bar.height for bar in bars), write_x=whole_number, write_y=whole_number, is_time=False
    )
    drawn = histogram(frame, bars, title=f"lengths of {number} answers", marks=[Mark(middle, "half")])
    return _card(title, lead, drawn, style="half")


def _quantile(lengths: Sequence[tuple[int, int]], share: float) -> int:
    """The length that this share of the answers does not exceed."""
    left = share * sum(rows for _, rows in lengths)
    for length, rows in lengths:
        left -= rows
        if left <= 0:
            return length
    return lengths[-1][0]


def _bars(lengths: Sequence[tuple[int, int]]) -> list[Bar]:
    """At most MOST_BARS bars of equal, whole width, from 0 to the longest."""
    longest = lengths[-1][0]
    width = -(-(longest + 1) // MOST_BARS)
    heights = [0] * (longest // width + 1)
    for length, rows in lengths:
        heights[length // width] += rows
    return [_bar(place * width, width, rows) for place, rows in enumerate(heights)]


def _bar(start: int, width: int, rows: int) -> Bar:
    lengths = f"{start}" if width == 1 else f"{start} to {start + width - 1}"
    return Bar(start, start + width, rows, f"{lengths} tokens: {plural(rows, 'row')}")


def _errors(facts: Facts) -> str:
    if not facts.failures:
        return _card("Errors by kind", "", _quiet("No row failed."), style="half")
    first = {failure.code: failure for failure in facts.failures}
    parts = [Portion(failure.code, "error", failure.rows, count(failure.rows)) for failure in facts.failures]
    lead = f"{plural(facts.totals.failed, 'row')} failed; of each kind, what the first one says."
    note: Callable[[Portion], str] = lambda part: _first_message(first[part.name])  # noqa: E731
    return _card("Errors by kind", lead, bar_rows(parts, note=note), style="half")


def _first_message(failure: Failure) -> str:
    where = "" if failure.line is None else f"line {failure.line}: "
    return f'<span class="note">{safe(where + failure.message, most=240)}</span>'


def _runs(facts: Facts) -> str:
    names = ("Run", "Began", "Ended", "Rows", "Time", "Loading", "Planning", "Steps", "Preempted", "Samples")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(f"<tr>{_run_row(facts, stretch)}</tr>" for stretch in facts.stretches)
    if not rows:
        return _card("Runs", "", _quiet("No run got as far as computing."))
    return _card("Runs", "One behind the other; the time between them does not count.", _table(head, rows))


def _table(head: str, rows: str) -> str:
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _run_row(facts: Facts, stretch: Stretch) -> str:
    run, history, last = stretch.run, stretch.history, stretch.last
    is_now = stretch is facts.stretches[-1] and facts.state == "running"
    cells = (
        str(run.run),
        _moment(run.started),
        run.outcome or ("runs now" if is_now else "died"),
        count(run.done),
        spell_s(last.at_s) if last else "-",
        "-" if history.load_s is None else spell_s(history.load_s),
        "-" if history.plan_s is None else spell_s(history.plan_s),
        count(last.steps) if last else "-",
        count(last.preemptions) if last else "-",
        count(len(history.samples)),
    )
    return "".join(f"<td>{safe(cell)}</td>" for cell in cells)


def _footer(facts: Facts, job: Path) -> str:
    signatures = [", ".join(f"{key} {value}" for key, value in sorted(found.items())) for found in facts.numerics]
    exact = (
        "Every answer depends on its row alone, to the bit."
        if facts.row_exact
        else ("Not row-exact: near-ties may differ from a run that computes everything anew.")
    )
    lines = [
        f"From {job.name}, the job {facts.fingerprint[:16]}, made by Penstock {facts.about.version}; "
        f"page by Penstock {__version__}.",
        exact,
        *(f"Numerics: {signature}." for signature in signatures),
    ]
    return f"<footer>{''.join(f'<p>{safe(line, most=4000)}</p>' for line in lines)}</footer>"
