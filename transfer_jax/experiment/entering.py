"""Where a network can be entered in its middle: behind layers that stand still, or that all heads have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.inputs import FromTaps
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import StageSpec
from transfer_jax.models.depth import parameter_blocks
from transfer_jax.models.taps import Backbone
from transfer_jax.params.inserts import PREFIX, head_of


def moving_parts(paths: Sequence[str], backbone: str) -> set[str]:
    """The first parts of the paths below a backbone, new leaves of `peft` counted to the modules that they change."""
    plain = (path.split("/", 2)[2] if path.startswith(PREFIX) else path for path in paths)
    return {path.split("/")[1] for path in plain if path.startswith(f"{backbone}/")}


def freeze_point(module: Backbone, moving: set[str]) -> str | None:
    """The deepest tap before which no part of `moving` is used; None if there is none."""
    names = list(module.tap_names)
    if not moving:
        return module.until or names[-1]
    blocks = parameter_blocks(module)
    if getattr(module, "scan", False) or not moving <= {part for block in blocks for part in block.modules}:
        return None
    first = next(number for number, block in enumerate(blocks) if moving & set(block.modules))
    return blocks[first - 1].tap if first else None


def shared_taps(assembly: Assembly, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Backbone -> the deepest tap before all that heads have of their own, where the network can go on behind it."""
    own = [path for path in shapes if head_of(path, assembly.model.inserts)]
    found: dict[str, str] = {}
    for name, backbone in assembly.model.backbones.items() if own else ():
        tap = freeze_point(backbone, moving_parts(own, name))
        example = assembly.example_inputs.get(name)
        if tap is not None and backbone.resumes and example is not None and not isinstance(example, FromTaps):
            found[name] = tap
    return found


def check_heads_apart(assembly: Assembly, spec: StageSpec, shapes: Mapping[str, Any], where: str) -> None:
    """Raises UserError for heads with adapters of their own that do not exist, or that the stage cannot tell apart."""
    heads = dict.fromkeys(head for path in shapes if (head := head_of(path, assembly.model.inserts)))
    for head in heads:
        if head not in assembly.model.heads:
            raise unknown("head", head, assembly.model.heads, f"{where}.peft")
    if heads and spec.batch_norm == "joint":
        raise UserError(f"{where}: with batch_norm='joint' all streams are one batch, which heads with adapters of "
                        f"their own ({', '.join(heads)}) cannot read together; use another batch_norm")
    for update in spec.objective.ordered if heads else ():
        if update.gradients_of not in ("shared", "parameters"):
            raise UserError(f"{where}.objective.gradients_of = {update.gradients_of!r}: heads with adapters of their "
                            f"own ({', '.join(heads)}) read different features; use 'shared' or 'parameters'")
