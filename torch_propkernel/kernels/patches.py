"""The patches of an image that the units of a convolutional layer read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    @classmethod
    def of_layers(
        cls,
        image_shape: Sequence[int],
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        channels: Sequence[int] | None = None,
    ) -> tuple[Patches, ...]:
        """Return the patches of stacked layers, each over the image that the patches of the layer below form.

        There are several layers where a size is a list that holds a sequence or None, ``[(3, 3), (2, 2)]``, or where
        ``channels`` are several. Then every list has an entry for each layer, and numbers hold in all. Otherwise there
        is one layer, with sizes as for :meth:`of`.

        Args:
            image_shape: Of the first layer.
            kernel_size: Edges of the patches.
            stride: Steps.
            padding: Zeros.
            channels: Of the layers; 1 if None.

        Raises:
            ValueError: Lists of different lengths, and as :meth:`of`.

        Example:
            >>> [patches.counts for patches in Patches.of_layers((1, 8, 8), [(3, 3), (2, 2)], [1, None])]
            [(6, 6), (3, 3)]
        """
        sizes = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        several = any(_is_by_layer(value) for value in sizes.values()) or len(channels or ()) > 1
        lists = {name: value for name, value in sizes.items() if several and isinstance(value, (list, tuple))}
        lengths = {name: len(value) for name, value in lists.items()}
        if channels is not None:
            lengths["channels"] = len(channels)
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{next(iter(lengths))}: expected lists of one length, an entry for each layer, got {lengths}"
            )
        depth = next(iter(lengths.values()), 1)
        stack, shape = [], tuple(image_shape)
        for layer in range(depth):
            own = {name: lists[name][layer] if name in lists else value for name, value in sizes.items()}
            try:
                stack.append(cls.of(shape, **own))
            except ValueError as error:
                raise ValueError(f"layer {layer + 1}: {error}" if depth > 1 else str(error)) from None
            shape = (1 if channels is None else channels[layer], *stack[-1].counts)
        return tuple(stack)

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

    @property
    def sites(self) -> Tensor:
        """Place in the image that each place of each patch reads, ``B x F``, -1 in the padding."""
        one = replace(self, image_shape=(1, *self.image_shape[1:]))
        return one(torch.arange(1, one.num_inputs + 1).unsqueeze(0))[0] - 1

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
        hint = "; sizes of several layers are a list of sequences, one for each layer"
        raise ValueError(f"{name}: expected 1 or {dims} numbers, got {value!r}{hint}")
    return tuple(whole_number(name, v, least=least) for v in values)


def _is_by_layer(value: Any) -> bool:
    """Whether a size is a list that can only have an entry for each layer."""
    listed = isinstance(value, (list, tuple))
    return listed and any(entry is None or isinstance(entry, (list, tuple)) for entry in value)


def sizes_of(stack: Sequence[Patches]) -> dict[str, Any]:
    """Return the arguments of :meth:`Patches.of_layers` that give a stack again."""
    names = ("kernel_size", "stride", "padding")
    return {"image_shape": stack[0].image_shape} | {name: [getattr(p, name) for p in stack] for name in names}
