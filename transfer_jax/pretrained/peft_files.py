"""Low-rank leaves as files of their own: the layout of the PEFT library, which the originals load, and back.

A folder holds `adapter_model.safetensors` and `adapter_config.json` with rank, alpha and targets. Parts of packed
tensors (one q | k | v product) have no place of their own there and are refused.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.models.taps import Backbone
from transfer_jax.params.peft import PEFT, PeftSpec
from transfer_jax.pretrained.conversion import OWN, Leaves, find_layout, leaf_shapes, whole
from transfer_jax.pretrained.formats import read_tensors, write_tensors
from transfer_jax.pretrained.formats.json_files import parse_json

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
WRAPPER = "base_model.model."
LOW_RANK = ("lora", "dora")


def write_peft(folder: Path, new: Mapping[str, Any], spec: PeftSpec, backbone: Backbone | None, layout: str,
               bare: bool = False) -> None:
    """Writes the leaves of one `lora` or `dora` of one seed for the original that has the names of `layout`.

    Args:
      new: '<module of the backbone>/a' [..., in, r], '.../b' [r, out] and, of dora, '.../length' [out]. With our own
        names (`OWN`) modules are those of the whole model, 'backbone/...', and no backbone is needed.
      spec: what made them.
      bare: names of the original without its head, such as BertModel, where the layout has a prefix like 'bert.'.
    """
    if spec.kind not in LOW_RANK:
        raise UserError(f"peft kind {spec.kind!r} has no file of this layout; it is for {' and '.join(LOW_RANK)}")
    tensors, modules = {}, []
    for module in dict.fromkeys(path.rpartition("/")[0] for path in new):
        theirs = _their_module(module, backbone, layout, bare)
        modules.append(theirs)
        a, b = (np.asarray(new[f"{module}/{leaf}"]) for leaf in ("a", "b"))
        window = a.ndim == 4
        tensors[f"{WRAPPER}{theirs}.lora_A.weight"] = a.transpose(3, 2, 0, 1) if window else a.T
        tensors[f"{WRAPPER}{theirs}.lora_B.weight"] = b.T[..., None, None] if window else b.T
        if spec.kind == "dora":
            length = np.asarray(new[f"{module}/length"])
            tensors[f"{WRAPPER}{theirs}.lora_magnitude_vector"] = length[None, :, None, None] if window else length
    # A regex of whole names: of names in a list the library also takes every module whose name ends like one of them.
    pattern = "|".join(map(re.escape, modules))
    defaults = {name: parameter.default for name, parameter in inspect.signature(PEFT[spec.kind]).parameters.items()}
    arguments = {**defaults, **spec.arguments}
    write_tensors(folder / TENSORS, {name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()},
                  {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({
        "peft_type": "LORA", "r": arguments["rank"], "lora_alpha": arguments["alpha"], "target_modules": pattern,
        "use_rslora": arguments["scaling"] == "root", "use_dora": spec.kind == "dora", "bias": "none",
        "lora_dropout": 0.0, "inference_mode": True, "task_type": None, "base_model_name_or_path": None}, indent=2))


def read_peft(folder: Path, backbone: Backbone | None, layout: str, bare: bool = False) -> tuple[Leaves, PeftSpec]:
    """The inverse of `write_peft`: the new leaves, and the spec (its targets are modules of the backbone).

    Raises:
      UserError: for a file of another method, or tensors that no module of this backbone has a place for.
    """
    config, tensors = _read(folder)
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise UserError(f"{folder / CONFIG}: peft_type {config.get('peft_type')!r} with bias "
                        f"{config.get('bias')!r}; only LORA without biases can be read")
    if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
        raise UserError(f"{folder / CONFIG} gives no rank 'r' or no factor 'lora_alpha'")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"{folder / CONFIG}: rank_pattern and alpha_pattern give modules ranks and factors of their "
                        f"own, which one method of ours cannot have")
    own = {theirs: theirs.replace(".", "/") for theirs in (_leaf_of(name)[0] for name in tensors)}
    place = own if layout == OWN else {
        _their_module(module, backbone, layout, bare): module for module in _dense_modules(backbone, layout)}
    leaves: Leaves = {}
    for name, tensor in tensors.items():
        theirs, leaf = _leaf_of(name)
        if leaf is None or theirs not in place:
            known = [f"{WRAPPER}{module}.lora_A.weight" for module in place]
            raise unknown("tensor", name, known, str(folder / TENSORS))
        leaves[f"{place[theirs]}/{leaf}"] = _ours(tensor.astype(np.float32), leaf)
    _check_complete(leaves, config, folder)
    scaling = "root" if config.get("use_rslora") else "rank"
    spec = PeftSpec(kind="dora" if config.get("use_dora") else "lora", rank=config["r"],
                    alpha=float(config["lora_alpha"]), scaling=scaling,
                    targets=tuple(dict.fromkeys(path.rpartition("/")[0] for path in leaves)))
    return leaves, spec


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; a folder of the PEFT library has {CONFIG} and {TENSORS}")
    config = parse_json((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    return config, read_tensors(folder / TENSORS).tensors


def _check_complete(leaves: Leaves, config: Mapping[str, Any], folder: Path) -> None:
    """Every module has all the leaves of its method, of the rank that the config tells."""
    parts = ("a", "b", "length") if config.get("use_dora") else ("a", "b")
    for module in dict.fromkeys(path.rpartition("/")[0] for path in leaves):
        missing = [part for part in parts if f"{module}/{part}" not in leaves]
        if missing:
            raise UserError(f"{folder / TENSORS} lacks {', '.join(missing)} of our module {module!r}")
        ranks = leaves[f"{module}/a"].shape[-1], leaves[f"{module}/b"].shape[0]
        if ranks != (config["r"],) * 2:
            raise UserError(f"{folder / TENSORS}: {module!r} has the ranks {ranks}, {CONFIG} says {config['r']!r}")


def _their_module(module: str, backbone: Backbone, layout: str, bare: bool) -> str:
    if layout == OWN:
        return module.replace("/", ".")
    table = find_layout(backbone, layout)
    found = table.find(f"{module}/kernel")
    if found is None:
        raise UserError(f"the layout {layout!r} has no place for a kernel of our module {module!r}")
    name, op = found
    if op.count > 1:
        raise UserError(f"{module!r} is part of the packed tensor {name!r} of the layout {layout!r}, of which no part "
                        f"can have low-rank leaves; target other modules or choose another layout")
    name = name.removesuffix(".weight")
    return name.removeprefix(table.prefix) if bare else name


def _dense_modules(backbone: Backbone, layout: str) -> list[str]:
    table = find_layout(backbone, layout)
    paths = [path for path in leaf_shapes(whole(backbone)) if path.endswith("/kernel")]
    return [path.removesuffix("/kernel") for path in paths if (found := table.find(path)) and found[1].count == 1]


def _leaf_of(name: str) -> tuple[str, str | None]:
    name = name.removeprefix(WRAPPER)
    for ending, leaf in ((".lora_A.weight", "a"), (".lora_B.weight", "b"), (".lora_magnitude_vector", "length")):
        if name.endswith(ending):
            return name.removesuffix(ending), leaf
    return name, None


def _ours(tensor: np.ndarray, leaf: str) -> np.ndarray:
    if leaf == "length":
        return tensor.reshape(-1)
    if leaf == "b":
        return np.ascontiguousarray(tensor.reshape(tensor.shape[:2]).T)
    return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T)
