"""Protects finding checkpoints and their identity: what is accepted, what is refused and why, what makes two differ."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import penstock.checkpoint
from penstock.checkpoint import find_checkpoint, fingerprint, stored_tensors, weight_files
from penstock.errors import ModelError
from tests.checkpoints import EOS, VOCABULARY, write_gpt2, write_json, write_llama, write_qwen3

pytestmark = pytest.mark.torch  # tests.checkpoints imports it

IM_END, LISTED = 296, VOCABULARY - 3


def set_field(file: Path, **fields: object) -> None:
    write_json(file, {**json.loads(file.read_text()), **fields})


def test_a_folder_is_found_with_its_family_spec_and_dtype(tmp_path: Path) -> None:
    for family, write in (("llama", write_llama), ("qwen3", write_qwen3), ("gpt2", write_gpt2)):
        for stored in ("float32", "bfloat16", "float16"):
            found = find_checkpoint(str(write(tmp_path / f"{family}-{stored}", dtype=stored)))
            assert (found.family, found.dtype, found.name) == (family, stored, f"{family}-{stored}")
            assert found.spec.vocab == VOCABULARY


def test_both_config_formats_give_the_same_spec(tmp_path: Path) -> None:
    new, old = write_llama(tmp_path / "5"), write_llama(tmp_path / "4", config_format="4")
    assert find_checkpoint(str(new)).spec == find_checkpoint(str(old)).spec


def test_ends_of_sequence_are_the_union_of_three_files(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    assert find_checkpoint(str(folder)).eos_ids == {EOS, LISTED, IM_END}
    set_field(folder / "config.json", eos_token_id=[5, 6])
    set_field(folder / "generation_config.json", eos_token_id=7)
    assert find_checkpoint(str(folder)).eos_ids == {5, 6, 7, IM_END}
    (folder / "generation_config.json").unlink()
    set_field(folder / "config.json", eos_token_id=None)
    set_field(folder / "tokenizer_config.json", eos_token={"content": "<|eos|>"})
    assert find_checkpoint(str(folder)).eos_ids == {EOS}
    set_field(folder / "tokenizer_config.json", eos_token=None)
    assert find_checkpoint(str(folder)).eos_ids == set()


def test_an_end_of_sequence_is_also_found_among_ordinary_tokens(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, config={"eos_token_id": VOCABULARY})
    (folder / "generation_config.json").unlink()
    set_field(folder / "tokenizer_config.json", eos_token="!")
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert find_checkpoint(str(folder)).eos_ids == {vocab["!"]}


def test_an_end_of_sequence_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    set_field(folder / "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(ModelError, match=r"eos_token '</s>', but tokenizer\.json has no such token"):
        find_checkpoint(str(folder))
    set_field(folder / "config.json", eos_token_id="2")
    with pytest.raises(ModelError, match="eos_token_id is '2'; it must be a token id or a list"):
        find_checkpoint(str(folder))


def test_shards_are_those_that_the_index_lists(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", shards=3)
    whole = write_llama(tmp_path / "w")
    assert [file.name for file in weight_files(folder)] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert stored_tensors(folder).keys() == stored_tensors(whole).keys()
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors is missing, but the index lists it"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("listed", [{}, [], {"a": "../a.safetensors"}, {"a": "a.bin"}, {"a": 1}])
def test_an_index_that_lists_no_plain_safetensors_is_refused(tmp_path: Path, listed: object) -> None:
    folder = write_llama(tmp_path, shards=2)
    write_json(folder / "model.safetensors.index.json", {"weight_map": listed})
    with pytest.raises(ModelError, match="no usable weight_map"):
        find_checkpoint(str(folder))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, shards=2)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"is in model-00001-of-00002\.safetensors and in model-00002"):
        find_checkpoint(str(folder))


def test_weights_other_than_safetensors_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin only; Penstock loads safetensors only\. Convert it"):
        find_checkpoint(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x05",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 4) + b"nope",
    ],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    folder = write_llama(tmp_path)
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match=r"model\.safetensors is no safetensors file, or a damaged one"):
        find_checkpoint(str(folder))


def test_a_truncated_safetensors_file_is_refused_with_both_sizes(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    file = folder / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ModelError, match=f"has {size - 4} bytes and must have {size}; download it again"):
        find_checkpoint(str(folder))


def test_folders_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find_checkpoint(str(tmp_path))
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        find_checkpoint(str(file))
    with pytest.raises(ModelError, match="cannot be a hub id"):
        find_checkpoint(str(tmp_path / "nothing"))
    folder = write_llama(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        find_checkpoint(str(folder))
    write_llama(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        find_checkpoint(str(folder))
    (folder / "tokenizer_config.json").unlink()
    assert EOS in find_checkpoint(str(folder), needs_tokenizer=False).eos_ids


def test_demo_is_the_folder_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penstock.checkpoint, "DEMO_FOLDER", write_llama(tmp_path / "demo_model"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name here is `./demo`
    found = find_checkpoint("demo")
    assert (found.name, found.folder) == ("demo", tmp_path / "demo_model")
    monkeypatch.setattr(penstock.checkpoint, "DEMO_FOLDER", tmp_path / "nothing")
    with pytest.raises(ModelError, match="demo model is not in this installation"):
        find_checkpoint("demo")


def test_identity_is_the_content_not_the_place_or_the_time(tmp_path: Path) -> None:
    one, other = write_llama(tmp_path / "one"), write_llama(tmp_path / "other")
    os.utime(other / "model.safetensors", (1, 1))
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(write_llama(tmp_path / "seed", seed=1))
    assert fingerprint(one) != fingerprint(write_llama(tmp_path / "template", chat_template=None))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_every_file_that_decides_an_answer_is_in_the_identity(tmp_path: Path, name: str) -> None:
    folder = write_llama(tmp_path, template_place="jinja")
    before = fingerprint(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert fingerprint(folder) != before
    (folder / "README.md").write_text("not one of them")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    assert fingerprint(folder) == before


def test_of_large_files_header_and_spread_pieces_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penstock.checkpoint, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(penstock.checkpoint, "PIECE_BYTES", 64)
    folder = write_llama(tmp_path)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    before = fingerprint(folder)
    seen = {}
    for name, place in (("header", 20), ("first", header), ("between", header + 64), ("last", len(content) - 1)):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        seen[name] = fingerprint(folder) != before
    assert seen == {"header": True, "first": True, "between": False, "last": True}


def prepared_cache(root: Path, name: str) -> Path:
    """A huggingface_hub cache that holds one model, as a download leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = root / f"models--{name.replace('/', '--')}"
    write_llama(repo / "snapshots" / commit, shards=2)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return repo / "snapshots" / commit


def find_offline(cache: Path, model: str) -> subprocess.CompletedProcess[str]:
    """`find_checkpoint` in a process of its own: huggingface_hub reads its environment once."""
    code = (
        "import sys; from penstock.checkpoint import find_checkpoint; from penstock.errors import ModelError\n"
        "try: found = find_checkpoint(sys.argv[1]); print(found.name, found.folder, 'torch' in sys.modules)\n"
        "except ModelError as error: print('refused:', error)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, model]
    return subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=True)


def test_a_hub_id_is_found_in_the_cache_without_a_network(tmp_path: Path) -> None:
    folder = prepared_cache(tmp_path, "someone/tiny-llama")
    assert find_offline(tmp_path, "someone/tiny-llama").stdout.split() == ["someone/tiny-llama", str(folder), "False"]


def test_a_hub_id_that_is_not_in_the_cache_is_refused(tmp_path: Path) -> None:
    said = find_offline(tmp_path, "someone/other").stdout
    assert said.startswith("refused: there is no folder someone/other, and huggingface_hub could not get it")
    assert "HF_HUB_OFFLINE" in said
