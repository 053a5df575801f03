"""`mlp:256-128`: linear layers with ReLUs on flattened samples, for tables and for images as small as digits."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from understudy.errors import ModelError, unknown_name
from understudy.models.build import Request, builders, load_file
from understudy.models.model import Model

_WIDTHS = re.compile(r"[1-9]\d*(-[1-9]\d*)*")


class MLP(nn.Sequential):
    """A multilayer perceptron: [B, ...] -> logits [B, classes].

    Hidden layer i is `fc<i>` with `relu<i>` behind it; `fc` is the classifier. Initial weights are PyTorch's own.
    """

    def __init__(self, inputs: int, widths: Sequence[int], classes: int) -> None:
        """Build it for samples of `inputs` values, with hidden layers of `widths`."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, (before, after) in enumerate(pairwise([inputs, *widths]), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            layers[f"relu{number}"] = nn.ReLU()
        layers["fc"] = nn.Linear(widths[-1], classes)
        super().__init__(layers)
        self._stages = [f"relu{number}" for number in range(1, len(widths) + 1)]

    def tap_stages(self) -> list[str]:
        """Return the paths of the hidden layers, in the order in which they run."""
        return list(self._stages)


@builders.register("mlp")
class MLPBuilder:
    """`mlp:W1-W2-...`: hidden layers of so many units each; it takes images and tensors of one shape."""

    def names(self) -> list[str]:
        """Return one example: any widths may stand there."""
        return ["256-128"]

    def build(self, request: Request) -> Model:
        """Make the network for the samples' own shape, or the `size` that the preprocessing gives images."""
        if not _WIDTHS.fullmatch(request.name):
            raise ModelError(
                f"'{request.full_name}' has no widths; write the units of each hidden layer, such as mlp:256-128."
            )
        keywords = dict(request.keywords)
        drop_head = bool(keywords.pop("drop_head", False))
        for keyword in keywords:
            raise unknown_name(f"keyword of {request.full_name}", keyword, ("drop_head",))
        if request.kind == "text" or request.input_shape is None:
            raise ModelError(
                f"'{request.full_name}' takes samples of one known shape; the data are {request.kind}s."
            )
        preprocess = request.plain()
        prepared = preprocess(torch.zeros(1, *request.input_shape), torch.device("cpu"))
        assert isinstance(prepared, torch.Tensor)  # texts were refused above
        inputs = math.prod(prepared.shape[1:])
        widths = [int(width) for width in request.name.split("-")]
        module = MLP(inputs, widths, request.classes)
        weights = load_file(module, request, drop_head)
        config = request.rebuilt_by(preprocess)
        return Model(module, preprocess, request.full_name, config, weights, request.class_names)
