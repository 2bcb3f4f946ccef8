"""Elliptical distributions of processes whose scale is random; none of them is a multivariate normal."""

from .multivariate_student_t import MultivariateStudentT
from .scale_mixture_multivariate_normal import ScaleMixtureMultivariateNormal

__all__ = ["MultivariateStudentT", "ScaleMixtureMultivariateNormal"]
