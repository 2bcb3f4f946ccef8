"""What an objective adds to the evidence: log priors and added loss terms."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.priors import Prior
from torch import Tensor


def add_other_terms(evidence: Tensor, model: Any, params: Any, leave_out: tuple[type[Prior], ...] = ()) -> Tensor:
    """Add a model's added loss terms and log priors to its evidence ``*b``, each to the batch elements it belongs to.

    A prior belongs to the elements of the trailing batch dimensions that its value has too; one that the whole batch
    shares is added to every element.

    Args:
        evidence: Log evidence, ``*b``.
        model: The model.
        params: Passed to the added loss terms.
        leave_out: Classes of priors that are left out.
    """
    for added_loss_term in model.added_loss_terms():
        evidence = evidence + added_loss_term.loss(*params)
    for _, module, prior, closure, _ in model.named_priors():
        if not isinstance(prior, leave_out):
            evidence = evidence + _of_elements(prior.log_prob(closure(module)), evidence.shape)
    return evidence


def _of_elements(term: Tensor, batch_shape: torch.Size) -> Tensor:
    """Sum over all but the dimensions of the batch."""
    count = next(k for k in range(len(batch_shape), -1, -1) if term.shape[:k] == batch_shape[len(batch_shape) - k :])
    return term.reshape(*term.shape[:count], -1).sum(-1)
