"""GoogLeNet: the names of torchvision."""

from __future__ import annotations

from transfer_jax.models.googlenet import MODULES, GoogLeNet
from transfer_jax.pretrained.rules.table import TORCH, Layout, rules

BRANCHES = {"conv1x1": "branch1", "reduce3x3": "branch2.0", "conv3x3": "branch2.1", "reduce5x5": "branch3.0",
            "conv5x5": "branch3.1", "pool_proj": "branch4.1"}


def torchvision(backbone: GoogLeNet) -> Layout:
    def inside(m: str, unit: str) -> str:
        return f"inception{m}.{BRANCHES[unit]}"

    unit = "inception{m:[345][a-e]}/{unit:\\w+}"
    return Layout(rules(
        TORCH.conv("conv{i}/conv", "conv{i}.conv"), TORCH.norm("conv{i}/bn", "conv{i}.bn"),
        TORCH.conv(f"{unit}/conv", lambda m, unit: f"{inside(m, unit)}.conv"),
        TORCH.norm(f"{unit}/bn", lambda m, unit: f"{inside(m, unit)}.bn"),
        TORCH.dense("head/dense", "fc"),
        # The auxiliary classifiers serve training from scratch only; their original drops them on loading, too.
    ), ignore=(r".*num_batches_tracked", r"aux[12]\..*"), input_kernels=("conv1/conv/kernel",), modules={
        **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)}, **{f"inception{m}": f"inception{m}" for m in MODULES}})


LAYOUTS = {"torchvision": torchvision}
