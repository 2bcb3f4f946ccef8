"""Models in files: one call saves, one call loads, and a file holds no code."""

from .archive import SavedModelError
from .saved_model import SavedModel, load, save

__all__ = ["SavedModel", "SavedModelError", "load", "save"]
