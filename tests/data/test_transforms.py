"""Each transform against plain formulas, Pillow's rules or torchvision."""

from __future__ import annotations

import inspect
import sys
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.data.draws import Draw
from understudy.data.transforms import _geometry, _levels, rand_augment
from understudy.data.transforms.colour_jitter import ColourJitter
from understudy.data.transforms.cutmix import Cutmix
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.mixup import Mixup
from understudy.data.transforms.mixup_or_cutmix import MixupOrCutmix
from understudy.data.transforms.rand_augment import RandAugment
from understudy.data.transforms.random_crop import RandomCrop
from understudy.data.transforms.random_erasing import RandomErasing
from understudy.data.transforms.random_resized_crop import RandomResizedCrop
from understudy.data.views import Mixing, Transform, transforms
from understudy.errors import DataError, UnderstudyError


def draw_for(count: int, seed: int = 0) -> Draw:
    ids = torch.arange(count) * 7 + 1
    return Draw(seed, ids, torch.zeros_like(ids), "0.test", torch.device("cpu"))


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images, so that shifts and rotations show."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noise = torch.rand(smooth.shape, generator=generator) * 0.1
    return ((smooth + noise).clamp(0.05, 0.9) * 255).to(torch.uint8)


def test_every_transform_is_listed_under_its_own_name_with_readable_keywords() -> None:
    assert set(transforms.names()) >= {
        "random_crop",
        "horizontal_flip",
        "random_resized_crop",
        "rand_augment",
        "colour_jitter",
        "random_erasing",
        "mixup",
        "cutmix",
        "mixup_or_cutmix",
    }
    for name, member in transforms:
        assert isinstance(member, type) and issubclass(member, Transform | Mixing)
        assert member.name == name
        hints = typing.get_type_hints(member.__init__)
        for keyword, parameter in inspect.signature(member).parameters.items():
            assert keyword in hints
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert f"{keyword}:" in (member.__doc__ or "")


def test_config_gives_the_keywords_back() -> None:
    assert RandomCrop(padding=2, mode="reflect").config() == {
        "name": "random_crop",
        "padding": 2,
        "mode": "reflect",
        "size": None,
    }


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_random_crop_is_a_window_of_the_padded_image(mode: str, dtype: torch.dtype) -> None:
    images = pictures(64, 3, 9, 11).to(dtype)
    got = RandomCrop(padding=2, mode=mode)(images, draw_for(64))  # type: ignore[arg-type]
    padded = torch.nn.functional.pad(
        images.float(), (2, 2, 2, 2), mode="constant" if mode == "zeros" else "reflect"
    ).to(dtype)
    assert (got.dtype, got.shape) == (dtype, images.shape)
    places = set()
    for image, whole in zip(got, padded, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, whole[:, top : top + 9, left : left + 11])
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 15  # of 25 with 64 draws


def test_random_crop_to_another_size() -> None:
    images = pictures(8, 1, 12, 12)
    assert RandomCrop(padding=0, size=5)(images, draw_for(8)).shape == (8, 1, 5, 5)
    with pytest.raises(DataError, match="20 x 20 does not fit"):
        RandomCrop(padding=2, size=20)(images, draw_for(8))
    with pytest.raises(DataError, match="can be 11 at most"):
        RandomCrop(padding=12, mode="reflect")(images, draw_for(8))


