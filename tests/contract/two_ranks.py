"""Trains every method in two processes and says, for each, whether both ended with the same state.

As a program under torchrun: `two_ranks.py FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from workbench import STEPS, bench, go, snapshot, started

from understudy.methods import methods
from understudy.training.distribution import World, join_world


def judge(name: str, world: World) -> str:
    """Return "ok" or what went wrong."""
    built = bench([name], world=world)
    with started(built) as run:
        if len(go(run)) != STEPS:
            return "did not finish"
        # Statistics of batch norm belong to each process; everything that is learnt does not.
        learnt = {
            key: value
            for key, value in {
                **snapshot(built.student.module),
                **{f"methods.{key}": value for key, value in snapshot(run.module.methods).items()},
            }.items()
            if not any(part in key for part in ("running_mean", "running_var", "num_batches"))
        }
    other = world.gather({key: value.double().sum().item() for key, value in learnt.items()})
    differ = [key for key in other[0] if other[0][key] != other[1][key]]
    return "ok" if not differ else f"the ranks differ in {', '.join(differ[:5])}"


def main() -> None:
    """Judge all methods."""
    world = join_world("cpu")
    said: dict[str, str] = {}
    for name in methods.names():
        try:
            said[name] = judge(name, world)
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
            break  # the other process may be waiting somewhere else
    (Path(sys.argv[1]) / f"{world.rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
