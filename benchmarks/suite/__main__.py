"""Runs the suite.

    python -m benchmarks.suite [--rows C1,C2] [--quick] [--torchdistill FOLDER] [--data FOLDER --teacher FILE]
        [--output FILE] [--docs docs]

torchdistill takes part when it can be imported, or from a folder in which its package was unpacked:

    pip download --no-deps torchdistill==1.1.4 -d FOLDER && python -m zipfile -e FOLDER/*.whl FOLDER/lib
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    # Started as `python benchmarks/suite`: the package's own folder is on the path, the repository is not.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.suite import accuracy, machine, peer, report, step_rows, store_rows
from benchmarks.suite.options import Options
from benchmarks.suite.row import Row

ROWS: dict[str, Callable[[Options], Row]] = {
    "C1": step_rows.overhead,
    "C2": step_rows.float_step,
    "C3": step_rows.best_step,
    "C4": store_rows.epochs,
    "C5": step_rows.hint_step,
    "C9": store_rows.throughput,
    "C10": accuracy.fixed_time,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure the rows, print them, write what was asked for."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, by name (all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--torchdistill", help="folder that holds the unpacked package")
    parser.add_argument(
        "--data",
        help="folder of CIFAR-100 in hub layout, for C10, and for the error of gradients in C4",
    )
    parser.add_argument("--teacher", help="safetensors of kd:resnet56 on CIFAR-100, for the same")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each contender of C10 (60)")
    parser.add_argument("--seeds", type=int, default=1, help="of C10 (1)")
    parser.add_argument("--output", type=Path, help="write everything measured to this JSON file")
    parser.add_argument("--docs", type=Path, help="write table and plot into this folder")
    given = parser.parse_args(arguments)
    names = given.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    options = Options(
        quick=given.quick,
        peer=peer.missing(given.torchdistill),
        data=given.data,
        teacher=given.teacher,
        seconds=given.seconds,
        seeds=given.seeds,
    )
    found = machine.facts()
    rows: list[Row] = []
    for name in names:
        begin = time.perf_counter()
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        rows.append(ROWS[name](options))
        print(f"{time.perf_counter() - begin:.0f} s", flush=True, file=sys.stderr)
        if given.output is not None:
            report.write_json(given.output, found, rows, given.quick)
    print(report.table(rows))
    if given.docs is not None:
        report.write_docs(given.docs, found, rows)


if __name__ == "__main__":
    main()
