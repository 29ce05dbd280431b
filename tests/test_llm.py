"""Protects the Python door: results in order or as they finish, and a bad prompt as a result among the others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import LLM, Result, SamplingParams
from penstock.errors import ConfigError, RowError, RowErrorCode
from penstock.protocol import Endpoint
from penstock.request import Completion, FinishReason
from tests.checkpoints import CONTEXT, VOCABULARY, write_llama

pytestmark = pytest.mark.torch

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), device="cpu", dtype="float32", kv_memory=2**22, token_budget=64, seed=5)


def in_flight(llm: LLM) -> int:
    return llm._engine.num_unfinished


def test_importing_penstock_imports_no_torch() -> None:
    code = "import sys, penstock; penstock.SamplingParams; penstock.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_penstock_lacks_is_an_attribute_error() -> None:
    import penstock

    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        _ = penstock.Lama


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (9, 1, 5)]
    results = llm.generate(["the man", [1, 2, 3], "the man"], params)
    assert [result.index for result in results] == [0, 1, 2]
    assert [len(result.token_ids) for result in results] == [9, 1, 5]
    assert results[0].token_ids[:5] == results[2].token_ids
    assert [result.finish_reason for result in results] == [FinishReason.LENGTH] * 3
    assert results[1].prompt_tokens == 3


def test_a_stream_gives_each_result_once_as_it_finishes(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (9, 1, 5)]
    prompts = ["a", "b", "c"]
    streamed = list(llm.generate(prompts, params, stream=True))
    assert [result.index for result in streamed] == [1, 2, 0]
    assert sorted(streamed, key=lambda result: result.index) == llm.generate(prompts, params)


def test_a_chat_goes_through_the_template(llm: LLM) -> None:
    conversation = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    [result] = llm.chat([conversation], GREEDY)
    assert result.prompt_tokens is not None
    assert result.prompt_tokens > 5
    assert llm.chat([[{"role": "user", "content": "hello"}]], GREEDY)[0].token_ids == result.token_ids


def test_without_params_the_api_has_the_say(llm: LLM) -> None:
    [result] = llm.generate(["the"])
    assert len(result.token_ids) <= 16


def test_a_bad_prompt_is_a_result_in_its_place(llm: LLM) -> None:
    prompts: list[object] = ["ok", "", 7, [VOCABULARY], "x\ud83d", [1] * 600, None, b"bytes", "ok"]
    results = llm.generate(prompts, GREEDY)  # type: ignore[arg-type]
    codes = [None if result.error is None else str(result.error.code) for result in results]
    invalid = "invalid_field"
    assert codes == [None, invalid, invalid, invalid, invalid, "prompt_too_long", invalid, invalid, None]
    assert results[0].token_ids == results[8].token_ids
    with pytest.raises(RowError, match="prompt_too_long: the prompt has 600 tokens"):
        _ = results[5].text
    assert in_flight(llm) == 0


def test_a_bad_conversation_is_a_result_too(llm: LLM) -> None:
    good = [{"role": "user", "content": "hi"}]
    results = llm.chat([good, [], [{"role": "robot", "content": "hi"}], [{"role": "user"}], "hi"], GREEDY)  # type: ignore[list-item]
    codes = [None if result.error is None else result.error.code for result in results]
    field = RowErrorCode.INVALID_FIELD
    assert codes == [None, field, field, RowErrorCode.MISSING_FIELD, field]


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        ("one prompt", None, "found a str; generate takes a list of prompts"),
        (["a", "b"], [GREEDY], "there are 1 params for 2 prompts"),
        (["a"], [3], "params is a int; it must be SamplingParams"),
        (["a"], {"max_tokens": 3}, "found a dict; params must be SamplingParams"),
    ],
)
def test_mistakes_of_the_program_are_raised_before_anything_runs(
    llm: LLM, prompts: object, params: object, error: str
) -> None:
    for stream in (False, True):
        with pytest.raises((TypeError, ValueError), match=error):
            llm.generate(prompts, params, stream=stream)  # type: ignore[call-overload]


def test_one_conversation_in_place_of_a_list_of_them_is_explained(llm: LLM) -> None:
    with pytest.raises(TypeError, match=r"for one conversation write \[messages\]"):
        llm.chat([{"role": "user", "content": "hi"}])  # type: ignore[list-item]


def test_a_stream_that_is_left_early_leaves_nothing_in_the_engine(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in range(1, 16)]
    stream = llm.generate(["a"] * 15, params, stream=True)
    assert isinstance(next(stream), Result)
    assert in_flight(llm) == 14
    stream.close()  # type: ignore[attr-defined]
    assert in_flight(llm) == 0
    assert len(llm.generate(["a"], GREEDY)) == 1


def test_two_streams_may_be_read_in_turns(llm: LLM) -> None:
    alone = {result.index: result.token_ids for result in llm.generate(["a", "b", "c"], GREEDY)}
    first, second = (llm.generate(["a", "b", "c"], GREEDY, stream=True) for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    for half in zip(*pairs, strict=True):
        assert {result.index: result.token_ids for result in half} == alone


def test_the_engine_holds_a_bounded_number_of_requests(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "_max_in_flight", 3)
    held = [in_flight(llm) for _ in llm.generate(["a"] * 20, GREEDY, stream=True)]
    assert len(held) == 20
    assert max(held) <= 3


def test_short_chats_without_max_tokens_run_together_in_the_memory_of_one_context(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(str(folder), device="cpu", dtype="float32", kv_memory=2**18, token_budget=64, seed=5)
    assert llm.stats().kv_total_tokens == CONTEXT
    params = SamplingParams(stop_token_ids=tuple(range(0, VOCABULARY, 8)))  # drawn at one token in eight
    chats = [[{"role": "user", "content": f"{number}?"}] for number in range(60)]
    at_once, results = [], []
    for result in llm.chat(chats, params, stream=True):
        at_once.append(llm.stats().num_running)
        results.append(result)
    assert at_once[0] <= 2, "a first guess has room for few"
    assert max(at_once) >= 6, "those that have finished tell that there is room for many"
    monkeypatch.setattr(llm, "_max_in_flight", 1)
    assert sorted(results, key=lambda result: result.index) == llm.chat(chats, params)


def test_no_prompts_have_no_results(llm: LLM) -> None:
    assert llm.generate([]) == []
    assert llm.chat([]) == []
    assert list(llm.generate(iter([]), stream=True)) == []


def test_several_samples_are_the_completions_of_one_result(llm: LLM) -> None:
    [result] = llm.generate(["a"], SamplingParams(max_tokens=4, n=3, logprobs=2))
    assert [completion.index for completion in result.completions] == [0, 1, 2]
    assert result.text == result.completions[0].text
    assert result.logprobs is not None
    assert len(result.logprobs[0].top) == 2


def test_a_result_shows_its_first_completion() -> None:
    result = Result(3, (Completion(0, (1,), "x", FinishReason.STOP),), prompt_tokens=2)
    assert (result.text, result.token_ids, result.finish_reason, result.logprobs) == ("x", (1,), "stop", None)


def test_a_setting_that_cannot_be_used_is_told_as_on_the_command_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype is 'float8'; it must be one of"):
        LLM(str(folder), dtype="float8")


def test_what_was_chosen_and_what_was_done_can_be_asked(llm: LLM) -> None:
    chosen = {choice.name: choice for choice in llm.choices}
    assert (chosen["token budget"].value, chosen["token budget"].source) == ("64", "--token-budget")
    assert chosen["threads"].source.startswith("machine")
    before = llm.stats().output_tokens
    llm.generate(["a"], GREEDY)
    assert llm.stats().output_tokens == before + 6
    assert llm.stats().row_exact


def rows() -> Iterator[dict[str, object]]:
    """Rows as a batch file has them, sampled without seeds of their own."""
    for i in range(6):
        body = {"prompt": "the man said " * i + "a", "max_tokens": 8, "temperature": 1.5, "logprobs": 2, "n": 2}
        yield {"custom_id": str(i), "method": "POST", "url": Endpoint.COMPLETIONS, "body": body}


def test_results_are_those_of_the_command_line_for_the_same_rows(llm: LLM, folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    settings = ["--device", "cpu", "--dtype", "float32", "--kv-memory", "1MiB", "--token-budget", "32", "--seed", "5"]
    command = [
        Path(sys.executable).with_name("penstock"),
        "run",
        source,
        "-o",
        output,
        "--model",
        folder,
        "--quiet",
        *settings,
    ]
    subprocess.run([str(part) for part in command], check=True)
    choices = [json.loads(line)["response"]["body"]["choices"] for line in output.read_text().splitlines()]
    params = SamplingParams(max_tokens=8, temperature=1.5, logprobs=2, n=2)
    results = llm.generate([row["body"]["prompt"] for row in rows()], params)  # type: ignore[index]
    assert [[c.text for c in result.completions] for result in results] == [[c["text"] for c in cs] for cs in choices]
    logprobs = [[[t.logprob for t in c.logprobs or ()] for c in result.completions] for result in results]
    assert logprobs == [[c["logprobs"]["token_logprobs"] for c in cs] for cs in choices]
