"""Time and peak memory of a language model's head with a divergence, forward and backward.

    python benchmarks/vocabulary.py [--tokens 1024] [--rounds 5] [--sizes 32000:256:512 151936:512:1024]
        [--types bfloat16 float32] [--compiled] [--keep]

Contenders, all for T^2 * KL(teacher || student) at T = 2 over all tokens, with gradients for hidden states and head:

- naive: all logits of both models in float32 or as the heads give them, softmax and divergence by autograd;
- naive, compiled (with --compiled): the same under torch.compile;
- chunked, recomputed: chunks of 256 tokens under activation checkpointing, so that the backward pass computes logits
  and softmax of a chunk again; the formula behind chunked losses such as TRL's;
- ours, dense: `objectives.vocabulary_divergence` from the teacher's hidden states and head;
- ours, top-64: the same from 64 stored logits and a tail;
- ours, compiled (with --compiled): dense, with `compiled=True`;
- ours, frozen: dense, for a head that needs no gradient (then only to be compared with "naive, frozen").

Value and gradients are compared with the naive form before anything is measured. Time is processor time, summed over
threads (OMP_NUM_THREADS=1 for one): it says how much work there is, also while others use the machine. Rounds are
interleaved, forwards and backwards in turn; a ratio is the median over rounds of the other's time over ours in the
same round. Memory is the peak resident memory of a fresh process in one step, on top of inputs, weights and the code
itself (a small step is made first).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from understudy import objectives
from understudy.training.host_memory import keep_freed_memory

TEMPERATURE = 2.0
CHUNK = 256
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Data:
    """Hidden states, heads and a top-64 target of one size."""

    def __init__(self, tokens: int, size: str, dtype: torch.dtype, frozen: bool = False) -> None:
        vocabulary, ours, theirs = map(int, size.split(":"))
        torch.manual_seed(0)
        self.hidden = torch.randn(tokens, ours, dtype=dtype).requires_grad_()
        self.weight = (torch.randn(vocabulary, ours, dtype=dtype) * ours**-0.5).mul_(2)
        self.weight.requires_grad_(not frozen)
        self.teacher_hidden = torch.randn(tokens, theirs, dtype=dtype)
        self.teacher_weight = (torch.randn(vocabulary, theirs, dtype=dtype) * theirs**-0.5).mul_(2)

    def top_k(self, k: int = 64) -> objectives.TopKTarget:
        """Return what a store of the teacher's k largest logits would give."""
        found: list[list[torch.Tensor]] = [[], [], []]
        for hidden in self.teacher_hidden.split(CHUNK):
            logits = (hidden @ self.teacher_weight.T).float()
            values, indices = logits.topk(k, dim=-1)
            rest = logits.scatter_(-1, indices, -torch.inf).div_(TEMPERATURE)
            for kept, tensor in zip(
                found, (values, indices, TEMPERATURE * rest.logsumexp(-1)), strict=True
            ):
                kept.append(tensor)
        return objectives.TopKTarget(*(torch.cat(kept) for kept in found))

    @property
    def dense(self) -> objectives.DenseTarget:
        """The teacher's hidden states and head."""
        return objectives.DenseTarget(self.teacher_hidden, objectives.Head(self.teacher_weight))


def divergence(
    hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, teacher_weight: torch.Tensor
) -> torch.Tensor:
    """Return the sum over tokens of T^2 * KL, by plain operations."""
    with torch.no_grad():
        log_p = F.log_softmax((teacher @ teacher_weight.T).float() / TEMPERATURE, dim=-1)
    log_q = F.log_softmax((hidden @ weight.T).float() / TEMPERATURE, dim=-1)
    return TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def naive(data: Data, form: Callable[..., torch.Tensor] = divergence) -> torch.Tensor:
    total = form(data.hidden, data.weight, data.teacher_hidden, data.teacher_weight)
    return total / len(data.hidden)


def recomputed(data: Data) -> torch.Tensor:
    total = data.hidden.new_zeros((), dtype=torch.float32)
    for hidden, teacher in zip(
        data.hidden.split(CHUNK), data.teacher_hidden.split(CHUNK), strict=True
    ):
        total = total + checkpoint(
            divergence, hidden, data.weight, teacher, data.teacher_weight, use_reentrant=False
        )
    return total / len(data.hidden)


def ours(
    data: Data, target: objectives.DenseTarget | objectives.TopKTarget, compiled: bool = False
) -> torch.Tensor:
    return objectives.vocabulary_divergence(
        data.hidden,
        objectives.Head(data.weight),
        target,
        temperature=TEMPERATURE,
        compiled=compiled,
    )


