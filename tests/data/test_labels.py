import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.data.labels import carve, check_label_maps, keep_labels
from understudy.data.samples import TensorSamples
from understudy.data.source import Split
from understudy.errors import DataError, PreflightError


def split_of(labels: list[int], ids: list[int] | None = None) -> Split:
    count = len(labels)
    return Split(
        TensorSamples(torch.zeros(count, 1), "tensor"),
        torch.arange(count),
        torch.tensor(labels, dtype=torch.int64),
        torch.arange(count) if ids is None else torch.tensor(ids, dtype=torch.int64),
    )


def kept_ids(split: Split) -> set[int]:
    return set(split.ids[split.labelled].tolist())


labels_lists = st.lists(st.integers(-1, 4), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(labels_lists, st.data(), st.booleans(), st.integers(0, 5))
def test_keep_labels_keeps_exactly_so_many_true_labels(labels, data, stratified, seed):
    split = split_of(labels)
    count = data.draw(st.integers(0, len(split.labelled)))
    kept = keep_labels(split, count, stratified=stratified, seed=seed)
    assert len(kept.labelled) == count
    assert torch.equal(kept.ids, split.ids)
    assert torch.equal(kept.labels[kept.labelled], split.labels[kept.labelled])


@settings(max_examples=60, deadline=None)
@given(labels_lists, st.data(), st.booleans(), st.integers(0, 5))
def test_more_labels_contain_fewer_labels(labels, data, stratified, seed):
    split = split_of(labels)
    more = data.draw(st.integers(0, len(split.labelled)))
    fewer = data.draw(st.integers(0, more))
    assert kept_ids(keep_labels(split, fewer, stratified=stratified, seed=seed)) <= kept_ids(
        keep_labels(split, more, stratified=stratified, seed=seed)
    )


@settings(max_examples=60, deadline=None)
@given(labels_lists, st.data(), st.booleans())
def test_the_choice_does_not_depend_on_the_order_of_samples(labels, data, stratified):
    split = split_of(labels)
    count = data.draw(st.integers(0, len(split.labelled)))
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    assert kept_ids(keep_labels(split, count, stratified=stratified, seed=3)) == kept_ids(
        keep_labels(split.subset(order), count, stratified=stratified, seed=3)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.data())
def test_stratified_shares_follow_class_sizes(labels, data):
    sizes = collections.Counter(labels)
    count = data.draw(st.integers(len(sizes), len(labels)))
    kept = keep_labels(split_of(labels), count, seed=0)
    shares = collections.Counter(kept.labels[kept.labelled].tolist())
    for label, size in sizes.items():
        exact = count * size / len(labels)
        assert shares[label] >= 1
        # A class below its guaranteed one takes from the others: four classes can cost at most four.
        assert exact - 5 < shares[label] < exact + 2


def test_equal_classes_get_equal_shares_and_leftovers_depend_on_the_seed():
    split = split_of([label for label in range(10) for _ in range(30)])
    kept = keep_labels(split, 200, seed=0)
    assert set(collections.Counter(kept.labels[kept.labelled].tolist()).values()) == {20}
    extra = set()
    for seed in range(8):
        shares = collections.Counter(keep_labels(split, 11, seed=seed).labels.tolist())
        extra.add(max(range(10), key=lambda label: shares[label]))
        assert sorted(shares[label] for label in range(10)) == [1] * 9 + [2]
    assert len(extra) > 2


def test_another_seed_keeps_other_labels_and_a_fraction_is_of_the_labels():
    split = split_of([0, 1] * 50 + [-1] * 100)
    assert kept_ids(keep_labels(split, 20, seed=0)) != kept_ids(keep_labels(split, 20, seed=1))
    assert len(keep_labels(split, 0.25, seed=0).labelled) == 25
    assert len(keep_labels(split, 1, seed=0).labelled) == 1
    assert len(keep_labels(split, 1.0, seed=0).labelled) == 100


def test_unstratified_labels_are_a_plain_random_choice():
    split = split_of([0] * 900 + [1] * 100)
    shares = [
        int((keep_labels(split, 100, stratified=False, seed=seed).labels == 1).sum())
        for seed in range(40)
    ]
    assert len(set(shares)) > 3
    assert np.mean(shares) == pytest.approx(10, abs=2)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (-1, "is -1, but there are 4"),
        (5, "is 5, but there are 4"),
        (0.0, r"must lie in \(0, 1\]"),
        (1.5, r"must lie in \(0, 1\]"),
        (float("nan"), r"must lie in \(0, 1\]"),
        (True, "True"),
    ],
)
def test_impossible_numbers_of_labels_are_refused(count, message):
    with pytest.raises(DataError, match=message):
        keep_labels(split_of([0, 0, 1, 1, -1]), count, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=2, max_size=60), st.data(), st.booleans())
