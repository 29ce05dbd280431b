"""What work must cost at least: arithmetic and bytes, and the seconds that a machine's limits allow.

Counts only what no engine can leave out: products of matrices, attention, weights read once a step, each cached
position read once a step however many sequences share it, new positions written; and of the last layer nothing but keys
and values, where nothing is drawn from a token. Norms, activations, embedding rows, block copies and sampling are left
out, so the time is a lower bound. Pure arithmetic: no tensors, no clock.
Two things are counted so: the steps that a plan chose (`step_cost`), and a job whatever its plan (`job_cost`). No sum
of steps that do a job is below the job's own cost, so only that one tells a good plan from a bad one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from penstock.models.spec import DecoderSpec
from penstock.outlines import Outline
from penstock.step import Chunk, StepPlan


class Cost(NamedTuple):
    """Floating-point operations (a multiply and an add are two), and bytes read from or written to memory."""

    flops: int
    moved_bytes: int


class _Seen(NamedTuple):
    """What the layers of one window see: pairs of a query and a key, positions that are read or written."""

    pairs: int
    positions: int


class _Counts(NamedTuple):
    """What costs: tokens up to the keys and values of the last layer, those that are wanted and go on through it, those
    drawn through the head (several from one, perhaps); how often the weights are read up to there, and behind it; and
    what layers see, by their window, and the last one, for what is wanted.
    """

    tokens: int
    wanted: int
    drawn: int
    reads: int
    last_reads: int
    seen: dict[int | None, _Seen]
    last: _Seen


def step_cost(spec: DecoderSpec, plan: StepPlan, *, element_bytes: int, block_tokens: int) -> Cost:
    """The cost of a step, with weights and KV in elements of `element_bytes`."""
    drawn = sum(len(chunk.samples) for chunk in plan.chunks)
    seen = {}
    for window in spec.layers_by_window:
        pairs = sum(num_pairs(chunk.start, chunk.end, window=window) for chunk in plan.chunks)
        seen[window] = _Seen(pairs, plan.num_tokens + _cached_positions(plan.chunks, block_tokens, window=window))
    drawing = tuple(chunk for chunk in plan.chunks if chunk.samples)
    wanted = [chunk.start + offset for chunk in drawing for offset in chunk.wanted_offsets]
    pairs = sum(num_pairs(position, position + 1, window=spec.last_window) for position in wanted)
    cached = _cached_positions(drawing, block_tokens, window=spec.last_window, only_wanted=True)
    last = _Seen(pairs, plan.num_tokens + cached)
    counts = _Counts(plan.num_tokens, len(wanted), drawn, 1, min(1, drawn), seen, last)
    return _cost(spec, counts, element_bytes)


def job_cost(spec: DecoderSpec, rows: Iterable[Outline], *, element_bytes: int) -> Cost:
    """The cost of a job's rows, whatever its plan and its memory: that of computing all of them together.

    Each distinct token of the prompts and each token of the answers is computed once (but for an answer's last, which
    is only drawn). A sequence draws one token a step, so the weights are read as often as the longest answer has
    tokens; and a position is read in each step in which an answer behind it goes on and sees it, so at least by the row
    that is the first to have it, for each of that one's own tokens. Walks the rows once more for each window.
    """
    tokens = wanted = drawn = pairs = wanted_pairs = reads = longest = 0
    for prompt_tokens, new_tokens, output_tokens, samples in rows:
        each = output_tokens // samples
        more = max(0, each - 1)  # tokens of each sample that are computed
        tokens += new_tokens + samples * more
        first = min(1, new_tokens, each)  # the prompt's last token is wanted, where it is new
        wanted += first + samples * more
        wanted_pairs += num_pairs(prompt_tokens - first, prompt_tokens, window=spec.last_window)
        wanted_pairs += samples * num_pairs(prompt_tokens, prompt_tokens + more, window=spec.last_window)
        drawn += output_tokens
        pairs += num_pairs(prompt_tokens - new_tokens, prompt_tokens)
        pairs += samples * num_pairs(prompt_tokens, prompt_tokens + more)
        reads += more * new_tokens + samples * (more * (more - 1) // 2)
        longest = max(longest, each)
    seen: dict[int | None, _Seen] = {None: _Seen(pairs, tokens + reads)}
    seen |= {window: _seen_within(window, rows, tokens) for window in spec.layers_by_window if window is not None}
    last = _Seen(wanted_pairs, seen[spec.last_window].positions)
    return _cost(spec, _Counts(tokens, wanted, drawn, longest, longest, seen, last), element_bytes)


def _seen_within(window: int, rows: Iterable[Outline], tokens: int) -> _Seen:
    """What layers with a window see of a job's rows; `tokens` are computed in all."""
    pairs = reads = 0
    for prompt_tokens, new_tokens, output_tokens, samples in rows:
        more = max(0, output_tokens // samples - 1)
        pairs += num_pairs(prompt_tokens - new_tokens, prompt_tokens, window=window)
        pairs += samples * num_pairs(prompt_tokens, prompt_tokens + more, window=window)
        reads += _reads(new_tokens, more, window=window)
        reads += samples * num_pairs(0, max(0, more - 1), window=window - 1)
    return _Seen(pairs, tokens + reads)


def _cost(spec: DecoderSpec, counts: _Counts, element_bytes: int) -> Cost:
    matrices, head = token_elements(spec), spec.vocab * spec.hidden
    rest = spec.layers * spec.layer_elements - matrices
    products = counts.tokens * matrices + counts.wanted * rest + counts.drawn * head
    elements = counts.reads * matrices + counts.last_reads * (rest + head)
    [group] = spec.kv_groups  # all layers keep all positions, whatever they see of them
    width = group.k_width + group.v_width
    layers = [(counts.seen[window], number) for window, number in spec.layers_by_window.items()]
    for (pairs, positions), number in (*layers, (counts.seen[spec.last_window], -1), (counts.last, 1)):
        products += pairs * number * spec.heads * width
        elements += positions * number * group.kv_heads * width
    return Cost(2 * products, elements * element_bytes)


def token_elements(spec: DecoderSpec) -> int:
    """Elements of the matrices that every token is multiplied with: of the last layer, those of its keys and values."""
    kept = spec.hidden * spec.head_dim * 2 * spec.kv_heads
    return (spec.layers - 1) * spec.layer_elements + kept


def least_s(cost: Cost, *, flops_per_s: float, bytes_per_s: float) -> float:
    """The least time for a cost: arithmetic and memory at their limits, entirely at the same time."""
    return max(cost.flops / flops_per_s, cost.moved_bytes / bytes_per_s)


def num_pairs(start: int, end: int, *, window: int | None = None) -> int:
    """Pairs of a query at a position from start to end and a key that it sees: position p sees p + 1, or `window`."""
    if window is None:
        return (end * (end + 1) - start * (start + 1)) // 2
    bend = min(max(window, start), end)  # from here on queries see no more than those before them
    return num_pairs(start, bend) + (end - bend) * window


def _reads(tokens: int, steps: int, *, window: int) -> int:
    """How often so many positions are read by the queries right behind them, one a step: the later, the fewer."""
    whole = min(steps, max(0, window - tokens))  # steps that see all of them
    seen = max(0, min(tokens, window - 1 - whole))  # in the next step; then one fewer in each
    rest = min(steps - whole, seen)
    return whole * tokens + rest * seen - rest * (rest - 1) // 2


def _cached_positions(
    chunks: tuple[Chunk, ...], block_tokens: int, *, window: int | None, only_wanted: bool = False
) -> int:
    """Positions computed in earlier steps that the chunks see, or their wanted tokens; each once, whoever shares it."""
    filled: dict[int, int] = {}
    for chunk in chunks:
        query = chunk.start + (chunk.wanted_offsets[0] if only_wanted else 0)
        seen_from = 0 if window is None else min(chunk.start, max(0, query - window + 1))
        whole, rest = divmod(chunk.start, block_tokens)
        first, cut = divmod(seen_from, block_tokens)
        table = chunk.tables[0]
        filled.update(dict.fromkeys(table[first + (cut > 0) : whole], block_tokens))
        parts = [(first, block_tokens - cut)] if cut and first < whole else []
        parts += [(whole, rest - (cut if first == whole else 0))] if rest else []
        for at, count in parts:
            filled[table[at]] = max(count, filled.get(table[at], 0))
    return sum(filled.values())
