"""Means over seeds with their uncertainty, and differences between methods that saw the same seeds.

The interval is the 95 % confidence interval of the mean by Student's t (Student, "The probable error of a mean",
Biometrika 1908): mean +- t(0.975, n - 1) * s / sqrt(n), with s the standard deviation of n - 1 degrees of freedom.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean over `count` seeds; `half` is the half width of the 95 % interval, None for a single seed.

    If any seed is not finite the mean is NaN: a mean over the seeds that went well would flatter the method.
    """

    mean: float
    half: float | None
    count: int
    diverged: int = 0

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for a single seed."""
        return None if self.half is None else self.half / float(stdtrit(self.count - 1, 0.5 + CONFIDENCE / 2))

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)


def summarize(values: Sequence[float]) -> Summary:
    """Summary of one number per seed, [S] -> mean and half width of its 95 % interval."""
    array = np.asarray(values, np.float64)
    diverged = int((~np.isfinite(array)).sum())
    if diverged or array.size == 0:
        return Summary(math.nan, None, array.size, diverged)
    return Summary(float(array.mean()), half_width(array), array.size)


def half_width(values: Sequence[float]) -> float | None:
    """Half width of the 95 % t-interval of the mean of `values` [S]; None if S < 2."""
    array = np.asarray(values, np.float64)
    if array.size < 2:
        return None
    quantile = stdtrit(array.size - 1, 0.5 + CONFIDENCE / 2)
    return float(quantile * array.std(ddof=1) / math.sqrt(array.size))


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and half widths down the columns of [S, T] (zero width if S < 2); NaN where any seed is not finite."""
    values = np.asarray(values, np.float64)
    count = values.shape[0]
    if count < 2:
        return values.mean(axis=0), np.zeros(values.shape[1])
    quantile = stdtrit(count - 1, 0.5 + CONFIDENCE / 2)
    return values.mean(axis=0), quantile * values.std(axis=0, ddof=1) / math.sqrt(count)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Summary | None:
    """Summary of `values - reference` seed by seed (a paired t-interval); None unless the seeds correspond."""
    if len(values) != len(reference):
        return None
    return summarize(np.asarray(values, np.float64) - np.asarray(reference, np.float64))


def decimals(values: Sequence[float]) -> int:
    """Digits after the point that show the largest of `values` to about three figures (accuracy: 3)."""
    finite = [abs(v) for v in values if math.isfinite(v) and v != 0]
    if not finite:
        return 3
    return int(np.clip(2 - math.floor(math.log10(max(finite))), 0, 3)) if max(finite) >= 0.05 else 5


def text(summary: Summary, digits: int = 3, signed: bool = False) -> str:
    """'0.493 ± 0.021'; '0.493' for one seed; 'diverged (2/5)' when seeds are not finite."""
    if summary.diverged:
        return f"diverged ({summary.diverged}/{summary.count})"
    sign = "+" if signed else ""
    mean = f"{summary.mean:{sign}.{digits}f}"
    return mean if summary.half is None else f"{mean} ± {summary.half:.{digits}f}"


LOWER_IS_BETTER = ("loss", "error", "ece", "nll", "mse", "mae", "rmse", "perplexity", "brier", "distance")


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a metric of this name are better ('loss', 'calibration_error', ...)."""
    return any(part in LOWER_IS_BETTER for part in metric.lower().replace("/", "_").split("_"))
