"""A profile as people read it: where the speed goes with tokens, sequences and context. Pure: lines out of numbers."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.config import EngineConfig
from penstock.cost import token_elements
from penstock.models.spec import DecoderSpec
from penstock.profile import Profile, Work

CONTEXTS = (64, 512, 2048)


def describe_profile(profile: Profile, spec: DecoderSpec, config: EngineConfig) -> list[str]:
    """The curve, the knee, decoding, and what of the machine's limits was reached."""
    return [
        f"{profile.about['model']} in {profile.about['dtype']}, {profile.about['threads']} threads, "
        f"{profile.numerics.get('kernel.linear', 'unknown kernels')}; measured {profile.measured_at}",
        "",
        *_curve(profile, spec),
        "",
        *_decoding(profile, spec, config),
        "",
        *_limits(profile, spec),
        f"The fit's relative error is {profile.error:.1%} (root mean square over {len(profile.measured)} steps)"
        + ("." if profile.spread is None else f"; the steps took {profile.spread:.0%} longer than at their fastest."),
    ]


def _curve(profile: Profile, spec: DecoderSpec) -> Iterator[str]:
    knee = profile.knee()
    most = max(profile.tokens_per_s(point.number) for point in profile.tokens)
    yield "tokens in a step      ms     tok/s"
    for point in profile.tokens:
        speed = profile.tokens_per_s(point.number)
        mark = "  <- knee: less than 5 % is gained beyond" if point.number == knee.tokens else ""
        yield f"{point.number:>16}{point.seconds * 1e3:>8.1f}{speed:>10.1f}  {'#' * round(30 * speed / most)}{mark}"


def _decoding(profile: Profile, spec: DecoderSpec, config: EngineConfig) -> Iterator[str]:
    contexts = [context for context in CONTEXTS if context <= spec.context_tokens]
    yield "decoding: ms a step (tok/s)" + "".join(f"{f'context {context}':>20}" for context in contexts)
    sequences = config.max_sequences
    for count in sorted({1, max(1, sequences // 8), max(1, sequences // 2), sequences}):
        cells = [profile.seconds(decoding_work(count, context)) for context in contexts]
        shown = "".join(f"{f'{s * 1e3:.1f} ({count / s:.1f})':>20}" for s in cells)
        yield f"{count:>17} sequences{shown}"


def decoding_work(sequences: int, context: int) -> Work:
    """A step in which so many sequences each draw a token (greedily) and share nothing."""
    none = dict.fromkeys(Work._fields, 0)
    some = dict.fromkeys(("tokens", "samples", "chunks"), sequences)
    return Work(**none | some | {"reads": sequences * context})


def _limits(profile: Profile, spec: DecoderSpec) -> Iterator[str]:
    elements = token_elements(spec)
    flops_per_s = max(2 * elements * profile.tokens_per_s(point.number) for point in profile.tokens)
    element_bytes = 4 if profile.about["dtype"] == "float32" else 2
    bytes_per_s = elements * element_bytes / profile.tokens[0].seconds
    rates = profile.rates
    yield f"products reach {flops_per_s / 1e9:.0f} GFLOP/s at best{_share(flops_per_s, rates.flops_per_s, 'GFLOP/s')}"
    share = _share(bytes_per_s, rates.bytes_per_s, "GB/s")
    yield f"a step of one token reads {bytes_per_s / 1e9:.1f} GB/s of weights{share}"


def _share(reached: float, limit: float | None, unit: str) -> str:
    if limit is None:
        return " (the machine's limit was not measured)"
    return f", {reached / limit:.0%} of this machine's {limit / 1e9:.0f} {unit}"
