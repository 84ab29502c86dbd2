"""Which examples of an evaluation a report draws."""

from __future__ import annotations

import numpy as np

MOST_SHOWN = 16


def worst_and_others(loss: np.ndarray, most: int = MOST_SHOWN) -> np.ndarray:
    """Rows of the highest losses, and as many others at equal distances among the rest, highest first."""
    order = np.argsort(-loss, kind="stable")
    worst = min(most // 2, len(order))
    rest = np.linspace(worst, len(order) - 1, min(most - worst, len(order) - worst)).astype(int)
    return order[np.concatenate([np.arange(worst), rest])]
