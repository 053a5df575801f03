from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from understudy import seeding
from understudy.errors import ModelError, UnknownName
from understudy.models.build import build, live
from understudy.models.export import export
from understudy.models.model import Model, fingerprint
from understudy.models.outputs import call, logits_of
from understudy.models.program_guard import check_program
from understudy.models.saved import load, save
from understudy.models.taps import Tapped
from understudy.models.tokenizer import train_tokenizer

CPU = torch.device("cpu")
TEXTS = [f"a film of {number} good and bad moments" * (1 + number % 3) for number in range(20)]
PAIRS = [(text, "and so on") for text in TEXTS]
IMAGES = torch.randint(
    0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
CLASSES = ("no", "yes", "both")
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def image_student() -> Model:
    with seeding.isolated(7, "test"):
        model = build(
            "kd:resnet8",
            classes=3,
            kind="image",
            input_shape=(1, 8, 8),
            class_names=CLASSES,
            statistics=((0.3,), (0.4,)),
            width=0.5,
        )
        for value in model.module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    return model


def text_student() -> Model:
    with seeding.isolated(7, "test"):
        model = build(
            "hf:bert",
            classes=3,
            kind="text",
            config=BERT,
            class_names=CLASSES,
            tokenizer=train_tokenizer(TEXTS, 120),
        )
        for parameter in model.module.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def answer(model: Model, raw: Any) -> np.ndarray:
    with torch.no_grad():
        return logits_of(call(model.module.eval(), model.preprocess(raw, CPU))).numpy()


def inputs_of(model: Model, raw: Any) -> dict[str, np.ndarray]:
    encoded = model.preprocess(raw, CPU)
    named = encoded if isinstance(encoded, dict) else {"images": encoded}
    return {name: tensor.numpy() for name, tensor in named.items()}


@pytest.fixture(scope="module")
def image_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a network that is tapped and in channels-last format, neither of which may matter."""
    model = image_student()
    model.module.to(memory_format=torch.channels_last)
    model.preprocess.channels_last = True  # type: ignore[attr-defined]
    model.module = Tapped(model.module, ["bn1"])
    folder = tmp_path_factory.mktemp("image") / "program"
    return export(
        model, "torch-export", folder, example_raw=IMAGES, kind="image", input_shape=(1, 8, 8)
    )


@pytest.fixture(scope="module")
def text_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "program"
    return export(text_student(), "torch-export", folder, example_raw=TEXTS[:4], kind="text")


def test_onnx_of_images(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = image_student()
    before, training = fingerprint(model.module), model.module.training
    path = export(
        model,
        "onnx",
        tmp_path / "onnx",
        example_raw=IMAGES,
        kind="image",
        input_shape=(1, 8, 8),
        metadata={"run": "demo"},
    )
    assert path == tmp_path / "onnx" / "model.onnx"
    assert fingerprint(model.module) == before
    assert model.module.training == training
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "images"
    for count in (1, 2, 7):
        raw = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
        given = session.run(["logits"], inputs_of(model, raw))[0]
        np.testing.assert_allclose(given, answer(model, raw), rtol=1e-4)
    beside = json.loads((tmp_path / "onnx" / "config.json").read_text())
    inside = session.get_modelmeta().custom_metadata_map
    assert json.loads(inside["classes"]) == beside["classes"] == list(CLASSES)
    assert json.loads(inside["preprocess"]) == beside["preprocess"] == model.preprocess.config()
    assert json.loads(inside["understudy"])["metadata"] == {"run": "demo"}
    assert beside["inputs"] == [{"name": "images", "shape": ["batch", 1, 8, 8], "type": "float32"}]
    assert beside["verified"]["batches"] == [5, 1]
    assert beside["verified"]["largest_difference"] <= 1e-4
    content = path.read_bytes()
    assert str(Path(__file__).parent).encode() not in content, (
        "paths of this machine are nobody's business"
    )
    assert b"site-packages" not in content
    onnx.checker.check_model(onnx.load(str(path)))


def test_onnx_of_texts_takes_any_length(tmp_path: Path) -> None:
    import onnxruntime

    model = text_student()
    path = export(model, "onnx", tmp_path / "onnx", example_raw=PAIRS, kind="text")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    for raw in (PAIRS[:1], PAIRS[2:9], [("a", "b")]):
        given = session.run(None, inputs_of(model, raw))[0]
        np.testing.assert_allclose(given, answer(model, raw), atol=1e-4)
    assert (tmp_path / "onnx" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_torch_export_is_a_black_box_teacher(
    kind: Any, image_program: Path, text_program: Path, tmp_path: Path
) -> None:
    model, raw, path = (
        (image_student(), IMAGES, image_program)
        if kind == "image"
        else (text_student(), TEXTS[:4], text_program)
    )
    shape = (1, 8, 8) if kind == "image" else None
    assert path.name == "model.pt2"
    for place in (path, path.parent):
        teacher = build(f"export:{place}", classes=3, kind=kind, input_shape=shape)
        assert teacher.preprocess == model.preprocess
        assert teacher.classes == CLASSES
        assert teacher.extra["black_box"]
        assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
        assert teacher.parameters == model.parameters
        for part in (raw, raw[:1]):
            np.testing.assert_allclose(
                answer(teacher, part), answer(model, part), rtol=1e-4, atol=1e-5
            )
    assert teacher.module.train() is teacher.module
    assert not teacher.module.training
    with pytest.raises(ModelError, match="has 3 classes, the task has 4"):
        build(f"export:{path}", classes=4, kind=kind)
    with pytest.raises(ModelError, match="exported program"):
        export(teacher, "onnx", tmp_path / "o", example_raw=raw, kind=kind)
    with pytest.raises(ModelError, match="exported program"):
        save(teacher, tmp_path / "s", classes=3, input_shape=shape, kind=kind)


def test_a_program_without_description_takes_settings(image_program: Path, tmp_path: Path) -> None:
    alone = shutil.copy(image_program, tmp_path / "alone.pt2")
    teacher = build(
        f"export:{alone}",
        classes=3,
        kind="image",
        input_shape=(1, 8, 8),
        statistics=((0.3,), (0.4,)),
    )
    np.testing.assert_allclose(answer(teacher, IMAGES), answer(image_student(), IMAGES), rtol=1e-4)
    assert teacher.classes is None
    with pytest.raises(ModelError, match="no exported program at"):
        build(f"export:{tmp_path / 'none.pt2'}", classes=3, kind="image")
    with pytest.raises(ModelError, match="takes image data; the data are of the kind text"):
        build(f"export:{image_program}", classes=3, kind="text")


def test_a_program_moves_between_devices_as_a_whole(image_program: Path) -> None:
    teacher = build(
        f"export:{image_program}", classes=3, kind="image", input_shape=(1, 8, 8)
    ).module
    assert teacher.to("cpu") is teacher
    assert teacher.float() is teacher
    with pytest.raises(ModelError, match="keeps the precision"):
        teacher.bfloat16()
    moved = teacher.to("meta")
    with torch.no_grad():
        assert moved(torch.zeros(2, 1, 8, 8, device="meta")).shape == (2, 3)


def test_hf_folders_are_loaded_by_transformers_alone(tmp_path: Path) -> None:
    model = text_student()
    folder = export(model, "hf", tmp_path / "hf", example_raw=PAIRS[:6], kind="text")
    assert folder == tmp_path / "hf"
    again = build(f"hf:{folder}", classes=3, kind="text")
    assert again.classes == CLASSES
    assert fingerprint(again.module) == fingerprint(model.module)
    np.testing.assert_allclose(answer(again, PAIRS[:4]), answer(model, PAIRS[:4]), atol=1e-6)


def test_hf_image_folders_bring_an_image_processor(tmp_path: Path) -> None:
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    with seeding.isolated(7, "test"):
        model = build(
            "hf:vit",
            classes=3,
            kind="image",
            input_shape=(3, 16, 16),
            config={**config, "image_size": 16, "patch_size": 8},
            statistics=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        )
    raw = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    folder = export(
        model,
        "hf",
        tmp_path / "hf",
        example_raw=raw,
        kind="image",
        classes=CLASSES,
        input_shape=(3, 16, 16),
    )
    again = build(f"hf:{folder}", classes=3, kind="image", input_shape=(3, 16, 16))
    assert again.classes == CLASSES
    np.testing.assert_allclose(answer(again, raw), answer(model, raw), atol=1e-5)
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(str(folder))
    pixels = processor(list(raw), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, model.preprocess(raw, CPU), atol=1e-5, rtol=1e-5)


def test_safetensors_run_without_the_rooms_that_train(tmp_path: Path) -> None:
    model = image_student()
    folder = export(
        model,
        "safetensors",
        tmp_path / "s",
        example_raw=IMAGES,
        kind="image",
        input_shape=(1, 8, 8),
    )
    again = load(folder)
    assert fingerprint(again.module) == fingerprint(model.module)
    assert again.classes == CLASSES
    assert json.loads((folder / "config.json").read_text())["verified"]["batches"] == [5, 1]


class Odd(nn.Module):
    """Answers a batch of one differently from others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.again = self.layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.again(inputs.flatten(1)[:, :4])
        return logits * 2 if len(inputs) == 1 else logits


def test_live_modules_are_compared_tensor_by_tensor(tmp_path: Path) -> None:
    model = live(Odd(), kind="tensor", input_shape=(4,))
    folder = export(
        model, "safetensors", tmp_path / "s", example_raw=torch.randn(2, 4), kind="tensor"
    )
    assert json.loads((folder / "config.json").read_text())["verified"] == {
        "tensors": "bit for bit"
    }
    again = load(folder, module=Odd())
    assert torch.equal(again.module.layer.weight, model.module.layer.weight)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_an_export_that_answers_differently_is_no_export(to: Any, tmp_path: Path) -> None:
    model = live(Odd(), kind="tensor", input_shape=(4,))
    with pytest.raises(ModelError, match="answers differently|cannot be exported|cannot be used"):
        export(model, to, tmp_path / "e", example_raw=torch.randn(2, 4), kind="tensor")
    assert list(tmp_path.iterdir()) == []


def test_a_lossy_export_is_caught_and_the_earlier_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.models import export as module

    model = image_student()
    save(
        model,
        tmp_path / "e",
        classes=CLASSES,
        input_shape=(1, 8, 8),
        kind="image",
        metadata={"epoch": 1},
    )
    write = module.write_torch_export

    def lossy(network: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        write(network, *rest)

    monkeypatch.setattr(module, "write_torch_export", lossy)
    with pytest.raises(
        ModelError, match=r"answers differently in a fresh process: at a batch of 5.*0\.0001"
    ):
        export(model, "torch-export", tmp_path / "e", example_raw=IMAGES, kind="image")
    assert json.loads((tmp_path / "e" / "config.json").read_text())["metadata"] == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    model = image_student()
    with pytest.raises(UnknownName, match="'onnx'"):
        export(model, "onx", tmp_path / "e", example_raw=IMAGES, kind="image")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no model of transformers"):
        export(model, "hf", tmp_path / "e", example_raw=IMAGES, kind="image")
    with pytest.raises(ModelError, match="3 logits; there are 2 class names"):
        export(model, "onnx", tmp_path / "e", example_raw=IMAGES, kind="image", classes=("a", "b"))
    with pytest.raises(ModelError, match="at least one example"):
        export(model, "onnx", tmp_path / "e", example_raw=IMAGES[:0], kind="image")
    assert list(tmp_path.iterdir()) == []


def test_the_check_is_run_without_understudy(tmp_path: Path) -> None:
    from understudy.models import export_check

    source = Path(export_check.__file__).read_text()
    top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not any("understudy" in line or "torch" in line for line in top)
    code = "import sys; sys.modules['understudy'] = None; import understudy"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        != 0
    )


# What may be in a program that is loaded.


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = (torch.randn(3, 4),)
    shapes = ({0: torch.export.Dim("batch")},)
    file = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 2), inputs, dynamic_shapes=shapes), file)
    return file


