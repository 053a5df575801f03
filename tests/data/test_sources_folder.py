import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.data.sources.folder import folder
from understudy.errors import DataError


def picture(path, seed: int = 0, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(root, classes=("cat", "dog"), count: int = 10) -> None:
    for number, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i:02}.png", seed=100 * number + i)


@pytest.fixture
def animals(tmp_path):
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def parted(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", count=3)
    fill(tmp_path / "test", count=4)
    return tmp_path


def test_class_folders_alone_are_split_by_class(animals):
    source = folder(str(animals))
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.test), source.validation) == (16, 4, None)
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    expected = np.asarray(Image.open(animals / "dog" / "09.png"))
    images = source.train.fetch(torch.arange(16))
    both = torch.cat([images, source.test.fetch(torch.arange(4))])
    assert any(np.array_equal(image.permute(1, 2, 0).numpy(), expected) for image in both)
    other = folder(str(animals), split_seed=1)
    assert set(other.test.ids.tolist()) != set(source.test.ids.tolist())


def test_splits_are_found_by_their_folders(parted):
    (parted / "notes").mkdir()
    source = folder(str(parted))
    assert (len(source.train), len(source.validation), len(source.test)) == (20, 6, 8)
    picture_of = {int(i): n for n, i in enumerate(source.test.ids)}
    assert len(picture_of) == 8
    first = source.test.fetch(torch.tensor([0]))[0]
    expected = np.asarray(Image.open(parted / "test" / "cat" / "00.png"))
    assert np.array_equal(first.permute(1, 2, 0).numpy(), expected)
    swapped = folder(str(parted), test="val")
    assert len(swapped.test) == 6
    assert swapped.validation is None
    carved = folder(str(parted), test=0.1, validation="val")
    assert (len(carved.train), len(carved.test)) == (18, 2)


def test_ids_stay_when_files_are_added_or_the_folder_moves(animals, tmp_path_factory):
    def label_by_id(source):
        pairs = zip(source.train.ids.tolist(), source.train.labels.tolist(), strict=True)
        return dict(pairs) | dict(
            zip(source.test.ids.tolist(), source.test.labels.tolist(), strict=True)
        )

    before = folder(str(animals))
    picture(animals / "ant" / "0.png")
    picture(animals / "ant" / "1.png")
    picture(animals / "cat" / "005.png", seed=77)
    after = folder(str(animals))
    assert len(after.classes) == 3
    assert set(label_by_id(before)) < set(label_by_id(after))
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    animals.rename(moved)
    assert label_by_id(folder(str(moved))) == label_by_id(after)
    assert folder(str(moved)).identity == after.identity


def test_images_on_disk_equal_images_in_memory(animals):
    near = folder(str(animals), size=4)
    far = folder(str(animals), size=4, memory_limit_mb=0)
    assert near.train.samples.in_memory
    assert not far.train.samples.in_memory
    assert near.identity == far.identity
    index = torch.tensor([3, 0, 7])
    again = pickle.loads(pickle.dumps(far.train))
    assert torch.equal(again.fetch(index), near.train.fetch(index))


@pytest.mark.parametrize("memory_limit_mb", [2048, 0])
def test_a_corrupt_image_is_named_and_only_skipped_when_asked(animals, caplog, memory_limit_mb):
    victim = animals / "dog" / "03.png"
    victim.write_bytes(victim.read_bytes()[:80])
    with pytest.raises(DataError, match="1 of 20 images") as caught:
        folder(str(animals), memory_limit_mb=memory_limit_mb)
    assert str(victim) in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="understudy"):
        source = folder(str(animals), memory_limit_mb=memory_limit_mb, on_error="skip")
    assert str(victim) in caplog.text
    assert len(source.train) + len(source.test) == 19
    for split in (source.train, source.test):
        assert len(split.fetch(torch.arange(len(split)))) == len(split)


def test_a_file_that_breaks_later_is_named(animals):
    source = folder(str(animals), memory_limit_mb=0)
    (animals / "cat" / "01.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"cat.01\.png' can no longer be read"):
        source.train.fetch(torch.arange(len(source.train)))


def test_the_identity_depends_on_the_pixels_and_on_how_they_are_read(animals):
    before = folder(str(animals)).identity
    assert folder(str(animals)).identity == before
    assert folder(str(animals), channels=1).identity != before
    assert folder(str(animals), size=3).identity != before
    picture(animals / "cat" / "01.png", seed=500)
    assert folder(str(animals)).identity != before


def test_images_of_several_sizes_need_a_size(animals):
    picture(animals / "dog" / "03.png", size=(6, 7))
    for memory_limit_mb in (2048, 0):
        with pytest.raises(DataError, match="6x6 .*6x7"):
            folder(str(animals), memory_limit_mb=memory_limit_mb)
    assert folder(str(animals), size=5).train.fetch(torch.tensor([0])).shape == (1, 3, 5, 5)


def test_unlabelled_images_join_the_training_images(parted):
    for i in range(5):
        picture(parted / "more" / f"{i}.png", seed=900 + i)
    source = folder(str(parted), unlabelled="more")
    assert len(source.train) == 25
    assert len(source.train.labelled) == 20
    assert source.classes == ("cat", "dog")
    picture(parted / "train" / "cat" / "deeper" / "x.png", seed=1000)
    assert len(folder(str(parted), unlabelled="more").train) == 26


def test_unlabelled_images_beside_class_folders_are_no_class(animals):
    picture(animals / "more" / "0.png", seed=900)
    source = folder(str(animals), unlabelled="more")
    assert source.classes == ("cat", "dog")
    assert int((source.train.labels == -1).sum()) == 1
    assert (source.test.labels >= 0).all()


def test_a_class_called_train_is_a_class(tmp_path):
    fill(tmp_path, ("plane", "train"))
    assert folder(str(tmp_path)).classes == ("plane", "train")


def test_classes_can_be_put_in_another_order(animals):
    source = folder(str(animals), classes=["dog", "cat"])
    ids = folder(str(animals)).test
    assert source.classes == ("dog", "cat")
    assert source.test.labels.tolist() == [1 - label for label in ids.labels.tolist()]
    with pytest.raises(DataError, match="every class folder"):
        folder(str(animals), classes=["dog", "cow"])


def test_folders_that_cannot_be_used_are_explained(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        folder(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="neither class folders nor images"):
        folder(str(tmp_path))
    picture(tmp_path / "loose.png")
    with pytest.raises(DataError, match="1 images but no class folders"):
        folder(str(tmp_path))
    with pytest.raises(DataError, match="is a file"):
        folder(str(tmp_path / "loose.png"))
    fill(tmp_path)
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "readme.txt").write_text("soon")
    with pytest.raises(DataError, match=r"cow' holds no images"):
        folder(str(tmp_path))


def test_splits_that_do_not_fit_are_explained(parted):
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        folder(str(parted), test="tset")
    with pytest.raises(DataError, match="must differ"):
        folder(str(parted), test="val", validation="val")
    with pytest.raises(DataError, match="between 0 and 1"):
        folder(str(parted), test=1.5)
    picture(parted / "test" / "cow" / "0.png")
    with pytest.raises(DataError, match="class 'cow' in 'test'"):
        folder(str(parted))


def test_a_missing_test_folder_is_not_replaced_by_the_validation_folder(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", count=2)
    with pytest.raises(DataError, match="test='val'"):
        folder(str(tmp_path))


def test_a_class_whose_images_are_all_corrupt_is_not_dropped(animals):
    for path in (animals / "cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="'cat'"):
        folder(str(animals), on_error="skip")