def test_flip_mirrors_about_half() -> None:
    images = pictures(400, 3, 5, 6)
    got = HorizontalFlip()(images, draw_for(400))
    mirrored = (got == images.flip(-1)).flatten(1).all(1)
    same = (got == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(HorizontalFlip(probability=1)(images, draw_for(400)), images.flip(-1))
    assert torch.equal(HorizontalFlip(probability=0)(images, draw_for(400)), images)


def test_random_resized_crop_of_everything_is_a_resize() -> None:
    images = pictures(4, 3, 20, 20).float() / 255
    got = RandomResizedCrop(size=10, scale=(1, 1), ratio=(1, 1))(images, draw_for(4))
    expected = torch.nn.functional.interpolate(images, (10, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(got, expected)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 10**6))
def test_random_resized_crop_windows_keep_to_their_limits(
    height: int, width: int, seed: int
) -> None:
    crop = RandomResizedCrop(size=4)
    generator = torch.Generator().manual_seed(seed)
    areas, ratios, place = (
        torch.rand(count, generator=generator).tolist() for count in (10, 10, 2)
    )
    top, left, rows, columns = crop._window(areas, ratios, place, height, width)
    assert 0 <= top <= height - rows and 0 <= left <= width - columns
    assert rows >= 1 and columns >= 1


def test_random_resized_crop_falls_back_to_the_middle() -> None:
    crop = RandomResizedCrop(size=4, scale=(1, 1), ratio=(1, 1))
    assert crop._window([0.5] * 10, [0.5] * 10, [0, 0], 10, 30) == (0, 10, 10, 10)
    assert crop._window([0.5] * 10, [0.5] * 10, [0, 0], 30, 10) == (10, 0, 10, 10)


def test_random_erasing_paints_one_rectangle() -> None:
    images = torch.full((300, 3, 20, 24), 7, dtype=torch.uint8)
    got = RandomErasing(probability=0.5, value=1.0)(images, draw_for(300))
    erased = (got == 255).all(1)
    assert torch.equal(erased, (got != 7).any(1))
    changed = erased.flatten(1).any(1)
    assert 110 < int(changed.sum()) < 190
    for mask in erased[changed]:
        rows, columns = mask.any(1), mask.any(0)
        assert int(mask.sum()) == int(rows.sum()) * int(columns.sum())
        assert 0.01 < mask.float().mean() < 0.36
    assert (
        float(RandomErasing(value=0.25, probability=1)(images / 255, draw_for(300)).max()) == 0.25
    )


def functional() -> typing.Any:
    return pytest.importorskip("torchvision.transforms.v2.functional")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.1, 0.73, 1.0, 1.27, 1.9])
def test_colour_operations_agree_with_torchvision(channels: int, factor: float) -> None:
    images = pictures(6, channels, 17, 19)
    factors = torch.full((6,), factor)
    for ours, theirs in (
        (_levels.brightness, functional().adjust_brightness),
        (_levels.saturation, functional().adjust_saturation),
        (_levels.contrast, functional().adjust_contrast),
        (_levels.sharpness, functional().adjust_sharpness),
    ):
        difference = ours(images, factors).int() - theirs(images, factor).int()
        assert int(difference.abs().max()) <= 1, ours.__name__
        if factor == 1.0:
            assert torch.equal(ours(images, factors), images)


def test_level_operations_agree_with_torchvision() -> None:
    images = pictures(6, 3, 40, 30)
    images[0] = 77  # a plain image
    assert torch.equal(_levels.posterize(images, 5), functional().posterize(images, 5))
    assert torch.equal(_levels.solarize(images, 100.0), functional().solarize(images, 100.0))
    assert torch.equal(_levels.equalize(images), functional().equalize(images))
    difference = _levels.autocontrast(images).int() - functional().autocontrast(images).int()
    assert int(difference.abs().max()) <= 1


def test_autocontrast_reaches_both_ends() -> None:
    images = pictures(50, 3, 12, 12, seed=4)
    stretched = _levels.autocontrast(images)
    assert (stretched.amin((2, 3)) == 0).all()
    assert (stretched.amax((2, 3)) == 255).all()


def test_factors_belong_to_samples() -> None:
    images = pictures(3, 3, 8, 8)
    got = _levels.contrast(images, torch.tensor([0.5, 1.0, 1.5]))
    for place, factor in enumerate((0.5, 1.0, 1.5)):
        alone = _levels.contrast(images[place : place + 1], torch.tensor([factor]))
        assert torch.equal(got[place : place + 1], alone)


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_agrees_with_torchvision(sign: int) -> None:
    import math

    images = pictures(2, 3, 32, 32)
    shear, turn, shift = 0.09 * sign, 9.0 * sign, 4 * sign
    degrees = math.degrees(math.atan(shear))
    affine = functional().affine
    expected = [
        affine(images, 0.0, [0, 0], 1.0, [degrees, 0.0], center=[0, 0]),
        affine(images, 0.0, [0, 0], 1.0, [0.0, degrees], center=[0, 0]),
        affine(images, 0.0, [shift, 0], 1.0, [0.0, 0.0]),
        affine(images, 0.0, [0, shift], 1.0, [0.0, 0.0]),
        functional().rotate(images, turn),
    ]
    matrices = (
        _geometry.shear_x(shear),
        _geometry.shear_y(shear),
        _geometry.translate(shift, 0),
        _geometry.translate(0, shift),
        _geometry.rotate(turn, 32, 32),
    )
    tables = _geometry.origins(matrices, 32, 32, torch.device("cpu"))
    for number, wanted in enumerate(expected):
        got = _geometry.take(images, torch.full((2,), number), *tables)
        # Pixels whose origin lies exactly between two may fall to either side.
        assert (got != wanted).float().mean() < 0.01, number


