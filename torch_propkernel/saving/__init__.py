"""Models in files: one call saves, one call loads, and a file holds no code."""

from .archive import SavedModelError
from .normalization import Normalization
from .saved_model import SavedModel, load, save

__all__ = ["Normalization", "SavedModel", "SavedModelError", "load", "save"]
