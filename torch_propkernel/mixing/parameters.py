"""Reading the parameters of a law."""

from __future__ import annotations

import torch
from torch import Tensor


def as_parameter(
    name: str, value: float | Tensor, *, above: float = 0.0, inclusive: bool = False, allow_infinite: bool = True
) -> Tensor:
    """Return a number or a floating-point tensor as a tensor, with its gradient, if every entry lies in range."""
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__} {value!r}")
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got dtype {value.dtype}; convert it first")
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.get_default_dtype())
    inside = (tensor >= above) if inclusive else (tensor > above)
    if not bool((inside & (allow_infinite | torch.isfinite(tensor))).all()):
        kind = "" if allow_infinite else "finite "
        raise ValueError(f"{name}: expected {kind}values {'>=' if inclusive else '>'} {above:g}, got {tensor.tolist()}")
    return tensor
