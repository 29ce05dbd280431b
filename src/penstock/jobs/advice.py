"""What would make a job faster: variants of it, simulated beside it, best first.

Owns which variants are tried. Every saving is the difference of two simulations of the same rows, as a share of the
time that is expected; nothing is advised on a rule of thumb. Variants: more KV memory, other limits of a step, what
keeps prompts from being shared moved to their end, equal rows made to be computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, Protocol

from penstock.config import EngineConfig, format_bytes
from penstock.differences import Difference, Text, find_difference
from penstock.errors import RowError
from penstock.forecast import Limits, LoadRows, estimate, weight
from penstock.jobs.tokenizing import Setup
from penstock.outlines import Outlines, Sums
from penstock.planner import common_tokens, guess_tokens, pack_tokens
from penstock.protocol import BatchRow, Message, Prompt
from penstock.simulation import SimRow, Simulated, Terms, simulate

WORTH_TELLING = 0.01  # of the time
MOST_ADVICE = 3
VARIANT_WORK = 15_000  # tokens drawn to try a variant, about
FACTORS = (2, 4)
ROWS_PER_SEQUENCE = 4  # rows to try a variant on, for each that runs at once
TIGHT = 0.7  # of the KV memory: where less is used, more would change nothing
EXCERPT = 60
PROMPT = "prompt"  # who speaks where there are no messages
MOST_CHARACTERS = 1_000_000  # of a sample, compared word by word: about a second


class Advice(NamedTuple):
    """What to do, and what it saves: seconds, and the share of the time expected."""

    text: str
    saved_s: float
    saved_share: float


class AdvisedJob(Protocol):
    """What is asked of a job (see `PlannedJob`)."""

    @property
    def repeated(self) -> Sums:
        """Of the rows that ask what the row before them asks, and are drawn anew all the same."""

    @property
    def outlines(self) -> Outlines:
        """The lengths of its rows."""

    @property
    def load(self) -> LoadRows:
        """The rows number first .. last."""

    @property
    def sample(self) -> list[BatchRow]:
        """Some rows, evenly spread over the job."""


class _Saving(NamedTuple):
    text: str
    share: float


def advise(
    job: AdvisedJob, *, terms: Terms, setup: Setup, seconds: float, memory_bytes: int | None = None
) -> tuple[Advice, ...]:
    """The things that would help most; empty where nothing that was tried would.

    `memory_bytes`: what bounds the process; None: nothing but the KV memory is bounded.
    """
    found = [*_settings(job, terms, memory_bytes), *_equal_rows(job, terms), *_messages(job, terms, setup)]
    worth = sorted((saving for saving in found if saving.share >= WORTH_TELLING), key=lambda saving: -saving.share)
    return tuple(Advice(text, share * seconds, share) for text, share in worth[:MOST_ADVICE])


# --- settings


def _settings(job: AdvisedJob, terms: Terms, memory_bytes: int | None) -> Iterator[_Saving]:
    """The best of each kind of variant of the settings."""
    if not len(job.outlines):
        return

    limits = Limits(VARIANT_WORK, 1, ROWS_PER_SEQUENCE * terms.config.max_sequences)

    def run(config: EngineConfig) -> Simulated:
        return estimate(job.outlines, job.load, terms._replace(config=config), limits).simulated

    usual = run(terms.config)
    is_tight = (
        usual.preemptions or usual.peak_kv_tokens * terms.kv_bytes_per_token > TIGHT * terms.config.kv_memory_bytes
    )
    kinds = [
        _sequences(terms.config),
        _budgets(terms.config),
        *([_memories(terms.config, memory_bytes)] if is_tight else []),
    ]
    for variants in kinds:
        yield _first_good([_Saving(text, 1 - run(config).seconds / usual.seconds) for text, config in variants])


def _first_good(savings: Sequence[_Saving]) -> _Saving:
    """The first variant that saves nearly as much as the best one: variants ask for more and more."""
    most = max(saving.share for saving in savings)
    return next(saving for saving in savings if saving.share >= most - WORTH_TELLING)


def _memories(config: EngineConfig, memory_bytes: int | None) -> Iterator[tuple[str, EngineConfig]]:
    for factor in FACTORS:
        size = factor * config.kv_memory_bytes
        text = f"more KV memory: --kv-memory {_flag_bytes(size)} ({format_bytes(config.kv_memory_bytes)} now)"
        if memory_bytes is not None:
            more = memory_bytes + size - config.kv_memory_bytes
            text = f"more memory: --memory {_flag_bytes(more)} ({format_bytes(memory_bytes)} now)"
        yield text, replace(config, kv_memory_bytes=size)


def _flag_bytes(size: int) -> str:
    return format_bytes(size).replace(" ", "")


def _sequences(config: EngineConfig) -> Iterator[tuple[str, EngineConfig]]:
    sequences = 2 * config.max_sequences
    budget = config.token_budget + sequences - config.max_sequences
    text = f"more rows at once: --max-sequences {sequences} --token-budget {budget} ({config.max_sequences} now)"
    yield text, replace(config, max_sequences=sequences, token_budget=budget)


def _budgets(config: EngineConfig) -> Iterator[tuple[str, EngineConfig]]:
    for budget in (config.token_budget // 2, 2 * config.token_budget):
        if budget >= config.max_sequences:
            size = "larger" if budget > config.token_budget else "smaller"
            text = f"{size} steps: --token-budget {budget} ({config.token_budget} now)"
            yield text, replace(config, token_budget=budget)


# --- rows


def _equal_rows(job: AdvisedJob, terms: Terms) -> Iterator[_Saving]:
    """Rows that ask what another asks, but draw at random without a seed: they may not share one answer."""
    random = [row for row in job.sample if row.params.temperature and row.params.seed is None]
    if not job.repeated.rows or 2 * len(random) < len(job.sample):
        return
    text = (
        f"{job.repeated.rows} rows have the prompt of another row and draw at random without a seed; with "
        "temperature 0 or a seed, equal rows are computed once"
    )
    yield _Saving(text, weight(job.repeated, terms) / weight(job.outlines.total, terms))


def _messages(job: AdvisedJob, terms: Terms, setup: Setup) -> Iterator[_Saving]:
    """What differs in nearly every row although what follows is the same."""
    texts = _thinned([(row, found) for row in job.sample if (found := texts_of(row.prompt)) is not None])
    difference = find_difference([found for _, found in texts])
    if difference is None:
        return
    as_it_is = [row for row, _ in texts]
    pairs = zip(as_it_is, difference.moved, strict=True)
    moved = [replace(row, prompt=_prompt_of(row.prompt, found)) for row, found in pairs]
    before, after = (_try(rows, terms, setup) for rows in (as_it_is, moved))
    if before.seconds:
        share = 1 - after.seconds / before.seconds
        yield _Saving(_tell(difference), share * _left_to_save(job.outlines.total, before, after))


def _thinned(texts: Sequence[tuple[BatchRow, tuple[Text, ...]]]) -> Sequence[tuple[BatchRow, tuple[Text, ...]]]:
    """Fewer of them where they are long, evenly spread."""
    characters = sum(len(text.content) for _, row in texts for text in row)
    return texts[:: max(1, -(-characters // MOST_CHARACTERS))]


def _tell(difference: Difference) -> str:
    example = difference.example.strip()
    shown = repr(example if len(example) <= EXCERPT else example[: EXCERPT - 3] + "...")
    lead = f" behind {difference.lead!r}" if difference.lead else ""
    speaker = "prompt" if difference.role == PROMPT else f"{difference.role} message"
    line = difference.place.line + 1
    where = f"the {speaker} from line {line} on" if "\n" in example else f"line {line} of the {speaker}"
    share = "every row" if difference.rows_share == 1 else f"{difference.rows_share:.0%} of the rows"
    return (
        f"{where} ({shown}{lead}) differs in {share}; after it {difference.after_share:.0%} of the prompt is shared: "
        "move what differs to the end"
    )


def texts_of(prompt: Prompt) -> tuple[Text, ...] | None:
    """The messages of a prompt that is text; None: it is token ids."""
    if isinstance(prompt, str):
        return (Text(PROMPT, prompt),)
    return tuple(Text(part.role, part.content) for part in prompt if isinstance(part, Message)) or None


def _prompt_of(prompt: Prompt, texts: Sequence[Text]) -> Prompt:
    """The same kind of prompt with these texts."""
    if isinstance(prompt, str):
        return texts[0].content
    messages = [part for part in prompt if isinstance(part, Message)]
    return tuple(m._replace(content=text.content) for m, text in zip(messages, texts, strict=True))


class _Tried(NamedTuple):
    """What rows take in the order of their tokens, as a plan has them; of those, the share that is new."""

    seconds: float
    new_share: float


def _try(rows: Sequence[BatchRow], terms: Terms, setup: Setup) -> _Tried:
    request_of = setup.open()
    found = []
    for row in rows:
        try:
            prompt = request_of(row).prompt_tokens
        except RowError:
            continue  # one that does not fit; the plan counts it
        expected = guess_tokens(row.params.max_tokens, terms.spec.context_tokens - len(prompt))
        found.append(SimRow(prompt, expected, row.params))
    found.sort(key=lambda row: row.prompt)
    packed = [pack_tokens(row.prompt) for row in found]
    shared = sum(common_tokens(one, other) for one, other in pairwise(packed))
    tokens = sum(len(row.prompt) for row in found)
    return _Tried(simulate(found, terms).seconds, 1 - shared / tokens if tokens else 0.0)


def _left_to_save(whole: Sums, before: _Tried, after: _Tried) -> float:
    """How much of what moving saves a sample the whole job can save: many rows share more than a few of them do.

    A date that differs in most rows of a sample may yet be that of thousands of rows, which share what follows it.
    """
    saved, new_share = before.new_share - after.new_share, whole.new_tokens / (whole.prompt_tokens or 1)
    return min(1.0, max(0.0, new_share - after.new_share) / saved) if saved > 0 else 0.0
