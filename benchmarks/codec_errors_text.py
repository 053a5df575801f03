"""The error of sparse targets on a language model's vocabulary, as an error of the gradient.

    python benchmarks/codec_errors_text.py --text shakespeare.txt [--steps 300] [--student-steps 300]

A byte-level BPE of 4096 tokens, a teacher (Llama, 4 layers, width 256) and a student (2 layers, width 128) are trained
on the text but its last tenth, from which `--samples` tokens are taken. The teacher's logits are cut to the k largest,
and the gradient of the distillation loss in the student's logits is compared with the one that all 4096 logits give, in
the four ways that `top_k_gradient.py` explains; also for a student that knows nothing yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from codec_errors import WAYS, rows

VOCABULARY, LENGTH, BATCH = 4096, 128, 16
KEPT, TEMPERATURES = (8, 16, 64, 256), (1.0, 2.0)


def network(width: int, layers: int) -> nn.Module:
    """Return a causal language model with random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)


def train(model: nn.Module, tokens: torch.Tensor, steps: int) -> float:
    """Train on random windows in bf16 autocast; return the mean loss of the last ten steps, in nats a token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    window = torch.arange(LENGTH)
    losses = []
    model.train()
    for _ in range(steps):
        start = torch.randint(len(tokens) - LENGTH, (BATCH, 1), generator=generator)
        batch = tokens[start + window]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of all tokens, float64 [N, VOCABULARY]."""
    model.eval()
    with torch.no_grad():
        found = model(input_ids=tokens.view(-1, LENGTH)).logits
    return found.double().flatten(0, 1)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--samples", type=int, default=1024, help="tokens that are compared")
    parser.add_argument("--steps", type=int, default=300, help="of the teacher")
    parser.add_argument("--student-steps", type=int, default=300)
    given = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = ByteLevelBPETokenizer()
    text = given.text.read_text()
    tokenizer.train_from_iterator([text], vocab_size=VOCABULARY, show_progress=False)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    held_out = tokens[-len(tokens) // 10 :][: given.samples // LENGTH * LENGTH]
    tokens = tokens[: -len(tokens) // 10]
    teacher, student = network(256, 4), network(128, 2)
    for name, model, steps in (
        ("teacher", teacher, given.steps),
        ("student", student, given.student_steps),
    ):
        print(f"{name}: {train(model, tokens, steps):.2f} nats a token after {steps} steps")
    theirs, ours = logits(teacher, held_out), logits(student, held_out)
    print(
        f"\n| student | T | k | mass kept | {' | '.join(WAYS)} |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    rows("2 layers", theirs, ours, KEPT, TEMPERATURES)
    noise = 0.1 * torch.randn(theirs.shape, dtype=torch.float64)
    rows("knows nothing", theirs, noise, KEPT, TEMPERATURES)


if __name__ == "__main__":
    main()
