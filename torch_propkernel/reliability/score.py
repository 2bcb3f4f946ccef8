"""The reliability score of a model at its solution."""

from __future__ import annotations

import torch
from torch import Tensor

from ..actions.solve_order_parameters import solve_order_parameters
from ..inference.last_layer import last_layer
from ..inference.model_parts import ModelParts
from .unit_response import unit_response

MAX_ROWS = 200


@torch.no_grad()
def reliability_score(parts: ModelParts, order_parameter: Tensor, num_units: int = 4096, seed: int = 0) -> Tensor:
    """Return :func:`unit_response` of a model, ``*b``, from at most 200 training points.

    More points are thinned out evenly and the widths reduced with them, so that alpha = P/N, the temperature and the
    inputs' directions stay; the order parameters are then solved again. The lower layers enter through the variance
    that they give to the last layer's output.

    Args:
        parts: The model's pieces.
        order_parameter: q of the solution, ``*b x L``.
        num_units: Units drawn.
        seed: Of their generator.

    Raises:
        ValueError: A model whose hidden units are not known, or whose last layer has infinite width.
    """
    size, rows = parts.targets.shape[-1], parts.inputs.shape[-2]
    width = parts.kernel.width.squeeze(-2).double()
    if size != rows:
        raise ValueError("several outputs for each row")
    if bool(torch.isinf(width[..., -1]).any()):
        raise ValueError("the last hidden layer has infinite width")
    count = min(size, MAX_ROWS)
    kept = torch.linspace(0, size - 1, count, dtype=torch.float64).round().long().to(parts.inputs.device)
    x, targets = parts.inputs.index_select(-2, kept), parts.residuals()[..., kept]
    noise = _noise(parts, kept)
    layer = last_layer(parts, x)
    variance = layer.covariance.diagonal(dim1=-2, dim2=-1)
    if count < size:
        kernel = layer.scale * layer.activation.dual(variance.unsqueeze(-1), layer.covariance, variance.unsqueeze(-2))
        width = width * (count / size)
        order_parameter = solve_order_parameters(
            kernel, targets, width=width, temperature=1.0, base=noise, throw=False
        ).order_parameter
    q = order_parameter.to(parts.kernel.raw_order_parameter)
    with parts.kernel.assigned_order_parameter(q.unsqueeze(-2)):
        whole = parts.prior(x).variance.mean(-1)
    own = (layer.scale.squeeze(-1) * layer.activation.dual_diag(variance)).mean(-1)
    scale = layer.scale * (whole / (q[..., -1] * own))[..., None, None]
    return unit_response(
        layer.activation,
        layer.covariance,
        scale,
        q[..., -1],
        width[..., -1],
        noise,
        targets,
        num_units=num_units,
        seed=seed,
    )


def _noise(parts: ModelParts, rows: Tensor) -> Tensor:
    """Noise covariance of the given rows, ``*b x n x n``."""
    if parts.has_dense_noise():
        assert parts.noise is not None
        return parts.noise[..., rows, :][..., rows]
    diagonal = parts.noise_diagonal()
    return torch.diag_embed(
        diagonal[..., rows] if diagonal.shape[-1] > 1 else diagonal.expand(*diagonal.shape[:-1], len(rows))
    )
