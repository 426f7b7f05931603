"""Images of every form become RGB, and pixels as the model's own configuration says."""

import io
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from common.data.images import CONFIG_NAME, ImageProcessor, decode
from common.errors import DataError, ModelError

VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.25, 0.5],
}
# As DINOv2's: the shorter side to one length, then a cut from the middle.
CROPPED = VIT | {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": 12, "width": 12},
}
# As the first ViT's on the hub, from before image processors had their names.
OLD = {
    "feature_extractor_type": "ViTFeatureExtractor",
    "do_normalize": True,
    "do_resize": True,
    "size": 224,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("config", "side"), [(VIT, 16), (CROPPED, 12), (OLD, 224)], ids=["vit", "bit", "old"]
)
def test_images_of_any_size_become_what_the_configuration_says(
    tmp_path: Path, config: dict[str, Any], side: int
) -> None:
    processor = ImageProcessor.load(write(tmp_path / "model", config))
    pixels = processor.pixel_values([Image.new("RGB", size, "red") for size in ((40, 30), (9, 70))])
    assert pixels.shape == (2, 3, side, side) and pixels.dtype == torch.float32
    red = [(value - 0.5) / deviation for value, deviation in zip((1, 0, 0), config["image_std"], strict=True)]
    expected = torch.tensor(red).view(1, 3, 1, 1).expand_as(pixels)
    assert torch.allclose(pixels, expected, atol=1e-5)


def test_what_is_saved_is_loaded_as_the_same_processor(tmp_path: Path) -> None:
    processor = ImageProcessor.load(write(tmp_path / "model", CROPPED))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / CONFIG_NAME).write_bytes(processor.save())
    copy = ImageProcessor.load(tmp_path / "copy")
    image = Image.effect_noise((33, 21), 90).convert("RGB")
    assert torch.equal(copy.pixel_values([image]), processor.pixel_values([image]))
    assert copy.save() == processor.save()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"image_processor_type": "Nobody"}'], ids=lambda text: text or "empty"
)
def test_a_configuration_that_cannot_be_used_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG_NAME).write_text(content)
    with pytest.raises(ModelError, match=f"model {tmp_path}: image processor cannot be loaded: ") as caught:
        ImageProcessor.load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_model_that_is_not_there_or_has_no_processor_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"model {tmp_path}: the directory holds no {CONFIG_NAME}"):
        ImageProcessor.load(tmp_path)
    for source in (tmp_path / "gone", "nobody/nothing"):
        with pytest.raises(ModelError, match=f"model {source}: image processor cannot be loaded"):
            ImageProcessor.load(source)


def test_a_configuration_that_leaves_images_of_different_sizes_is_refused(tmp_path: Path) -> None:
    processor = ImageProcessor.load(write(tmp_path / "model", VIT | {"do_resize": False}))
    with pytest.raises(ModelError, match=f"{CONFIG_NAME} does not fit the images"):
        processor.pixel_values([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))])


# Decoding.


def palette() -> Image.Image:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 200, 200, 200])
    return image


FORMS = {
    "greyscale": encoded(Image.new("L", (3, 2), 200)),
    "greyscale with alpha": encoded(Image.new("LA", (3, 2), (200, 0))),
    "16 bits": encoded(Image.fromarray(numpy.full((2, 3), 200 * 256 + 7, numpy.uint16))),
    "RGBA": encoded(Image.new("RGBA", (3, 2), (200, 200, 200, 0))),
    "palette": encoded(palette()),
    "palette with transparency": encoded(palette(), transparency=b"\x00\x80"),
    "CMYK": encoded(Image.new("CMYK", (3, 2), (55, 55, 55, 0)), "TIFF"),
    "webp": encoded(Image.new("RGB", (3, 2), (200, 200, 200)), "WEBP", lossless=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_image_becomes_rgb(form: str) -> None:
    image = decode(FORMS[form], "x")
    assert image.mode == "RGB" and image.size == (3, 2)
    assert numpy.asarray(image).tolist() == [[[200, 200, 200]] * 3] * 2


def test_a_photograph_taken_sideways_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.jpg").write_bytes(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    assert decode(tmp_path / "x.jpg", "x").size == (20, 30)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", FORMS["webp"][:30], encoded(Image.effect_noise((50, 50), 90))[:900]],
    ids=["empty", "text", "cut webp", "cut png"],
)
def test_what_cannot_be_decoded_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    for image in (content, tmp_path / "x.png"):
        with pytest.raises(DataError, match=r"train\.parquet: row 7 cannot be decoded: ") as caught:
            decode(image, "train.parquet: row 7")
        assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures/1\.png: no such image"):
        decode(tmp_path / "1.png", "pictures/1.png")


def test_an_image_as_large_as_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"x cannot be decoded: .*exceeds limit"):
        decode(encoded(Image.new("RGB", (10, 10))), "x")
