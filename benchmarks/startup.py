"""How long `import understudy` and `understudy --help` take, each in a fresh process.

Prints the median of ten runs beside that of an empty Python process, and fails when a limit is passed:
    python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 10
CASES = {
    "python -c pass": (["-c", "pass"], None),
    "import understudy": (["-c", "import understudy"], 0.3),
    "understudy --help": (["-m", "understudy", "--help"], 0.5),
}
"""Case -> arguments of the interpreter, and the limit in seconds."""


def measure(arguments: list[str], runs: int = RUNS) -> float:
    """Return the median seconds of a fresh interpreter with these arguments, after one run to fill the file cache."""
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def main() -> int:
    slow = 0
    for case, (arguments, limit) in CASES.items():
        seconds = measure(arguments)
        allowed = "" if limit is None else f"   limit {limit:.1f} s"
        print(f"{case:<20} {seconds:.3f} s{allowed}")
        slow += limit is not None and seconds > limit
    return slow


if __name__ == "__main__":
    sys.exit(main())