def test_rand_augment_without_strength_or_operations() -> None:
    images = pictures(40, 3, 16, 16)
    assert torch.equal(RandAugment(operations=0)(images, draw_for(40)), images)
    gentle = RandAugment(operations=1, magnitude=0)(images, draw_for(40))
    choice = draw_for(40).integers("operation", len(rand_augment.OPERATIONS), 1)[:, 0]
    for image, original, number in zip(gentle, images, choice.tolist(), strict=True):
        if rand_augment.OPERATIONS[number] not in ("autocontrast", "equalize", "solarize"):
            assert torch.equal(image, original), rand_augment.OPERATIONS[number]


def test_rand_augment_applies_the_operation_that_was_drawn() -> None:
    images = pictures(200, 3, 16, 16)
    got = RandAugment(operations=1, magnitude=20)(images, draw_for(200))
    choice = draw_for(200).integers("operation", len(rand_augment.OPERATIONS), 1)[:, 0]
    sign = 1 - 2 * draw_for(200).integers("sign", 2, 1)[:, 0].float()
    assert len(choice.unique()) == len(rand_augment.OPERATIONS)
    strength = 20 / 30
    for name, plain in (
        ("identity", lambda image, _: image),
        ("equalize", lambda image, _: _levels.equalize(image)),
        ("posterize", lambda image, _: _levels.posterize(image, 5)),
        ("solarize", lambda image, _: _levels.solarize(image, 255 * (1 - strength))),
        ("brightness", lambda image, s: _levels.brightness(image, 1 + 0.9 * strength * s)),
        ("sharpness", lambda image, s: _levels.sharpness(image, 1 + 0.9 * strength * s)),
    ):
        members = torch.nonzero(choice == rand_augment.OPERATIONS.index(name)).flatten()
        for member in members:
            image = images[member : member + 1]
            assert torch.equal(got[member : member + 1], plain(image, sign[member : member + 1]))
    shifted = torch.nonzero(choice == rand_augment.OPERATIONS.index("translate_x")).flatten()
    for member in shifted:
        by = int(150 / 331 * strength * 16)
        expected = torch.zeros_like(images[member])
        if sign[member] > 0:
            expected[:, :, by:] = images[member, :, :, :-by]
        else:
            expected[:, :, :-by] = images[member, :, :, by:]
        assert torch.equal(got[member], expected)


def test_rand_augment_gives_floats_back_as_floats() -> None:
    levels = pictures(30, 1, 8, 8)
    from_levels = RandAugment()(levels, draw_for(30))
    from_floats = RandAugment()(levels.float() / 255, draw_for(30))
    torch.testing.assert_close(from_floats, from_levels.float() / 255)
    with pytest.raises(DataError, match="not 4"):
        RandAugment()(torch.zeros(1, 4, 8, 8), draw_for(1))


def test_colour_jitter_stays_within_its_strengths() -> None:
    images = torch.full((200, 3, 4, 4), 100, dtype=torch.uint8)
    jitter = ColourJitter(brightness=0.4, contrast=0, saturation=0)
    values = jitter(images, draw_for(200)).flatten(1)
    assert (values == values[:, :1]).all()
    assert 59 <= int(values.min()) < 70 and 130 < int(values.max()) <= 140
    nothing = ColourJitter(brightness=0, contrast=0, saturation=0)
    assert torch.equal(nothing(images, draw_for(200)), images)


def test_hue_turns_colours_and_keeps_grey() -> None:
    pytest.importorskip("kornia")
    images = torch.zeros(50, 3, 2, 2, dtype=torch.uint8)
    images[:, 0] = 200
    images[:, :, 0, 0] = 90
    jitter = ColourJitter(brightness=0, contrast=0, saturation=0, hue=0.5)
    got = jitter(images, draw_for(50))
    assert (got[:, :, 0, 0] == 90).all()
    red = got[:, :, 1, 1]
    assert (red.amax(1) == 200).all() and (red.amin(1) == 0).all()
    assert set(red.argmax(1).tolist()) == {0, 1, 2}


