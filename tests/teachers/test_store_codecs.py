"""Every codec gives back what it was given, within the error that it declares, in records of one length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import StoreError
from understudy.models.outputs import TopK
from understudy.teachers.store.codecs import (
    Dense,
    Sparse,
    as_temperatures,
    codec_of,
    record_bytes,
    top_k_of,
)
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.dtypes import DTYPES, bf16_above
from understudy.teachers.store.packing import pack, packed_bytes, unpack

# The largest error of a number x in each type, as a share of |x|.
RELATIVE = {"float32": 0.0, "bf16": 2.0**-8, "float16": 2.0**-11}


def sample(shape: tuple[int, ...], scale: float = 5.0) -> torch.Tensor:
    return scale * torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(10,), (1,), (3, 4, 5), (7, 6)])
def test_dense_numbers_come_back_within_the_bound(dtype: str, shape: tuple[int, ...]) -> None:
    values, codec = sample(shape), Dense(shape, dtype)
    rows, deviation = codec.encode(values)
    assert rows.nbytes == 6 * record_bytes(codec) and not rows.dtype.hasobject
    found = codec.restore(codec.columns(rows))
    assert found.dtype == torch.float32 and found.shape == values.shape
    error = (found - values).abs()
    if dtype == "int8":
        vectors = values.reshape(6, shape[0] if len(shape) > 1 else 1, -1)
        reach = vectors.amax(-1, keepdim=True) - vectors.amin(-1, keepdim=True)
        assert (error.reshape(vectors.shape) <= reach / 254 / 2 + 1e-6).all()
    else:
        assert (error <= RELATIVE[dtype] * values.abs()).all()
    assert deviation.maximum == pytest.approx(float(error.max()))
    assert deviation.root_mean_square == pytest.approx(float(error.double().square().mean().sqrt()))
    assert codec_of(codec.config()) == codec
    assert torch.equal(found[2], codec.restore(codec.columns(rows[2:3]))[0])


def test_extremes_of_int8_keep_their_range() -> None:
    values = torch.tensor([[3e38, -3e38, 0.0], [5.0, 5.0, 5.0], [0.0, 0.0, 1e-30]])
    codec = Dense((3,), "int8")
    found = codec.restore(codec.columns(codec.encode(values)[0]))
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], values[0], rtol=5e-3, atol=1.2e36)
    assert torch.equal(found[1], values[1])


def test_float16_that_would_overflow_is_refused() -> None:
    values = torch.tensor([[1.0, 70000.0]])
    with pytest.raises(StoreError, match=r"7e\+04 is beyond float16.*bf16 or float32"):
        Dense((2,), "float16").encode(values)
    with pytest.raises(StoreError, match="below the largest one, which is beyond float16"):
        Sparse(2, 2, "float16", (1.0,)).encode(values)
    for dtype in ("bf16", "float32", "int8"):
        assert Dense((2,), dtype).encode(values)[1].maximum < 300


def test_a_shape_that_changes_is_refused() -> None:
    with pytest.raises(StoreError, match=r"gave \(5,\) where \(4,\)"):
        Dense((4,), "float32").encode(torch.zeros(2, 5))


@given(st.integers(1, 3000), st.data())
def test_ids_come_back_from_few_bits(classes: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(classes, 80)))
    seed = data.draw(st.integers(0, 999))
    rows = [
        np.sort(np.random.default_rng((seed, row)).permutation(classes)[:count]) for row in range(3)
    ]
    ids = np.array(rows, dtype=np.int64)
    packed = pack(ids, classes)
    assert packed.shape == (3, packed_bytes(count, classes))
    assert (unpack(packed, count, classes) == ids).all()


def test_packed_ids_are_smaller_than_plain_bits() -> None:
    # 18 bits an id: 288 bytes for 128 of a vocabulary of 151,936; the entropy of such a set is 186.
    assert packed_bytes(128, 151_936) <= 200
    assert packed_bytes(16, 1000) <= 18
    assert packed_bytes(16, 100) < 14  # 7 bits each


def test_ids_that_were_damaged_are_refused() -> None:
    packed = pack(np.array([[1, 5, 9]]), 16)
    packed[0, 0] = 0
    with pytest.raises(StoreError, match="does not hold 3"):
        unpack(packed, 3, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 300, 40_000])
def test_opened_records_say_what_stored_ones_say(dtype: str, classes: int) -> None:
    codec = Sparse(classes, 5, dtype, (1.0, 4.0))
    logits = torch.randn(7, classes, generator=torch.Generator().manual_seed(0)) * 3
    rows, _ = codec.encode(logits)
    turned = np.arange(7)[::-1]
    found, expected = (
        codec.restore(codec.columns(each[turned])) for each in (codec.opened(rows), rows)
    )
    assert torch.equal(found.indices.flip(0), logits.topk(5).indices.sort(dim=1).values)
    assert found.indices.dtype == torch.int64
    for name in ("values", "indices", "entropy"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for one, other in zip(found.tails.values(), expected.tails.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_top_k_comes_back_within_the_bound(dtype: str, k: int) -> None:
    logits, codec = sample((20,)), Sparse(20, k, dtype, (1.0, 4.0))
    rows, deviation = codec.encode(logits)
    assert rows.nbytes == 6 * record_bytes(codec)
    found = codec.restore(codec.columns(rows))
    assert isinstance(found, TopK) and found.classes == 20
    _, places = logits.topk(k)
    assert [set(row) for row in found.indices.tolist()] == [set(row) for row in places.tolist()]
    assert (found.indices.diff(dim=1) > 0).all()
    exact = (logits - logits.amax(1, keepdim=True)).gather(1, found.indices)
    error = (found.values - exact).abs()
    if dtype == "int8":
        # Half a step; the scale, as bfloat16, may be larger than it has to be by 1/128.
        assert (error <= -exact.amin(1, keepdim=True) / 255 / 2 * (1 + 1 / 128) + 1e-6).all()
    else:
        assert (error <= RELATIVE[dtype] * exact.abs()).all()
    assert deviation.maximum == pytest.approx(float(error.max()))
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    torch.testing.assert_close(found.entropy, entropy, rtol=1e-3, atol=1e-3)
    for temperature in (1.0, 4.0):
        whole = (logits / temperature).softmax(1)
        rest = whole.scatter(1, places, 0.0).sum(1)
        reduced = torch.cat([exact, found.tail(temperature)[:, None]], 1) / temperature
        torch.testing.assert_close(reduced.softmax(1)[:, -1], rest, rtol=3e-3, atol=1e-5)
    assert codec_of(codec.config()) == codec


def test_with_all_classes_kept_there_is_no_tail() -> None:
    found = top_k_of(sample((5,)), 5, [1.0])
    assert (found.tail(1.0) == -math.inf).all()
    rows, deviation = Sparse(5, 5, "float16", (1.0,)).encode(sample((5,)))
    assert (rows["tails"] == -np.inf).all() and deviation.means["tail mass"] == 0


def test_a_tail_of_next_to_no_mass_is_not_taken_for_none() -> None:
    logits = torch.tensor([[1e6, 0.0, 0.0]])
    codec = Sparse(3, 1, "float32", (1.0,))
    rows, _ = codec.encode(logits)
    assert codec.restore(codec.columns(rows)).tail(1.0).item() == -65504


def test_a_temperature_that_is_not_stored_is_refused() -> None:
    with pytest.raises(StoreError, match=r"temperatures 1, 4, not for 2\.5.*temperatures=\[2\.5\]"):
        top_k_of(sample((5,)), 2, (1.0, 4.0)).tail(2.5)
    assert as_temperatures([4, 4.0, 2]) == (1.0, 2.0, 4.0)


def test_bytes_of_a_row_are_what_is_planned_for() -> None:
    # 100 classes, 16 kept in float16: 32 of values, 2 a tail, 2 of entropy and the ids, against 400 of float32.
    ids = packed_bytes(16, 100)
    assert record_bytes(Sparse(100, 16, "float16", (1.0, 4.0))) == 32 + 4 + 2 + ids
    assert record_bytes(Sparse(100, 16, "int8", (1.0,))) == 2 + 16 + 2 + 2 + ids
    assert record_bytes(Sparse(100, 16, "int8", (1.0,), scale="float32")) == 4 + 16 + 2 + 2 + ids
    # A sample with the tail at two temperatures is a hundredth of a file of its own, in blocks of 4096 bytes.
    assert record_bytes(Sparse(100, 16, "int8", (1.0, 4.0))) == 33
    assert record_bytes(Sparse(100, 10, "int8", (1.0, 4.0))) == 25
    assert record_bytes(Dense((100,), "float32")) == 400
    assert record_bytes(Dense((8, 4, 4), "int8")) == 8 * 8 + 128


@given(st.floats(2.0**-120, 2.0**120, width=32))
def test_a_scale_is_rounded_upwards(value: float) -> None:
    given = torch.tensor([value])
    found = bf16_above(given)
    assert given <= found <= given * (1 + 1 / 128)
    assert torch.equal(found, found.bfloat16().float())


@given(
    st.integers(1, 400),
    st.sampled_from(DTYPES),
    st.sampled_from(["bf16", "float32"]),
    st.data(),
)
def test_any_top_k_comes_back(classes: int, dtype: str, scale: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes))
    codec = Sparse(classes, k, dtype, (1.0,), scale=scale)
    logits = torch.randn(
        3, classes, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    rows, deviation = codec.encode(10 * logits)
    found = codec.restore(codec.columns(rows))
    assert torch.equal(found.indices, logits.topk(k).indices.sort(dim=1).values)
    exact = 10 * (logits - logits.amax(1, keepdim=True)).gather(1, found.indices)
    bound = {"float32": 1e-5, "bf16": 0.25, "float16": 0.04, "int8": 0.16}[dtype]
    torch.testing.assert_close(found.values, exact, rtol=0, atol=bound)
    assert deviation.maximum <= bound
    again = codec if dtype == "int8" else Sparse(classes, k, dtype, (1.0,))
    assert codec_of(codec.config()) == again


def test_deviations_add_up() -> None:
    codec, values = Dense((20,), "float16"), sample((20,))
    whole = codec.encode(values)[1]
    total = Deviation.sum(codec.encode(part)[1] for part in values.split(2))
    assert (total.count, total.maximum) == (whole.count, whole.maximum)
    assert total.relative == pytest.approx(whole.relative)
    assert Deviation.from_json(total.json()) == total
