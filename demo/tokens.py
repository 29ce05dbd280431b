"""The demo model's tokenizer: how it is trained, and how conversations become token ids.

Byte-level BPE over a pre-tokenizer that never lets a merge cross a word border: runs of letters, single
digits, a few fixed separators of the two tasks, and every other character alone. A value is therefore
cut the same way in the prompt and in the answer, wherever it stands, so answering is copying tokens.
The chat template here is the one the exported tokenizer_config.json holds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tables import table_task
from tasks import Conversation, log_task

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
SPLIT = r'\{"|"\}|":"|","|":|,"|: | \| |[A-Za-z]+|[0-9]|[^A-Za-z0-9]'
VOCABULARY = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Piece = tuple[str, bool]


def pieces(conversation: Conversation) -> Iterator[Piece]:
    """The conversation as the chat template writes it, in pieces: text, and whether it is to be learned."""
    if conversation.system is not None:
        yield f"{TURN_START}system\n{conversation.system}{TURN_END}\n", False
    for turn in conversation.turns:
        yield f"{TURN_START}user\n{turn.user}{TURN_END}\n{TURN_START}assistant\n", False
        yield f"{turn.assistant}{TURN_END}", True
        yield "\n", False


def corpus(rng: random.Random, count: int) -> Iterator[str]:
    """Text of both tasks to learn merges from."""
    for index in range(count):
        conversation = table_task(rng, 8, 6) if index % 2 else log_task(rng)
        for turn in conversation.turns:
            yield turn.user
            yield turn.assistant


def train_tokenizer(count: int = 20000) -> Tokenizer:
    """Learns the merges; the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    splits = [
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(random.Random(1), count), trainer)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, trained there first where it is missing."""
    file = folder / "tokenizer.json"
    if not file.exists():
        train_tokenizer().save(str(file))
    return Tokenizer.from_file(str(file))


def encode(tokenizer: Tokenizer, conversations: list[Conversation]) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each conversation, and for every token whether it belongs to an answer."""
    split = [list(pieces(conversation)) for conversation in conversations]
    encoded = iter(tokenizer.encode_batch([text for part in split for text, _ in part]))
    samples = []
    for part in split:
        ids: list[int] = []
        learned: list[bool] = []
        for _, is_answer in part:
            piece = next(encoded).ids
            ids += piece
            learned += [is_answer] * len(piece)
        samples.append((ids, learned))
    return samples
