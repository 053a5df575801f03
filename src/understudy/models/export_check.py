"""Runs an export in a process of its own. Started as a plain file, so that nothing of understudy is there to help.

`python export_check.py KIND PLACE CASES ANSWERS`: loads the export at PLACE, runs it on the inputs in CASES and writes
what it gave into ANSWERS. Both are NumPy archives: `0/images` is the input `images` of case 0, `0` is its answer.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np

Cases = list[dict[str, np.ndarray]]


def read_cases(file: str) -> Cases:
    """Read the inputs by case and name."""
    cases: dict[int, dict[str, np.ndarray]] = {}
    with np.load(file, allow_pickle=False) as archive:
        for key in archive.files:
            number, _, name = key.partition("/")
            cases.setdefault(int(number), {})[name] = archive[key]
    return [cases[number] for number in sorted(cases)]


def run_onnx(place: str, cases: Cases) -> list[np.ndarray]:
    """Run an ONNX file by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    return [session.run(None, case)[0] for case in cases]


def run_torch_export(place: str, cases: Cases) -> list[np.ndarray]:
    """Run a torch-export program."""
    import torch

    program = torch.export.load(place).module()
    answers = []
    for case in cases:
        with torch.no_grad():
            answer = _called(program, case)
        answers.append(answer.numpy())
    return answers


def _called(module: Any, case: dict[str, np.ndarray]) -> Any:
    """Call a module on a case: texts by name, anything else as its one argument."""
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in case.items()}
    if "input_ids" in tensors:
        return module(**tensors)
    return module(*tensors.values())


_IMAGE = "AutoModelForImageClassification"
_AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def run_hf(place: str, cases: Cases) -> list[np.ndarray]:
    """Run a Hugging Face folder by transformers, and its tokenizer where the cases come with texts."""
    import torch
    import transformers

    architecture = transformers.AutoConfig.from_pretrained(
        place, local_files_only=True
    ).architectures[0]
    name = next((auto for end, auto in _AUTO.items() if architecture.endswith(end)), _IMAGE)
    auto: Any = getattr(transformers, name)
    model = auto.from_pretrained(place, local_files_only=True, dtype=torch.float32).eval()
    answers = []
    for case in cases:
        texts = case.pop("texts", None)
        if texts is not None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
            _check_tokenizer(tokenizer, json.loads(str(texts)), case["input_ids"])
        with torch.no_grad():
            answers.append(_called(model, case).logits.numpy())
    return answers


def _check_tokenizer(tokenizer: Any, texts: list[Any], expected: np.ndarray) -> None:
    first = [item if isinstance(item, str) else item[0] for item in texts]
    second = None if isinstance(texts[0], str) else [item[1] for item in texts]
    length = expected.shape[1]
    found = tokenizer(first, second, padding="max_length", truncation=True, max_length=length)
    if not np.array_equal(np.asarray(found["input_ids"]), expected):
        raise SystemExit("the tokenizer in the folder encodes the example texts differently")


def run_safetensors(place: str, cases: Cases) -> list[np.ndarray]:
    """Run a folder of understudy by its loader, which needs nothing that trains."""
    import torch

    from understudy.models.outputs import logits_of
    from understudy.models.saved import load

    module = load(place).module.float().eval()
    with torch.no_grad():
        answers = [logits_of(_called(module, case)).numpy() for case in cases]
    for room in ("training", "teachers", "methods", "objectives"):
        if f"understudy.{room}" in sys.modules:
            raise SystemExit(f"the saved model needs understudy.{room}")
    return answers


def run_tensors(place: str, cases: Cases) -> list[np.ndarray]:
    """Read the weights alone and give their checksums by name, as JSON."""
    import os

    from safetensors.torch import load_file

    state = load_file(os.path.join(place, "model.safetensors"))
    table = {name: tensor_hash(value) for name, value in state.items()}
    return [np.asarray(json.dumps(table)) for _ in cases]


def tensor_hash(value: Any) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    import torch

    content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest()


RUNNERS = {
    "onnx": run_onnx,
    "torch-export": run_torch_export,
    "hf": run_hf,
    "safetensors": run_safetensors,
    "tensors": run_tensors,
}


def main(kind: str, place: str, cases: str, answers: str) -> None:
    """Run the cases and write the answers."""
    if kind != "safetensors":
        # An import of understudy now fails, also one that an unpickled or generated piece of code would do.
        sys.modules["understudy"] = None  # type: ignore[assignment]
    results = RUNNERS[kind](place, read_cases(cases))
    np.savez(
        answers,
        allow_pickle=False,
        **{str(number): result for number, result in enumerate(results)},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
