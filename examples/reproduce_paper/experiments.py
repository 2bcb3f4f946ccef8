"""What is computed: curves along the width or the number of training points, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES = ("mnist", "cifar10")
NAMES = ("width", "data", "deep")
TEMPERATURE = {"mnist": 0.05, "cifar10": 0.05, "teacher200": 0.1, "teacher300": 0.1}


@dataclass(frozen=True)
class Sampling:
    """How networks are sampled, and on how many test points they are evaluated.

    A run that has not converged is repeated once with ``repeat`` times the draws and the warm-up (1: it is not).
    """

    num_test: int = 200
    num_chains: int = 4
    num_samples: int = 350
    warmup: int = 100
    repeat: int = 3


@dataclass(frozen=True)
class Point:
    """One network on one training set; all priors have variance one, there are no biases."""

    task: str
    activation: str
    num_data: int
    widths: tuple[int, ...]
    temperature: float

    @property
    def cost(self) -> float:
        """Rough cost of sampling, to begin with the shortest."""
        hidden = sum(a * b for a, b in zip((self.num_data, *self.widths), self.widths, strict=False))
        return self.num_data * (hidden + 40 * sum(self.widths)) * (2.0 if self.activation == "relu" else 1.0)


@dataclass(frozen=True)
class Curve:
    """Points along an axis, "width" (all layers alike) or "num_data"; the other is fixed."""

    name: str
    task: str
    activation: str
    axis: str
    values: tuple[int, ...]
    fixed: int
    depth: int = 1

    def point(self, value: int) -> Point:
        """Return the point at a value of the axis."""
        width, num_data = (value, self.fixed) if self.axis == "width" else (self.fixed, value)
        return Point(self.task, self.activation, num_data, (width,) * self.depth, TEMPERATURE[self.task])

    @property
    def points(self) -> tuple[Point, ...]:
        """The points that are sampled."""
        return tuple(self.point(value) for value in self.values)


@dataclass(frozen=True)
class Plan:
    """All curves of a run."""

    curves: tuple[Curve, ...]
    sampling: Sampling


def plan(size: str = "default", names: tuple[str, ...] = NAMES) -> Plan:
    """Return the curves of a size: "default", "full" (for a GPU) or "tiny" (for tests).

    "width": test error against N_1 at fixed P; "data": against P at fixed N_1; "deep": against the common width of two
    and three hidden layers.
    """
    widths, num_data, fixed_width, fixed_data, deep_widths, deep_data, sampling = {
        "default": ((10, 25, 60, 150), (25, 50, 100, 200), 25, 100, (15, 30, 60), 60, Sampling()),
        "full": (
            (10, 30, 100, 300, 1000, 3000),
            (100, 200, 500, 1000),
            300,
            1000,
            (50, 100, 200, 400, 800),
            300,
            Sampling(num_test=1000, num_chains=8, num_samples=1000, warmup=300),
        ),
        "tiny": ((4, 8), (8, 12), 4, 12, (4, 6), 10, Sampling(num_test=20, num_samples=20, warmup=30, repeat=1)),
    }[size]
    curves = []
    for activation in ("erf", "relu"):
        for task in (*IMAGES, "teacher200"):
            curves += [
                Curve("width", task, activation, "width", widths, fixed_data),
                Curve("data", task, activation, "num_data", num_data, fixed_width),
            ]
        curves += [Curve("deep", "teacher300", activation, "width", deep_widths, deep_data, depth) for depth in (2, 3)]
    return Plan(tuple(curve for curve in curves if curve.name in names), sampling)
