"""What the posteriors of processes with a random scale share, and their sampler."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

import torch
from botorch.logging import logger
from botorch.posteriors import Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import IIDNormalSampler, NormalMCSampler, SobolQMCNormalSampler
from torch import Tensor
from torch.quasirandom import SobolEngine


class LatentScalePosterior(Posterior):
    """Joint posterior at q points of one output, given the value of a latent scale normal.

    Base samples are normal: one for the scale, first, and one for each point. So BoTorch's samplers (Sobol and iid)
    drive it, common random numbers make acquisition functions smooth, and a point added to q leaves the samples of the
    others as they are. It is no ``TorchPosterior`` and has no ``distribution`` or ``mvn``, on purpose: BoTorch makes a
    normal distribution of the mean and covariance it finds there. The distribution is ``law``.

    A subclass defines :meth:`_samples`, :meth:`density` and :meth:`affine`.

    Shapes: as ``GPyTorchPosterior`` with one output, mean ``*b x q x 1``; base samples ``*b x (q + 1)``.

    Args:
        law: A distribution of batch shape ``*b`` and event shape q with mean, variance and icdf.
    """

    def __init__(self, law: Any) -> None:
        """Store the distribution."""
        self.law = law

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("distribution", "mvn"):
            raise AttributeError(f"{name}: expected a normal posterior, got a {type(self).__name__} (its `law`)")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def mean(self) -> Tensor:
        """Mean, ``*b x q x 1``."""
        return self.law.mean.unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """Variance, ``*b x q x 1``, spread of the scale included."""
        return self.law.variance.unsqueeze(-1)

    @property
    def device(self) -> torch.device:
        """Device of the mean."""
        return self.law.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the mean."""
        return self.law.mean.dtype

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape ``*b``."""
        return self.law.batch_shape

    @property
    def event_shape(self) -> torch.Size:
        """``q x 1``."""
        return torch.Size([*self.law.event_shape, 1])

    @property
    def base_sample_shape(self) -> torch.Size:
        """``*b x (q + 1)``; the scale comes first."""
        return torch.Size([*self.batch_shape, self.law.event_shape[0] + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        """Dimensions of the base samples over which they are shared."""
        return (0, -1)

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008 (immutable)
        return sample_shape + self.batch_shape + self.event_shape

    @abstractmethod
    def _samples(self, scale: Tensor, points: Tensor) -> Tensor:
        """Return samples ``sample_shape x *b x q``.

        Args:
            scale: Normal base samples of the scale, ``sample_shape x *b``; dimensions over which a sampler shares
                them have size one.
            points: Normal base samples of the points, ``sample_shape x *b x q``.
        """

    @abstractmethod
    def density(self, value: Tensor) -> Tensor:
        """Return the density of each point on its own: ``*b x q x 1``, with a leading dimension for several values."""

    @abstractmethod
    def affine(self, offset: Tensor, factor: Tensor) -> LatentScalePosterior:
        """Return the posterior of ``offset + factor * f``, both broadcastable to ``*b x q``."""

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Return samples ``sample_shape x *b x q x 1`` of normal base samples ``sample_shape x *b x (q + 1)``."""
        expected = sample_shape + self.base_sample_shape
        if base_samples.shape != expected:
            raise ValueError(f"base_samples: expected shape {tuple(expected)}, got {tuple(base_samples.shape)}")
        return self._samples(_distinct(base_samples[..., 0]), base_samples[..., 1:]).unsqueeze(-1)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Return samples ``sample_shape x *b x q x 1``, with gradients; one sample if no shape is given."""
        sample_shape = torch.Size([1]) if sample_shape is None else sample_shape
        base_samples = torch.randn(sample_shape + self.base_sample_shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(sample_shape, base_samples)

    def quantile(self, value: Tensor) -> Tensor:
        """Return quantiles of each point on its own: ``*b x q x 1``, with a leading dimension for several values."""
        if value.numel() > 1:
            return torch.stack([self.quantile(v) for v in value], dim=0)
        return self.law.icdf(value.to(self.mean)).unsqueeze(-1)


def _distinct(base_samples: Tensor) -> Tensor:
    """Samplers expand their base samples over batches; one copy of each, with the dimensions kept."""
    return base_samples[tuple(slice(0, 1) if step == 0 else slice(None) for step in base_samples.stride())]


@GetSampler.register(LatentScalePosterior)
def _get_sampler(
    posterior: LatentScalePosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> NormalMCSampler:
    """Sobol normal base samples where the dimension allows it, else iid ones."""
    dimension = posterior.base_sample_shape[-1]
    if dimension > SobolEngine.MAXDIM:
        logger.warning(f"{dimension} base samples are too many for the Sobol engine, using iid ones.")
        return IIDNormalSampler(sample_shape=sample_shape, seed=seed)
    return SobolQMCNormalSampler(sample_shape=sample_shape, seed=seed)
