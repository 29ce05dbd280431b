"""Trains the demo model on the CPU, restartably, within a budget of CPU seconds.

Run it again with the same --work folder and it goes on from the last checkpoint: weights, optimizer
states, random state, step and CPU seconds used are written together and renamed into place. Learning
rate and curriculum follow the share of the budget that is used, so a changed --cpu-seconds only moves
the end. Every step takes one batch of log lines and one of tables; only answers are learned. Now and then
it prints the loss and the share of held-out answers that greedy decoding gets exactly right (every answer
token is the most likely one). At the end it writes the Hugging Face folder.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from model import MAX_POSITIONS, Llama, Shape, export
from tables import table_task
from tasks import Conversation, log_task
from tokens import encode, load_tokenizer

Sample = tuple[list[int], list[bool]]
Batch = tuple[Tensor, Tensor]
WARM_UP = 0.01
SHAPES = 64
HELD_OUT_RECORDS = {"tables of 4": 4, "tables of 12": 12, "tables of 50": 50}


@dataclass
class State:
    """Everything a checkpoint holds."""

    model: Llama
    optimizers: list[torch.optim.Optimizer]
    rng: random.Random
    step: int = 0
    cpu_seconds: float = 0.0

    def save(self, file: Path) -> None:
        """Writes the checkpoint aside and renames it into place."""
        content = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.getstate(),
            "step": self.step,
            "cpu_seconds": self.cpu_seconds,
        }
        aside = file.with_suffix(".new")
        torch.save(content, aside)
        os.replace(aside, file)

    def load(self, file: Path) -> None:
        """Takes over a checkpoint written by `save`."""
        content = torch.load(file, weights_only=False)
        self.model.load_state_dict(content["model"])
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.setstate(content["rng"])
        self.step, self.cpu_seconds = content["step"], content["cpu_seconds"]


def build_optimizers(model: Llama, matrix_rate: float, other_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [value for name, value in model.named_parameters() if name.endswith("proj.weight")]
    others = [value for name, value in model.named_parameters() if not name.endswith("proj.weight")]
    muon = torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def set_rates(optimizers: list[torch.optim.Optimizer], used: float) -> None:
    """Linear warm-up, a plateau until 40 % of the budget, then linear decay to 2 % of the peak."""
    factor = min(1.0, used / WARM_UP + 0.02, max(0.02, (1.0 - used) / 0.6))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def draw_table(rng: random.Random, used: float) -> Conversation:
    """A table task of a size that grows with the share of the budget used."""
    if used > 0.7 and rng.random() < 0.05:
        return table_task(rng, rng.randint(16, 55), 16)
    most = 5 if used < 0.45 else 9 if used < 0.55 else 14
    return table_task(rng, rng.randint(2, most), 8)


def draw_log(rng: random.Random, used: float) -> Conversation:
    """A log task, of short paths and agents at the start of the budget."""
    return log_task(rng, 30 if used < 0.08 else 90)


def cpu_seconds() -> float:
    """CPU seconds of this process and of the compilers it ran."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pad_batch(samples: list[Sample], length: int) -> Batch:
    """Ids and learned-flags as rectangles, padded at the right."""
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in samples])
    learned = torch.tensor([row + [False] * (length - len(row)) for _, row in samples])
    return ids, learned


