"""Task adaptation: other task, same domain, in sequence.

First name plain digits one by one, then give every pixel of plain scenes its class, from a few labelled scenes. With
`:data=mnist` the first task is MNIST; the scenes stay the embedded ones.

    python -m transfer_jax.train --config configs/matrix/task_adaptation.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/task_adaptation.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 63 s embedded, 44 s with MNIST, all seeds
together. Score (accuracy, and mean IoU for scenes) on test data: mean ± half width of the 95 % interval over 3 seeds,
and the difference to training from scratch, seed by seed:

    :data=embedded                                               score            difference
      naming plain digits (pretraining), source_test             0.929 ± 0.045    -
      from scratch, target_test                                  0.218 ± 0.011    -
      fine-tuning, backbone at a fifth of the rate, target_test  0.333 ± 0.038    +0.116 ± 0.041
      new head on the frozen backbone, target_test               0.430 ± 0.031    +0.212 ± 0.027

    :data=mnist                                                  score            difference
      naming plain digits (pretraining), source_test             0.916 ± 0.023    -
      from scratch, target_test                                  0.218 ± 0.011    -
      fine-tuning, backbone at a fifth of the rate, target_test  0.322 ± 0.076    +0.104 ± 0.077
      new head on the frozen backbone, target_test               0.349 ± 0.030    +0.132 ± 0.037

The features that name digits are worth more as they are than when they move. Tried before: without moving the source
digits about in training, or without normalisation, there was no gain at all, and fine-tuning at the full rate gained
half as much as at a fifth of it (2 or 3 seeds, compared on the same test scenes).
"""

from __future__ import annotations

import ml_collections
from cells import FROZEN, GENTLE, arguments, sequence


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`scenes`: how many labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, scenes=50, steps=400, pretrain_steps=300)
    return sequence("task_adaptation", args, "plain", dict(
        finetune=("fine-tuning, backbone at a fifth of the rate", GENTLE),
        frozen=("new head on the frozen backbone", FROZEN),
    ))
