"""The posterior of a fully connected network in the row space of its training inputs, which is all that they see."""

from __future__ import annotations

import torch
from torch import Tensor

from .finite_network import FiniteNetwork
from .targets import Observables, Target


class RowSpaceTarget(Target):
    r"""The same posterior with the first layer's weights sampled only where the training inputs see them.

    .. math:: W^1 = W_\parallel Q^T + W_\perp Q_\perp^T, \qquad
              W^1 x_\mu = W_\parallel Q^T x_\mu \ \text{ for all training inputs}

    Q, ``N_0 x r`` with orthonormal columns, spans the row space of the (scaled) training inputs, r <= min(P, N_0) is
    their rank, W^1 is whitened. The likelihood holds :math:`W_\parallel` (``N_1 x r``) alone. :math:`W_\perp` keeps its
    prior N(0, 1), independent of the data: it is drawn afresh whenever the network is evaluated at test points, which
    do see it. This is an identity, no approximation: averages over the posterior are the same, and the sampler moves
    N_1 r instead of N_1 N_0 numbers. For P = 100 and 784 inputs the first layer's matrix products shrink eightfold, a
    whole gradient (8 chains, 20 to 400 units) takes 2.3 to 3.2 times less. Langevin dynamics would sample the other
    directions with the bias of its step; here they have none.

    The state is that of a network with r inputs; ``dim``, ``precisions``, ``potential`` are those of the given kind of
    target. Observables are those of the given target at weights completed by :meth:`complete`. Biases, later layers and
    the readout are untouched.

    Args:
        target: A :class:`MarginalTarget` or :class:`JointTarget` of a :class:`FiniteNetwork`.
        keep_weights: Draw the whole orthogonal part, so that ``Observables.hidden`` are the weights of the full
            network. Otherwise only what the test inputs see is drawn, and ``Observables.hidden`` are the weights of a
            network that reads the coordinates of its inputs in ``basis``.

    Attributes:
        full: The target that takes the observables, of the full network or of that smaller one.
        basis: (Q, what is drawn of Q_perp), ``N_0 x (r + s)``.

    Raises:
        TypeError: A network of another kind.

    Reference: THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf
        >>> from torch_propkernel.networks import FiniteNetwork, MarginalTarget, RowSpaceTarget
        >>> x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> full = MarginalTarget(FiniteNetwork(Erf(), 50, 4, dtype=torch.float64), x, x[:, 0], 0.1)
        >>> target = RowSpaceTarget(full, keep_weights=True)
        >>> full.dim, target.dim
        (200, 12)
        >>> state = target.draw_prior(1)
        >>> weights = target.complete(state)   # the same log likelihood, U less the prior |w|^2/2
        >>> u, v = target.potential(state)[0] - state.square().sum() / 2, full.potential(weights)[0]
        >>> torch.allclose(u, v - weights.square().sum() / 2)
        True
    """

    def __init__(self, target: Target, keep_weights: bool = False) -> None:
        """Find the row spaces and build the smaller networks."""
        self._keep_weights, network = keep_weights, target.network
        if not isinstance(network, FiniteNetwork):
            raise TypeError(f"target: expected that of a FiniteNetwork, got one of a {type(network).__name__}")
        with torch.no_grad():
            x, test_x = network.read_inputs(target.x), network.read_inputs(target.test_x)
            inside = row_space(x)
            outside = _complement(inside, None if keep_weights else test_x)
            self.basis = torch.cat([inside, outside], dim=-1)
            self.full = target if keep_weights else _in_coordinates(target, x, test_x, self.basis)
            self._inner = _in_coordinates(target, x, None, inside)
        super().__init__(self._inner.network, self._inner.x, _plain_targets(target), target.temperature)
        self.dim, self.precisions = self._inner.dim, self._inner.precisions

    def potential(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return U ``C`` and its gradient ``C x dim``."""
        return self._inner.potential(state)

    @torch.no_grad()
    def complete(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return states ``C x full.dim`` with the orthogonal part of the first layer's weights drawn from the prior."""
        num_units, rank = self.network.width[0], self.network.input_dim
        inside, others = state.split([num_units * rank, self.dim - num_units * rank], dim=-1)
        shape = (*state.shape[:-1], num_units, self.basis.shape[-1] - rank)
        outside = torch.randn(shape, generator=generator, dtype=state.dtype, device=state.device)
        weight = torch.cat([inside.unflatten(-1, (num_units, rank)), outside], dim=-1)
        if self._keep_weights:
            weight = weight @ self.basis.mT
        return torch.cat([weight.flatten(-2), others], dim=-1)

    def observables(self, state: Tensor, generator: torch.Generator | None = None) -> Observables:
        """Return what the given target records at completed states."""
        return self.full.observables(self.complete(state, generator), generator)


def reduce_to_row_space(target: Target, keep_weights: bool = False) -> Target:
    """Return a :class:`RowSpaceTarget` where that is smaller, else the target itself.

    It is not where the training inputs span the input space, and for networks that are not fully connected.

    Args:
        target: The target of any network.
        keep_weights: Passed on to :class:`RowSpaceTarget`.
    """
    if type(target.network) is not FiniteNetwork:
        return target
    reduced = RowSpaceTarget(target, keep_weights)
    return reduced if reduced.dim < target.dim else target


def row_space(x: Tensor, size: Tensor | None = None) -> Tensor:
    """Return orthonormal columns ``N_0 x r`` that span the rows of x ``P x N_0``.

    Args:
        x: Rows.
        size: Directions in which x is at rounding level of this norm do not count. By default it is x's own, and one
            column is returned where all rows are zero.
    """
    _, singular, rows = torch.linalg.svd(x, full_matrices=False)
    least, size = (1, singular[0]) if size is None else (0, size)
    rank = int((singular > max(x.shape) * torch.finfo(x.dtype).eps * size).sum())
    return rows[: max(rank, least)].mT


def _complement(basis: Tensor, x: Tensor | None) -> Tensor:
    """Return orthonormal columns that complete a basis so that it spans rows x too; everything if there are none."""
    num_inputs, rank = basis.shape
    if x is None or len(x) >= num_inputs - rank:
        return torch.linalg.qr(basis, mode="complete").Q[:, rank:]
    return row_space(x - (x @ basis) @ basis.mT, torch.linalg.norm(x))


def _in_coordinates(target: Target, x: Tensor, test_x: Tensor | None, basis: Tensor) -> Target:
    """Return the target of the network that reads the coordinates of its inputs in a basis ``N_0 x r``."""
    network, (num_inputs, rank) = target.network, basis.shape
    smaller = FiniteNetwork(
        network.activation,
        rank,
        network.width,
        num_outputs=network.num_outputs,
        weight_variance=network.weight_variance,
        bias_variance=network.bias_variance,
        readout_bias_variance=float(network.readout_bias_variance),
        dtype=x.dtype,
        device=x.device,
        generator=torch.Generator(device=x.device),
    )
    basis = basis * (rank / num_inputs) ** 0.5  # it divides by sqrt(r) where the network divides by sqrt(N_0)
    test_x = None if test_x is None or not len(test_x) else test_x @ basis
    return type(target)(smaller, x @ basis, _plain_targets(target), target.temperature, test_x)


def _plain_targets(target: Target) -> Tensor:
    """Return the targets as they are given to a target."""
    return target.y.squeeze(-1) if target.network.num_outputs is None else target.y
