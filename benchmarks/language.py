"""A step of language-model distillation (C7), and packing against padding (C8).

    python benchmarks/language.py [--rows C7 C8] [--rounds 7] [--types bfloat16 float32] [--trl FOLDER]

C7: a Llama of 2 layers and width 256 learns from one of 4 layers and width 512, vocabulary 32000, 4 x 256 tokens, by
the Jensen-Shannon divergence with beta 0.5, AdamW. Contenders:

- ours: the training step of the package with `token_kd`;
- plain: a loop by hand on all logits of both models, as a good engineer would write it;
- TRL: `compute_loss` of its GKD trainer, with the optimiser's step of the plain loop behind it. TRL is imported, or
  taken from a folder in which its wheel was unpacked; left out, with the reason, where it is not there.

Ten steps from the same weights have to give the losses of the plain loop before anything is measured; a rival that
gives others is measured all the same, and named (TRL works in bfloat16 where the heads do, on a CPU). Memory is the
peak resident memory of a fresh process over two steps, on top of what it had before the first.

C8: a Llama of 2 layers and width 128 with a vocabulary of 1000 reads 64 documents of 10 to 128 tokens, forward and
backward: each in a row of its own, padded to the longest, and packed into rows of 256 tokens. The bound is the share
of cells that padding leaves empty.

Rounds are interleaved. A ratio is the median over rounds of the other's time over ours in the same round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from understudy.data.batch import Batch
from understudy.methods import Supervised, TokenKD
from understudy.models.language_rows import Packing, causal_tokens
from understudy.models.tokens import Rows, Tokens, TokenSequence, packed, padded
from understudy.tasks import CausalLM
from understudy.teachers.live import LiveTeacher
from understudy.training.precision import Precision
from understudy.training.step import TrainingStep

VOCABULARY, SMALL, ROWS, LENGTH = 32_000, 1_000, 4, 256
TYPES = {"bfloat16": "bf16", "float32": "float32"}
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}


class Layout:
    """Sequences of any tokens in rows; there is no tokenizer."""

    def __init__(self, packing: Packing, capacity: int, vocabulary: int) -> None:
        self.packing, self.capacity, self.vocabulary = packing, capacity, vocabulary

    def lay_out(self, sequences: Any, documents: int, device: torch.device) -> Tokens:
        """Lay out."""
        lay = padded if self.packing == "padded" else packed
        rows: Rows = lay([len(each) for each in sequences], self.capacity)
        return causal_tokens(
            sequences,
            rows,
            documents,
            device,
            packing=self.packing,
            padding=0,
            attention_mask=True,
            layout=self,
        )


def llama(layers: int, width: int, vocabulary: int = VOCABULARY) -> torch.nn.Module:
    import transformers

    torch.manual_seed(layers)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def batch_of(lengths: list[int], packing: Packing, vocabulary: int = VOCABULARY) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sequences = [
        TokenSequence(torch.randint(vocabulary, (length,), generator=generator), number)
        for number, length in enumerate(lengths)
    ]
    layout = Layout(packing, LENGTH, vocabulary)
    tokens = layout.lay_out(sequences, len(lengths), torch.device("cpu"))
    index = torch.arange(len(lengths))
    return Batch({"student": tokens, "teacher": tokens}, None, index, index)


class Pair:
    """Student, teacher, optimiser and a batch of full rows."""

    def __init__(self, kind: str) -> None:
        self.student, self.teacher = llama(2, 256), llama(4, 512).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, fused=True)
        self.precision = Precision(TYPES[kind])
        self.batch = batch_of([LENGTH] * ROWS, "padded")
        self.inputs = self.batch.inputs["student"]

    def step(self, loss: Callable[[], torch.Tensor]) -> float:
        """Make one step of the optimiser, and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.context():
            value = loss()
        value.backward()
        self.optimizer.step()
        return float(value.detach())


def ours(pair: Pair) -> Callable[[], torch.Tensor]:
    task = CausalLM()
    teacher = LiveTeacher(
        pair.teacher,
        role="teacher",
        task=task,
        taps=(),
        copied=(),
        precision=pair.precision.context,
    )
    step = TrainingStep(
        task.tapped(pair.student),
        [TokenKD("jensen_shannon", beta=0.5)],
        {"teacher": teacher.targets},
        task,
    )
    return lambda: step(pair.batch, 0.5)[0]


def plain(pair: Pair) -> Callable[[], torch.Tensor]:
    keywords = dict(pair.inputs)

    def loss() -> torch.Tensor:
        with torch.no_grad():
            theirs = pair.teacher(**keywords).logits[:, :-1].float().log_softmax(-1)
        mine = pair.student(**keywords).logits[:, :-1].float().log_softmax(-1)
        middle = torch.logaddexp(theirs, mine) - torch.log(torch.tensor(2.0))
        to_teacher = (theirs.exp() * (theirs - middle)).sum(-1)
        to_student = (mine.exp() * (mine - middle)).sum(-1)
        return (0.5 * (to_teacher + to_student)).mean()

    return loss


def peer(pair: Pair) -> Callable[[], torch.Tensor]:
    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    ids = pair.inputs["input_ids"]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    # What its compute_loss reads of the trainer.
    as_trainer = SimpleNamespace(
        teacher_model=pair.teacher, beta=0.5, generalized_jsd_loss=trainer.generalized_jsd_loss
    )
    return lambda: trainer.compute_loss(as_trainer, pair.student, given)


