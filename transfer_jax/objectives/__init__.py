"""Floor 2: loss terms and the rules that combine them. Pure functions of arrays; the engine wires them by name.

A term is a function whose positional parameters name the quantities that it needs and whose keyword-only parameters
are the user's arguments. It returns a float32 scalar, or (scalar, dict of metrics).
"""

from transfer_jax.objectives.adversarial import confusion, domain_adversarial, domain_critic, domain_critic_to_start
from transfer_jax.objectives.alignment import central_moments, deep_coral
from transfer_jax.objectives.balancing import fixed, initial_log_variances, pcgrad, sum_gradients, uncertainty
from transfer_jax.objectives.clusters import cluster_cross_entropy
from transfer_jax.objectives.conditional import conditional_adversarial
from transfer_jax.objectives.discrepancy import classifier_discrepancy, margin_disparity
from transfer_jax.objectives.distillation import co_tuning, delta, distillation, features_to_start
from transfer_jax.objectives.kernel_means import joint_mmd, local_mmd, mmd
from transfer_jax.objectives.regularizers import batch_spectral_shrinkage, entropy, ewc, l2_norm, l2_to_start
from transfer_jax.objectives.supervised import (
    binary_cross_entropy,
    cross_entropy,
    dice,
    segmentation_cross_entropy,
    squared_error,
)
from transfer_jax.objectives.wasserstein import wasserstein_critic, wasserstein_distance

TERMS = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
    "segmentation_cross_entropy": segmentation_cross_entropy,
    "dice": dice,
    "l2_to_start": l2_to_start,
    "l2_norm": l2_norm,
    "ewc": ewc,
    "batch_spectral_shrinkage": batch_spectral_shrinkage,
    "distillation": distillation,
    "features_to_start": features_to_start,
    "delta": delta,
    "co_tuning": co_tuning,
    "entropy": entropy,
    "cluster_cross_entropy": cluster_cross_entropy,
    "domain_adversarial": domain_adversarial,
    "domain_critic": domain_critic,
    "domain_critic_to_start": domain_critic_to_start,
    "confusion": confusion,
    "conditional_adversarial": conditional_adversarial,
    "classifier_discrepancy": classifier_discrepancy,
    "margin_disparity": margin_disparity,
    "wasserstein_critic": wasserstein_critic,
    "wasserstein_distance": wasserstein_distance,
    "deep_coral": deep_coral,
    "central_moments": central_moments,
    "mmd": mmd,
    "joint_mmd": joint_mmd,
    "local_mmd": local_mmd,
}

# Losses by name -> (total, metrics).
COMBINATIONS = {"fixed": fixed, "uncertainty": uncertainty}

# Rules that learn: names of terms -> their parameters at the start, which live under `objective/`.
COMBINATION_PARAMETERS = {"uncertainty": initial_log_variances}

# Gradients of the tasks [T, P] and a key -> one gradient [P].
GRADIENT_RULES = {"sum": sum_gradients, "pcgrad": pcgrad}
