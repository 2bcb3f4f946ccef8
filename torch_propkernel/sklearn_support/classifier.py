"""Two-class classification with a Bayesian network of finite width, as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import validate_data
from torch import Tensor

from ..distributions import ScaleMixtureMultivariateNormal
from .network_estimator import NetworkEstimator


class PropKernelClassifier(ClassifierMixin, NetworkEstimator):
    r"""Two-class classification by regression on labels -1 and +1 with a Bayesian network of finite width.

    .. math:: P(\text{second class at } x) = P(f(x) > 0 \mid y) = \Phi(\Gamma / \sigma)

    with the posterior mean Gamma and deviation sigma of the network's output f (of :class:`PropKernelRegressor`,
    noise left out); for ``process="mixture"`` the average of that over the scale. The classes are sorted: the first is
    -1, the second +1.

    What the probability means: the share of networks, drawn from the posterior of the regression on +-1 with noise of
    variance T, whose sign says the second class. :func:`expected_accuracy` averages it over the right labels. It is NOT
    a calibrated probability of the class: the loss is squared, labels are never in doubt beyond T, and where both
    classes mix it says how sure the networks' sign is, not how often it is right. Wrap the estimator in scikit-learn's
    ``CalibratedClassifierCV`` for frequencies.

    Not included: more than two classes (they join with matrix order parameters; until then scikit-learn's
    ``OneVsRestClassifier`` fits one network for each class), class and sample weights, an intercept for unbalanced
    classes other than the network's biases. Inputs are used as they are: scale them in a ``Pipeline``.

    Accuracy and cost: as :class:`PropKernelRegressor`; float64.

    Args:
        activation: A name in ``torch_propkernel.activations.ACTIVATIONS`` or an :class:`Activation`.
        width: Width of the hidden layer, one number for each of several, ``math.inf`` or None for infinite width.
        weight_variance: w_0, ..., w_L: one number or L + 1.
        bias_variance: b_0, ..., b_{L-1}: one number or L; zero for no bias.
        temperature: T > 0 in units of the labels +-1, or ``"auto"``.
        process: ``"saddle"``, ``"mixture"`` or ``"infinite_width"``.
        composition: How the order parameters of several layers enter; ``"mixture"`` needs the default.

    Attributes:
        classes_: The two labels.
        order_parameter_: q_1, ..., q_L at the saddle, shape (L,).
        solution_: The :class:`Solution`.
        temperature_: T.
        reliability_: The :class:`Reliability` note on the regime; :meth:`fit` warns if it is not reliable.
        log_evidence_: log p(y) of the labels +-1 under the regression, integrated over the scale.
        model_: The GPyTorch model.
        n_features_in_: Number of inputs.
        feature_names_in_: Names of the inputs, if X had string column names.

    Raises:
        ValueError: Parameters out of range, data that scikit-learn refuses, one class or more than two.
        ConvergenceError: The order parameters were not found.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497 (arXiv:2209.04882); THEORY.md, eq. (4).

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(80, 2))
        >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "different")
        >>> model = PropKernelClassifier(width=2000, temperature=0.1).fit(X, y)
        >>> model.classes_.tolist(), model.predict([[2.0, 2.0], [-2.0, 2.0]]).tolist()
        (['different', 'same'], ['same', 'different'])
    """

    def fit(self, X: Any, y: Any) -> PropKernelClassifier:
        """Solve the order parameters of the regression on +-1 and condition on the data.

        Args:
            X: Inputs, shape (P, N_0).
            y: Labels of two classes, shape (P,).
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind != "binary":
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}. More classes join with "
                "matrix order parameters; until then OneVsRestClassifier fits one network for each class."
            )
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: expected two classes, got one class, {self.classes_.tolist()[0]!r}")
        self._fit_network(X, 2.0 * index - 1.0)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the likelier class at each point, shape (m,)."""
        second = self.decision_function(X) > 0
        return self.classes_[second.astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the share of posterior networks whose sign says each class, shape (m, 2); see the class."""
        return np.stack(self._marginals(X, _shares), axis=-1)

    def decision_function(self, X: Any) -> np.ndarray:
        r"""Return the normal quantile of the second class's probability, Gamma / sigma at the saddle, shape (m,).

        It keeps its resolution up to 37 deviations, where the probability has long been rounded to zero or one.
        """
        first, second = (np.asarray(share) for share in self._marginals(X, _shares))
        rare = torch.tensor(np.minimum(first, second)).clamp_min(torch.finfo(torch.float64).tiny)
        margin = -torch.special.ndtri(rare).numpy()
        return np.where(second > first, margin, -margin)

    def __sklearn_tags__(self) -> Tags:
        """Say that there are two classes."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def _shares(posterior: ScaleMixtureMultivariateNormal) -> tuple[Tensor, Tensor]:
    """Return P(f < 0) and P(f > 0), each accurate where it is small."""
    zero = torch.zeros_like(posterior.mean)
    return posterior.cdf(zero), posterior.affine(zero, zero - 1.0).cdf(zero)
