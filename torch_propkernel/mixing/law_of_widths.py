"""The mixing law of a network's widths."""

from __future__ import annotations

from torch import Tensor

from .gamma_mixing import GammaMixing
from .mixing_law import MixingLaw
from .product_gamma_mixing import ProductGammaMixing


def law_of_widths(width: Tensor) -> MixingLaw:
    """Return the law of r = q_1 ... q_L for widths ``*b x L``: in closed form for one hidden layer.

    Example:
        >>> import torch
        >>> law_of_widths(torch.tensor([50.0]))
        GammaMixing(width=50.0)
    """
    return GammaMixing(width.squeeze(-1)) if width.shape[-1] == 1 else ProductGammaMixing(width)
