"""Objectives for training loops."""

from .effective_action import EffectiveAction

__all__ = ["EffectiveAction"]
