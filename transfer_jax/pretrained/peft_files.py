"""Low-rank leaves as files of their own: the layout of the PEFT library, which the originals load, and back.

A folder holds `adapter_model.safetensors` and `adapter_config.json` with rank, alpha and targets. Parts of packed
tensors (one q | k | v product) have no place of their own there and are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.models.taps import Backbone
from transfer_jax.params.peft import PeftSpec
from transfer_jax.pretrained.conversion import Leaves, find_layout, leaf_shapes, whole

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
WRAPPER = "base_model.model."
LOW_RANK = ("lora", "dora")


def write_peft(folder: Path, new: Mapping[str, Any], spec: PeftSpec, backbone: Backbone, layout: str,
               bare: bool = False) -> None:
    """Writes the leaves of one `lora` or `dora` of one seed for the original that has the names of `layout`.

    Args:
      new: '<module of the backbone>/a' [..., in, r], '.../b' [r, out] and, of dora, '.../length' [out].
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
    arguments = {"rank": 8, "alpha": 8.0, "scaling": "rank", **spec.arguments}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}, folder / TENSORS,
              metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({
        "peft_type": "LORA", "r": arguments["rank"], "lora_alpha": arguments["alpha"], "target_modules": pattern,
        "use_rslora": arguments["scaling"] == "root", "use_dora": spec.kind == "dora", "bias": "none",
        "lora_dropout": 0.0, "inference_mode": True, "task_type": None, "base_model_name_or_path": None}, indent=2))


def read_peft(folder: Path, backbone: Backbone, layout: str, bare: bool = False) -> tuple[Leaves, PeftSpec]:
    """The inverse of `write_peft`: the new leaves, and the spec (its targets are modules of the backbone).

    Raises:
      UserError: for a file of another method, or tensors that no module of this backbone has a place for.
    """
    config, tensors = _read(folder)
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise UserError(f"{folder / CONFIG}: peft_type {config.get('peft_type')!r} with bias "
                        f"{config.get('bias')!r}; only LORA without biases can be read")
    place = {_their_module(module, backbone, layout, bare): module for module in _dense_modules(backbone, layout)}
    leaves: Leaves = {}
    for name, tensor in tensors.items():
        theirs, leaf = _leaf_of(name)
        if leaf is None or theirs not in place:
            known = [f"{WRAPPER}{module}.lora_A.weight" for module in place]
            raise unknown("tensor", name, known, str(folder / TENSORS))
        leaves[f"{place[theirs]}/{leaf}"] = _ours(tensor, leaf)
    scaling = "root" if config.get("use_rslora") else "rank"
    spec = PeftSpec(kind="dora" if config.get("use_dora") else "lora", rank=config["r"],
                    alpha=float(config["lora_alpha"]), scaling=scaling,
                    targets=tuple(dict.fromkeys(path.rpartition("/")[0] for path in leaves)))
    return leaves, spec


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        return json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder / TENSORS} is missing; a folder of the PEFT library has {CONFIG} "
                        f"and {TENSORS}") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is damaged ({error})") from error


def _their_module(module: str, backbone: Backbone, layout: str, bare: bool) -> str:
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
