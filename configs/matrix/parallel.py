"""Parallel training: other task, other domain, at once.

One backbone learns to name plain digits and to segment scenes over photographs in the same stage, against each alone.
MNIST in place of the digits with `:data=mnist`; the scenes stay the embedded ones.

    python -m transfer_jax.train --config configs/matrix/parallel.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/parallel.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 84 s embedded, 71 s with MNIST, all seeds
together. Score (accuracy, and mean IoU for scenes) on test data: mean ± half width of the 95 % interval over 3 seeds,
and the difference to training alone, seed by seed:

    :data=embedded                   score            difference
      trained alone, digits_test     0.949 ± 0.055    -
      trained alone, scenes_test     0.163 ± 0.029    -
      both in parallel, digits_test  0.905 ± 0.032    -0.044 ± 0.039
      both in parallel, scenes_test  0.167 ± 0.077    +0.004 ± 0.094

    :data=mnist                      score            difference
      trained alone, digits_test     0.912 ± 0.030    -
      trained alone, scenes_test     0.163 ± 0.029    -
      both in parallel, digits_test  0.880 ± 0.031    -0.032 ± 0.053
      both in parallel, scenes_test  0.174 ± 0.053    +0.011 ± 0.037

The scenes gain at most a little, well within the interval, and the digits pay for it. All arms normalise by groups.
With BatchNorm, whose one set of statistics would have to serve pictures on black and pictures over photographs, the
digits fell from 0.961 to 0.829 (embedded) and from 0.941 to 0.416 (MNIST), and the scenes from 0.178 to 0.161 and
0.137, compared on the same test data; norms by group were the only other trial.
"""

from __future__ import annotations

import ml_collections
from cells import arguments, experiment, side_by_side, together


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: labelled digits per class; `scenes`: labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, labels=50, scenes=200, steps=600)
    streams, stages = side_by_side(args, "photo")
    stages |= dict(both=together("both in parallel", args))
    # BatchNorm would keep one set of statistics for pictures on black and pictures over photographs.
    return experiment("parallel", args, ("scenes", "digits"), streams, stages, ("scenes_test",), norm="group")
