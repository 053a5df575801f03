"""The error of sparse targets on a real teacher, as an error of the gradient.

    python benchmarks/codec_errors.py --data folder/of/cifar100 --weights resnet56.safetensors [--train-batches 300]

The teacher is a `kd:resnet56` for CIFAR-100. Its logits for test images are cut to the k largest, and the gradient of
the distillation loss in the student's logits is compared with the one that all 100 logits give, in the four ways that
`top_k_gradient.py` explains. Three students: a `kd:resnet20` that was trained for some batches of the training images
(without a teacher, without augmentation; its accuracy is printed), the teacher with normal noise of deviation 0.7 on
its logits (late in training), and one whose logits are normal noise of deviation 0.1 (the beginning).

A second table has the same error for what a store gives back, in several forms, with the bytes of a row that has the
tail at two temperatures.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pandas
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from top_k_gradient import exact_gradient, gradients, stored_error
from understudy.models.build import build
from understudy.models.model import Model
from understudy.teachers.store.codecs import Sparse, record_bytes

MEAN, DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
CLASSES = 100
KEPT = (5, 8, 16, 32, 64)
TEMPERATURES = (1.0, 2.0, 4.0)
FORMS = (
    (16, "float32"),
    (16, "float16"),
    (16, "int8"),
    (12, "int8"),
    (10, "int8"),
    (8, "int8"),
)
WAYS = ("tail", "renormalised", "zero", "uniform")


def images(data: Path, part: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first images of a part, uint8 [N, 3, 32, 32], and their labels."""
    table = pandas.concat([pandas.read_parquet(path) for path in sorted(data.glob(f"{part}-*"))])
    table = table.iloc[:count]
    pixels = [
        pil_to_tensor(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
        for image in table["image"]
    ]
    return torch.stack(pixels), torch.tensor(table["label"].to_numpy())


def model(name: str, weights: str | None = None) -> Model:
    """Return a model for CIFAR-100."""
    return build(
        name,
        classes=CLASSES,
        kind="image",
        input_shape=(3, 32, 32),
        statistics=(MEAN, DEVIATION),
        weights=weights,
    )


def logits(found: Model, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits of all images, float64 [N, 100]."""
    module = found.module.eval()
    with torch.no_grad():
        parts = [
            module(found.preprocess(part, torch.device("cpu"))).double()
            for part in pixels.split(200)
        ]
    return torch.cat(parts)


def train(found: Model, pixels: torch.Tensor, labels: torch.Tensor, batches: int) -> None:
    """Train with labels for some batches of 128, with a learning rate that falls to 0 in a cosine."""
    module = found.module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(batches):
        chosen = torch.randint(len(pixels), (128,), generator=generator)
        inputs = found.preprocess(pixels[chosen], torch.device("cpu"))
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), labels[chosen]).backward()
        optimizer.step()
        schedule.step()


def rows(
    title: str,
    teacher: torch.Tensor,
    student: torch.Tensor,
    kept: tuple[int, ...] = KEPT,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> None:
    """Print the rows of one student."""
    for temperature in temperatures:
        exact = exact_gradient(student, teacher, temperature)
        for k in kept:
            found = gradients(student, teacher, k, temperature)
            mass = (teacher / temperature).softmax(-1).topk(k).values.sum(-1).mean()
            errors = [float((found[way] - exact).norm() / exact.norm()) for way in WAYS]
            cells = " | ".join(f"{error:.2g}" for error in errors)
            print(f"| {title} | {temperature:g} | {k} | {mass:.3f} | {cells} |", flush=True)


def form_rows(students: dict[str, torch.Tensor], teacher: torch.Tensor) -> None:
    """Print the rows of the forms of a store: the error for each student and temperature."""
    cases = [(name, temperature) for name in students for temperature in TEMPERATURES]
    print("\n| k | dtype | bytes | " + " | ".join(f"{name}, T = {t:g}" for name, t in cases) + " |")
    print("|---:|---|---:" + "|---:" * len(cases) + "|")
    for k, dtype in FORMS:
        size = record_bytes(Sparse(CLASSES, k, dtype, (1.0, 4.0)))
        codec = Sparse(CLASSES, k, dtype, TEMPERATURES)
        errors = [stored_error(students[name], teacher, codec, t) for name, t in cases]
        cells = " | ".join(f"{error:.3g}" for error in errors)
        print(f"| {k} | {dtype} | {size} | {cells} |", flush=True)


def main() -> None:
    """Print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-100 in Parquet")
    parser.add_argument("--weights", required=True, help="weights of a kd:resnet56")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--train-samples", type=int, default=10000)
    parser.add_argument("--train-batches", type=int, default=300)
    given = parser.parse_args()
    torch.manual_seed(0)
    pixels, labels = images(given.data, "test", given.samples)
    teacher = logits(model("kd:resnet56", given.weights), pixels)
    small = model("kd:resnet20")
    train(small, *images(given.data, "train", given.train_samples), given.train_batches)
    trained = logits(small, pixels)
    for name, found in (("teacher", teacher), ("kd:resnet20", trained)):
        print(
            f"accuracy of the {name}: {(found.argmax(-1) == labels).double().mean():.3f}",
            flush=True,
        )
    noise = torch.randn(teacher.shape, dtype=torch.float64)
    print(
        f"\n| student | T | k | mass kept | {' | '.join(WAYS)} |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    students = {
        "kd:resnet20": trained,
        "teacher and noise": teacher + 0.7 * noise,
        "knows nothing": 0.1 * noise,
    }
    for name, student in students.items():
        rows(name, teacher, student)
    form_rows(students, teacher)


if __name__ == "__main__":
    main()
