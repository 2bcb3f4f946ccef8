"""The matrix order parameter of a network over blocks: which blocks are read, and which together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._validation import check_finite, whole_number
from ..kernels import Patches
from .style import GRAY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WRITTEN_BELOW = 8
"""Numbers are written into the cells of matrices with fewer rows."""
_COLORS = "RdBu_r"


def plot_block_covariance(
    covariance: Tensor,
    patches: Patches | None = None,
    axes: Sequence[Axes] | None = None,
    *,
    image: Tensor | None = None,
    partners: int = 1,
    names: Sequence[str] | None = None,
) -> list[Axes]:
    r"""Plot the fitted covariance Q of blocks, and for patches of an image their weights where they lie.

    Colors show Q - 1: zero where the data leave a block as infinite width has it, if each block is read by weights of
    its own. With ``patches`` a second panel has a disk at the middle of each patch, in the color of its own
    :math:`Q_{aa} - 1`, and lines from each patch to the ``partners`` others that it meets most strongly, by
    :math:`|Q_{ab}|`, in the color of :math:`Q_{ab}` and as wide as it is large. Q weighs covariances between blocks, so
    a large :math:`Q_{aa}` says that patch a decides much of the output, and a positive :math:`Q_{ab}` that the same
    pattern in both patches speaks for the same answer.

    Args:
        covariance: Q, ``B x B``: ``order_parameters["Q"]`` of a fitted theory, or ``block_covariance`` of a kernel.
        patches: Where the patches lie on an image with rows and columns, ``kernel.blocks.patches``; None for blocks
            that are not on an image.
        axes: Where to draw, one for each panel; axes of a new figure (not one of pyplot's) if None.
        image: An image for the background, flattened as the inputs are; its values are brought into [0, 1]. Three
            channels are drawn in color, others by their mean in gray.
        partners: Lines from each patch.
        names: A name for each block, on the axes of the matrix.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Q that is not a finite symmetric matrix, patches, an image, names or axes that do not fit it.

    Reference: THEORY.md, section 12, eq. (22).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import ConvolutionalRenormalizedKernel
        >>> kernel = ConvolutionalRenormalizedKernel("erf", width=20, image_shape=(1, 4, 4), kernel_size=2)
        >>> axes = plot_block_covariance(kernel.block_covariance, kernel.blocks.patches)
        >>> len(axes), axes[1].collections[-1].get_offsets()[0].tolist()   # the middle of the first patch's four pixels
        (2, [0.5, 0.5])
    """
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance: expected shape (B, B), got {tuple(covariance.shape)}")
    check_finite("covariance", covariance)
    matrix = covariance.detach().to(torch.float64).cpu()
    size = len(matrix)
    skew = float((matrix - matrix.mT).abs().max())
    if skew > 1e-4 * float(matrix.abs().max()):
        raise ValueError(f"covariance: expected a symmetric matrix, got one that is off by {skew:.3g}")
    labels = [str(a) for a in range(size)] if names is None else list(names)
    if len(labels) != size:
        raise ValueError(f"names: expected {size}, got {len(labels)}")
    partners = whole_number("partners", partners, least=0)
    if patches is None and image is not None:
        raise ValueError("image: expected None without patches, got an image")
    if patches is not None:
        _check_patches(patches, size, image)
    panels = 1 if patches is None else 2
    if axes is None:
        axes = new_axes(panels, (5.0 * panels, 4.2))
    if len(axes) != panels:
        raise ValueError(f"axes: expected {panels}, got {len(axes)}")
    departure = matrix - torch.eye(size, dtype=matrix.dtype)
    colors = _colors(departure)
    _draw_matrix(axes[0], departure, colors, labels)
    if patches is not None:
        _draw_patches(axes[1], matrix, departure, colors, patches, image, partners)
    return list(axes)


def _check_patches(patches: Patches, size: int, image: Tensor | None) -> None:
    if len(patches.image_shape) != 3:
        raise ValueError(f"patches: expected those of images with rows and columns, got shape {patches.image_shape}")
    if patches.num_patches != size:
        raise ValueError(f"patches: expected {size}, the rows of Q, got {patches.num_patches}")
    if image is not None and tuple(image.shape) != (patches.num_inputs,):
        raise ValueError(f"image: expected shape {(patches.num_inputs,)}, got {tuple(image.shape)}")


def _colors(departure: Tensor) -> Any:
    """Return the map from numbers to colors, white at zero and the same for both panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    largest = float(departure.abs().max()) or 1.0
    return ScalarMappable(Normalize(-largest, largest), _COLORS)


def _draw_matrix(ax: Axes, departure: Tensor, colors: Any, labels: list[str]) -> None:
    ax.imshow(departure.numpy(), cmap=colors.cmap, norm=colors.norm)
    ax.figure.colorbar(colors, ax=ax, label="Q − 1 (0 at infinite width)")
    ax.set_xticks(range(len(labels)), labels, rotation=90 if sum(map(len, labels)) > 40 else 0, fontsize="small")
    ax.set_yticks(range(len(labels)), labels, fontsize="small")
    ax.set_xlabel("block")
    ax.set_ylabel("block")
    if len(departure) < _WRITTEN_BELOW:
        for row, line in enumerate(departure.tolist()):
            for column, value in enumerate(line):
                color = "white" if abs(value) > 0.6 * colors.norm.vmax else "black"
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)


