"""Images → pixel values, as the model's own preprocessor_config.json says; by PIL alone."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import AutoImageProcessor

from common.errors import DataError, ModelError

CONFIG_NAME = "preprocessor_config.json"


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


def decode(image: Path | bytes, name: str) -> Image.Image:
    """A file's or an encoded image's pixels as RGB, upright; greyscale is spread, transparency dropped.

    Raises DataError with `name` when it is missing or not an image.
    """
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such image") from error
    # What PIL raises for broken files is not of one class.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name} cannot be decoded: {reason}; replace or remove it") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL would cut 16 bits off at 255 instead of scaling them.
        image = Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
