"""How the streams of a stage go through the model, what their examples weigh, what terms carry: checked and bound."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.experiment.spec import ExperimentSpec, MixStyleSpec, StageSpec
from transfer_jax.layers.mix_style import mix_style
from transfer_jax.models.model import Model, qualified
from transfer_jax.objectives.wiring import Term
from transfer_jax.training.forward import Passage
from transfer_jax.training.step import Update


def passages(spec: StageSpec, streams: Mapping[str, Any], where: str) -> dict[str, Passage]:
    """How each stream's batches go through the model."""
    domains = {name: stream.spec.domain or None for name, stream in streams.items()}
    for name, scale in spec.gradient_scale.items():
        if name not in streams:
            raise unknown("stream", name, streams, f"{where}.gradient_scale")
        if spec.batch_norm == "joint":
            raise UserError(f"{where}.gradient_scale: with batch_norm='joint' all streams are one batch, "
                            f"whose gradients cannot be told apart; use another batch_norm")
        if scale < 0:
            raise UserError(f"{where}.gradient_scale: {name} = {scale} is negative; give a number >= 0")
    if spec.batch_norm in ("separate", "source"):
        if None in domains.values() or len(set(domains.values())) < 2:
            said = ", ".join(f"{name}: {domain!r}" for name, domain in domains.items())
            raise UserError(f"{where}.batch_norm = {spec.batch_norm!r} tells domains apart, but the streams have the "
                            f"domains {said or 'none'}; give each stream its 'domain', at least two different ones")
    first, last = (next(iter(order), None) for order in (domains.values(), reversed(domains.values())))
    return {name: Passage(domain=domain, gradient_scale=spec.gradient_scale.get(name, 1.0),
                          statistics=domain if spec.batch_norm == "separate" and domain != last else None,
                          stored=spec.batch_norm == "source" and domain != first)
            for name, domain in domains.items()}


def weighted_streams(spec: StageSpec, streams: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The streams whose examples have weights."""
    for name in spec.importance:
        if name not in streams:
            raise unknown("stream of the objective", name, streams, f"{where}.importance")
    return tuple(spec.importance)


def check_domains(spec: ExperimentSpec, stage: StageSpec, where: str) -> None:
    """A learned gap of domains has to know the domain of every batch."""
    if stage.batch_norm == "joint":
        raise UserError(f"{where}: with batch_norm='joint' all streams are one batch, and domain_shift cannot tell "
                        f"their domains apart; use another batch_norm")
    for stream in stage.objective.streams():
        if not spec.streams[stream].domain:
            raise UserError(f"{where}: domain_shift needs the domain of every stream; give {stream!r} its 'domain'")


def check_terms(terms: Sequence[Term], spec: StageSpec, where: str) -> None:
    """Raises for a teacher without an average, and for terms that carry arrays under one name."""
    for term in terms:
        if term.reads(("teacher_logits",)) and spec.ema is None:
            raise UserError(f"{where}.objective.{term.name}: its teacher is the moving average of the model; set the "
                            f"stage's ema=dict(decay=...)")
    carrying = [term.name for term in terms if term.reads(("carried",))]
    if len(set(carrying)) < len(carrying):
        raise UserError(f"{where}.objective: two terms of one name carry arrays from step to step; give them different "
                        f"names")


def first_carried(updates: Sequence[Update], streams: Mapping[str, Any]) -> dict[str, Any]:
    """What terms carry at the stage's start, by their names, and what combinations do, by their slots."""
    sizes = {name: stream.size for name, stream in streams.items()}
    terms = [term for update in updates for term in update.terms]
    return {**{term.name: term.first_carried(sizes) for term in terms if term.reads(("carried",))},
            **{update.slot: update.combination.first_carried() for update in updates
               if update.combination.first_carried is not None}}


def style_mixing(spec: StageSpec, model: Model, streams: Mapping[str, Any], where: str) -> Any:
    """`Program.mixing` of a stage that mixes styles; None of one that does not."""
    if spec.mix_style is None:
        return None
    chosen, where = spec.mix_style, f"{where}.mix_style"
    taps = [qualified(name, tap) for name, backbone in model.backbones.items() for tap in backbone.tap_names]
    for tap in chosen.taps:
        if tap not in taps:
            raise unknown("tap", tap, taps, f"{where}.taps")
    if spec.batch_norm == "joint":
        raise UserError(f"{where} mixes the examples of one stream; with batch_norm='joint' all streams are one batch")
    for name, stream in streams.items():
        if chosen.across_domains and "domain" not in stream.example_shapes:
            raise UserError(f"{where}: the examples of stream {name!r} carry no domain; use data of kind 'merge', or "
                            f"across_domains=False")

    def edits(batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        domains = batch["domain"] if chosen.across_domains else None
        return {tap: functools.partial(_mixed, chosen, domains, jax.random.fold_in(key, number))
                for number, tap in enumerate(chosen.taps)}

    return edits


def _mixed(chosen: MixStyleSpec, domains: jax.Array | None, key: jax.Array, x: jax.Array) -> jax.Array:
    return mix_style(x, key, probability=chosen.probability, alpha=chosen.alpha, domains=domains)
