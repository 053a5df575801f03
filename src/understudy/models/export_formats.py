"""Writing a model as ONNX, as a torch-export program, or as a Hugging Face folder."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.export_verify import Case
from understudy.models.folder import write_json
from understudy.models.model import Model
from understudy.models.optional import first_line, quiet_transformers, require
from understudy.models.outputs import logits_of
from understudy.models.preprocess import ImagePreprocess, TextPreprocess
from understudy.models.surgery import surgery_of

_RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}


class LogitsOfOne(nn.Module):
    """A model that takes one tensor, reduced to its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [B, C]."""
        return logits_of(self.network(inputs))


class LogitsOfText(nn.Module):
    """A text model, reduced to its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return [B, C]."""
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        present = {name: value for name, value in given.items() if value is not None}
        return logits_of(self.network(input_ids=input_ids, **present))


def write_torch_export(network: nn.Module, case: Case, file: Path, longest: int | None) -> None:
    """Write `torch.export.save`'s archive. Batch and length of texts are free."""
    with _exporter("torch-export"):
        program = torch.export.export(**_traced(network, case, longest), strict=False)
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                for node in part.graph.nodes:
                    # Where in whose files the model was defined is nobody's business who gets the export.
                    node.meta.pop("stack_trace", None)
        torch.export.save(program, file)


def write_onnx(
    network: nn.Module, case: Case, file: Path, description: dict[str, Any], longest: int | None
) -> None:
    """Write an ONNX file through torch's exporter. Batch and text length are free; the description is in it."""
    require("onnxscript", "export")
    require("onnxruntime", "export")
    traced = _traced(network, case, longest)
    with _exporter("onnx"):
        program = torch.onnx.export(
            traced["mod"],
            traced["args"],
            kwargs=traced["kwargs"],
            dynamic_shapes=traced["dynamic_shapes"],
            input_names=list(case.tensors),
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        graphs: list[Any] = [program.model.graph, *program.model.functions.values()]
        for graph in graphs:
            for node in graph.all_nodes():
                node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        program.model.metadata_props["understudy"] = json.dumps(description, ensure_ascii=False)
        for name in ("classes", "preprocess"):
            program.model.metadata_props[name] = json.dumps(description[name], ensure_ascii=False)
        program.save(str(file))


def write_hf(
    model: Model,
    network: nn.Module,
    folder: Path,
    names: Sequence[str] | None,
    input_shape: Sequence[int] | None,
) -> None:
    """Write a folder that transformers' `from_pretrained` loads, with its tokenizer or image processor."""
    saving = getattr(network, "save_pretrained", None)
    config = getattr(network, "config", None)
    if saving is None or not hasattr(config, "id2label"):
        raise ModelError(
            f"'{model.name}' is no model of transformers, so it has no 'hf' export; "
            "choose safetensors, onnx or torch-export."
        )
    surgery = surgery_of(network)
    if surgery:
        places = ", ".join(f"a {entry['kind']} at '{entry['path']}'" for entry in surgery)
        raise ModelError(
            f"'{model.name}' holds {places}, which transformers cannot build, so it has no 'hf' export; "
            "choose safetensors, onnx or torch-export."
        )
    assert config is not None
    config = copy.deepcopy(config)
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    network.config = config
    with quiet_transformers():
        saving(str(folder))
        if isinstance(model.preprocess, TextPreprocess):
            model.preprocess.tokenizer.save_pretrained(str(folder))
    if isinstance(model.preprocess, ImagePreprocess):
        size = model.preprocess.size or tuple(input_shape or ())[-2:]
        if len(size) != 2:
            raise ModelError("The 'hf' export of an image model needs `input_shape`.")
        write_json(folder / "preprocessor_config.json", _image_processor(model.preprocess, size))


def _image_processor(preprocess: ImagePreprocess, size: Sequence[int]) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "size": {"height": int(size[0]), "width": int(size[1])},
        "resample": _RESAMPLING[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _traced(network: nn.Module, case: Case, longest: int | None) -> dict[str, Any]:
    """Return the arguments of `torch.export.export`: one tensor by position, several by name."""
    batch = torch.export.Dim("batch", min=1)
    if case.single is not None:
        return {
            "mod": LogitsOfOne(network),
            "args": (case.single,),
            "kwargs": {},
            "dynamic_shapes": ({0: batch},),
        }
    length = torch.export.Dim("length", min=1, max=longest)
    return {
        "mod": LogitsOfText(network),
        "args": (),
        "kwargs": dict(case.tensors),
        "dynamic_shapes": {name: {0: batch, 1: length} for name in case.tensors},
    }


@contextmanager
def _exporter(kind: str) -> Iterator[None]:
    """Turn whatever torch's exporters raise into one sentence, and keep their chatter off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModelError:
        raise
    except Exception as error:  # they raise their own kinds, and those of every layer below
        raise ModelError(
            f"The model cannot be exported as {kind}: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        logger.setLevel(level)
