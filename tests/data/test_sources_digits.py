import collections
import dataclasses

import numpy as np
import pytest
import torch

from understudy.data.labels import remainders
from understudy.data.sources.digits import digits
from understudy.errors import DataError


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, table = digits(), load_digits()
    assert source.kind == "image"
    assert source.classes == tuple("0123456789")
    assert source.validation is None
    images = source.train.fetch(torch.arange(len(source.train)))
    assert images.shape == (len(source.train), 1, 8, 8)
    assert images.dtype == torch.uint8
    ids = source.train.ids.numpy()
    exact = table.images[ids] * 255 / 16
    assert np.abs(images[:, 0].numpy() - exact).max() <= 0.5
    assert images.max() == 255
    assert (source.train.labels.numpy() == table.target[ids]).all()


def test_the_split_is_stratified_fixed_and_complete():
    source = digits()
    together = torch.cat([source.train.ids, source.test.ids])
    assert sorted(together.tolist()) == list(range(1797))
    assert len(source.test) == round(0.3 * 1797)
    sizes = collections.Counter(torch.cat([source.train.labels, source.test.labels]).tolist())
    for label, count in collections.Counter(source.test.labels.tolist()).items():
        assert abs(count - 0.3 * sizes[label]) <= 1
    assert torch.equal(digits().test.ids, source.test.ids)
    assert set(digits(test=0.2).test.ids.tolist()) < set(source.test.ids.tolist())


def test_digits_can_be_scaled():
    small = digits().train.fetch(torch.tensor([5]))
    nearest = digits(size=16).train.fetch(torch.tensor([5]))
    assert torch.equal(nearest, small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    smooth = digits(size=16, interpolation="bilinear").train.fetch(torch.tensor([5]))
    assert smooth.shape == (1, 1, 16, 16)
    assert not torch.equal(smooth, nearest)
    assert abs(smooth.float().mean() - small.float().mean()) < 8


@pytest.mark.parametrize(
    "keywords",
    [
        {"test": 0.0},
        {"test": 1.0},
        {"test": 1e-9},
        {"size": 0},
        {"label_modulo": 1},
        {"label_modulo": 11},
    ],
)
def test_impossible_digits_are_refused(keywords):
    with pytest.raises(DataError):
        digits(**keywords)


def test_remainders_of_the_digits_are_classes_of_the_same_images():
    plain, parity = digits(), digits(label_modulo=2)
    assert parity.classes == ("even", "odd")
    for one, other in ((plain.train, parity.train), (plain.test, parity.test)):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.labels % 2, other.labels)
    assert digits(label_modulo=3).classes == ("0 mod 3", "1 mod 3", "2 mod 3")


def test_remainders_leave_unlabelled_samples_unlabelled():
    source = digits()
    hidden = source.train.labels.clone()
    hidden[:7] = -1
    part = dataclasses.replace(source, train=source.train.with_labels(hidden))
    labels = remainders(part, 2).train.labels
    assert (labels[:7] == -1).all() and torch.equal(labels[7:], source.train.labels[7:] % 2)
