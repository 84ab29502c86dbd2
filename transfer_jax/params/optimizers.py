"""Optimizers by name: functions `(learning_rate, weight_decay, decays, *, arguments) -> optax transformation`.

`learning_rate` is an optax schedule, `decays` a function tree -> tree of bools that names the leaves that decay. Decay
is coupled (an L2 term in the gradient) for SGD, as the field uses it there, and decoupled for the Adam family.
"""

from __future__ import annotations

from collections.abc import Callable

import optax


def sgd(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, momentum: float = 0.9,
        nesterov: bool = False) -> optax.GradientTransformation:
    """Stochastic gradient descent with (heavy-ball or Nesterov) momentum; L2 decay added to the gradient."""
    step = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=decays), step) if weight_decay else step


def adam(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015); with weight decay it is AdamW (Loshchilov & Hutter 2019)."""
    if not weight_decay:
        return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)


def lamb(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-6) -> optax.GradientTransformation:
    """LAMB (You et al. 2020): Adam with layer-wise trust ratios, for large batches."""
    return optax.lamb(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)


def lion(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, b1: float = 0.9,
         b2: float = 0.99) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023): the sign of an interpolated momentum; one state array per parameter."""
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adam, "lamb": lamb, "lion": lion}
