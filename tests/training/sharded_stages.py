"""Run by test_sharding.py in a process with eight devices: the same stages on several meshes, their losses as JSON."""

import json
import sys
from pathlib import Path

import jax
from tiny_experiment import single, trained

from transfer_jax.core.compilation import enable_compilation_cache
from transfer_jax.core.mesh import make_mesh
from transfer_jax.training.memory import held

VIT = {"kind": "vit_tiny", "width": 192, "layers": 2, "heads": 4, "patch": 4, "pool": "mean"}
ADVERSARIAL = {
    "model.heads.domain": {"kind": "mlp", "hidden": (8,), "outputs": 1},
    "streams.other": {"data": None, "split": "test", "batch_size": 16, "domain": "other", "labelled": False},
    "stages.only.objective": {"terms": {
        "digits": {"kind": "task", "task": "digits", "stream": "train"},
        "domain": {"kind": "domain_adversarial", "streams": {"source": "train", "target": "other"}, "head": "domain"}}}}
MULTITASK = {
    "streams.partly": {"data": None, "batch_size": 16, "domain": "plain"},  # half of its examples have no label
    "model.heads.second": {"kind": "linear"},
    "tasks.second": {"kind": "classification", "head": "second"},
    "stages.only.objective": {"terms": {
        "digits": {"kind": "task", "task": "digits", "stream": "train"},
        "second": {"kind": "task", "task": "second", "stream": "partly", "weight": 0.5}},
        "combine": {"kind": "uncertainty"}}}
CHANGES = {
    "cnn": {"model.backbones.backbone.norm": "batch", "model.backbones.backbone.widths": (8, 64), "seeds": (0, 1)},
    "vit": {"model.backbones.backbone": VIT},
    "adversarial": {"model.backbones.backbone.norm": "batch", **ADVERSARIAL},
    "multitask": MULTITASK,
    "ruled": {**MULTITASK, "stages.only.objective": {**MULTITASK["stages.only.objective"],
                                                     "combine": {"kind": "cagrad"}, "on_bad_task": "skip"}},
    "accumulated": {"model.backbones.backbone": VIT, "stages.only.accumulate": 2, "precision": "bfloat16"},
    "frozen": {"model.backbones.backbone": VIT, "frozen_sharding": ((".*", "replicate"),),
               "stages.only.partition": (("backbone/(patches|block0)/.*", "frozen"), (".*", "all")),
               "stages.only.groups": {"all": {}}, "stages.only.cache": "never"},
}
MESHES = {"one": (1, {}), "data": (4, {"data": 4}), "fsdp": (8, {"fsdp": 8}),
          "model": (4, {"model": 4}), "mixed": (8, {"data": 2, "fsdp": 2, "model": 2})}


def run(data: Path, name: str, mesh: str) -> dict:
    changes = json.loads(json.dumps(CHANGES[name]))
    changes |= {"streams.train.batch_size": 16, "stages.only.optimizer": {"kind": "adam"}, "stages.only.lr": 1e-3}
    if "streams.other" in changes:
        changes["streams.other"]["data"] = {"kind": "arrays", "path": str(data)}
    if "streams.partly" in changes:
        part = {"kind": "arrays", "path": str(data), "split": "train"}
        changes["streams.partly"]["data"] = {"kind": "merge", "parts": [
            {**part, "domain": "known"}, {**part, "domain": "unknown", "arrays": {"train_image": "train_image"}}]}
    count, axes = MESHES[mesh]
    spec = single(data, {}, changes)
    found = trained(spec, mesh=make_mesh(axes, jax.devices()[:count]))
    state = found.placed
    return {"loss": found.metrics["loss"].tolist(), "trainable": held(state.trainable),
            "optimizer": held(state.opt_state), "frozen": held(found.constants.frozen),
            "begun": held(found.ready.placed(found.before, found.constants)[0].trainable)}


if __name__ == "__main__":
    enable_compilation_cache("default")
    wanted = json.loads(sys.argv[2])
    print(json.dumps({name: {mesh: run(Path(sys.argv[1]), name, mesh) for mesh in meshes}
                      for name, meshes in wanted.items()}))
