"""Multi-task learning: other task, same domain, at once.

One backbone learns to name plain digits and to segment plain scenes, with fixed weights of the two losses and with
weights learned from their uncertainty, against each task alone. MNIST in place of the digits with `:data=mnist`.

    python -m transfer_jax.train --config configs/matrix/multitask.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/multitask.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 66 s embedded, 69 s with MNIST, all seeds
together. Score (accuracy, and mean IoU for scenes) on test data: mean ± half width of the 95 % interval over 3 seeds,
and the difference to training alone, seed by seed:

    :data=embedded                            score            difference
      trained alone, digits_test              0.946 ± 0.051    -
      trained alone, scenes_test              0.203 ± 0.014    -
      together, weights 1 and 1, digits_test  0.942 ± 0.044    -0.003 ± 0.057
      together, weights 1 and 1, scenes_test  0.421 ± 0.061    +0.218 ± 0.056
      together, learned weights, digits_test  0.937 ± 0.007    -0.008 ± 0.052
      together, learned weights, scenes_test  0.415 ± 0.049    +0.212 ± 0.054

    :data=mnist                               score            difference
      trained alone, digits_test              0.925 ± 0.007    -
      trained alone, scenes_test              0.203 ± 0.014    -
      together, weights 1 and 1, digits_test  0.841 ± 0.075    -0.084 ± 0.070
      together, weights 1 and 1, scenes_test  0.315 ± 0.053    +0.112 ± 0.040
      together, learned weights, digits_test  0.834 ± 0.065    -0.091 ± 0.061
      together, learned weights, scenes_test  0.311 ± 0.069    +0.108 ± 0.061

The scenes double their score, and gain half of it with MNIST. The embedded digits neither gain nor lose; MNIST loses
0.09, perhaps because its 20x20 digits and the 40x40 scenes share the BatchNorm statistics. The learned weights do no
better than 1 and 1. 300 updates with 16 scenes each were tried before, with the same picture (2 seeds, the same test
scenes).
"""

from __future__ import annotations

import ml_collections
from cells import arguments, experiment, side_by_side, together


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: labelled digits per class; `scenes`: labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, labels=50, scenes=50, steps=400)
    streams, stages = side_by_side(args, "plain")
    stages |= dict(fixed=together("together, weights 1 and 1", args),
                   learned=together("together, learned weights", args, combine="uncertainty"))
    return experiment("multitask", args, ("scenes", "digits"), streams, stages, ("scenes_test",))
