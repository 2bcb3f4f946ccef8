"""The yacht hydrodynamics data: 308 rows, 6 inputs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from torch import Tensor

from .csv import load_csv

__all__ = ["YACHT", "DatasetInfo", "load_yacht"]


@dataclass(frozen=True)
class DatasetInfo:
    """Where a data set comes from and what its columns mean.

    Attributes:
        name: title of the data set.
        feature_names: one per input column.
        target_name: what the target is.
        feature_means: numbers that were subtracted from the published input columns.
        target_mean: number that was subtracted from the target.
        source: authors, year and repository.
        doi: digital object identifier.
        license: license of the data.

    Example:
        >>> YACHT.license, len(YACHT.feature_names)
        ('CC-BY-4.0', 6)
    """

    name: str
    feature_names: tuple[str, ...]
    target_name: str
    feature_means: tuple[float, ...]
    target_mean: float
    source: str
    doi: str
    license: str


YACHT = DatasetInfo(
    name="Yacht Hydrodynamics",
    feature_names=(
        "longitudinal position of the center of buoyancy",
        "prismatic coefficient",
        "length-displacement ratio",
        "beam-draught ratio",
        "length-beam ratio",
        "Froude number",
    ),
    target_name="log residuary resistance per unit weight of displacement",
    feature_means=(-2.3818, 0.56414, 4.7886, 3.9368, 3.2068, 0.2875),
    target_mean=1.0845,
    source="J. Gerritsma, R. Onnink, A. Versluis (1981), UCI Machine Learning Repository",
    doi="10.24432/C5XG7R",
    license="CC-BY-4.0",
)
"""What is known about the yacht data: names, statistics, source and license."""


def load_yacht() -> tuple[Tensor, Tensor]:
    """Load the yacht hydrodynamics data.

    Towing-tank experiments on 22 hull forms at 14 Froude numbers each. The columns are centered but not scaled. The
    target is the natural **logarithm** of the published residuary resistance, centered: errors in it do not compare
    with errors published for the raw target. ``YACHT`` names the columns and holds the subtracted means:
    ``exp(y + YACHT.target_mean)`` is the published target, up to the rounding to five digits. The file beside this
    module, ``LICENSE-yacht.txt``, has the license (CC BY 4.0) and all changes.

    Returns:
        ``(x, y)``, float64 tensors of shapes ``308 x 6`` and ``308``.

    Reference:
        J. Gerritsma, R. Onnink, A. Versluis (1981). Yacht Hydrodynamics. UCI Machine Learning Repository,
        doi:10.24432/C5XG7R.

    Example:
        >>> x, y = load_yacht()
        >>> x.shape, y.shape
        (torch.Size([308, 6]), torch.Size([308]))
        >>> (y + YACHT.target_mean).exp().max().round(decimals=1).item()
        62.4
    """
    with resources.as_file(resources.files(__package__).joinpath("yacht.csv.gz")) as path:
        return load_csv(path)