def changed(program: Path, place: Path, member: str, change: Any) -> Path:
    """Copy an archive with one member changed."""
    with (
        zipfile.ZipFile(program) as source,
        zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as target,
    ):
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith(member):
                content = change(content)
            target.writestr(info.filename, content)
    return place


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("trapped",))


def trap_bytes(_: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save((Trap(),), buffer)
    return buffer.getvalue()


ATTACKS = {
    "pickled weight": (
        "weights_config.json",
        lambda old: old.replace(b'"use_pickle": false', b'"use_pickle": true'),
    ),
    "opaque object": ("weights_config.json", lambda old: old.replace(b"weight_0", b"opaque_obj_0")),
    "pickled example": ("sample_inputs/model.pt", trap_bytes),
    "plain pickle": ("sample_inputs/model.pt", lambda old: pickle.dumps(Trap())),
    "function": (
        "models/model.json",
        lambda old: old.replace(b"torch.ops.aten.linear.default", b"torch.hub.load"),
    ),
    "library": (
        "models/model.json",
        lambda old: old.replace(b"torch.ops.aten.linear.default", b"torch.ops.load_library"),
    ),
    "attribute": (
        "models/model.json",
        lambda old: old.replace(
            b"torch.ops.aten.linear.default", b"torch.ops.aten.linear.__globals__"
        ),
    ),
    "operator": (
        "models/model.json",
        lambda old: old.replace(b"torch.ops.aten.linear.default", b"_operator.attrgetter"),
    ),
    "expression": (
        "models/model.json",
        lambda old: old.replace(b"\"Symbol('s", b"\"__import__('os').system('true') or Symbol('s"),
    ),
    "name": (
        "models/model.json",
        lambda old: old.replace(b'"name": "input"', b'"name": "input=print(1)"'),
    ),
    "damage": ("models/model.json", lambda old: old[: len(old) // 2]),
}


def test_an_ordinary_program_passes(program: Path) -> None:
    check_program(program)


@pytest.mark.parametrize("attack", ATTACKS)
def test_programs_that_would_run_code_are_refused(
    attack: str, program: Path, tmp_path: Path
) -> None:
    member, change = ATTACKS[attack]
    hostile = changed(program, tmp_path / "model.pt2", member, change)
    with zipfile.ZipFile(program) as before, zipfile.ZipFile(hostile) as after:
        assert any(before.read(name) != after.read(name) for name in before.namelist()), (
            "the attack changed nothing"
        )
    with pytest.raises(ModelError, match=r"model\.pt2"):
        build(f"export:{hostile}", classes=2, kind="tensor", input_shape=(4,))


def test_other_files_are_no_programs(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"not an archive at all")
    with pytest.raises(ModelError, match="damaged"):
        check_program(tmp_path / "model.pt2")
