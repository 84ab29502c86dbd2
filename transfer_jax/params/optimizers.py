"""Optimizers by name: functions `(learning_rate, weight_decay, decays, *, arguments) -> optax transformation`.

`learning_rate` is an optax schedule, `decays` a function tree -> tree of bools that names the leaves that decay. Decay
is coupled (an L2 term in the gradient) for SGD, as the field uses it there, and decoupled for the Adam family.
"""

from __future__ import annotations

from collections.abc import Callable

import optax
from optax import contrib

from transfer_jax.core.errors import UserError


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


def prodigy(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, b1: float = 0.9,
            b2: float = 0.999, eps: float = 1e-8, d0: float = 1e-6, coefficient: float = 1.0,
            ) -> optax.GradientTransformation:
    """Prodigy (Mishchenko & Defazio 2024): Adam that finds its own step size, the distance to the solution.

    `learning_rate` multiplies that size: give the stage lr = 1.0. `d0` is the first guess, `coefficient` a factor on
    the estimate. Each group of a partition finds its own size.
    """
    _no_decay("prodigy", weight_decay)
    return contrib.prodigy(learning_rate, betas=(b1, b2), eps=eps, estim_lr0=d0, estim_lr_coef=coefficient)


def dadapt_adam(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, b1: float = 0.9,
                b2: float = 0.999, eps: float = 1e-8, d0: float = 1e-6) -> optax.GradientTransformation:
    """D-Adaptation for Adam (Defazio & Mishchenko 2023); arguments as in `prodigy`, and lr = 1.0 likewise."""
    _no_decay("dadapt_adam", weight_decay)
    return contrib.dadapt_adamw(learning_rate, betas=(b1, b2), eps=eps, estim_lr0=d0)


def schedule_free_sgd(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *,
                      beta: float = 0.9) -> optax.GradientTransformation:
    """Gradient steps on z, gradients at y = (1 - beta) z + beta x, and x, the running mean of z, as the result (Defazio
    et al. 2024, eq. 3 to 5): no schedule and no end are needed, warm-up is of use. Decay is of y.

    The stage's result is x. BatchNorm statistics are those of y: let norms follow stored statistics, or use others.
    """
    base = optax.chain(optax.add_decayed_weights(weight_decay, mask=decays), optax.sgd(learning_rate))
    return _schedule_free(base, learning_rate, beta)


def schedule_free_adamw(learning_rate: optax.Schedule, weight_decay: float, decays: Callable, *, beta: float = 0.9,
                        b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """The same with the steps of AdamW without momentum (Defazio et al. 2024, algorithm 1)."""
    base = optax.chain(optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True),
                       optax.add_decayed_weights(weight_decay, mask=decays),
                       optax.scale_by_learning_rate(learning_rate))
    return _schedule_free(base, learning_rate, beta)


def _schedule_free(base: optax.GradientTransformation, learning_rate: optax.Schedule,
                   beta: float) -> optax.GradientTransformation:
    if not 0 < beta <= 1:
        raise UserError(f"beta = {beta:g} of a schedule-free optimizer does not fit; use a number above 0, at most 1")
    # Its count begins at 1, that of the base at 0.
    return contrib.schedule_free(base, lambda count: learning_rate(count - 1), b1=beta)


def plateau(*, factor: float = 0.1, patience: int = 10, every: int = 50, cooldown: int = 0, threshold: float = 1e-4,
            least: float = 0.0) -> optax.GradientTransformationExtraArgs:
    """Multiplies the learning rate by `factor` whenever the training loss has not fallen for a while.

    Args:
      every: steps whose mean loss counts as one value; single batches are too noisy.
      patience: values without improvement until a reduction.
      cooldown: values after it that do not count.
      threshold: share by which a value must be below the best to be an improvement.
      least: the smallest product of all factors.
    """
    if not 0 < factor < 1 or min(patience, every) < 1 or not 0 < threshold < 1:
        raise UserError(f"plateau: factor = {factor:g}, patience = {patience}, every = {every}, threshold = "
                        f"{threshold:g} do not fit; factor and threshold lie between 0 and 1, the others from 1 on")
    return contrib.reduce_on_plateau(factor, patience, rtol=threshold, cooldown=cooldown, accumulation_size=every,
                                     min_scale=least)


def _no_decay(name: str, weight_decay: float) -> None:
    if weight_decay:
        raise UserError(f"{name} would decay biases and norms too, so it takes no weight_decay; set weight_decay = 0, "
                        f"or use adamw")


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adam, "lamb": lamb, "lion": lion, "prodigy": prodigy,
              "dadapt_adam": dadapt_adam, "schedule_free_sgd": schedule_free_sgd,
              "schedule_free_adamw": schedule_free_adamw}

# Their result is an average that their state holds: see `optimizer_tree.averaged_leaves`.
SCHEDULE_FREE = ("schedule_free_sgd", "schedule_free_adamw")

# Schedules that listen to the loss.
LISTENING = {"plateau": plateau}