CONTENDERS: dict[str, Callable[[Pair], Callable[[], torch.Tensor]]] = {
    "ours": ours,
    "plain": plain,
    "TRL": peer,
}


def resident(field: str) -> float:
    """Return a number of /proc/self/status in MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak(name: str, kind: str, trl: str | None) -> float:
    """Return the extra peak memory of two steps in MiB, from a fresh process."""
    command = [sys.executable, __file__, "--peak", name, "--types", kind]
    command += ["--trl", trl] if trl else []
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return float(json.loads(found.stdout.strip().splitlines()[-1]))


def measure_peak(name: str, kind: str) -> float:
    pair = Pair(kind)
    loss = CONTENDERS[name](pair)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")  # the peak starts again from here
    for _ in range(2):
        pair.step(loss)
    return resident("VmHWM") - before


def without(trl: str | None) -> str | None:
    """Return why TRL cannot take part; None when it can."""
    if trl:
        sys.path.insert(0, trl)
    try:
        importlib.import_module("trl.experimental.gkd.gkd_trainer")
    except ImportError as error:
        return f"TRL is left out: {error}"
    return None


def c7(kind: str, rounds: int, trl: str | None) -> None:
    reason = without(trl)
    notes = [] if reason is None else [reason]
    names = [name for name in CONTENDERS if name != "TRL" or reason is None]
    runs = {name: (pair := Pair(kind), CONTENDERS[name](pair)) for name in names}
    losses = {name: [pair.step(loss) for _ in range(10)] for name, (pair, loss) in runs.items()}
    for name in names:
        gaps = [abs(a - b) for a, b in zip(losses[name], losses["plain"], strict=True)]
        if not max(gaps) < TOLERANCE[kind] * losses["plain"][0]:
            first = f"{losses[name][0]:.4f} and {losses['plain'][0]:.4f}"
            text = f"{name} computes another loss than plain; the first ones are {first}."
            if name == "ours":
                raise SystemExit(text)
            notes.append(text)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            pair, loss = runs[name]
            begin = time.perf_counter()
            pair.step(loss)
            times[name].append(time.perf_counter() - begin)
    print(f"\nC7, {kind}: {ROWS} x {LENGTH} tokens, load {os.getloadavg()[0]:.1f}\n")
    print("".join(f"{note}\n\n" for note in notes), end="")
    print("| contender | median ms | time / ours | extra peak MiB | memory / ours |")
    print("|---|---:|---:|---:|---:|")
    peaks = {name: peak(name, kind, trl) for name in names}
    for name in names:
        ratio = statistics.median(
            one / base for one, base in zip(times[name], times["ours"], strict=True)
        )
        middle = 1e3 * statistics.median(times[name])
        share = peaks[name] / peaks["ours"]
        print(f"| {name} | {middle:.0f} | {ratio:.2f} | {peaks[name]:.0f} | {share:.2f} |")


def c8(kind: str, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 129, (64,), generator=generator).tolist()
    task, precision = CausalLM(), Precision(TYPES[kind])
    packings: tuple[Packing, ...] = ("mask", "padded")
    steps, cells, values = {}, {}, {}
    for packing in packings:
        module = llama(2, 128, SMALL)
        batch = batch_of(lengths, packing, SMALL)
        step = TrainingStep(task.tapped(module), [Supervised()], {}, task)
        grid = batch.inputs["student"].grid
        cells[packing] = grid[0] * grid[1]

        def run(step: TrainingStep = step, batch: Batch = batch) -> float:
            step.zero_grad(set_to_none=True)
            with precision.context():
                value = step(batch, 0.5)[0]
            value.backward()
            return float(value.detach())

        steps[packing], values[packing] = run, run()
    gap = abs(values["mask"] - values["padded"]) / abs(values["padded"])
    if not gap < TOLERANCE[kind]:
        raise SystemExit(
            f"C8: the losses of packed and padded rows differ by {gap:.2g}, relatively"
        )
    times: dict[str, list[float]] = {packing: [] for packing in packings}
    for number in range(rounds):
        for packing in packings if number % 2 else reversed(packings):
            begin = time.perf_counter()
            steps[packing]()
            times[packing].append(time.perf_counter() - begin)
    ratio = statistics.median(
        one / base for one, base in zip(times["padded"], times["mask"], strict=True)
    )
    print(f"\nC8, {kind}: 64 documents of 10 to 128 tokens, load {os.getloadavg()[0]:.1f}\n")
    print("| rows | cells | median ms |")
    print("|---|---:|---:|")
    for packing in packings:
        middle = 1e3 * statistics.median(times[packing])
        print(f"| {packing} | {cells[packing]} | {middle:.0f} |")
    print(f"\npadded / packed: {ratio:.2f}; cells {cells['padded'] / cells['mask']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=["C7", "C8"], choices=["C7", "C8"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--trl", help="a folder in which TRL's wheel was unpacked")
    parser.add_argument("--peak", help="measure the memory of one contender in this process")
    given = parser.parse_args()
    if given.peak:
        if given.peak == "TRL":
            without(given.trl)
        print(json.dumps(measure_peak(given.peak, given.types[0])))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for kind in given.types:
        if "C7" in given.rows:
            c7(kind, given.rounds, given.trl)
        if "C8" in given.rows:
            c8(kind, given.rounds)


if __name__ == "__main__":
    main()
