"""Finds a checkpoint, reads what it is, and gives it an identity: `find_checkpoint` and `Checkpoint`.

A model is `demo` (in the package), a local Hugging Face folder, or a hub id (through huggingface_hub: its cache, its
offline mode, its progress). Owns config.json, generation_config.json and the headers of the safetensors files; loads no
tensor (see `models/load.py`) and imports no torch.
One idea: whatever cannot be run is refused here, before anything is loaded, with a message that says what to do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from penstock.errors import ModelError
from penstock.models.config_json import Config, read_config
from penstock.models.spec import DecoderSpec

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo_model"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ("*.json", "*.jinja", "*.safetensors")
HUB_IGNORED = ("*/*", "consolidated*", "*.index.fp16.json")

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ELEMENT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
MAX_HEADER_BYTES = 100 * 2**20

TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
WHOLE_BYTES = 64 * 2**20
PIECES = 64
PIECE_BYTES = 64 * 2**10


class StoredTensor(NamedTuple):
    """A tensor as a safetensors header describes it; `dtype` in that format's words, e.g. BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk that Penstock can run.

    Attributes:
        folder: where its files are.
        name: the hub id, the folder's own name, or `demo`.
        spec: what the decoder is made of; family: the row of `models/families.py`, by `model_type`.
        dtype: float32, bfloat16 or float16, as most of the weights are stored.
        eos_ids: end-of-sequence ids: the union of generation_config, config and tokenizer, ids outside the vocabulary
            (which no model can draw) left out.
        fingerprint: see `fingerprint`.
    """

    folder: Path
    name: str
    spec: DecoderSpec
    family: str
    dtype: str
    eos_ids: frozenset[int]
    fingerprint: str


def find_checkpoint(model: str, *, needs_tokenizer: bool = True) -> Checkpoint:
    """The checkpoint that `model` names: `demo`, a folder, or a hub id. Who has token ids needs no tokenizer.

    Raises:
        ModelError: there is none, it is damaged, or it needs what Penstock does not have.
    """
    folder = _folder(model)
    config = json_object(folder / "config.json", needed=True)
    tensors = stored_tensors(folder)
    family, spec = read_config(config)
    if needs_tokenizer and not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; save one with transformers: AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(FOLDER)"
        )
    ids = _eos_ids(config) | _eos_ids(json_object(folder / "generation_config.json")) | _tokenizer_eos_ids(folder)
    return Checkpoint(
        folder=folder,
        name=DEMO if model == DEMO else folder.resolve().name if Path(model).expanduser().is_dir() else model,
        spec=spec,
        family=family.model_type,
        dtype=_dtype(tensors),
        eos_ids=frozenset(token for token in ids if 0 <= token < spec.vocab),
        fingerprint=fingerprint(folder),
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder: model.safetensors, or those that the index lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return (whole,)
    if index.is_file():
        listed = json_object(index).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(_plain_name(file) for file in listed.values()):
            raise ModelError(f"{index} has no usable weight_map; download the checkpoint again")
        return tuple(folder / file for file in sorted(set(listed.values())))
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} has its weights as {', '.join(pickled[:3])} only; Penstock loads safetensors only. Convert it "
            "with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER)"
        )
    raise ModelError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the folder's safetensors files, by name, from the files' headers."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in _header(file).items():
            if name in found:
                raise ModelError(f"{name} is in {found[name].file.name} and in {file.name}; keep one of them")
            found[name] = tensor
    if not found:
        raise ModelError(f"{folder} has safetensors files without a tensor in them")
    return found


def fingerprint(folder: Path) -> str:
    """Hex digest of what a checkpoint computes: SHA-256 over its files, never over their place or age.

    Of config, tokenizer, generation and chat template files, every byte. Of each safetensors file of at most 64 MiB,
    every byte; of a larger one its size, its header and 64 pieces of 64 KiB that are spread evenly over the rest, the
    last one at its end.
    """
    digest = hashlib.sha256()
    for file in (*(folder / name for name in TEXT_FILES), *weight_files(folder)):
        if file.is_file():
            parts = [file.read_bytes()] if file.suffix != ".safetensors" else list(_sample(file))
            for part in (file.name.encode(), str(file.stat().st_size).encode(), *parts):
                digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _sample(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            yield stream.read()
            return
        length = stream.read(8)
        yield length + stream.read(int.from_bytes(length, "little"))
        start = stream.tell()
        for piece in range(PIECES):
            stream.seek(start + (size - start - PIECE_BYTES) * piece // (PIECES - 1))
            yield stream.read(PIECE_BYTES)


def _folder(model: str) -> Path:
    if model == DEMO:
        if not DEMO_FOLDER.is_dir():
            raise ModelError(f"the demo model is not in this installation ({DEMO_FOLDER}); train it with demo/train.py")
        return DEMO_FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{model} is a file; give the folder of a Hugging Face checkpoint")
    if HUB_ID.fullmatch(model) is None:
        raise ModelError(f"there is no folder {model}, and it cannot be a hub id (NAME or ORGANIZATION/NAME)")
    return _download(model)


def _download(model: str) -> Path:
    # Imported here because only a hub id needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_IGNORED)))
    except (OSError, HFValidationError, RevisionResolutionError) as error:
        raise ModelError(
            f"there is no folder {model}, and huggingface_hub could not get it as a hub id: {error}. Check the name, "
            "the network, HF_TOKEN for a gated model, and HF_HUB_OFFLINE"
        ) from error


def json_object(file: Path, *, needed: bool = False) -> Config:
    """The JSON object in a file; an empty one where the file is not there and not needed.

    Raises:
        ModelError: it is needed and not there, or holds something else.
    """
    if not file.is_file():
        if needed:
            raise ModelError(f"{file.parent} has no {file.name}; give the folder of a Hugging Face checkpoint")
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}; it must hold a JSON object")
    return content


def _header(file: Path) -> dict[str, StoredTensor]:
    if not file.is_file():
        raise ModelError(f"{file} is missing, but the index lists it; download the checkpoint again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if length <= min(size - 8, MAX_HEADER_BYTES) else b""
    try:
        entries = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        tensors = {name: StoredTensor(file, e["dtype"], tuple(e["shape"])) for name, e in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{file} is no safetensors file, or a damaged one; download it again") from error
    if size != 8 + length + end:
        raise ModelError(f"{file} has {size} bytes and must have {8 + length + end}; download it again")
    return tensors


def _plain_name(file: object) -> bool:
    return isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file


def _dtype(tensors: dict[str, StoredTensor]) -> str:
    weight: Counter[str] = Counter()
    for tensor in tensors.values():
        elements = 1
        for length in tensor.shape:
            elements *= length
        weight[tensor.dtype] += elements * ELEMENT_BYTES.get(tensor.dtype, 1)
    most = weight.most_common(1)[0][0]
    if most not in DTYPES:
        raise ModelError(f"the weights are stored as {most}; Penstock loads {', '.join(DTYPES)}")
    return DTYPES[most]


def _eos_ids(config: Config) -> set[int]:
    ids = config.get("eos_token_id")
    found = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in found):
        raise ModelError(f"eos_token_id is {ids!r}; it must be a token id or a list of them")
    return set(found)


def _tokenizer_eos_ids(folder: Path) -> set[int]:
    settings = {**json_object(folder / "special_tokens_map.json"), **json_object(folder / "tokenizer_config.json")}
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text:
        return set()
    found = _token_id(json_object(folder / "tokenizer.json"), text)
    if found is None:
        raise ModelError(f"tokenizer_config.json has the eos_token {text!r}, but tokenizer.json has no such token")
    return {found}


def _token_id(tokenizer: Config, text: str) -> int | None:
    added, model = tokenizer.get("added_tokens"), tokenizer.get("model")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and entry.get("content") == text and isinstance(entry.get("id"), int):
            return int(entry["id"])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        token = vocab.get(text)
        return token if isinstance(token, int) else None
    pieces = [entry[0] for entry in vocab] if isinstance(vocab, list) else []  # Unigram: (piece, score) in order of id
    return pieces.index(text) if text in pieces else None
