"""When a prediction can be trusted: how far a real hidden unit is from the Gaussian one that the theory assumes."""

from .assessment import Reliability, assess_reliability, participation_ratio
from .score import assess
from .unit_response import unit_response

__all__ = ["Reliability", "assess", "assess_reliability", "participation_ratio", "unit_response"]
