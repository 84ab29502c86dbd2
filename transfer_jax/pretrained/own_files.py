"""Our own files: `parameters.safetensors` with `params/<backbone>/...` and `batch_stats/...`, beside `model.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained.conversion import HEAD, OWN, Leaves, Options, leaf_shapes, matches
from transfer_jax.pretrained.formats import TensorFile
from transfer_jax.pretrained.report import Entry, LoadReport


def is_own_file(file: TensorFile) -> bool:
    """Whether every tensor lies under `params/` or `batch_stats/` with a backbone below."""
    return bool(file.tensors) and all(name.startswith(("params/", "batch_stats/")) for name in file.tensors) and any(
        name.startswith("params/") and not name.startswith("params/heads/") for name in file.tensors)


def own_leaves(file: TensorFile, backbone: str | None = None, head: str | None = None) -> Leaves:
    """Leaves of one backbone and one head ('head/...') of the file; each may be left to be the only one there."""
    plain = {name.partition("/")[2]: np.asarray(leaf) for name, leaf in file.tensors.items()}
    inserted = sorted({path.split("/")[1] for path in plain if path.startswith("peft/")})
    if inserted:
        raise UserError(f"the file holds adapters or prompts ({', '.join(inserted)}), which no plain model has a place "
                        f"for; go on from the run itself with init='checkpoint:WORKDIR@stage'")
    backbone = backbone or _only({path.split("/")[0] for path in plain} - {"heads"}, "backbone")
    heads = {path.split("/")[1] for path in plain if path.startswith("heads/")}
    head = head or (next(iter(heads)) if len(heads) == 1 else None)
    return {**_below(plain, f"{backbone}/", ""), **_below(plain, f"heads/{head}/", HEAD)}


def _below(leaves: Leaves, start: str, instead: str) -> Leaves:
    return {instead + path.removeprefix(start): leaf for path, leaf in leaves.items() if path.startswith(start)}


def from_own_file(file: TensorFile, backbone: Backbone, head: nn.Module | None, shapes: Mapping[str, Any],
                  options: Options, source: str) -> tuple[Leaves, LoadReport]:
    """Leaves that this model wants out of a file of ours, and the account of all tensors."""
    found = own_leaves(file)
    leaves: Leaves = {}
    entries = []
    for path, shape in shapes.items():
        if path not in found:
            entries.append(Entry("new" if matches(options.allow_missing, path) else "missing", path, None, shape.shape))
        elif found[path].shape != shape.shape:
            allowed = matches(options.allow_missing, path)
            entries.append(Entry("new" if allowed else "mismatch", path, None, shape.shape,
                                 f"the file has the shape {list(found[path].shape)}"))
        else:
            leaves[path] = found[path].astype(np.float32)
            entries.append(Entry("loaded", path, None, shape.shape))
    uncut = set(_every_path(backbone, shapes))
    for path, leaf in found.items():
        if path not in shapes:
            known = path.startswith(HEAD) or path in uncut or matches(options.allow_unused, path)
            entries.append(Entry("left out" if known else "unused", path, None, leaf.shape))
    return leaves, LoadReport(source, OWN, type(backbone).__name__, tuple(entries))


def _every_path(backbone: Backbone, shapes: Mapping[str, Any]) -> Mapping[str, Any]:
    return leaf_shapes(backbone.clone(until=None)) if backbone.until is not None else shapes


def _only(names: set[str], what: str) -> str:
    if len(names) != 1:
        raise UserError(f"the file has several of a {what} ({', '.join(sorted(names))}); export one of them alone")
    return names.pop()
