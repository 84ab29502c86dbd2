"""Floor 2: loss terms and the rules that combine them. Pure functions of arrays; the engine wires them by name.

A term is a function whose positional parameters name the quantities that it needs and whose keyword-only parameters
are the user's arguments. It returns a float32 scalar, or (scalar, dict of metrics).
"""

from transfer_jax.objectives.adversarial import confusion, domain_adversarial, domain_critic, domain_critic_to_start
from transfer_jax.objectives.alignment import central_moments, deep_coral
from transfer_jax.objectives.balancing import fixed, initial_log_variances, pcgrad, sum_gradients, uncertainty
from transfer_jax.objectives.class_confusion import class_confusion
from transfer_jax.objectives.clusters import cluster_cross_entropy
from transfer_jax.objectives.conditional import conditional_adversarial
from transfer_jax.objectives.discrepancy import classifier_discrepancy, margin_disparity, sliced_discrepancy
from transfer_jax.objectives.distillation import co_tuning, delta, distillation, features_to_start
from transfer_jax.objectives.fair_weights import fairgrad, nash_mtl
from transfer_jax.objectives.feature_norms import feature_norm, hard_feature_norm
from transfer_jax.objectives.generalization import group_dro, irm_penalty, risk_variance
from transfer_jax.objectives.gradient_directions import aligned_mtl, conflict_free, imtl_g
from transfer_jax.objectives.gradient_surgery import grad_drop, gradvac, gradvac_start
from transfer_jax.objectives.gradient_weights import cagrad, dual_proj, mgda, upgrad
from transfer_jax.objectives.kernel_means import joint_mmd, local_mmd, mmd
from transfer_jax.objectives.loss_weights import (
    geometric_mean,
    impartial_losses,
    random_weights,
    smooth_tchebycheff,
)
from transfer_jax.objectives.moving_weights import (
    auto_lambda,
    auto_lambda_start,
    dynamic_average,
    dynamic_average_start,
    famo,
    famo_after,
    famo_start,
    grad_norm,
    grad_norm_start,
)
from transfer_jax.objectives.multi_source import multi_source_adversarial
from transfer_jax.objectives.open_set import open_set_adversarial
from transfer_jax.objectives.regularizers import entropy, ewc, information_maximization, l2_norm, l2_to_start
from transfer_jax.objectives.self_training import (
    fixmatch,
    flexmatch,
    pseudo_labels,
    self_ensembling,
    teacher_consistency,
)
from transfer_jax.objectives.spectral import batch_spectral_penalization, batch_spectral_shrinkage, nuclear_norm
from transfer_jax.objectives.supervised import (
    binary_cross_entropy,
    cross_entropy,
    dice,
    online_accuracy,
    segmentation_cross_entropy,
    squared_error,
)
from transfer_jax.objectives.transport import joint_transport
from transfer_jax.objectives.virtual_adversarial import virtual_adversarial
from transfer_jax.objectives.wasserstein import wasserstein_critic, wasserstein_distance
from transfer_jax.tasks import TASK_TERMS

TERMS = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
    "segmentation_cross_entropy": segmentation_cross_entropy,
    "dice": dice,
    "online_accuracy": online_accuracy,
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
    "information_maximization": information_maximization,
    "class_confusion": class_confusion,
    "nuclear_norm": nuclear_norm,
    "virtual_adversarial": virtual_adversarial,
    "pseudo_labels": pseudo_labels,
    "fixmatch": fixmatch,
    "flexmatch": flexmatch,
    "teacher_consistency": teacher_consistency,
    "self_ensembling": self_ensembling,
    "domain_adversarial": domain_adversarial,
    "domain_critic": domain_critic,
    "domain_critic_to_start": domain_critic_to_start,
    "confusion": confusion,
    "conditional_adversarial": conditional_adversarial,
    "classifier_discrepancy": classifier_discrepancy,
    "sliced_discrepancy": sliced_discrepancy,
    "margin_disparity": margin_disparity,
    "open_set_adversarial": open_set_adversarial,
    "multi_source_adversarial": multi_source_adversarial,
    "wasserstein_critic": wasserstein_critic,
    "wasserstein_distance": wasserstein_distance,
    "deep_coral": deep_coral,
    "batch_spectral_penalization": batch_spectral_penalization,
    "feature_norm": feature_norm,
    "hard_feature_norm": hard_feature_norm,
    "central_moments": central_moments,
    "mmd": mmd,
    "joint_mmd": joint_mmd,
    "local_mmd": local_mmd,
    "joint_transport": joint_transport,
    "irm_penalty": irm_penalty,
    "risk_variance": risk_variance,
    "group_dro": group_dro,
    **TASK_TERMS,
}

# How losses become one; `objectives/combining.py` says what such a function may ask for.
COMBINATIONS = {
    "fixed": fixed,
    "uncertainty": uncertainty,
    "random_weights": random_weights,
    "geometric_mean": geometric_mean,
    "smooth_tchebycheff": smooth_tchebycheff,
    "impartial_losses": impartial_losses,
    "dynamic_average": dynamic_average,
    "famo": famo,
}

# Rules that learn: names of terms -> their parameters at the start, which live under `objective/`.
COMBINATION_PARAMETERS = {"uncertainty": initial_log_variances, "impartial_losses": initial_log_variances}

# How the gradients of terms become one.
GRADIENT_RULES = {
    "sum": sum_gradients,
    "pcgrad": pcgrad,
    "gradvac": gradvac,
    "mgda": mgda,
    "cagrad": cagrad,
    "upgrad": upgrad,
    "dual_proj": dual_proj,
    "nash_mtl": nash_mtl,
    "fairgrad": fairgrad,
    "imtl_g": imtl_g,
    "config": conflict_free,
    "aligned_mtl": aligned_mtl,
    "grad_drop": grad_drop,
    "grad_norm": grad_norm,
    "auto_lambda": auto_lambda,
}

# Rules for gradients that learn weights of the losses: they also count for what one term alone trains.
WEIGHT_LEARNERS = frozenset({"grad_norm", "auto_lambda"})

# What combinations of either kind carry at the start: number of terms -> arrays.
COMBINATION_CARRIED = {
    "dynamic_average": dynamic_average_start,
    "famo": famo_start,
    "gradvac": gradvac_start,
    "grad_norm": grad_norm_start,
    "auto_lambda": auto_lambda_start,
}

# How what is carried moves after the optimizer's step, from the losses of the same batches then.
AFTER_STEP = {"famo": famo_after}
