"""Floor 2: classical domain adaptation on fixed features, from closed forms and convex programs.

`WEIGHTS` find how much each source example is worth, (source [n_s, d], target [n_t, d], key, *, options) -> weights
[n_s] with mean one, metrics. `MAPPINGS` move features, (problem, *, options) -> `Mapping`. `estimator` puts any of them
under a classifier.
"""

from transfer_jax.adaptation.components import balanced_distribution, joint_distribution, transfer_components
from transfer_jax.adaptation.correlation import coral
from transfer_jax.adaptation.domain_classifier import domain_classifier
from transfer_jax.adaptation.kliep import kliep
from transfer_jax.adaptation.kmm import kmm
from transfer_jax.adaptation.mapping import augmentation, identity
from transfer_jax.adaptation.rulsif import rulsif, ulsif
from transfer_jax.adaptation.subspaces import geodesic_flow_kernel, principal_components, subspace_alignment
from transfer_jax.adaptation.transport import class_transport, optimal_transport

WEIGHTS = {
    "kliep": kliep,
    "kmm": kmm,
    "ulsif": ulsif,
    "rulsif": rulsif,
    "domain-classifier": domain_classifier,
}

MAPPINGS = {
    "none": identity,
    "pca": principal_components,
    "sa": subspace_alignment,
    "gfk": geodesic_flow_kernel,
    "coral": coral,
    "tca": transfer_components,
    "jda": joint_distribution,
    "bda": balanced_distribution,
    "ot": optimal_transport,
    "ot-classes": class_transport,
    "augmentation": augmentation,
}

BOOSTING = ("tradaboost",)  # `boosting.tradaboost`: weights and classifier in one
