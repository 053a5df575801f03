"""What every source must do, checked on small data of each."""

import inspect
import io
import pickle
import typing
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.data.source import Source, Split, sources
from understudy.data.sources.python import from_dataset, from_tensors

PLAIN = {str, int, float, bool, type(None)}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_digits(_root, changed: bool) -> Source:
    return sources.get("digits")(test=0.2 if changed else 0.3)


def make_arithmetic(_root, changed: bool) -> Source:
    return sources.get("arithmetic")(samples=40, seed=1 if changed else 0)


def make_folder(root, changed: bool) -> Source:
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(1000 if changed and i == 7 else i))
    return sources.get("folder")(str(root))


def make_huggingface(root, changed: bool) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "validation", "test"):
        cells = [{"bytes": picture(i + len(split)), "path": None} for i in range(8)]
        labels = [i % 2 for i in range(8)]
        if changed:
            labels[0] = 1
        pq.write_table(pa.table({"img": cells, "label": labels}), root / f"{split}.parquet")
    return sources.get("huggingface")(str(root))


def make_table(root, changed: bool) -> Source:
    rows = [f"text {'x' if changed and i == 7 else i},{i % 2}\n" for i in range(20)]
    (root / "a.csv").write_text("text,label\n" + "".join(rows))
    return sources.get("table")(str(root / "a.csv"), validation=0.2)


def make_text(root, changed: bool) -> Source:
    lines = [f"text {'x' if changed and i == 7 else i}" for i in range(20)]
    (root / "a.txt").write_text("\n".join(lines))
    return sources.get("text")(str(root / "a.txt"), unit="line", test=0.3, validation=0.2)


def make_tensors(_root, changed: bool) -> Source:
    x, y = torch.linspace(0, 1, 40).reshape(20, 2).clone(), torch.arange(20) % 2
    if changed:
        x[7, 0] += 1e-3
    return from_tensors(x[:10], y[:10], test_inputs=x[10:], test_labels=y[10:])


def make_dataset(_root, changed: bool) -> Source:
    x, y = torch.linspace(0, 1, 40).reshape(20, 2).clone(), torch.arange(20) % 2
    if changed:
        x[7, 0] += 1e-3
    return from_dataset(torch.utils.data.TensorDataset(x, y), 0.3, validation=0.2)


OWN = [name for name, member in sources if member.__module__.startswith("understudy.data.sources.")]
MAKERS: dict[str, Callable[..., Source]] = {
    "arithmetic": make_arithmetic,
    "digits": make_digits,
    "folder": make_folder,
    "huggingface": make_huggingface,
    "table": make_table,
    "text": make_text,
    "tensors": make_tensors,
    "dataset": make_dataset,
}


@pytest.fixture(params=MAKERS)
def make(request, tmp_path):
    return lambda changed=False: MAKERS[request.param](tmp_path, changed)


def parts(source: Source) -> list[Split]:
    return [part for part in (source.train, source.validation, source.test) if part is not None]


def content(split: Split, index: torch.Tensor) -> object:
    raw = split.fetch(index)
    return raw.tolist() if isinstance(raw, torch.Tensor) else list(raw)


def test_every_source_of_the_package_is_checked_here():
    assert set(OWN) <= set(MAKERS)


def test_ids_are_unique_over_all_splits(make):
    ids = torch.cat([part.ids for part in parts(make())])
    assert len(ids.unique()) == len(ids)
    assert ids.dtype == torch.int64


def test_loading_twice_gives_the_same(make):
    one, other = make(), make()
    assert one.identity == other.identity
    for a, b in zip(parts(one), parts(other), strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.labels, b.labels)
        index = torch.arange(len(a))
        assert content(a, index) == content(b, index)


def test_the_identity_depends_on_the_content(make):
    assert make().identity != make(changed=True).identity


def test_fetch_answers_in_the_order_asked_and_samples_can_be_pickled(make):
    for part in parts(make()):
        everything = content(part, torch.arange(len(part)))
        index = torch.tensor([1, 0, 1])
        assert content(part, index) == [everything[1], everything[0], everything[1]]
        assert content(pickle.loads(pickle.dumps(part)), index) == content(part, index)


def test_evaluation_splits_are_labelled_and_classes_named(make):
    source = make()
    for part in parts(source)[1:]:
        assert (part.labels >= 0).all()
    assert all(isinstance(name, str) for name in source.classes)
    assert {part.samples.kind for part in parts(source)} == {source.kind}


@pytest.mark.parametrize("name", OWN)
def test_signatures_can_stand_in_a_recipe(name):
    function = sources.get(name)
    hints = typing.get_type_hints(function)
    assert hints.pop("return") is Source
    for parameter in inspect.signature(function).parameters.values():
        assert plain(hints[parameter.name]), parameter
        assert f"{parameter.name}: " in inspect.getdoc(function)


def plain(hint: object) -> bool:
    arguments = typing.get_args(hint)
    if hint in PLAIN or typing.get_origin(hint) is typing.Literal:
        return True
    return bool(arguments) and all(plain(argument) for argument in arguments)
