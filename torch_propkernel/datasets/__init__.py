"""A small real data set that ships with the package, and a reader for numeric CSV files."""

from .csv import load_csv
from .yacht import YACHT, DatasetInfo, load_yacht

__all__ = ["YACHT", "DatasetInfo", "load_csv", "load_yacht"]
