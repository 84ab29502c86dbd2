"""Low-rank leaves of a stage as small folders of their own, and stages that start from such a folder.

`model/peft/<name>/` has the layout of the PEFT library (`pretrained/peft_files.py`), with the names of the first
published layout of the backbone that has a place for all modules, else with ours; `transfer_jax.json` says which.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.stage import ReadyStage
from transfer_jax.models.model import Model
from transfer_jax.params.peft import PEFT, PREFIX, PeftSpec
from transfer_jax.pretrained.conversion import OWN, layouts_of
from transfer_jax.pretrained.peft_files import LOW_RANK, read_peft, write_peft
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.state import Flat

RECORD = "transfer_jax.json"


def write_low_rank(folder: Path, methods: Mapping[str, PeftSpec], params: Mapping[str, np.ndarray],
                   model: Model) -> None:
    """Writes `folder/peft/<name>` for every `lora` and `dora` among the methods; `params` are those of one seed."""
    shutil.rmtree(folder / "peft", ignore_errors=True)
    for name, spec in methods.items():
        if spec.kind not in LOW_RANK:
            continue
        front, place = f"{PREFIX}{name}/", folder / "peft" / name
        new = {path.removeprefix(front): leaf for path, leaf in params.items() if path.startswith(front)}
        place.mkdir(parents=True)
        owner = {path.split("/")[0] for path in new}
        backbone = next(iter(owner)) if len(owner) == 1 and owner <= set(model.backbones) else None
        layout = _write_published(place, new, spec, backbone, model) if backbone else None
        if layout is None:
            write_peft(place, new, spec, None, OWN)
        write_json(place / RECORD, {"layout": layout or OWN, "backbone": backbone})


def _write_published(place: Path, new: Mapping[str, np.ndarray], spec: PeftSpec, backbone: str,
                     model: Model) -> str | None:
    """Writes with the names of a published layout and returns its name; None where none has a place for all."""
    module = model.backbones[backbone]
    within = {path.removeprefix(f"{backbone}/"): leaf for path, leaf in new.items()}
    for layout in layouts_of(module):
        try:
            write_peft(place, within, spec, module, layout)
            return layout
        except UserError:  # parts of packed tensors, or a module that this layout does not know
            continue
    return None


def low_rank_start(ready: ReadyStage, params: Flat, assembly: Assembly) -> Flat:
    """New leaves [S, ...] that methods of the stage take from their `source`, the same for every seed."""
    found: Flat = {}
    for name, spec in ready.spec.peft.items():
        if spec.source is not None:
            front = f"{PREFIX}{name}/"
            drawn = {path.removeprefix(front): jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
                     for path, leaf in params.items() if path.startswith(front)}
            leaves = read_low_rank(spec, drawn, assembly, f"config.stages.{ready.name}.peft.{name}")
            found |= {front + path: jnp.broadcast_to(leaf, (assembly.members, *leaf.shape))
                      for path, leaf in leaves.items()}
    return found


def read_low_rank(spec: PeftSpec, drawn: Mapping[str, Any], assembly: Assembly, where: str) -> dict[str, np.ndarray]:
    """The leaves of the folder `spec.source` in place of those that were drawn.

    Args:
      drawn: '<module>/<leaf>' -> array or shape of one seed, of all leaves that the method adds.

    Raises:
      UserError: if the folder holds another method, other arguments or other modules.
    """
    folder = Path(spec.source)
    if spec.kind not in LOW_RANK:
        raise UserError(f"{where}.source: only {' and '.join(LOW_RANK)} start from a folder, not {spec.kind}")
    record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else {}
    layout, backbone = _layout(record, assembly.model, f"{where}.source = {spec.source!r}")
    leaves, found = read_peft(folder, assembly.model.backbones.get(backbone), layout)
    leaves = leaves if layout == OWN else {f"{backbone}/{path}": leaf for path, leaf in leaves.items()}
    expected = {name: parameter.default for name, parameter in inspect.signature(PEFT[spec.kind]).parameters.items()}
    if (found.kind, found.arguments) != (spec.kind, {**expected, **spec.arguments}):
        settings = ", ".join(f"{name}={value!r}" for name, value in found.arguments.items())
        raise UserError(f"{where}: the folder {folder} holds kind={found.kind!r}, {settings}; write the same")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    if shapes != {path: tuple(leaf.shape) for path, leaf in drawn.items()}:
        other = sorted(set(shapes) ^ set(drawn)) or sorted(path for path in shapes
                                                           if shapes[path] != tuple(drawn[path].shape))
        raise UserError(f"{where}: the folder {folder} and the targets differ ({', '.join(other[:3])}); target the "
                        f"modules that it holds")
    return leaves


def _layout(record: Mapping[str, Any], model: Model, where: str) -> tuple[str, str | None]:
    """Layout and backbone of a folder: recorded in ours, the first that fits for one of the PEFT library's own."""
    if record:
        return record["layout"], record["backbone"]
    if len(model.backbones) != 1:
        raise UserError(f"{where} does not say which of the backbones {', '.join(model.backbones)} it is for; add a "
                        f"file {RECORD} with 'layout' and 'backbone'")
    backbone, module = next(iter(model.backbones.items()))
    known = layouts_of(module)
    if not known:
        raise UserError(f"{where} has published names, of which a {type(module).__name__} has none")
    return ("transformers" if "transformers" in known else known[0]), backbone