def bucket(length: int) -> int:
    """The padded length of a sample: few distinct shapes, because each costs set-up time."""
    step = 64 if length <= 768 else 512
    return -(-length // step) * step


def whole_batches(samples: list[Sample]) -> list[Batch]:
    """All the samples, grouped by padded length."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(bucket(len(sample[0])), []).append(sample)
    return [pad_batch(group, length) for length, group in groups.items()]


def stream(draw: Callable[[], Conversation], tokenizer: Tokenizer, tokens: int) -> Iterator[Batch]:
    """Endless batches, each of one padded length and of about that many tokens."""
    waiting: dict[int, list[Sample]] = {}
    while True:
        for sample in encode(tokenizer, [draw() for _ in range(16)]):
            length = bucket(len(sample[0]))
            if length > MAX_POSITIONS:
                continue
            samples = waiting.setdefault(length, [])
            samples.append(sample)
            if len(samples) >= tokens // length:
                yield pad_batch(waiting.pop(length), length)


def learned_logits(model: Llama, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores and right tokens at the positions that are learned."""
    ids, learned = batch
    states = model(ids)[:, :-1]
    chosen = learned[:, 1:]
    return model.logits(states[chosen]), ids[:, 1:][chosen]


def learn(state: State, batches: list[Batch]) -> list[float]:
    """One optimizer step over the batches; their losses."""
    losses = []
    for batch in batches:
        loss = functional.cross_entropy(*learned_logits(state.model, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return losses


@torch.no_grad()
def exact_share(model: Llama, batches: list[Batch]) -> float:
    """The share of conversations whose every answer token is the most likely one."""
    right = total = 0
    for ids, learned in batches:
        with torch.compiler.set_stance("force_eager"):
            scores, wanted = learned_logits(model, (ids, learned))
        hits = torch.ones_like(learned[:, 1:])
        hits[learned[:, 1:]] = scores.argmax(-1) == wanted
        right += int(hits.all(1).sum())
        total += len(ids)
    return right / total


def held_out(tokenizer: Tokenizer, count: int) -> dict[str, list[Batch]]:
    """Samples of another seed than the training's: logs, and single questions on tables by size."""
    rng = random.Random(987654321)
    drawn = {"logs": [log_task(rng) for _ in range(count)]}
    for name, records in HELD_OUT_RECORDS.items():
        drawn[name] = [table_task(rng, records, 1) for _ in range(count if records < 30 else count // 4)]
    return {name: whole_batches(encode(tokenizer, found)) for name, found in drawn.items()}


def report(state: State, checks: dict[str, list[Batch]], losses: dict[str, list[float]], started: float) -> None:
    """Prints one line of progress."""
    means = ", ".join(f"{name} {sum(found) / max(1, len(found)):.4f}" for name, found in losses.items())
    shares = ", ".join(f"{name} {exact_share(state.model, batches):.3f}" for name, batches in checks.items())
    clock = f"cpu {state.cpu_seconds:.0f} s wall {time.time() - started:.0f} s"
    print(f"step {state.step} {clock} loss: {means} exact: {shares}", flush=True)


def train(state: State, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    """Steps until the budget of CPU seconds is used."""
    before, started = state.cpu_seconds - cpu_seconds(), time.time()
    checks = held_out(tokenizer, options.held_out)
    draws: dict[str, Callable[[], Conversation]] = {
        "tables": lambda: draw_table(state.rng, state.cpu_seconds / options.cpu_seconds),
        "logs": lambda: draw_log(state.rng, state.cpu_seconds / options.cpu_seconds),
    }
    streams = {name: stream(draw, tokenizer, options.tokens) for name, draw in draws.items()}
    losses: dict[str, list[float]] = {name: [] for name in draws}
    while state.cpu_seconds < options.cpu_seconds:
        set_rates(state.optimizers, state.cpu_seconds / options.cpu_seconds)
        names = ["logs"] if state.step % options.table_every else ["logs", "tables"]
        for name, loss in zip(names, learn(state, [next(streams[name]) for name in names]), strict=True):
            losses[name].append(loss)
        state.step += 1
        if state.step % options.report == 0:
            report(state, checks, losses, started)
            losses = {name: [] for name in draws}
            state.save(options.work / "checkpoint.pt")
        state.cpu_seconds = before + cpu_seconds()
    state.save(options.work / "checkpoint.pt")


def arguments() -> argparse.Namespace:
    """The command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train the demo model within a budget of CPU seconds.")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=here.parent / "src" / "penstock" / "demo_model")
    parser.add_argument("--cpu-seconds", type=float, default=9900.0, help="CPU budget, all runs together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each task in a step")
    parser.add_argument("--table-every", type=int, default=1, help="take a batch of tables in every n-th step")
    parser.add_argument("--matrix-rate", type=float, default=4e-3)
    parser.add_argument("--other-rate", type=float, default=3e-3)
    parser.add_argument("--report", type=int, default=200, help="steps between reports and checkpoints")
    parser.add_argument("--held-out", type=int, default=100, help="held-out samples of each kind")
    return parser.parse_args()


def main() -> None:
    """Trains or goes on training, then exports."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    shape = Shape()
    model = Llama(shape)
    torch._dynamo.config.recompile_limit = SHAPES
    for layer in model.layers:
        layer.compile(dynamic=False)
    state = State(model, build_optimizers(model, options.matrix_rate, options.other_rate), random.Random(2))
    if (options.work / "checkpoint.pt").exists():
        state.load(options.work / "checkpoint.pt")
    tokenizer = load_tokenizer(options.work)
    train(state, tokenizer, options)
    export(model, shape, tokenizer, options.out)
    print(f"exported to {options.out} after {state.step} steps and {state.cpu_seconds:.0f} CPU seconds")


if __name__ == "__main__":
    main()
