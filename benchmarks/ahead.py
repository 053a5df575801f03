"""A teacher that begins the next batch while the student trains on this one, beside one that waits for its turn.

    python benchmarks/ahead.py [--teacher resnet56 --student resnet20] [--precision bf16] [--batch 64] [--steps 12]

Both train the same pair on made images, in turns of `--steps` steps; the first step of a turn has no pass that was
begun before. What can be gained depends on how well one model alone keeps the processors busy. The student without a
teacher is the floor. Numbers are medians of rounds, ratios medians of the ratios in a round.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from benchmarks.suite.ours import Ours
from benchmarks.suite.rounds import measure
from benchmarks.suite.task import image_pair

from understudy.training.precision import Precision


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    precision = Precision(given.precision, given.precision == "bf16", "cpu")

    def contender(objective: str, ahead: bool = False) -> Ours:
        task = image_pair(given.student, given.teacher, batch=given.batch, objective=objective)
        return Ours(task, precision, ahead=ahead)

    runs = {
        "in turn": contender("kd"),
        "ahead": contender("kd", True),
        "student alone": contender("labels"),
    }
    times = measure({name: each.run for name, each in runs.items()}, given.steps, given.rounds)
    for each in runs.values():
        each.close()
    print(f"{given.teacher} -> {given.student}, {precision}, {torch.get_num_threads()} threads")
    for name in runs:
        print(f"{name}: {1e3 * times.median(name):.1f} ms a step")
    print(f"ahead is {times.paired('ahead', 'in turn'):.2f} times as fast as in turn")
    if times.marked:
        print(f"{times.marked} of {given.rounds} rounds ran beside other processes")


if __name__ == "__main__":
    main()
