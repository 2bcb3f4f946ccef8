"""Elliptical distributions of processes whose scale is random; none of them is a multivariate normal."""

from .multivariate_student_t import MultivariateStudentT
from .normal_given_scale import NormalGivenScale
from .scale_mixture_multivariate_normal import ScaleMixtureMultivariateNormal

__all__ = ["MultivariateStudentT", "NormalGivenScale", "ScaleMixtureMultivariateNormal"]
