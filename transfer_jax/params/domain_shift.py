"""A learned gap between domains: each domain has its own shift and scale of the features at chosen taps.

An inductive bias for a shift of distribution: the network learns what the domains share, a few numbers of each what
differs. Let them, and what the batches of a domain send to the shared network, learn at different rates: by `groups`
and by `gradient_scale` of the stage.

A place is '<tap>/<domain>', or '<tap>+<tap>/<domain>' of a gap that several taps have in common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.interception import tap_edits
from transfer_jax.models.domains import current_domain


def check_shift(domains: tuple[str, ...], spread: Mapping[str, float]) -> None:
    """Raises UserError unless `domains` are two or more different names and `spread` gives some of them numbers."""
    if len(set(domains)) < max(2, len(domains)) or not all(name and "/" not in name for name in domains):
        raise UserError(f"domain_shift: domains = {domains} must be two or more different domains, named as in the "
                        f"streams")
    if not set(spread) <= set(domains) or min(spread.values(), default=0) < 0:
        raise UserError(f"domain_shift: spread = {dict(spread)} must give numbers >= 0 to domains of "
                        f"{', '.join(domains)}")


def shift_places(taps: Mapping[str, jax.ShapeDtypeStruct], backbone: str, patterns: tuple[str, ...],
                 domains: tuple[str, ...], shared: bool, where: str) -> list[str]:
    """The places of the taps whose paths ('backbone/stage1') a regex matches as a whole."""
    found = [tap for tap in taps if any(re.fullmatch(pattern, f"{backbone}/{tap}") for pattern in patterns)]
    widths = {tap: taps[tap].shape[-1] for tap in found}
    if shared and len(set(widths.values())) > 1:
        raise UserError(f"{where}: a shared domain_shift needs taps of one width, these have "
                        f"{', '.join(f'{tap}: {width}' for tap, width in widths.items())}; set shared=False")
    gaps = ["+".join(found)] if shared and found else found
    return [f"{gap}/{domain}" for gap in gaps for domain in domains]


def initial_shift(key: jax.Array, width: int, spread: float, scale: bool) -> dict[str, jax.Array]:
    """`shift` [C] of the standard deviation `spread`; with `scale` also `scale` [C], zero."""
    shift = {"shift": spread * jax.random.normal(key, (width,))}
    return {**shift, "scale": jnp.zeros(width)} if scale else shift


def with_shift(new: Mapping[str, Mapping[str, jax.Array]], domains: tuple[str, ...]) -> AbstractContextManager:
    """A context in which features x become x (1 + scale) + shift, those of the domain that is being read, or of the
    last one where nobody says which."""
    domain = current_domain() or domains[-1]
    if domain not in domains:
        raise UserError(f"domain_shift: a stream of the domain {domain!r} meets the gaps of {', '.join(domains)}; name "
                        f"the domains of all streams, the one that the model is used on last")
    edits = {}
    for place, leaves in new.items():
        gap, _, owner = place.rpartition("/")
        if owner == domain:
            edits |= dict.fromkeys(gap.split("+"), _shifted(leaves))
    return tap_edits(edits)


def _shifted(leaves: Mapping[str, jax.Array]) -> Callable[[jax.Array], jax.Array]:
    def edit(x: jax.Array) -> jax.Array:
        factor = 1 + leaves["scale"].astype(x.dtype) if "scale" in leaves else 1
        return x * factor + leaves["shift"].astype(x.dtype)

    return edit
