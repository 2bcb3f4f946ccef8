"""The processes of this package that are nothing but a mean and a kernel."""

from __future__ import annotations

from typing import Any

from gpytorch.kernels import Kernel
from gpytorch.means import Mean

from ..mixing import MixingLaw
from .finite_width_process import FiniteWidthProcess
from .network_gp import NetworkGP
from .student_t_process import StudentTProcess


class NetworkFiniteWidthProcess(NetworkGP, FiniteWidthProcess):
    """A :class:`FiniteWidthProcess` of a kernel and a zero mean, as :class:`NetworkGP` is an ExactGP.

    Shapes, accuracy and cost are those of :class:`FiniteWidthProcess`. It can be saved, which a class of your own
    cannot.

    Args:
        train_inputs: Training inputs.
        train_targets: Training targets.
        likelihood: A Gaussian likelihood, usually a :class:`FiniteWidthLikelihood`.
        covar_module: A kernel that holds one :class:`RenormalizedNNGPKernel`.
        mean_module: The mean; zero if None.
        mixing: Law of the scale in place of the widths' own.
        theory: "mixture" or "saddle".

    Reference: THEORY.md, section 1.

    Example:
        >>> import torch
        >>> from torch_propkernel import FiniteWidthLikelihood, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=5)
        >>> model = NetworkFiniteWidthProcess(torch.eye(2), torch.ones(2), FiniteWidthLikelihood(), kernel).eval()
        >>> type(model(torch.eye(2))).__name__
        'ScaleMixtureMultivariateNormal'
    """

    def __init__(
        self,
        train_inputs: Any,
        train_targets: Any,
        likelihood: Any,
        covar_module: Kernel,
        mean_module: Mean | None = None,
        *,
        mixing: MixingLaw | None = None,
        theory: str = "mixture",
    ) -> None:
        """Store the modules, the law and the theory."""
        super().__init__(
            train_inputs,
            train_targets,
            likelihood,
            covar_module,
            mean_module,
            mixing=mixing,
            theory=theory,
        )


class NetworkStudentTProcess(NetworkGP, StudentTProcess):
    """A :class:`StudentTProcess` of a kernel and a zero mean, as :class:`NetworkGP` is an ExactGP.

    Shapes, accuracy and cost are those of :class:`StudentTProcess`. It can be saved, which a class of your own cannot.

    Args:
        train_inputs: Training inputs.
        train_targets: Training targets.
        likelihood: A :class:`StudentTProcessLikelihood`.
        covar_module: The kernel.
        mean_module: The mean; zero if None.

    Reference: THEORY.md, section 2.

    Example:
        >>> import torch
        >>> from torch_propkernel import NNGPKernel, ReLU, StudentTProcessLikelihood
        >>> likelihood = StudentTProcessLikelihood()
        >>> model = NetworkStudentTProcess(torch.eye(2), torch.ones(2), likelihood, NNGPKernel(ReLU())).eval()
        >>> round(model(torch.eye(2)).df.item() - likelihood.deg_free.item(), 4)   # two data more
        2.0
    """
