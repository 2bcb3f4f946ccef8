"""Fantasies of processes that condition on their data themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._validation import check_inputs, check_targets


class RebuiltFantasies:
    """Mixed into an ExactGP: a fantasy model is the process on the joined data, factorized anew when it predicts."""

    def get_fantasy_model(self, inputs: Any, targets: Tensor, **kwargs: Any) -> Any:
        """Return the process on the joined data, with the same hyperparameters: nothing is refitted.

        Shapes as for ``ExactGP.get_fantasy_model``; targets with one more batch dimension than the inputs are several
        fantasies at the same points. The spread of each reacts to its own targets.
        """
        if "noise" in kwargs:
            raise NotImplementedError("noise: expected none (one noise variance for all data), got a value per fantasy")
        before: Any = getattr(self, "prediction_strategy", None)
        self.prediction_strategy: Any = _Rebuild()
        try:
            model = super().get_fantasy_model(inputs, targets, **kwargs)  # type: ignore[misc]
        finally:
            self.prediction_strategy = before
        model.train_inputs = tuple(model.train_inputs)
        for x in model.train_inputs:
            check_inputs(x, "train_inputs")
        check_targets(model.train_targets, model.train_inputs[0].shape[-2], "train_targets")
        model._clear_cache()
        return model


class _Rebuild:
    """Stands for GPyTorch's prediction strategy while it assembles a fantasy model."""

    train_prior_dist = None

    def get_fantasy_strategy(self, *args: Any, **kwargs: Any) -> None:
        return None
