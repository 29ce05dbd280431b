"""Protects text to ids and back: chats as transformers renders them, BOS once, and no row that depends on the clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.errors import ModelError, RowError, RowErrorCode
from penstock.tokenizer import Tokenizer
from tests.checkpoints import BOS, CHATML, EOS, VOCABULARY, write_llama

pytestmark = pytest.mark.torch  # tests.checkpoints and transformers import it

Messages = list[dict[str, object]]

LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message comes first, if there is one. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|im_start|>system\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|im_end|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|im_start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|im_end|>' }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last_query_index %}{% continue %}{% endif %}
        {%- generation %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{ bos_token }}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('After the optional system message, roles must alternate user/assistant!') }}
    {% endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TOJSON = (
    "{{ messages | tojson }}|{{ messages | tojson(indent=2, sort_keys=true) }}|{{ '<é>' | tojson(true) }}"
    "|{{ dict(a=1) }}|{{ documents }}|{{ tools }}|{{ pad_token }}"
)

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "qwen": QWEN, "mistral": MISTRAL, "tojson": TOJSON}
CHATS: dict[str, Messages] = {
    "one": [{"role": "user", "content": "hello"}],
    "system": [{"role": "system", "content": " be brief "}, {"role": "user", "content": "the\n\nanswer?\n"}],
    "turns": [
        {"role": "user", "content": "é <b>&amp;</b> {{ x }} 漢字 🙂"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n yes "},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "ok", "name": None},
        {"role": "user", "content": "'quote' \"double\" \\ \t end"},
    ],
}


def opened(folder: Path, template: str | None, *, place: str = "config", adds_bos: bool = False) -> Tokenizer:
    write_llama(folder, chat_template=template, template_place=place, adds_bos=adds_bos)
    return Tokenizer.open(folder)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_chats_are_rendered_and_encoded_as_by_transformers(
    tmp_path: Path, template: str, chat: str, adds_bos: bool
) -> None:
    from transformers import AutoTokenizer

    ours = opened(tmp_path, TEMPLATES[template], adds_bos=adds_bos)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(CHATS[chat], tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(CHATS[chat], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ours.render(CHATS[chat]) == text
    assert ours.encode_chat(CHATS[chat]) == ids


@pytest.mark.parametrize("text", ["", "hello the world", " é\n漢字 🙂", "a<|im_end|>b", "<|bos|>the"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_completions_are_encoded_and_decoded_as_by_transformers(tmp_path: Path, text: str, adds_bos: bool) -> None:
    from transformers import AutoTokenizer

    ours = opened(tmp_path, None, adds_bos=adds_bos)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(text).input_ids
    assert ours.encode(text) == (ids[1:] if ids[:2] == [BOS, BOS] else ids)
    decoded = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.decode(ids) == decoded


def test_bos_is_never_doubled(tmp_path: Path) -> None:
    adds = opened(tmp_path / "adds", "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", adds_bos=True)
    plain = opened(tmp_path / "plain", "{{ bos_token }}{{ messages[0].content }}")
    assert adds.bos_id == plain.bos_id == BOS
    hello = plain.encode("hello")
    assert adds.encode("hello") == adds.encode("<|bos|>hello") == adds.encode("<|bos|><|bos|>hello") == [BOS, *hello]
    for tokenizer in (adds, plain):
        assert tokenizer.encode_chat([{"role": "user", "content": "hello"}]) == [BOS, *hello]
        assert tokenizer.encode_chat([{"role": "user", "content": "<|bos|>hello"}]) == [BOS, *hello]
    assert plain.encode("aa")[:2] == plain.encode("a") * 2


@pytest.mark.parametrize("place", ["config", "list", "jinja", "json"])
def test_a_template_is_found_wherever_checkpoints_have_it(tmp_path: Path, place: str) -> None:
    tokenizer = opened(tmp_path, "here: {{ messages[0].content }}", place=place)
    assert tokenizer.has_chat_template
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "here: x"


def test_without_a_template_chats_fail_with_that_reason_and_completions_work(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, None)
    assert not tokenizer.has_chat_template
    with pytest.raises(RowError, match=r"has no chat template.*use /v1/completions") as caught:
        tokenizer.encode_chat([{"role": "user", "content": "x"}])
    assert caught.value.code == RowErrorCode.INVALID_FIELD
    assert tokenizer.encode("x") != []


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system message') }}", "refuses these messages: no system message$"),
        ("{{ strftime_now('%Y') }}", "asks for today's date"),
        ("{{ messages[0].content + 1 }}", "fails on these messages: TypeError"),
        ("{{ nothing.at.all }}", "fails on these messages: UndefinedError"),
        ("{{ 1 / 0 }}", "fails on these messages: ZeroDivisionError"),
        ("{% if %}", "cannot be used"),
        ("{{ [1, 2] | random }}", "cannot be used: No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{% set n = namespace(a=1) %}{% set n.__init__ = 1 %}", "SecurityError"),
    ],
)
def test_a_template_that_fails_is_an_error_of_the_row(tmp_path: Path, template: str, reason: str) -> None:
    tokenizer = opened(tmp_path, template)
    for _ in range(2):
        with pytest.raises(RowError, match=reason) as caught:
            tokenizer.encode_chat([{"role": "user", "content": "x"}])
        assert caught.value.code == RowErrorCode.INVALID_FIELD


def test_a_template_that_can_do_without_the_date_does(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}"
    assert opened(tmp_path, template).render([{"role": "user", "content": "x"}]) == "26 Jul 2024"


def test_no_messages_and_half_a_surrogate_pair_are_errors_of_the_row(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, CHATML)
    with pytest.raises(RowError, match="messages is empty"):
        tokenizer.encode_chat([])
    with pytest.raises(RowError, match=r"half a surrogate pair: U\+D800 at character 2"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(RowError, match="half a surrogate pair"):
        tokenizer.encode_chat([{"role": "user", "content": "\udfff"}])


def test_token_texts_and_bytes_add_up_to_the_text(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, None)
    assert tokenizer.vocab == VOCABULARY
    text = " the world: é 漢字 🙂<|im_end|>"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert [tokenizer.token_text(i) for i in tokenizer.encode(" the cat")] == [" the", " c", "at"]
    assert tokenizer.token_text(EOS) == "<|eos|>"
    assert tokenizer.token_text(tokenizer.encode("é")[0]) == "\ufffd"


def test_a_tokenizer_with_byte_fallback_keeps_the_space_of_a_token(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    pieces = ["<unk>", "<s>", *[f"<0x{byte:02X}>" for byte in range(256)], "\u2581", "a", "\u2581a", "b"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    ids = tokenizer.encode("a bé a")
    assert tokenizer.decode(ids) == "a bé a"
    assert "".join(tokenizer.token_text(i) for i in ids if i > 257) == " a b a"
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == " a bé a".encode()


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, None)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer.open(tmp_path).encode("the same ids") == tokenizer.encode("the same ids")


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path, None)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    extra = {"added_tokens_decoder": {"300": {"content": "<|new|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **extra}))
    with pytest.raises(ModelError, match=r"'<\|new\|>' as token 300, and tokenizer\.json has it as None"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json holds a list; it must hold a JSON object"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read by tokenizers"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        Tokenizer.open(tmp_path)
