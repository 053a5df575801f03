"""A call of `write` for a process that is killed in the middle of it: `killed_writer.py FOLDER PAUSE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import small_writers as kit

from understudy.models.tokenizer import train_tokenizer
from understudy.sampling import Finished, ModelSampler, Prompt, Sampling, write


def compose(folder: Path, pause: float = 0.0) -> int:
    """Write twelve responses in six shards, with a pause after each; return how many shards were written."""
    tokenizer = train_tokenizer(["12+35=47"], size=kit.SIZE, kind="bpe")
    report = write(
        folder,
        [Prompt(k, f"{k}+{k}=") for k in range(12)],
        ModelSampler(kit.llama(), tokenizer=tokenizer, ends=[3, 40, 50]),
        Sampling(max_new_tokens=8),
        filters=[Finished()],
        shard_size=2,
        progress=lambda done, total: time.sleep(pause),
    )
    return report.new


if __name__ == "__main__":
    compose(Path(sys.argv[1]), float(sys.argv[2]))
