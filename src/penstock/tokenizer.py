"""`Tokenizer`: text and chats to token ids, and back, for one checkpoint folder.

Owns tokenizer.json, the special tokens of tokenizer_config.json and the chat template. Chats are rendered as
transformers 5 renders them, without transformers, in Jinja's sandbox. Knows nothing of models or rows.
One idea: the ids of a row depend on the row alone. So a template gets no clock (`strftime_now` is not defined; Llama
3's templates then write the fixed date that they carry for this case) and no random numbers (`random`, `lipsum`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import tokenizers
from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from penstock.checkpoint import json_object
from penstock.errors import ModelError, RowError, RowErrorCode

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# What can come out of a template beside its own errors: it is code that works on whatever the row has.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class Tokenizer:
    """Encodes prompts and decodes answers.

    Attributes:
        vocab: the number of tokens that the tokenizer has (the model may have more rows, or fewer).
        bos_id: the beginning-of-sequence token; None: the tokenizer names none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, special: Mapping[str, str], template: str | None) -> None:
        backend.no_truncation()  # what the file says about these is for training
        backend.no_padding()
        self._backend = backend
        self._special = dict(special)
        self._template = template
        self.vocab: int = backend.get_vocab_size(with_added_tokens=True)
        bos = self._special.get("bos_token")
        self.bos_id: int | None = None if bos is None else backend.token_to_id(bos)

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder.

        Raises:
            ModelError: a file is missing or damaged.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{folder} has no tokenizer.json; save one with transformers' save_pretrained")
        settings = json_object(folder / "tokenizer_config.json")
        try:
            backend = tokenizers.Tokenizer.from_buffer(file.read_bytes())
        except ValueError as error:
            raise ModelError(f"{file} cannot be read by tokenizers {tokenizers.__version__}: {error}") from error
        _check_added(backend, settings.get("added_tokens_decoder"))
        special = _special_tokens({**json_object(folder / "special_tokens_map.json"), **settings})
        return cls(backend, special=special, template=_find_template(folder, settings))

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be encoded."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """The ids of a completion's prompt, with the special tokens that the tokenizer adds; BOS is never doubled."""
        return self._without_doubled_bos(self._ids(text, add_special_tokens=True))

    def encode_chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """The ids of `render(messages)`: all special tokens are the template's; BOS is never doubled.

        Raises:
            RowError: see `render`.
        """
        return self._without_doubled_bos(self._ids(self.render(messages), add_special_tokens=False))

    def render(self, messages: Sequence[Mapping[str, object]]) -> str:
        """The chat as the template writes it, up to where the assistant's answer begins.

        Raises:
            RowError: there is no template, or it does not take these messages; the message has its reason.
        """
        if not messages:
            raise RowError(RowErrorCode.INVALID_FIELD, "messages is empty; a chat needs at least one message")
        said = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return self._compiled.render(
                **self._special, messages=said, tools=None, documents=None, add_generation_prompt=True
            )
        except TEMPLATE_ERRORS as error:
            raise RowError(RowErrorCode.INVALID_FIELD, _template_reason(error)) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def token_text(self, id: int) -> str:  # noqa: A002
        """The text of one token inside a text, special or not; U+FFFD where it is a part of a character."""
        before = self._backend.decode(self._anchor, skip_special_tokens=False)
        both = self._backend.decode([*self._anchor, id], skip_special_tokens=False)
        return both.removeprefix(before)

    def token_bytes(self, id: int) -> bytes:  # noqa: A002
        """The bytes of one token inside a text, also where it is a part of a character."""
        token = self._backend.id_to_token(id)
        text = self.token_text(id)
        if token is None or "\ufffd" not in text:
            return text.encode()
        byte = BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return bytes(_BYTES[letter] for letter in token) if set(token) <= _BYTES.keys() else text.encode()

    @cached_property
    def _anchor(self) -> list[int]:
        """An ordinary token to put before another one: decoders drop the space that a whole text begins with."""
        return self._ids("a", add_special_tokens=False)[-1:]

    @cached_property
    def _compiled(self) -> Template:
        if self._template is None:
            text = "the model has no chat template, so it cannot answer chats; use /v1/completions"
            raise RowError(RowErrorCode.INVALID_FIELD, text)
        return _environment().from_string(self._template)

    @cached_property
    def _first_ids(self) -> set[int]:
        """Ids that begin a sequence once: BOS, and what the tokenizer puts first."""
        added = self._ids("", add_special_tokens=True)[:1]
        return {*added, *([] if self.bos_id is None else [self.bos_id])}

    def _without_doubled_bos(self, ids: list[int]) -> list[int]:
        start = 0
        while start + 1 < len(ids) and ids[start] == ids[start + 1] and ids[start] in self._first_ids:
            start += 1
        return ids[start:]

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise RowError(RowErrorCode.INVALID_FIELD, f"the text has half a surrogate pair: {found}") from error
        # The ids of `encode`, without where each token stands in the text, which takes a tenth of the time.
        encoded: list[Any] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        return ids


class _GenerationBlock(Extension):
    """Jinja's `{% generation %}` of training templates: its content is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)  # what the block sets stays in it, as in transformers


class _Dictionary:
    """The template's `dict`: callable, and nothing of the type behind it is in reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(Namespace):
    """The template's `namespace`, without names that reach into Python."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot have the attribute {name!r}")
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives templates, without clock and dice."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    found.filters["tojson"] = _tojson
    found.globals["raise_exception"] = _raise_exception
    found.globals["namespace"] = _Namespace
    found.globals["dict"] = _Dictionary()
    del found.filters["random"]
    del found.globals["lipsum"]
    return found


def _tojson(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Templates call this, by position too; unlike Jinja's own, it escapes no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Raised(TemplateError):
    """The template refused the messages."""


def _raise_exception(message: str) -> NoReturn:
    raise _Raised(message)


def _template_reason(error: Exception) -> str:
    if isinstance(error, _Raised):
        return f"the model's chat template refuses these messages: {error}"
    if isinstance(error, TemplateSyntaxError):  # also an unknown filter, such as `random`
        return f"the model's chat template cannot be used: {error.message} (line {error.lineno})"
    if isinstance(error, UndefinedError) and "strftime_now" in str(error):
        return "the model's chat template asks for today's date, and the answer must not depend on it; use a fixed date"
    return f"the model's chat template fails on these messages: {type(error).__name__}: {error}"


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {name: settings.get(name) for name in SPECIAL_NAMES}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


class _Added(NamedTuple):
    token: int
    text: str


def _check_added(backend: tokenizers.Tokenizer, decoder: object) -> None:
    """Check that tokenizer_config.json adds no token that tokenizer.json lacks."""
    entries = decoder.items() if isinstance(decoder, dict) else ()
    listed = [_Added(int(i), e["content"]) for i, e in entries if isinstance(e, dict) and str(i).isdigit()]
    for token, text in listed:
        if backend.token_to_id(text) != token:
            raise ModelError(
                f"tokenizer_config.json has {text!r} as token {token}, and tokenizer.json has it as "
                f"{backend.token_to_id(text)}; save the tokenizer again with transformers' save_pretrained"
            )


def _find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own (jinja, then json) comes before tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = json_object(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(found, list):  # named templates
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ModelError(f"the chat template of {folder} is a {type(found).__name__}; it must be text")
    return found


def _byte_letters() -> dict[str, int]:
    """Byte-level BPE's letters, each with the byte that it stands for (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_letters()
