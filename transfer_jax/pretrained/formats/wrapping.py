"""The state dictionary inside a training checkpoint: what training code wraps around it, and in front of its names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from transfer_jax.core.errors import UserError, unknown

PLAIN = ("state_dict", "model", "model_state", "model_state_dict", "net", "network", "weights", "params", "module",
         "teacher", "student")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
OUTER = ("state", "checkpoint", "ckpt")  # levels that may lie around these
PREFIXES = ("module.", "_orig_mod.")  # of data-parallel and of compiled models


def unwrap_state_dict(loaded: Mapping[str, np.ndarray], name: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of one model in a file as `read_tensors` returns it.

    Args:
        loaded: tensors by name; the dictionaries of a checkpoint are levels before a '/'
            ('state_dict/module.conv1.weight').
        name: which dictionary to take, by its path or the last word of it; None: the only one that a model is usually
            kept in, where plain ones go before averaged ones ('state_dict_ema').

    Returns:
        Tensors without that level, and without 'module.' and '_orig_mod.' if all of them start so.
    """
    groups = _groups(loaded)
    if name is None:
        return _bare(_usual(loaded, groups))
    chosen = [path for path in groups if name in (path, path.rpartition("/")[2])]
    if len(chosen) > 1:
        raise UserError(f"the checkpoint has several dictionaries called {name!r}; choose one of {', '.join(chosen)}")
    if not chosen:
        raise unknown("dictionary", name, groups, "the checkpoint")
    return _bare(groups[chosen[0]])


def _groups(loaded: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {}
    for path, tensor in loaded.items():
        level, slash, inner = path.rpartition("/")
        if slash:
            groups.setdefault(level, {})[inner] = tensor
    return groups


def _usual(loaded: Mapping[str, np.ndarray], groups: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    for family in (PLAIN, AVERAGED):
        found = [path for path in groups if path.rpartition("/")[2] in family and _holds_model(path, groups)]
        if len(found) > 1:
            raise UserError(f"the checkpoint has several models ({', '.join(found)}); choose one of them by its name")
        if found:
            return groups[found[0]]
    return dict(loaded)


def _holds_model(path: str, groups: dict[str, dict[str, np.ndarray]]) -> bool:
    """Whether `path` is a dictionary around a model, not the beginning of path-like names ('model/conv1/kernel')."""
    last = not any(other.startswith(f"{path}/") for other in groups)
    dotted = any("." in name for name in groups[path])
    return (last or dotted) and all(level in (*PLAIN, *AVERAGED, *OUTER) for level in path.split("/"))


def _bare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = dict(tensors)
    while tensors and (prefix := next((prefix for prefix in PREFIXES if all(
            name.startswith(prefix) and name != prefix for name in tensors)), None)):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
