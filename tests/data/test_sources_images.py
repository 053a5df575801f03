"""Decoding: what an image file becomes, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.data.samples import decode, probe


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})]
)
def test_lossless_images_come_back_exactly(form, options):
    pixels = noise(6, 9)
    data = encoded(Image.fromarray(pixels), form, **options)
    image = decode(data, size=None, channels=3)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
    assert probe(data, size=None) == (6, 9)


def test_grey_and_colour_are_converted():
    grey = decode(encoded(Image.fromarray(noise(4, 4))), size=None, channels=1)
    assert grey.shape == (1, 4, 4)
    colour = decode(encoded(Image.fromarray(noise(4, 4, 1))), size=None, channels=3)
    assert colour.shape == (3, 4, 4)
    assert torch.equal(colour[0], colour[2])


def test_sixteen_bits_are_scaled_instead_of_clipped():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(values)), size=None, channels=1)
    assert image.flatten().tolist() == [0, 1, 128, 255]


def test_thirty_two_bits_are_refused():
    with pytest.raises(ValueError, match="32-bit"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), size=None, channels=1)


def test_the_shorter_side_is_scaled_and_the_centre_cropped():
    image = Image.fromarray(noise(16, 40))
    data = encoded(image)
    scaled = image.resize((20, 8), Image.Resampling.BICUBIC).crop((6, 0, 14, 8))
    expected = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
    found = decode(data, size=8, channels=3)
    assert found.shape == (3, 8, 8)
    assert (found.int() - expected.int()).abs().max() <= 1
    assert probe(data, size=8) == (8, 8)


def test_photographs_are_turned_upright():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=100)
    image = decode(data, size=None, channels=3)
    assert image.shape == (3, 16, 8)
    assert image[0, :7].float().mean() > 240
    assert image[0, 9:].float().mean() < 15
    assert probe(data, size=None) == (16, 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_a_truncated_file_is_found_by_both_ways_of_reading(form):
    data = encoded(Image.fromarray(noise(64, 64)), form)
    for read in (
        lambda part: decode(part, size=None, channels=3),
        lambda part: probe(part, size=None),
    ):
        with pytest.raises(ValueError):
            read(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\x89PNG\r\n", b"\xff\xd8\xff\xe0", b"RIFF1234WEBP"]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ValueError):
        decode(data, size=None, channels=3)
    with pytest.raises(ValueError):
        probe(data, size=None)
