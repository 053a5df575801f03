"""The output head of a language model, found in it and proved: from the hidden states before it to the logits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.outputs import logits_of
from understudy.models.taps import Tapped, unchanged, unwrap

if TYPE_CHECKING:
    from understudy.objectives.vocabulary import Head, LowRank

_FACTORS = ("logit_scale", "lm_head_multiplier")
"""Settings by which the logits are multiplied."""
_DIVISORS = ("logits_scaling",)
"""Settings by which they are divided."""


@dataclass(frozen=True, eq=False)
class LanguageHead:
    """Where a model's head stands, and what it computes.

    Attributes:
        path: module path of the output embedding, whose input are the hidden states that the head takes.
        module: the output embedding.
        owner: the model, without an adapter's wrapper.
        scale: factor of the logits.
        soft_cap: the cap of the logits, None for none.
    """

    path: str
    module: nn.Module
    owner: nn.Module
    scale: float
    soft_cap: float | None

    @property
    def tap(self) -> str:
        """The tap of the hidden states, [R, T, H]."""
        return f"{self.path}@input"

    def head(self, vocabulary: int | None = None) -> Head:
        """Return the head with the model's own tensors.

        Args:
            vocabulary: how many rows are tokens; None: all.
        """
        # Only who trains needs it: a saved model is loaded without the rooms of objectives.
        from understudy.objectives.vocabulary import Head

        base: Any = getattr(self.module, "base_layer", self.module)
        return Head(
            weight=base.weight,
            bias=_bias(base, self.owner),
            scale=self.scale,
            soft_cap=self.soft_cap,
            low_rank=_low_rank(self.module),
            vocabulary=vocabulary,
        )


def head_of(
    module: nn.Module, example: Mapping[str, torch.Tensor] | None = None
) -> LanguageHead | None:
    """Find the output head of a language model and prove it: its logits are the model's own on an example.

    Args:
        module: the model; wrappers are taken off. Its buffers, flags and torch's random state are left as they were.
        example: keywords of its forward; by default a few tokens.

    Returns:
        The head; None where the model has no linear output embedding, or computes its logits in another way.
    """
    module = unwrap(module)
    found = _candidate(module)
    if found is None:
        return None
    keywords = dict(example or example_tokens(module))
    tapped = Tapped(module, [found.tap])
    try:
        with unchanged(module), torch.no_grad():
            module.eval()
            output, taps = tapped(**keywords)
            own = logits_of(output).float()
            mine = found.head().logits(taps[found.tap]).float()
    except ModelError:
        return None  # the output embedding is there, but not what the forward calls
    finally:
        tapped.close()
    if own.shape != mine.shape:
        return None
    tolerance = 1e-4 if taps[found.tap].dtype == torch.float32 else 3e-2
    worst = float((own - mine).abs().max())
    return found if worst <= tolerance * max(1.0, float(own.abs().max())) else None


def hidden_path(module: nn.Module) -> str | None:
    """Return the path of the output embedding, whose input are the last hidden states; None where there is none."""
    found = _candidate(unwrap(module))
    return None if found is None else found.path


def example_tokens(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a few tokens that any language model takes, as keywords, where the module is."""
    module = unwrap(module)
    size = vocabulary_of(module)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    ids = (torch.arange(10, device=device) * 7 + 3).view(2, 5) % size
    keywords = {"input_ids": ids}
    if "decoder_input_ids" in inspect.signature(module.forward).parameters:
        keywords["decoder_input_ids"] = ids[:, :4]
    return keywords


def vocabulary_of(module: nn.Module) -> int:
    """Return how many tokens the model has an embedding for.

    Raises:
        ModelError: it does not say.
    """
    found = getattr(module, "get_input_embeddings", None)
    embedding = found() if callable(found) else None
    if embedding is None:
        embedding = next((p for p in module.modules() if isinstance(p, nn.Embedding)), None)
    rows = getattr(embedding, "num_embeddings", None)
    if rows is None:
        weight = getattr(embedding, "weight", None)
        rows = None if weight is None else weight.shape[0]
    if rows is None:
        raise ModelError(f"{type(module).__name__} has no token embedding.")
    return int(rows)


def _candidate(module: nn.Module) -> LanguageHead | None:
    getter = getattr(module, "get_output_embeddings", None)
    output = getter() if callable(getter) else None
    if output is None:
        return None
    path = next((name for name, part in module.named_modules() if part is output), "")
    base: Any = getattr(output, "base_layer", output)
    weight = getattr(base, "weight", None)
    if not path or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return None
    if base is not output and not _plain_adapter(output):
        return None
    config = getattr(module, "config", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return LanguageHead(
        path, output, _owner(module), _scale(config), None if cap is None else float(cap)
    )


def _scale(config: Any) -> float:
    scale = 1.0
    for name in _FACTORS:
        value = getattr(config, name, None)
        scale *= float(value) if isinstance(value, int | float) else 1.0
    for name in _DIVISORS:
        value = getattr(config, name, None)
        scale /= float(value) if isinstance(value, int | float) and value else 1.0
    return scale


def _owner(module: nn.Module) -> nn.Module:
    """Return the transformers model inside an adapter's wrapper."""
    base = getattr(module, "get_base_model", None)
    found = base() if callable(base) else module
    assert isinstance(found, nn.Module)
    return found


def _bias(base: Any, owner: nn.Module) -> torch.Tensor | None:
    own: torch.Tensor | None = getattr(base, "bias", None)
    # BART and its kin add a buffer to the logits.
    added = getattr(owner, "final_logits_bias", None)
    if not isinstance(added, torch.Tensor):
        return own
    return added.flatten() if own is None else own + added.flatten()


def _plain_adapter(output: Any) -> bool:
    """Tell whether an adapter on the head is one pair of matrices, without dropout before them."""
    names = list(getattr(output, "active_adapters", []))
    if len(names) != 1 or names[0] not in getattr(output, "lora_A", {}):
        return False
    if getattr(output, "merged", False):
        return True
    plain = isinstance(output.lora_dropout[names[0]], nn.Identity)
    return plain and not getattr(output, "use_dora", {}).get(names[0], False)


def _low_rank(output: Any) -> LowRank | None:
    pairs = getattr(output, "lora_A", None)
    if not pairs or output.merged or output.disable_adapters:
        return None
    from understudy.objectives.vocabulary import LowRank

    name = output.active_adapters[0]
    return LowRank(
        output.lora_A[name].weight, output.lora_B[name].weight, float(output.scaling[name])
    )
