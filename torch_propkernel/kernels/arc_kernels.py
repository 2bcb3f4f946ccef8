"""The arc-sine and arc-cosine kernels: named cases of the NNGP kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..activations import Activation, Erf, RectifiedQuadratic, ReLU, Step
from .nngp_kernel import NNGPKernel


class ArcSineKernel(NNGPKernel):
    r"""NNGP kernel of the erf activation.

    .. math:: K(x, x') = w_1\, \frac{2}{\pi} \arcsin \frac{2 c_{xx'}}{\sqrt{(1 + 2 c_{xx})(1 + 2 c_{x'x'})}},
              \qquad c_{xx'} = \frac{w_0}{N_0} x \cdot x' + b_0

    w_0, w_1 are weight variances, b_0 a bias variance, N_0 the number of inputs; deeper kernels repeat the map.
    Parameters, shapes, cost and errors are those of :class:`NNGPKernel`.

    Args:
        depth: Number of hidden layers.
        kwargs: Arguments of :class:`NNGPKernel`.

    Reference: Williams (1997), "Computing with infinite networks"; THEORY.md, section 0.

    Example:
        >>> import math, torch
        >>> value = ArcSineKernel()(torch.ones(1, 2)).to_dense().item()
        >>> abs(value - 2 / math.pi * math.asin(2 / 3)) < 1e-6   # c = 1
        True
    """

    def __init__(self, depth: int = 1, **kwargs: Any) -> None:
        """Build the NNGP kernel of erf."""
        super().__init__(Erf(), depth, **kwargs)


class ArcCosineKernel(NNGPKernel):
    r"""NNGP kernel of the activation :math:`\Theta(u) u^n`, n = 0, 1, 2.

    .. math:: K(x, x') = \frac{w_1}{2\pi} (c_{xx} c_{x'x'})^{n/2} J_n(t), \qquad
              \cos t = c_{xx'} / \sqrt{c_{xx} c_{x'x'}}

    with :math:`J_0 = \pi - t`, :math:`J_1 = \sin t + (\pi - t)\cos t` and
    :math:`J_2 = 3 \sin t \cos t + (\pi - t)(1 + 2\cos^2 t)`, for one hidden layer. This is half of Cho and Saul's
    kernel, which carries a factor 2; set ``weight_variance=[1, 2]`` for theirs. Order 1 is the relu network's kernel.
    Parameters, shapes, cost and errors are those of :class:`NNGPKernel`.

    Args:
        order: n = 0 (step), 1 (relu) or 2 (rectified quadratic).
        depth: Number of hidden layers.
        kwargs: Arguments of :class:`NNGPKernel`.

    Raises:
        ValueError: An order other than 0, 1, 2.

    Reference: Cho & Saul (2009), "Kernel methods for deep learning", eqs. (5)-(8); THEORY.md, section 0.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 4)
        >>> ArcCosineKernel(order=1)(x).to_dense().item()   # E relu(u)^2 = c / 2 at c = 1
        0.5
    """

    def __init__(self, order: int = 1, depth: int = 1, **kwargs: Any) -> None:
        """Build the NNGP kernel of the order's activation."""
        activations: dict[int, Callable[[], Activation]] = {0: Step, 1: ReLU, 2: RectifiedQuadratic}
        if order not in activations:
            raise ValueError(f"order: expected 0, 1 or 2, got {order!r}")
        super().__init__(activations[order](), depth, **kwargs)
