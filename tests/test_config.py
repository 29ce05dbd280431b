"""Settings: what is asked, what is chosen, and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock import config
from penstock.config import (
    Choice,
    EngineConfig,
    Knee,
    Machine,
    Settings,
    cache_folder,
    format_bytes,
    hub_cache_folder,
    parse_bytes,
    read_machine,
    read_settings,
    resolve,
    wait_passively,
    weight_bytes,
)
from penstock.errors import ConfigError
from penstock.models.spec import DecoderSpec

GIB = 2**30
SPEC = DecoderSpec(
    vocab=1000,
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=128,
    context_tokens=512,
    norm="rms",
    norm_eps=1e-5,
    positions="rotary",
    mlp="swiglu",
)
CPU = Machine(cores=2, free_bytes=16 * GIB)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", GIB), ("512 MiB", 512 * 2**20), ("1.5GB", 1_500_000_000), ("1048576", 2**20), ("7b", 7), ("2kib", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 furlong", "0", "0.1B", "1e9", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--kv-memory is .*; it must be a size such as 1GiB"):
        parse_bytes(text, "--kv-memory")


def test_sizes_are_shown_as_people_read_them() -> None:
    assert [format_bytes(size) for size in (37, 1536, 512 * 2**20, 3 * GIB // 2)] == [
        "37 B",
        "1.5 KiB",
        "512 MiB",
        "1.5 GiB",
    ]


def test_a_flag_wins_over_the_environment_and_both_are_remembered() -> None:
    settings = read_settings(
        {"dtype": "float32", "seed": None}, {"PENSTOCK_DTYPE": "bfloat16", "PENSTOCK_SEED": "7", "HOME": "/root"}
    )
    assert settings == Settings(dtype="float32", seed=7, sources={"dtype": "--dtype", "seed": "PENSTOCK_SEED"})


def test_every_setting_has_a_flag_and_a_variable() -> None:
    flags = {
        "model": "demo",
        "device": "cpu",
        "dtype": "float16",
        "memory": "1GiB",
        "kv-memory": "1KiB",
        "token-budget": "64",
        "max-sequences": "8",
        "threads": "3",
        "max-isa": "avx2",
        "seed": "0",
        "cache": "cache",
        "cache-size": "1MiB",
        "phase-file": "phase",
    }
    environment = {config.variable(name): value for name, value in flags.items()}
    by_flag, by_variable = read_settings(flags, {}), read_settings({}, environment)
    expected = ("demo", "cpu", "float16", GIB, 1024, 64, 8, 3, "avx2", 0, "cache", 2**20, "phase")
    for found in (by_flag, by_variable):
        names = [name for name in Settings.__dataclass_fields__ if name not in {"sources", "planned_rows"}]
        assert tuple(getattr(found, name) for name in names) == expected


def test_auto_is_the_same_as_not_asked() -> None:
    assert read_settings({"device": "auto", "dtype": "auto"}, {}).device is None


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("device", "tpu", "--device is 'tpu'; it must be one of auto, cpu, cuda"),
        ("dtype", "int8", "--dtype is 'int8'; it must be one of auto, float32, bfloat16, float16"),
        ("token-budget", "0", "--token-budget is '0'; it must be a whole number from 1 to 1048576"),
        ("seed", "-1", "--seed is '-1'; it must be a whole number from 0"),
        ("threads", "two", "--threads is 'two'; it must be a whole number from 1 to 4096"),
        ("model", "", "--model is empty"),
    ],
)
def test_values_that_cannot_be_used_are_refused(flag: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings({flag: value}, {})


def test_a_variable_with_a_bad_value_is_named() -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_DTYPE is 'int8'"):
        read_settings({}, {"PENSTOCK_DTYPE": "int8"})


def test_an_unknown_variable_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_DTYP is no setting of Penstock; did you mean PENSTOCK_DTYPE"):
        read_settings({}, {"PENSTOCK_DTYP": "float32"})
    with pytest.raises(ConfigError, match="the settings are PENSTOCK_MODEL, "):
        read_settings({}, {"PENSTOCK_ZZZ": "1"})


def test_every_automatic_value_says_why() -> None:
    resolved = resolve(Settings(), machine=CPU, spec=SPEC, stored_dtype="bfloat16")
    kv = 2 * 64 * 512 * (2 * 2 * 32 * 2)  # sequences x context x (layers, heads, K and V, bfloat16), twice
    assert resolved.config == EngineConfig("cpu", "bfloat16", kv, 512, 64, 16, 2)
    assert resolved.choices == (
        Choice("device", "cpu", "machine: no CUDA device"),
        Choice("dtype", "bfloat16", "model"),
        Choice("threads", "2", "machine: its physical cores"),
        Choice("max sequences", "64", "default on cpu"),
        Choice("token budget", "512", "default on cpu"),
        Choice("kv memory", "16 MiB", "model: twice the context of every sequence"),
    )


def test_what_was_asked_is_taken_with_its_source() -> None:
    asked = read_settings({"kv-memory": "1GiB", "threads": "1"}, {"PENSTOCK_DTYPE": "float32"})
    resolved = resolve(asked, machine=CPU, spec=SPEC, stored_dtype="bfloat16")
    assert (resolved.config.kv_memory_bytes, resolved.config.dtype, resolved.config.threads) == (GIB, "float32", 1)
    sources = {choice.name: choice.source for choice in resolved.choices}
    assert (sources["kv memory"], sources["dtype"], sources["threads"]) == (
        "--kv-memory",
        "PENSTOCK_DTYPE",
        "--threads",
    )


def test_kv_memory_is_a_share_of_what_the_weights_leave_and_has_a_limit() -> None:
    big = DecoderSpec(
        vocab=100_000,
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp_width=11_008,
        context_tokens=4096,
        norm="rms",
        norm_eps=1e-5,
        positions="rotary",
        mlp="swiglu",
    )
    weights = weight_bytes(big, 2)
    tight = resolve(Settings(), machine=Machine(2, weights + 4 * GIB), spec=big, stored_dtype="bfloat16")
    assert tight.config.kv_memory_bytes == GIB
    assert tight.choices[-1].source == "machine: 25% of the memory left beside the weights"
    roomy = resolve(Settings(), machine=Machine(2, weights + 400 * GIB), spec=big, stored_dtype="bfloat16")
    assert roomy.config.kv_memory_bytes == 4 * GIB
    assert roomy.choices[-1].source == "default limit on cpu"


def test_a_cuda_device_is_taken_where_there_is_one_and_refused_where_not() -> None:
    gpu = Machine(2, 16 * GIB, cuda_free_bytes=80 * GIB)
    found = resolve(Settings(), machine=gpu, spec=SPEC, stored_dtype="float16")
    assert (found.config.device, found.config.token_budget, found.config.max_sequences) == ("cuda", 4096, 256)
    with pytest.raises(ConfigError, match="use --device cpu"):
        resolve(Settings(device="cuda"), machine=CPU, spec=SPEC, stored_dtype="float16")


def test_sequences_and_budget_fit_each_other() -> None:
    def values(**asked: int) -> tuple[int, int]:
        found = resolve(Settings(**asked), machine=CPU, spec=SPEC, stored_dtype="float32").config  # type: ignore[arg-type]
        return found.max_sequences, found.token_budget

    assert values(token_budget=32) == (32, 32)
    assert values(max_sequences=600) == (600, 640)
    assert values(max_sequences=65, token_budget=2048) == (65, 2048)
    with pytest.raises(ConfigError, match="max sequences is 64 and the token budget 32"):
        values(max_sequences=64, token_budget=32)


def test_a_measured_knee_is_the_automatic_budget_beside_a_token_a_sequence_and_says_so() -> None:
    asked: list[EngineConfig] = []

    def find(given: EngineConfig) -> Knee | None:
        asked.append(given)
        return Knee(256, "profile of 2026-11-25")

    found = resolve(Settings(threads=1), machine=CPU, spec=SPEC, stored_dtype="float32", find_knee=find)
    assert found.config.token_budget == 320
    assert Choice("token budget", "320", "profile of 2026-11-25: its knee is 256") in found.choices
    assert [(a.device, a.dtype, a.threads, a.max_isa) for a in asked] == [("cpu", "float32", 1, None)]
    told = Settings(token_budget=100, sources={"token_budget": "--token-budget"})
    assert resolve(told, machine=CPU, spec=SPEC, stored_dtype="float32", find_knee=find).config.token_budget == 100
    unknown = resolve(Settings(), machine=CPU, spec=SPEC, stored_dtype="float32", find_knee=lambda _: None)
    assert unknown == resolve(Settings(), machine=CPU, spec=SPEC, stored_dtype="float32")


def test_caches_are_where_the_environment_says() -> None:
    home = Path.home()
    assert cache_folder({}) == home / ".cache" / "penstock"
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/penstock")
    assert cache_folder({"XDG_CACHE_HOME": "not/absolute"}) == home / ".cache" / "penstock"
    assert hub_cache_folder({}) == home / ".cache" / "huggingface" / "hub"
    assert hub_cache_folder({"HF_HOME": "/hf"}) == Path("/hf/hub")
    assert hub_cache_folder({"HF_HOME": "/hf", "HF_HUB_CACHE": "/hub"}) == Path("/hub")


def test_the_machine_is_read_and_limits_of_control_groups_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_machine()
    assert whole.cores >= 1
    assert whole.free_bytes > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 100000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(config, "_cgroups", lambda: iter([tmp_path]))
    assert read_machine() == Machine(1, 700000)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert read_machine().cores == whole.cores


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
