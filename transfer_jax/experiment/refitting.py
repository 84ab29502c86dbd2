"""What a stage does to its start in closed form, before its first step: statistics and classifiers of a new domain.

A refit is a function of the experiment's assembly, the stage's model and start, and its own options; it returns
parameters and statistics of norms, [S, ...] like those that it got. It reads streams without their labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.adaptation.population import population
from transfer_jax.adaptation.templates import t3a_templates
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component, bind
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.passes import StreamPass
from transfer_jax.models.domains import main_statistics, reading, statistics_of
from transfer_jax.models.heads import LinearHead
from transfer_jax.training.forward import image_size, inputs_of
from transfer_jax.training.state import Flat

SUPPLIED = ("assembly", "params", "batch_stats")


def refit(component: Component, assembly: Assembly, params: Flat, batch_stats: Any, where: str) -> tuple[Flat, Any]:
    """Parameters and statistics after the refit that `component` names."""
    function = bind(REFITS, component, "refit", where, SUPPLIED)
    return function(assembly, params, batch_stats)


def norm_statistics(assembly: Assembly, params: Flat, batch_stats: Any, *, stream: str,
                    prior: float = 0.0) -> tuple[Flat, Any]:
    """BatchNorm on the statistics of a stream: AdaBN, with `prior` mixed with the stored ones; see `population`.

    The stream goes through in equal batches of at most `eval_batch_size`; fewer examples than batches are left over.
    """
    opened = _opened(assembly, stream)
    if prior < 0:
        raise UserError(f"norm_statistics: prior = {prior} is negative; give a number of examples >= 0")
    batches = math.ceil(opened.size / assembly.spec.eval_batch_size)
    size = opened.size // batches

    def moments(params: Any, stats: Any, batch: Mapping[str, jax.Array]) -> Any:
        with reading(opened.spec.domain or None):
            return assembly.model.moments(_variables(params, stats), inputs_of(opened, batch))

    over = StreamPass(assembly, stream, moments, size)
    found = list(over.results(params, main_statistics(batch_stats), range(batches)))
    if not found[0]:
        raise UserError("norm_statistics: the model has no batch normalisation, so that nothing changes; leave it out")
    return params, population(main_statistics(batch_stats), found, size, prior=prior)


def prototypes(assembly: Assembly, params: Flat, batch_stats: Any, *, stream: str, head: str,
               supports: int = 100) -> tuple[Flat, Any]:
    """The kernel of a linear head by `supports` target features of every class, its bias zero: see `t3a_templates`.

    The whole stream is seen before an example is classified; T3A itself predicts while it goes through.
    """
    opened, module = _opened(assembly, stream), assembly.model.heads.get(head)
    if module is None:
        raise unknown("head", head, assembly.model.heads, "prototypes")
    if not isinstance(module, LinearHead) or supports < 1:
        raise UserError(f"prototypes needs a head of kind 'linear' and supports >= 1; {head!r} is a "
                        f"{type(module).__name__}, supports = {supports}")

    def rows(params: Any, stats: Any, batch: Mapping[str, jax.Array]) -> Any:
        variables = _variables(params, statistics_of(stats, opened.spec.domain))
        with reading(opened.spec.domain or None, head):
            taps, _ = assembly.model.taps(variables, inputs_of(opened, batch))
        logits, _ = assembly.model.head(variables, head, taps, image_size(opened, batch))
        return taps[module.tap].reshape(len(logits), -1), logits, batch["weight"]

    features, logits, weights = StreamPass(assembly, stream, rows, assembly.spec.eval_batch_size).rows(
        params, batch_stats)
    kernel, bias = f"heads/{head}/dense/kernel", f"heads/{head}/dense/bias"
    found = jax.jit(jax.vmap(lambda *parts: t3a_templates(*parts, supports)))(features, logits, params[kernel], weights)
    return {**params, kernel: found, bias: jnp.zeros_like(params[bias])}, batch_stats


def _opened(assembly: Assembly, stream: str) -> Any:
    if stream not in assembly.spec.streams:
        raise unknown("stream", stream, assembly.spec.streams, "a refit")
    return assembly.stream(stream)


def _variables(params: Flat, batch_stats: Any) -> dict[str, Any]:
    return {"params": unflatten({path: leaf for path, leaf in params.items() if not path.startswith("objective/")}),
            "batch_stats": batch_stats}


REFITS: dict[str, Callable[..., tuple[Flat, Any]]] = {"norm_statistics": norm_statistics, "prototypes": prototypes}
