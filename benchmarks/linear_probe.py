"""How much of the digits a linear classifier reads from a saved model's features, beside an untrained model.

    understudy run desk/tcs name=simclr epochs=1 'seeds=[0]'
    python benchmarks/linear_probe.py runs/simclr/models/teacher [--untrained mlp:256-128] [--splits 5]

The features are what goes into the model's classifier, standardised; scikit-learn's logistic regression is fitted to
70 per cent of the images. Quoted are mean and standard deviation over splits. `spread` is sqrt(D) times the mean
standard deviation of the features at length 1: near 0 the representation has collapsed.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from understudy.models.build import build
from understudy.models.description import describe
from understudy.models.model import Model
from understudy.models.saved import load
from understudy.models.taps import Tapped


def features(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Return what goes into the classifier, [N, D], for uint8 images [N, 1, 8, 8]."""
    module = model.module.eval()
    inputs = model.preprocess(images, torch.device("cpu"))
    classifier = describe(module, lambda called: called(inputs[:2])).classifier
    tap = f"{classifier}@input"
    with torch.no_grad():
        found = Tapped(module, [tap])(inputs)[1][tap]
    return found


def main() -> None:
    """Probe each model and print a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="folders of saved models")
    parser.add_argument("--untrained", default="mlp:256-128", help="a model's name")
    parser.add_argument("--splits", type=int, default=5)
    given = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    torch.manual_seed(0)
    fresh = build(
        given.untrained,
        classes=10,
        kind="image",
        input_shape=(1, 8, 8),
        statistics=((images.float().mean().item() / 255,), (images.float().std().item() / 255,)),
    )
    named = {f"{given.untrained}, untrained": fresh} | {path: load(path) for path in given.models}
    print("| model | accuracy, % | spread |\n|---|---:|---:|")
    for name, model in named.items():
        rows = features(model, images)
        unit = F.normalize(rows, dim=1)
        spread = (unit.std(dim=0).mean() * unit.shape[1] ** 0.5).item()
        scores = []
        for seed in range(given.splits):
            parts = train_test_split(
                rows.numpy(), labels, test_size=0.3, random_state=seed, stratify=labels
            )
            fitted, held, known, truth = parts
            mean, deviation = fitted.mean(axis=0), fitted.std(axis=0) + 1e-6
            probe = LogisticRegression(max_iter=1000).fit((fitted - mean) / deviation, known)
            scores.append(100 * probe.score((held - mean) / deviation, truth))
        accuracy = f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"
        print(f"| {name} | {accuracy} | {spread:.2f} |", flush=True)


if __name__ == "__main__":
    main()