def _draw_patches(
    ax: Axes, matrix: Tensor, departure: Tensor, colors: Any, patches: Patches, image: Tensor | None, partners: int
) -> None:
    from matplotlib.patches import Rectangle

    _, rows, columns = patches.image_shape
    if image is not None:
        pixels = image.detach().to(torch.float64).cpu().reshape(patches.image_shape)
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-12)
        pixels = pixels.movedim(0, -1) if len(pixels) == 3 else pixels.mean(0)
        ax.imshow(pixels.numpy(), cmap="gray", alpha=0.5)
    corners = [
        (first * patches.stride[0] - patches.padding[0], second * patches.stride[1] - patches.padding[1])
        for first in range(patches.counts[0])
        for second in range(patches.counts[1])
    ]
    height, width = patches.kernel_size
    for top, left in corners:
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=GRAY, linewidth=0.4))
    middles = [(left + 0.5 * (width - 1), top + 0.5 * (height - 1)) for top, left in corners]
    largest = float((matrix - torch.diag(matrix.diagonal())).abs().max()) or 1.0
    for a, b in _strongest(matrix, partners):
        value = float(matrix[a, b])
        bow = _bow(middles[a], middles[b])
        ax.plot(*bow, color=colors.to_rgba(value), linewidth=6.0 * abs(value) / largest, solid_capstyle="round")
    x, y = zip(*middles, strict=True)
    own = departure.diagonal().tolist()
    ax.scatter(x, y, s=160, c=own, cmap=colors.cmap, norm=colors.norm, edgecolors="black", zorder=3)
    ax.set_xlim(-0.5 - patches.padding[1], columns - 0.5 + patches.padding[1])
    ax.set_ylim(rows - 0.5 + patches.padding[0], -0.5 - patches.padding[0])
    ax.set_aspect("equal")
    ax.set_xlabel("column (pixels)")
    ax.set_ylabel("row (pixels)")


def _bow(start: tuple[float, float], end: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Return x and y of a curve between two points that leaves out those on the straight line."""
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    away = 0.6 * t * (1.0 - t)  # 0.15 of the distance at the middle
    step = (end[0] - start[0], end[1] - start[1])
    return (start[0] + step[0] * t - step[1] * away).tolist(), (start[1] + step[1] * t + step[0] * away).tolist()


def _strongest(matrix: Tensor, partners: int) -> list[tuple[int, int]]:
    """Return the pairs a < b of which one is among the strongest partners of the other, weak ones first."""
    strength = matrix.abs().fill_diagonal_(0.0)
    found = strength.topk(min(partners, len(matrix) - 1)).indices.tolist()
    pairs = {(min(a, b), max(a, b)) for a, row in enumerate(found) for b in row if strength[a, b] > 0}
    return sorted(pairs, key=lambda pair: float(strength[pair]))