def test_hue_agrees_with_torchvision() -> None:
    pytest.importorskip("kornia")
    images = pictures(4, 3, 9, 9)
    jitter = ColourJitter(brightness=0, contrast=0, saturation=0, hue=0.3)
    angles = jitter._amounts(draw_for(4))[:, 3]
    got = jitter(images, draw_for(4))
    for image, angle, result in zip(images, angles, got, strict=True):
        turn = float(angle) / (2 * torch.pi)
        assert -0.3 <= turn <= 0.3
        wanted = functional().adjust_hue(image, turn)
        assert int((result.int() - wanted.int()).abs().max()) <= 1


def test_missing_kornia_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.enhance", None)
    with pytest.raises(UnderstudyError, match=r"pip install understudy\[vision\]"):
        ColourJitter(hue=0.1)
    assert ColourJitter(hue=0.0).hue == 0


def test_mixup_is_the_average_by_share() -> None:
    images, partners = pictures(500, 3, 4, 4, seed=1), pictures(500, 3, 4, 4, seed=2)
    mixed, share = Mixup(alpha=1.0).mix(images, partners, draw_for(500))
    column = share[:, None, None, None]
    torch.testing.assert_close(mixed, (images * column + partners * (1 - column)) / 255)
    assert abs(float(share.mean()) - 0.5) < 0.05
    assert abs(float(share.var()) - 1 / 12) < 0.02
    _, narrow = Mixup(alpha=0.2).mix(images, partners, draw_for(500))
    assert abs(float(narrow.var()) - 1 / (4 * 1.4)) < 0.03  # variance of Beta(a, a)
    same, all_own = Mixup(probability=0).mix(images, partners, draw_for(500))
    assert (all_own == 1).all()
    assert torch.equal(same, images.float().div(255))


def test_cutmix_pastes_a_rectangle_and_counts_it() -> None:
    images = torch.zeros(400, 1, 12, 10, dtype=torch.uint8)
    partners = torch.ones_like(images)
    mixed, share = Cutmix(alpha=1.0).mix(images, partners, draw_for(400))
    assert mixed.dtype == torch.uint8
    torch.testing.assert_close(share, 1 - mixed.float().mean((1, 2, 3)))
    for mask in mixed[:, 0].bool():
        assert int(mask.sum()) == int(mask.any(1).sum()) * int(mask.any(0).sum())
    assert len(share.unique()) > 30
    untouched, kept = Cutmix(probability=0).mix(images, partners, draw_for(400))
    assert torch.equal(untouched, images) and (kept == 1).all()


def test_mixup_or_cutmix_does_one_of_the_two() -> None:
    images = torch.zeros(400, 1, 8, 8)
    mixed, share = MixupOrCutmix().mix(images, torch.ones_like(images), draw_for(400))
    torch.testing.assert_close(share, 1 - mixed.mean((1, 2, 3)))
    pasted = ((mixed == 0) | (mixed == 1)).flatten(1).all(1)
    assert 150 < int(pasted.sum()) < 250
    averaged = (mixed == mixed[:, :, :1, :1]).flatten(1).all(1)
    assert (pasted | averaged).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(padding=-1), "padding must be at least 0, not -1"),
        (lambda: RandomCrop(mode="wrap"), "mode must be 'zeros' or 'reflect', not 'wrap'"),
        (lambda: HorizontalFlip(probability=1.5), "from 0 to 1, not 1.5"),
        (lambda: RandAugment(magnitude=31), "magnitude must be from 0 to 30"),
        (lambda: RandomResizedCrop(size=8, scale=(1, 0.1)), "smaller one first"),
        (lambda: RandomErasing(ratio=(0, 1)), "numbers above 0"),
        (lambda: ColourJitter(hue=0.7), "hue must be from 0 to 0.5"),
        (lambda: Mixup(alpha=0), "alpha must be at least"),
        (lambda: Cutmix(probability=2), "probability"),
    ],
)
def test_bad_keywords_are_named(make: typing.Callable[[], object], message: str) -> None:
    with pytest.raises(UnderstudyError, match=message):
        make()


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 50))
def test_integers_reach_everything_below_high(high: int, count: int) -> None:
    drawn = draw_for(count).integers("anything", high)
    assert drawn.dtype == torch.int64 and drawn.shape == (count, 1)
    assert int(drawn.min()) >= 0 and int(drawn.max()) < high


def test_integers_are_uniform() -> None:
    counts = torch.bincount(draw_for(7000).integers("die", 7).flatten(), minlength=7)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 22.5  # chi squared, 6 degrees, 0.1%
