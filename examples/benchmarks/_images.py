"""What the benchmarks on images share: planes and cars of CIFAR-10."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def image_folder() -> Path:
    """The folder of the images: $PROPKERNEL_DATA, or beside the repository."""
    return Path(os.environ.get("PROPKERNEL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def planes_and_cars(folder: Path, seed: int, pixels: int, gray: bool = False) -> tuple[Tensor, Tensor]:
    """All images in random order, averaged over squares of pixels and flattened, and labels -1 and +1."""
    stored = np.load(folder / "cifar10_planes_cars.npz")
    rows = np.random.default_rng(seed).permutation(len(stored["labels"]))
    images = torch.as_tensor(stored["images"][rows] / 255.0).movedim(-1, 1)
    images = torch.nn.functional.avg_pool2d(images, pixels)
    images = images.mean(1, keepdim=True) if gray else images
    return images.flatten(1), torch.as_tensor(stored["labels"][rows] * 2.0 - 1.0)


def normalized(x: Tensor, num_data: int) -> Tensor:
    """Images less the mean of the first, training ones, over the deviation of their pixels."""
    x = x - x[:num_data].mean(0)
    return x / x[:num_data].std()
