"""A small vision transformer as foundation model: none comes as a package, so it is trained here.

    python -m experiments.pretraining --out runs/vit-fashion-mnist

On half of Fashion-MNIST's classes; the demo then tunes it on the other half.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, get_cosine_schedule_with_warmup
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from experiments.packaged import FASHION_PRETRAINING, fashion_mnist

_CONFIG: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 7,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
_HELD_OUT = 1000
VIT_FOLDER = Path("runs") / "vit-fashion-mnist"


def packaged_vit(console: Console) -> Path:
    """The transformer in the current directory's `runs`, pre-trained first if not there: 4 minutes."""
    if not (VIT_FOLDER / "config.json").exists():
        pretrain_vit(VIT_FOLDER, seed=0, console=console)
    return VIT_FOLDER


def pretrain_vit(
    out: Path,
    seed: int,
    console: Console,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    images: int | None = None,
) -> float:
    """Train on FASHION_PRETRAINING's classes and write model and processor to `out`; returns the
    accuracy on held-out images. `images` limits how many are used. Raises DataError without the package.
    """
    pixels, labels = fashion_mnist("train", FASHION_PRETRAINING)
    order = numpy.random.default_rng(seed).permutation(len(labels))[:images]
    inputs = _normalised(pixels[order])
    classes = torch.tensor([FASHION_PRETRAINING.index(labels[i]) for i in order])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ViTConfig(**_CONFIG, id2label=dict(enumerate(FASHION_PRETRAINING)))
        model = ViTForImageClassification(config)
        _train(model, inputs[_HELD_OUT:], classes[_HELD_OUT:], epochs, batch_size, learning_rate, console)
        accuracy = _accuracy(model, inputs[:_HELD_OUT], classes[:_HELD_OUT])
    model.save_pretrained(out)
    size = {"height": _CONFIG["image_size"], "width": _CONFIG["image_size"]}
    ViTImageProcessorPil(size=size).save_pretrained(out)
    console.print(f"{out}: pre-trained on {len(order):,} images, accuracy {accuracy:.4f}")
    return accuracy


def _normalised(pixels: "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint8]]") -> Tensor:
    """Greyscale [N, 28, 28] → what ViT's processor makes of it: three equal channels in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).float().div_(127.5).sub_(1.0)[:, None].expand(-1, 3, -1, -1)


def _train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    console: Console,
) -> None:
    steps = epochs * -(-len(labels) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    with Progress(console=console) as progress:
        bar = progress.add_task("pre-training a vision transformer", total=steps)
        for _ in range(epochs):
            for index in torch.randperm(len(labels)).split(batch_size):
                logits = model(pixel_values=inputs[index]).logits
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, labels[index]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.advance(bar)
    model.eval()


@torch.inference_mode()
def _accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    right = [
        int((model(pixel_values=x).logits.argmax(-1) == y).sum())
        for x, y in zip(inputs.split(256), labels.split(256), strict=True)
    ]
    return sum(right) / len(labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/vit-fashion-mnist"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=None, help="use so many images only [all]")
    options = parser.parse_args(arguments)
    pretrain_vit(options.out, options.seed, Console(), epochs=options.epochs, images=options.images)


if __name__ == "__main__":
    main()
