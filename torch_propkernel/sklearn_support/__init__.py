"""scikit-learn estimators; needs scikit-learn, which the rest of the package does not.

Import from here only: ``from torch_propkernel.sklearn_support import PropKernelRegressor``.
"""

from .classifier import PropKernelClassifier
from .regressor import PropKernelRegressor

__all__ = ["PropKernelClassifier", "PropKernelRegressor"]
