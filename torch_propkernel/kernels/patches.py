"""The patches of an image that the units of a convolutional layer read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import whole_number


@dataclass(frozen=True)
class Patches:
    """Where the patches of an image lie; calling it cuts images into patches.

    Attributes:
        image_shape: (channels, length) or (channels, rows, columns).
        kernel_size: Edges of a patch, one number for each spatial dimension.
        stride: Steps from patch to patch.
        padding: Zeros that are added at both ends.

    Example:
        >>> import torch
        >>> patches = Patches.of((1, 4), kernel_size=3, stride=1, padding=1)
        >>> patches(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))[0, 0]
        tensor([0., 1., 2.])
    """

    image_shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @classmethod
    def of(
        cls,
        image_shape: Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> Patches:
        """Return checked patches; numbers are for each spatial dimension, the stride is the patch's size if None.

        Raises:
            ValueError: Sizes that are not whole numbers >= 1 (padding: >= 0), patches larger than the padded image, an
                image of other than one or two spatial dimensions.
        """
        shape = tuple(whole_number("image_shape", size) for size in image_shape)
        if len(shape) not in (2, 3):
            raise ValueError(f"image_shape: expected (channels, length) or (channels, rows, columns), got {shape}")
        size = _per_dimension("kernel_size", kernel_size, len(shape) - 1)
        step = size if stride is None else _per_dimension("stride", stride, len(shape) - 1)
        margin = _per_dimension("padding", padding, len(shape) - 1, least=0)
        padded = tuple(length + 2 * p for length, p in zip(shape[1:], margin, strict=True))
        if any(edge > length for edge, length in zip(size, padded, strict=True)):
            raise ValueError(f"kernel_size: expected at most the padded image's size {padded}, got {size}")
        return cls(shape, size, step, margin)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of patches along each spatial dimension."""
        dimensions = zip(self.image_shape[1:], self.kernel_size, self.stride, self.padding, strict=True)
        return tuple((length + 2 * p - size) // step + 1 for length, size, step, p in dimensions)

    @property
    def num_patches(self) -> int:
        """Number B of patches."""
        return math.prod(self.counts)

    @property
    def num_entries(self) -> int:
        """Number k of entries of a patch, input channels included."""
        return self.image_shape[0] * math.prod(self.kernel_size)

    @property
    def num_inputs(self) -> int:
        """Number d of entries of an image."""
        return math.prod(self.image_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the patches ``*b x P x B x k`` of images ``*b x P x d``, flattened as ``image.flatten(-3)``."""
        images, dims = x.unflatten(-1, self.image_shape), len(self.kernel_size)
        if any(self.padding):
            images = torch.nn.functional.pad(images, [p for p in reversed(self.padding) for _ in range(2)])
        for size, step in zip(self.kernel_size, self.stride, strict=True):
            images = images.unfold(-dims, size, step)  # this dimension counts patches now; its entries go last
        return images.movedim(-2 * dims - 1, -dims - 1).flatten(-dims - 1).flatten(-dims - 1, -2)


def _per_dimension(name: str, value: Any, dims: int, least: int = 1) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{name}: expected 1 or {dims} numbers, got {value!r}")
    return tuple(whole_number(name, v, least=least) for v in values)