def contenders(data: Data, compiled: bool) -> dict[str, Callable[[], torch.Tensor]]:
    dense, sparse = data.dense, data.top_k()
    found: dict[str, Callable[[], torch.Tensor]] = {
        "ours, dense": lambda: ours(data, dense),
        "ours, top-64": lambda: ours(data, sparse),
        "naive": lambda: naive(data),
        "chunked, recomputed": lambda: recomputed(data),
    }
    if compiled:
        form = torch.compile(divergence, dynamic=False)
        found["naive, compiled"] = lambda: naive(data, form)
        found["ours, compiled"] = lambda: ours(data, dense, compiled=True)
    return found


def step(data: Data, loss: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Return the processor seconds of one forward and backward pass, and the loss."""
    data.hidden.grad = data.weight.grad = None
    begin = time.process_time()
    value = loss()
    value.backward()
    return time.process_time() - begin, value.detach()


def check(data: Data, found: dict[str, Callable[[], torch.Tensor]], dtype: torch.dtype) -> None:
    """Refuse to measure what does not compute the same (top-64 has another value by design)."""
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    results = {}
    for name in [name for name in found if name != "ours, top-64"]:
        _, value = step(data, found[name])
        assert data.hidden.grad is not None and data.weight.grad is not None
        results[name] = (value, data.hidden.grad.float(), data.weight.grad.float())
    for name, tensors in results.items():
        for one, other in zip(tensors, results["naive"], strict=True):
            gap = ((one - other).norm() / other.norm()).item()
            if not gap < tolerance:
                raise SystemExit(f"{name} differs from the naive form by {gap:.2g}, relatively")


def peak(name: str, tokens: int, size: str, kind: str) -> float:
    """Return the extra peak memory of one step in MiB, from a fresh process."""
    command = [sys.executable, __file__, "--peak", name, "--tokens", str(tokens)]
    command += ["--sizes", size, "--types", kind]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return float(json.loads(found.stdout.strip().splitlines()[-1]))


def resident(field: str) -> float:
    """Return a number of /proc/self/status in MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_peak(name: str, tokens: int, size: str, kind: str) -> float:
    """Return by how much one step raises this process's peak memory, in MiB."""
    small = Data(8, "64:8:8", TYPES[kind])
    data = Data(tokens, size, TYPES[kind], frozen=name.endswith("frozen"))
    name = {"ours, frozen": "ours, dense", "naive, frozen": "naive"}.get(name, name)
    sparse = data.top_k() if "top" in name else None
    forms = {
        "ours, dense": lambda data: ours(data, data.dense),
        "ours, top-64": lambda data: ours(data, sparse if len(data.hidden) > 8 else data.top_k(4)),
        "naive": naive,
        "chunked, recomputed": recomputed,
    }
    forms[name](small).backward()
    before = resident("VmRSS")
    high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")  # the peak starts again from here
    forms[name](data).backward()
    after = resident("VmHWM")
    assert after > before, (before, high, after)
    return after - before


def table(tokens: int, size: str, kind: str, rounds: int, compiled: bool) -> None:
    data = Data(tokens, size, TYPES[kind])
    found = contenders(data, compiled)
    check(data, found, TYPES[kind])
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        for name in sorted(found, reverse=bool(number % 2)):
            times[name].append(step(data, found[name])[0])
    del data
    peaks = {name: peak(name, tokens, size, kind) for name in found if "compiled" not in name}
    vocabulary, width, theirs = size.split(":")
    print(
        f"\n{tokens} tokens, V {vocabulary}, H {width} and {theirs}, {kind}, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| form | median ms | fastest ms | time / ours, dense | extra peak MiB | of naive |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, seconds in times.items():
        ratio = statistics.median(
            mine / base for mine, base in zip(seconds, times["ours, dense"], strict=True)
        )
        memory = (
            f"{peaks[name]:.0f} | {peaks[name] / peaks['naive']:.2f}" if name in peaks else "· | ·"
        )
        middle = 1e3 * statistics.median(seconds)
        print(
            f"| {name} | {middle:.0f} | {1e3 * min(seconds):.0f} | {ratio:.2f} | {memory} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["32000:256:512", "151936:512:1024"])
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument(
        "--keep", action="store_true", help="let the process keep freed memory, as training does"
    )
    parser.add_argument("--peak", help="measure the memory of one contender in this process")
    given = parser.parse_args()
    if given.peak:
        print(json.dumps(measure_peak(given.peak, given.tokens, given.sizes[0], given.types[0])))
        return
    kept = given.keep and keep_freed_memory()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        + (", freed memory is kept" if kept else "")
    )
    for size in given.sizes:
        for kind in given.types:
            table(given.tokens, size, kind, given.rounds, given.compiled)


if __name__ == "__main__":
    main()
