"""Images → pixel values, as the model's own preprocessor_config.json says; by PIL alone."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import AutoImageProcessor

from common.data.content import foreign
from common.data.folders import FORMATS
from common.errors import DataError, ModelError

# What is wrong with a file is told once, by the error.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

CONFIG_NAME = "preprocessor_config.json"
_SIXTEEN = 2**16 - 1
# TIFF's number of the tag.
_BITS_PER_SAMPLE = 258


@dataclass(frozen=True)
class ImageProcessor:
    """How a model wants its images: size, crop, mean and deviation of the channels."""

    inner: Any
    """transformers' image processor, on its PIL back end: torchvision is not needed."""

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """From a model's directory or hub id. Raises ModelError."""
        folder = Path(source)
        if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
            raise ModelError(f"model {source}: the directory holds no {CONFIG_NAME}")
        try:
            # A model's own code is not run, nor is the user asked whether it should be.
            inner = AutoImageProcessor.from_pretrained(str(source), backend="pil", trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            # The first sentence: transformers goes on with every architecture that it knows.
            reason = " ".join(str(error).split()).split(". ")[0]
            raise ModelError(f"model {source}: image processor cannot be loaded: {reason}") from error
        return cls(inner)

    def save(self) -> bytes:
        """The content of preprocessor_config.json."""
        text: str = self.inner.to_json_string()
        return text.encode()

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any size → float32 [B, 3, H, W].

        Raises ModelError when the configuration leaves images of different sizes, or cannot be
        followed.
        """
        try:
            values: Tensor = self.inner(list(images), return_tensors="pt")["pixel_values"]
        except (ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            raise ModelError(f"the model's {CONFIG_NAME} does not fit the images: {reason}") from error
        if values.dim() != 4 or values.shape[1] != 3:
            raise ModelError(
                f"the model's {CONFIG_NAME} makes {list(values.shape)} of {len(images)} images; "
                f"needed are [{len(images)}, 3, height, width]"
            )
        return values.float()


@dataclass(frozen=True)
class Decoded:
    """An image's pixels as models want them, and what of the file they do not tell."""

    pixels: Image.Image
    """RGB, upright."""
    scale: str = ""
    """Of more than 8 bits a pixel: which values have become black and white."""
    frames: int = 1
    """The file's frames or pages; the first is taken."""


def decode(image: Path | bytes, name: str) -> Image.Image:
    """A file's or an encoded image's pixels as RGB, upright; greyscale is spread, transparency dropped.

    Raises DataError with `name` when it is missing or not an image, or when its values have no
    range that can be known.
    """
    with _opened(image, name) as opened:
        opened.load()
        return _rgb(ImageOps.exif_transpose(opened))[0]


def inspect(image: Path | bytes, name: str, *, thorough: bool, sampled: bool) -> Decoded | None:
    """What `decode` will come to; None when only the file's header was looked at, and it is well.

    `thorough`: decode every image, not only those whose values may have no known range. `sampled`: those
    of 16 bits too, whose range is known. Raises DataError.
    """
    with _opened(image, name) as opened:
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        looked_at = _is_wide(opened) and (sampled or not opened.mode.startswith("I;16"))
        if not thorough and frames == 1 and not looked_at:
            return None
        opened.seek(0)
        opened.load()
        pixels, scale = _rgb(ImageOps.exif_transpose(opened))
        return Decoded(pixels, scale, frames)


@contextmanager
def _opened(image: Path | bytes, name: str) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet. What goes wrong with it becomes a DataError of one line."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of images that are large, and of oddities that it copes with.
            warnings.simplefilter("ignore")
            file = image if isinstance(image, Path) else io.BytesIO(image)
            with Image.open(file, formats=FORMATS) as opened:
                yield opened
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such image") from error
    except _NoRange as error:
        raise DataError(
            f"{name} {error}; convert it to 8 bits a pixel, with the range that you mean"
        ) from None
    # What PIL raises for broken files is of any class.
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {_reason(image, error)}; replace or remove it") from error


def _reason(image: Path | bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        begin = b""
        with contextlib.suppress(OSError):
            begin = _begin_of(image)
        return f"it {told}" if (told := foreign(begin)) else "not an image" if begin else "it is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _begin_of(image: Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image[:64]
    with image.open("rb") as file:
        return file.read(64)


class _NoRange(ValueError):
    """Nobody can tell which values are black and white."""


def _is_wide(image: Image.Image) -> bool:
    """Whether a pixel has more than 8 bits, which PIL would cut off at 255 instead of scaling."""
    return image.mode.startswith("I") or image.mode == "F"


def _rgb(image: Image.Image) -> tuple[Image.Image, str]:
    scale = ""
    if _is_wide(image):
        image, scale = _scaled(image)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.replace("a", "A"))
    return image.convert("RGB"), scale


def _scaled(image: Image.Image) -> tuple[Image.Image, str]:
    """8 bits a pixel out of more, and from where to where.

    16 bits are what a file says of itself. 32 bits and floating-point numbers hold, by custom, values up
    to 1 (numbers only), 255 or 65,535. Raises _NoRange for others.
    """
    values = numpy.asarray(image)
    least, most = values.min(), values.max()
    if not numpy.isfinite(values).all():
        raise _NoRange("has pixels that are no finite numbers")
    if image.mode.startswith("I;16"):
        bits = _bits_of(image)
        return _grey(values.astype(numpy.int64) >> (bits - 8)), f"0 to {2**bits - 1:,}"
    if least < 0 or most > _SIXTEEN:
        raise _NoRange(f"has values from {least:,} to {most:,}, a range that no image is known by")
    if image.mode == "F" and most <= 1:
        return _grey((values * 255).round()), "0 to 1"
    if most <= 255:
        return _grey(values.round()), "0 to 255"
    return _grey(values / 257 if image.mode == "F" else values >> 8), f"0 to {_SIXTEEN:,}"


def _grey(values: Any) -> Image.Image:
    return Image.fromarray(values.astype(numpy.uint8))


def _bits_of(image: Image.Image) -> int:
    """Of a TIFF, whose 12 bits come as 16, what the file says."""
    told: Any = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    bits = told[0] if isinstance(told, tuple) else told
    return bits if bits in range(9, 17) else 16
