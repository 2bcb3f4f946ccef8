"""A small real data set that ships with the package, and a reader for numeric CSV files."""

from torch_propkernel.datasets.csv import load_csv
from torch_propkernel.datasets.yacht import YACHT, DatasetInfo, load_yacht

__all__ = ["YACHT", "DatasetInfo", "load_csv", "load_yacht"]
