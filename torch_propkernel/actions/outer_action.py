"""The effective action of the outer composition: a function of one variable, the log of r = prod_l q_l."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .._validation import as_temperature, positive_number
from ..exceptions import NotPositiveDefiniteError
from ..order_parameters import ScalarChain
from ..order_parameters.chain import StationaryLayers
from ..spectra.spectrum import Spectrum, TridiagonalSpectrum

_BLOCK = 2**16
_INFINITE = 1e300
_FEW = 16
"""Problems up to which tridiagonal solves, some for each, are cheaper than all projections on eigenvectors."""


class OuterAction:
    r"""Many one-dimensional saddle-point problems at once, in u = log r with r = prod_l q_l.

    At fixed r the layers' parts are stationary where N_l (q_l - 1) = mu for all layers l
    (:meth:`ScalarChain.at_log_scale`), so that

    .. math:: N_L S(u) = \sum_l N_l (q_l - \log q_l)
              + \sum_i \Big[n_i \log(T + r k_i) + \frac{z_i^2}{T + r k_i}\Big], \qquad
              N_L \frac{dS}{du} = \mu(u) + g(u), \quad
              g = \sum_i n_i \frac{x_i}{1 + x_i} - \frac{z_i^2}{T}\frac{x_i}{(1+x_i)^2},

    with :math:`x_i = r k_i / T` and n_i the number of eigenvalues that a node stands for (one each in a dense
    reduction). At T = 0, :math:`g = P - b/r` with :math:`b = \sum_i z_i^2/k_i`.

    Build it with :meth:`of`. Shapes: n problems; eigenvalues, projections and counts ``n x M`` each, or ``1 x M`` where
    they are shared by all problems.

    Args:
        eigenvalues: k >= 0.
        squared_projections: z^2, summed over outputs; or what sums over them without knowing them.
        chain: The layers, widths ``n x L``, may hold infinities.
        temperature: ``n``; all positive or all zero.
        counts: n_i; one each if None.
        zero_temperature: Whether the temperatures are zero; they are looked at if None.

    Reference: THEORY.md, section 1 for one layer, section 4, eq. (7), for several.
    """

    def __init__(
        self,
        eigenvalues: Tensor,
        squared_projections: Tensor | TridiagonalSpectrum,
        chain: ScalarChain,
        temperature: Tensor,
        counts: Tensor | None = None,
        zero_temperature: bool | None = None,
    ) -> None:
        """Store the problems."""
        self.eigenvalues = eigenvalues
        self._labels = squared_projections
        self.chain = chain
        self.temperature = temperature
        self.counts = counts
        self.zero_temperature = bool((temperature == 0).any()) if zero_temperature is None else zero_temperature
        self._by_solves = self._is_unprojected and self.num_problems <= _FEW

    @classmethod
    def of(
        cls,
        spectrum: Spectrum,
        width: float | Sequence[float] | Tensor | ScalarChain,
        temperature: float | Tensor,
        readout_precision: float = 1.0,
    ) -> tuple[OuterAction, torch.Size]:
        """Return all (width, temperature) problems of a spectrum in one object, flattened, and their shape ``*p``.

        Args:
            spectrum: Of K and y, ``*b``.
            width: N_1, ..., N_L, ``*p x L``, or the chain.
            temperature: T, ``*p``.
            readout_precision: lambda_L relative to the one inside K: K is divided by it.

        Raises:
            NotPositiveDefiniteError: T = 0 with a singular K.
        """
        device = spectrum.eigenvalues.device
        precision = positive_number("readout_precision", readout_precision)
        chain = width if isinstance(width, ScalarChain) else ScalarChain.of(width)
        widths = chain.width.to(device, torch.float64)
        temperature = as_temperature(temperature, torch.float64, device)
        shape = torch.broadcast_shapes(spectrum.batch_shape, chain.batch_shape, temperature.shape)
        if bool((temperature == 0).any()) and not bool(torch.isfinite(spectrum.condition).all()):
            raise NotPositiveDefiniteError(
                "temperature: expected > 0 for a kernel matrix that is singular to rounding, got 0 (are there "
                "duplicate or zero rows?); T = 0 needs a non-singular K"
            )
        number = math.prod(shape)
        own = ScalarChain(widths.expand(*shape, -1).reshape(number, -1))
        temperature = temperature.expand(shape).reshape(number)
        if precision == 1.0 and isinstance(spectrum, TridiagonalSpectrum) and spectrum.is_resolved:
            counts = spectrum.multiplicities
            counts = None if counts is None else counts.unsqueeze(0)
            return cls(spectrum.eigenvalues.unsqueeze(0), spectrum, own, temperature, counts), shape
        columns = [spectrum.eigenvalues / precision, spectrum.squares, spectrum.multiplicities]
        if spectrum.batch_shape.numel() == 1:
            flat = [None if v is None else v.reshape(1, -1) for v in columns]
        else:
            flat = [None if v is None else v.expand(*shape, -1).reshape(number, -1) for v in columns]
        k, z2, counts = flat
        return cls(k, z2, own, temperature, counts), shape  # type: ignore[arg-type]

    @property
    def _is_unprojected(self) -> bool:
        """Whether the labels are those of a tridiagonal matrix that has no projections on eigenvectors yet."""
        return isinstance(self._labels, TridiagonalSpectrum) and not self._labels.is_projected

    @property
    def squared_projections(self) -> Tensor:
        """z^2, summed over outputs, ``n x M`` or ``1 x M``."""
        return self._labels if isinstance(self._labels, Tensor) else self._labels.squares.unsqueeze(0)

    @property
    def width(self) -> Tensor:
        """Widths, ``n x L``."""
        return self.chain.width

    @property
    def num_problems(self) -> int:
        """Number n of problems."""
        return self.width.shape[0]

    @property
    def num_spectra(self) -> int:
        """One where the problems share spectrum and labels, else n."""
        return max(len(self.eigenvalues), len(self._labels) if isinstance(self._labels, Tensor) else 1)

    @cached_property
    def num_data(self) -> float:
        """Number of data: P, times the number of outputs."""
        return self.eigenvalues.shape[-1] if self.counts is None else float(self.counts[0].sum())

    def select(self, index: Tensor) -> OuterAction:
        """Return the problems at ``index`` (with repetitions), sharing a common spectrum."""
        k, counts = (None if v is None else _rows_of(v, index) for v in (self.eigenvalues, self.counts))
        labels = _rows_of(self._labels, index) if isinstance(self._labels, Tensor) else self._labels
        width, temperature = ScalarChain(self.width[index]), self.temperature[index]
        made = OuterAction(k, labels, width, temperature, counts, self.zero_temperature)  # type: ignore[arg-type]
        made.__dict__["num_data"] = self.num_data
        made._by_solves = self._by_solves
        return made

    def _rows(self, rows: slice, by_solves: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return k, z^2 (None where solves stand for it) and counts of some problems."""
        return (
            _rows_of(self.eigenvalues, rows),
            None if by_solves else _rows_of(self.squared_projections, rows),
            None if self.counts is None else _rows_of(self.counts, rows),
        )

    def _blocks(self, number: int) -> list[slice]:
        """Return parts of the problems whose tables stay in a core's cache."""
        block = max(1, _BLOCK // self.eigenvalues.shape[-1])
        return [slice(start, start + block) for start in range(0, number, block)]

    # The data's part ----------------------------------------------------------------------------------------------

    def data_terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and dg/du at u of shape ``n``."""
        if self.zero_temperature:
            label = self._label() * torch.exp(-u)
            return self.num_data - label, label
        h1, h2, d1, d2 = (v.squeeze(-1) for v in self._sums(torch.exp(u - self.temperature.log())))
        cold = 1.0 / self.temperature
        return h1 - h2 * cold, d1 - d2 * cold

    def tabulated_sums(self, log_ratio: Tensor) -> Tensor:
        """Return what g consists of at values of log(r / T), ``G``: h_1, h_2 and their derivatives, ``S x 4 x G``.

        g = h_1 - h_2 / T depends on r and T only through r / T otherwise: the sums serve all problems that share a
        spectrum; then S = 1, else n.
        """
        ratio = torch.exp(log_ratio)
        if len(self.eigenvalues) == 1:
            tables = [self._sums(ratio, tabulate=True)]
        else:
            rows = (self.select(torch.tensor([row], device=ratio.device)) for row in range(self.num_problems))
            tables = [row._sums(ratio, tabulate=True) for row in rows]
        columns = (torch.cat([v.mT for v in table]) for table in zip(*tables, strict=True))
        return torch.stack([v.expand(self.num_spectra, -1) for v in columns], 1)

    def tabulated_logs(self, log_ratio: Tensor) -> Tensor:
        """Return sum_i n_i log(1 + x_i) and sum_i z_i^2 / (1 + x_i) of a common spectrum there, ``1 x 2 x G``."""
        ratio, by_solves = torch.exp(log_ratio), self._tabulates_by_solves(len(log_ratio))
        sums = []
        for part in self._blocks(len(ratio)):
            k, z2, counts = self._rows(slice(None), by_solves)
            x = ratio[part, None] * k
            logs = x.log1p() if counts is None else counts * x.log1p()
            label = ratio.new_zeros(()) if z2 is None else (z2 / x.add_(1.0)).sum(-1)
            sums.append(torch.stack([logs.sum(-1), label.expand(len(x))]))
        table = torch.cat(sums, -1)
        if by_solves:
            table[1] = self._labels.label_terms(torch.ones_like(ratio), ratio)  # type: ignore[union-attr]
        return table.unsqueeze(0)

    def _tabulates_by_solves(self, number: int) -> bool:
        """Whether a table takes tridiagonal solves: where few problems do, or so many that no other sum is needed."""
        return self._by_solves or (self._is_unprojected and self.num_problems > number)

    def _label(self) -> Tensor:
        """Return sum_i z_i^2 / k_i, the b of zero temperature; nodes that carry no target do not count."""
        if self._by_solves:
            return self._labels.label_terms(  # type: ignore[union-attr]
                self.temperature[:1], torch.ones_like(self.temperature[:1])
            )
        k, z2 = self.eigenvalues, self.squared_projections
        return torch.where(z2 > 0, z2 / torch.where(z2 > 0, k, 1.0), 0.0).sum(-1)

    def _sums(self, ratio: Tensor, tabulate: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over the spectrum at r / T of shape ``n``, ``n x 1``; or at ``G`` values for all problems, ``G x n``.

        With x = k r / T: sum of n x/(1+x), z^2 x/(1+x)^2, and their derivatives with respect to log r.
        """
        by_solves = self._tabulates_by_solves(len(ratio)) if tabulate else self._by_solves

        def labelled(values: Tensor, z2: Tensor) -> Tensor:
            return values @ z2.mT if tabulate or len(z2) == 1 else (values * z2).sum(-1, keepdim=True)

        sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for part in self._blocks(len(ratio)):
            k, z2, counts = self._rows(slice(None) if tabulate else part, by_solves)
            x = ratio[part, None] * k
            inverse = (1.0 + x).reciprocal_()
            filled = x.mul_(inverse)  # x / (1 + x)
            occupied = inverse.mul_(filled)  # x / (1 + x)^2
            h1, d1 = (
                v.sum(-1, keepdim=True) if counts is None else (v * counts).sum(-1, keepdim=True)
                for v in (filled, occupied)
            )
            if z2 is None:
                solved = self._labels.label_sums(ratio[part])  # type: ignore[union-attr]
                h2, curved = (v.unsqueeze(-1) for v in solved)
            else:
                h2, curved = labelled(occupied, z2), labelled(filled.mul_(occupied), z2)
            sums.append((h1, h2, d1, h2 - 2.0 * curved))
        h1, h2, d1, d2 = (torch.cat(columns) for columns in zip(*sums, strict=True))
        return h1, h2, d1, d2

    def data_action(self, u: Tensor) -> Tensor:
        """Return sum_i n_i log(T + r k_i) + z_i^2 / (T + r k_i) at u of shape ``n``."""
        sums = []
        for part in self._blocks(len(u)):
            k, z2, counts = self._rows(part, self._by_solves)
            spread = self.temperature[part, None] + torch.exp(u[part, None]) * k
            logs = spread.log() if counts is None else counts * spread.log()
            sums.append(logs.sum(-1) if z2 is None else (z2 / spread).add_(logs).sum(-1))
        data = torch.cat(sums)
        if self._by_solves:
            data = data + self._labels.label_terms(self.temperature, torch.exp(u))  # type: ignore[union-attr]
        return data

    # Both parts ---------------------------------------------------------------------------------------------------

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return N_L dS/du and its derivative at u of shape ``n``."""
        return self.slope_and_scale(u)[:2]

    def slope_scale(self, u: Tensor) -> Tensor:
        """Return the size of the terms of N_L dS/du at u of shape ``n``, against which a residual is judged."""
        return self._scale(self.chain.at_log_scale(u))

    def slope_and_scale(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return N_L dS/du, its derivative, and the size of its terms at u of shape ``n``."""
        layers = self.chain.at_log_scale(u)
        g, d_g = self.data_terms(u)
        return layers.pull + g, layers.stiffness + d_g, self._scale(layers)

    def _scale(self, layers: StationaryLayers) -> Tensor:
        narrowest = self.width.amin(dim=-1).clamp_max(_INFINITE)
        return self.num_data + narrowest * (1.0 + layers.order_parameter.amax(-1))

    def layer_action(self, u: Tensor) -> Tensor:
        """Return sum_l N_l (q_l - log q_l - 1) at u of shape ``n``; infinite layers give zero."""
        return self.chain.action(self.chain.at_log_scale(u).log_order_parameter)

    def bracket(self) -> tuple[Tensor, Tensor]:
        """Return bounds of u that hold every stationary point (THEORY.md, section 1, "where the root is")."""
        if self.zero_temperature:
            balance = (self._label().expand(self.num_problems) / self.num_data).clamp_min(1e-300).log()
            return balance.clamp_max(0.0) - 1e-9, balance.clamp_min(0.0) + 1e-9
        log_temperature = self.temperature.log()
        labels = self._labels
        squares = labels.sum(-1) if isinstance(labels, Tensor) else labels.rotated.square().sum()
        squares = squares.expand(self.num_problems)
        mu_max = (squares.clamp_min(1e-300).log() - log_temperature).exp() / 4.0
        high = torch.log1p(mu_max.unsqueeze(-1) / self.width).sum(-1)
        k = self.eigenvalues if self.counts is None else self.counts * self.eigenvalues
        trace = k.sum(-1).expand(self.num_problems)
        per_width = trace.clamp_min(1e-300).log().sub(log_temperature).unsqueeze(-1) - self.width.log()
        low = -torch.nn.functional.softplus(per_width)
        room = 1.0 - self.num_data / self.width
        low = torch.maximum(low, torch.where(room > 0, room.clamp_min(1e-300).log(), low)).sum(-1)
        return low - 1e-9, high + 1e-9


def _rows_of(table: Tensor, rows: Tensor | slice) -> Tensor:
    """Return rows of a table ``n x M``; the one row of a table that all problems share."""
    return table if table.shape[0] == 1 else table[rows]
