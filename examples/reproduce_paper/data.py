"""The two image tasks of the paper, from files, torchvision, or a small stand-in, and random data with a teacher.

All images are gray and become vectors x in [0, 1]; then the mean and the standard deviation of all pixels of all
training images are subtracted and divided out: two numbers for the whole set, not one for each pixel. Labels are -1 and
+1. Rows are shuffled once with a fixed seed; the test rows come first, then the training rows, so that training sets of
growing size contain each other and share the test set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SEED = 2023
FILES = {"mnist": "mnist10k.npz", "cifar10": "cifar10_planes_cars.npz"}
SIDE = 28
TASKS = ("mnist", "cifar10", "teacher200", "teacher300")


@dataclass(frozen=True)
class Source:
    """Where data come from; images where no file is found are replaced by a stand-in that says so.

    ``folder`` holds the files named in ``FILES``; ``torchvision`` is the root of torchvision's data sets, preferred if
    given, and ``download`` allows it to fetch them.
    """

    folder: str | None = None
    torchvision: str | None = None
    download: bool = False


@dataclass(frozen=True)
class Task:
    """Training and test rows of one task, float64."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def describe(name: str, source: Source) -> tuple[str, str]:
    """Return a short title of a task and where its data come from."""
    if name.startswith("teacher"):
        num_inputs = name.removeprefix("teacher")
        return "random, linear teacher", f"Gaussian inputs, N_0 = {num_inputs}, linear teacher without noise"
    return _images(name, source)[:2]


def load_task(name: str, num_train: int, num_test: int, source: Source) -> Task:
    """Return the first ``num_train`` training rows of a task and its test rows."""
    if name.startswith("teacher"):
        return _teacher(int(name.removeprefix("teacher")), num_train, num_test)
    title, _, images, labels = _images(name, source)
    order = np.random.default_rng(SEED).permutation(len(labels))
    num_test = min(num_test, len(labels) - num_train)
    if num_test < 1:
        raise ValueError(f"{title}: expected more than {num_train} images for training and tests, got {len(labels)}")
    test, train = order[:num_test], order[num_test : num_test + num_train]
    x, test_x = (torch.as_tensor(images[rows], dtype=torch.float64).flatten(1) for rows in (train, test))
    y, test_y = (torch.as_tensor(2.0 * labels[rows] - 1.0, dtype=torch.float64) for rows in (train, test))
    mean, deviation = x.mean(), x.std()
    return Task((x - mean) / deviation, y, (test_x - mean) / deviation, test_y)


def _teacher(num_inputs: int, num_train: int, num_test: int) -> Task:
    """Gaussian inputs and a linear teacher: x ~ N(0, 1), y = w . x / sqrt(N_0), w ~ N(0, 1), no noise in y."""
    rng = np.random.default_rng(
        SEED
    )  # its normal numbers come one by one, so that smaller sets are parts of larger ones
    shapes = (num_inputs,), (num_test, num_inputs), (num_train, num_inputs)
    weights, test_x, x = (torch.as_tensor(rng.standard_normal(shape)) for shape in shapes)
    y, test_y = (rows @ weights / num_inputs**0.5 for rows in (x, test_x))
    return Task(x, y, test_x, test_y)


@lru_cache
def _images(name: str, source: Source) -> tuple[str, str, np.ndarray, np.ndarray]:
    """Return title, description, gray images in [0, 1] and labels 0 or 1."""
    what = {"mnist": "MNIST 0 / 1", "cifar10": "CIFAR-10 planes / cars"}[name]
    if source.torchvision is not None:
        images, labels = _from_torchvision(name, source.torchvision, source.download)
        origin = "torchvision, training set"
    elif source.folder is not None and (Path(source.folder) / FILES[name]).exists():
        with np.load(Path(source.folder) / FILES[name]) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        origin = FILES[name]
    else:
        return _stand_in(name)
    rows = labels < 2
    images, labels = torch.as_tensor(images[rows], dtype=torch.float64) / 255.0, labels[rows].astype(float)
    if images.dim() == 4:
        images = images @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # luma of RGB
    if images.shape[-1] != SIDE:
        images = torch.nn.functional.interpolate(images[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]
    return what, f"{what} ({origin}; gray, {SIDE} x {SIDE} pixels)", images.numpy(), labels


def _from_torchvision(name: str, root: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError("--torchvision needs torchvision: pip install torchvision") from error
    data = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name](root, train=True, download=download)
    return np.asarray(data.data), np.asarray(data.targets)


def _stand_in(name: str) -> tuple[str, str, np.ndarray, np.ndarray]:
    """Return 8 x 8 digits that come with scikit-learn: 0 and 1 for MNIST, 3 and 8 for CIFAR-10."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"{FILES[name]}: expected in the folder --data (or $PROPKERNEL_DATA), not found, and its stand-in needs "
            "scikit-learn: pip install scikit-learn"
        ) from error
    pair = {"mnist": (0, 1), "cifar10": (3, 8)}[name]
    digits = load_digits()
    rows = np.isin(digits.target, pair)
    title = f"STAND-IN: 8 x 8 digits {pair[0]} / {pair[1]}"
    description = f"{title} of scikit-learn, because {FILES[name]} was not found"
    return title, description, digits.images[rows] / 16.0, (digits.target[rows] == pair[1]).astype(float)
