"""Modality transfer: other task, other domain, in sequence.

First name plain digits, then give every pixel of scenes over photographs its class. With `:data=mnist` the first task
is MNIST; the scenes stay the embedded ones.

    python -m transfer_jax.train --config configs/matrix/modality_transfer.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/modality_transfer.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 53 s embedded, 47 s with MNIST, all seeds
together. Score (accuracy, and mean IoU for scenes) on test data: mean ± half width of the 95 % interval over 3 seeds,
and the difference to training from scratch, seed by seed:

    :data=embedded                                    score            difference
      naming plain digits (pretraining), source_test  0.929 ± 0.045    -
      from scratch, target_test                       0.172 ± 0.041    -
      fine-tuning, target_test                        0.207 ± 0.041    +0.035 ± 0.067

    :data=mnist                                       score            difference
      naming plain digits (pretraining), source_test  0.916 ± 0.023    -
      from scratch, target_test                       0.172 ± 0.041    -
      fine-tuning, target_test                        0.211 ± 0.048    +0.039 ± 0.064

A small gain at most. Tried before (2 or 3 seeds, the same test scenes): 50 scenes, or 300 updates of 16, where every
arm stays near 0.1, hardly more than the background alone gives; and 800 updates, where the gain is no larger, even
after a stage that names digits over photographs.
"""

from __future__ import annotations

import ml_collections
from cells import arguments, sequence


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`scenes`: how many labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, scenes=200, steps=600, pretrain_steps=300)
    return sequence("modality_transfer", args, "photo", dict(finetune=("fine-tuning", {})))
