"""An `Outlook` as people read it at midnight, and as programs do. Pure: lines and JSON out of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from penstock.config import format_bytes
from penstock.disturbance import describe_disturbance
from penstock.jobs.deadline import Reach
from penstock.jobs.outlook import Outlook
from penstock.jobs.progress import duration
from penstock.profile import Profile


def describe_outlook(outlook: Outlook, profile: Profile, reach: Reach | None = None) -> list[str]:
    """What will happen, how sure that is, whether it fits before a deadline, and what would help."""
    fit = [("deadline", reach.describe())] if reach is not None else []
    lines = [*_time(outlook, profile), *fit, *_rows(outlook), *_cost(outlook)]
    width = max(len(name) for name, _ in lines)
    return [*(f"{name:<{width}}  {text}" for name, text in lines), "", *_advice(outlook)]


def _time(outlook: Outlook, profile: Profile) -> Iterator[tuple[str, str]]:
    found = outlook.forecast
    yield "time", f"about {duration(outlook.seconds)}: from {duration(outlook.low_s)} to {duration(outlook.high_s)}"
    lengths = "answers have the lengths that the rows ask for"
    if not outlook.is_certain:
        lengths = "answers may end early or late, and that is most of the range"
    simulated = "all rows were simulated"
    if found.simulated_rows < found.rows:
        simulated = f"{found.simulated_rows} of {found.rows} rows were simulated, from start, middle and end"
    yield "", f"{lengths}; {simulated}"
    reading = f"{duration(outlook.reading_s)} of reading and planning"
    yield "", f"by the profile of {profile.measured_at[:10]}; {reading} is in it, loading the model is not"
    disturbed = describe_disturbance(profile)
    if disturbed is not None:
        yield "", disturbed
    least, share = found.optimal_s, outlook.optimal_share
    if least is None or share is None:
        yield "optimal", "not known: the limits of this machine were not measured"
    else:
        yield "optimal", f"{duration(least)} whatever the plan, so {share:.0%} of what this machine can do is expected"
    parts = found.simulated.parts
    whole = sum(parts.values()) or 1.0
    # A part that is next to nothing may come out below it, as a difference of two simulations.
    yield "spent on", ", ".join(f"{name} {max(0.0, seconds) / whole:.0%}" for name, seconds in parts.items())


def _rows(outlook: Outlook) -> Iterator[tuple[str, str]]:
    totals, found = outlook.totals, outlook.forecast.simulated
    equal = f"; {totals.equal_rows:,} are equal to others and computed once" if totals.equal_rows else ""
    yield "rows", f"{totals.rows:,}; {totals.bad_rows:,} cannot be answered{equal}"
    yield (
        "prompts",
        f"{totals.prompt_tokens:,} tokens, {totals.distinct_tokens:,} of them distinct; "
        f"{outlook.hit_share:.0%} of them will be found in the cache",
    )
    yield "answers", f"{found.output_tokens:,} tokens expected"
    yield "steps", f"{found.steps:,}, {found.preemptions:,} preemptions"
    share = outlook.kv_bytes / outlook.kv_memory_bytes
    yield (
        "KV",
        f"{format_bytes(outlook.kv_bytes)} needed at once, {share:.0%} of {format_bytes(outlook.kv_memory_bytes)}",
    )
    if found.failed:
        yield "", f"{found.failed:,} rows do not fit the KV memory and will be error rows"


def _cost(outlook: Outlook) -> Iterator[tuple[str, str]]:
    if outlook.energy_kwh is not None:
        yield "energy", f"{outlook.energy_kwh:.3g} kWh"
    if outlook.money is not None:
        yield "money", f"{outlook.money:.2f}"


def _advice(outlook: Outlook) -> Iterator[str]:
    if not outlook.advice:
        yield "Nothing that was tried would save more than 1 %."
        return
    yield "What would help most:"
    for number, advice in enumerate(outlook.advice, 1):
        yield f"{number}. saves {duration(advice.saved_s)} ({advice.saved_share:.0%}): {advice.text}"


def outlook_as_json(outlook: Outlook, profile: Profile, reach: Reach | None = None) -> dict[str, object]:
    """Every number of it."""
    found = outlook.forecast
    times = {name: getattr(outlook, name) for name in ("seconds", "low_s", "high_s", "reading_s")}
    return {
        **outlook.totals._asdict(),
        **times,
        **{name: value for name, value in asdict(found.simulated).items() if name not in ("seconds", "ends_s")},
        "deadline": None if reach is None else reach.as_json(),
        "optimal_s": found.optimal_s,
        "optimal_share": outlook.optimal_share,
        "is_certain": outlook.is_certain,
        "simulated_rows": found.simulated_rows,
        "hit_share": outlook.hit_share,
        "kv_bytes": outlook.kv_bytes,
        "kv_memory_bytes": outlook.kv_memory_bytes,
        "money": outlook.money,
        "energy_kwh": outlook.energy_kwh,
        "advice": [advice._asdict() for advice in outlook.advice],
        "profile": {
            "measured_at": profile.measured_at,
            "error": profile.error,
            "disturbed": describe_disturbance(profile),
            **profile.about,
        },
    }