def test_carve_parts_the_samples_and_takes_labelled_ones(labels, data, stratified):
    split = split_of(labels, ids=[7 * i for i in range(len(labels))])
    available = len(split.labelled) - (len(split.labelled) == len(split))
    if available < 1:
        return
    count = data.draw(st.integers(1, available))
    rest, carved = carve(split, count, stratified=stratified, seed=1)
    assert len(carved) == count == len(carved.labelled)
    assert sorted(rest.ids.tolist() + carved.ids.tolist()) == split.ids.tolist()
    for part in (rest, carved):
        assert part.ids.tolist() == sorted(part.ids.tolist())
        assert torch.equal(part.positions * 7, part.ids)


def test_carve_leaves_every_class_a_sample_and_stays_as_files_are_added():
    split = split_of([0] * 40 + [1] * 40 + [2], ids=[i * i for i in range(81)])
    rest, carved = carve(split, 0.2, seed=0)
    assert (rest.labels == 2).sum() == 1
    assert collections.Counter(carved.labels.tolist()) == {0: 8, 1: 8}
    grown = split_of([0] * 40 + [1] * 40 + [2, 0], ids=[*[i * i for i in range(81)], 99999])
    _, carved_again = carve(grown, 0.2, seed=0)
    assert len(set(carved.ids.tolist()) - set(carved_again.ids.tolist())) <= 1


def test_carving_nothing_or_everything_is_refused():
    with pytest.raises(DataError, match="nothing to carve"):
        carve(split_of([0, 1, 0]), 0.01, seed=0)
    with pytest.raises(DataError, match="no rest"):
        carve(split_of([0, 1, 0]), 3, seed=0)
    with pytest.raises(DataError, match="there are 0 labelled"):
        carve(split_of([-1, -1]), 1, seed=0)


NLI = ("contradiction", "entailment", "neutral")


def test_equal_and_uninformative_label_maps_pass():
    check_label_maps(NLI, teacher=NLI, student=3)
    check_label_maps(NLI, teacher=("LABEL_0", "LABEL_1", "LABEL_2"), student=("0", "1", "2"))
    check_label_maps(("0", "1"), teacher=("class 1", "class 0"))
    check_label_maps(("maple_tree", "apple"), teacher=("Maple tree", "apple"))
    check_label_maps(("neg", "pos"), teacher=("negative", "positive"))
    # A name that occurs twice (as "crane" does in ImageNet) says nothing about order.
    check_label_maps(("crane", "dog", "x"), teacher=("bird", "crane", "crane"))


def test_label_maps_of_another_length_are_refused():
    with pytest.raises(PreflightError, match="the data have 3 and the teacher has 1000"):
        check_label_maps(NLI, teacher=1000)
    with pytest.raises(PreflightError, match="the data have 3 and the student has 2"):
        check_label_maps(NLI, teacher=3, student=("LABEL_0", "LABEL_1"))


def test_label_maps_in_another_order_are_refused_with_the_first_difference():
    with pytest.raises(
        PreflightError, match=r"'contradiction' is class 0 of the data but class 2"
    ) as caught:
        check_label_maps(NLI, teacher=("entailment", "neutral", "Contradiction"))
    assert "whose class 0 is 'entailment'" in str(caught.value)
    with pytest.raises(PreflightError, match="class 0 of the teacher but class 2 of the student"):
        check_label_maps(("0", "1", "2"), teacher=NLI, student=NLI[::-1])
