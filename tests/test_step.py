"""Protects the waist: a plan can be written and read back without a difference."""

from __future__ import annotations

from penstock.step import BlockCopy, Chunk, SampleAt, SampledRef, StepPlan, TierMove


def test_a_plan_survives_being_written_as_json() -> None:
    sample = SampleAt(1, 0.25, 0.7, 40, 0.9, 0.1, ((5, -1.5),), (2, 3), 4, None)
    chunk = Chunk(7, 16, (11, SampledRef(3, 7, 0)), ((4, 9),), (sample,), "french")
    plan = StepPlan(4, (chunk,), (BlockCopy(0, 4, 9, 3),), (TierMove(0, 4, "host"),))
    assert StepPlan.loads(plan.dumps()) == plan
    assert plan.num_tokens == 2
    assert chunk.end == 18
