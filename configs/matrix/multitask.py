"""Multi-task learning: other task, same domain, at once.

One backbone learns to name plain digits and to segment plain scenes, with fixed weights of the two losses and with
weights learned from their uncertainty, against each task alone. MNIST in place of the digits with `:data=mnist`.

    python -m transfer_jax.train --config configs/matrix/multitask.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/multitask.py:data=mnist --workdir DIR

Measured on 2 CPU cores that other programs kept busy as well: 149 s embedded, 183 s with MNIST, all seeds together.
Score (accuracy, and mean IoU for scenes) on test data: mean ± half width of the 95 % interval over 3 seeds, and the
difference to training alone, seed by seed:

    :data=embedded                            score            difference
      trained alone, digits_test              0.937 ± 0.026    -
      trained alone, scenes_test              0.206 ± 0.013    -
      together, weights 1 and 1, digits_test  0.937 ± 0.057    +0.000 ± 0.079
      together, weights 1 and 1, scenes_test  0.424 ± 0.075    +0.218 ± 0.079
      together, learned weights, digits_test  0.939 ± 0.033    +0.002 ± 0.057
      together, learned weights, scenes_test  0.414 ± 0.048    +0.209 ± 0.061

    :data=mnist                               score            difference
      trained alone, digits_test              0.925 ± 0.007    -
      trained alone, scenes_test              0.206 ± 0.013    -
      together, weights 1 and 1, digits_test  0.840 ± 0.101    -0.085 ± 0.097
      together, weights 1 and 1, scenes_test  0.309 ± 0.049    +0.103 ± 0.036
      together, learned weights, digits_test  0.831 ± 0.064    -0.094 ± 0.059
      together, learned weights, scenes_test  0.308 ± 0.065    +0.102 ± 0.052

The scenes double their score, and gain half of it with MNIST. The embedded digits neither gain nor lose; MNIST loses
0.09, perhaps because its 20x20 digits and the 40x40 scenes share the BatchNorm statistics. The learned weights do no
better than 1 and 1. 300 updates with 16 scenes each were tried before, with the same picture (2 seeds).
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
