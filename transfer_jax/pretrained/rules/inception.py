"""Inception-v3: the names of torchvision and timm (the same), and of Keras, which numbers its layers."""

from __future__ import annotations

from collections.abc import Callable

from transfer_jax.models.inception import MODULES, STEM, InceptionV3
from transfer_jax.pretrained.rules.table import KERAS, TORCH, Layout, rules

INPUT_KERNELS = ("conv_1a/conv/kernel",)
STEM_SIZES = {"1a": "3x3", "2a": "3x3", "2b": "3x3", "3b": "1x1", "4a": "3x3"}


def torchvision(backbone: InceptionV3) -> Layout:
    def stem(c: str) -> str:
        return f"Conv2d_{c}_{STEM_SIZES[c]}"

    inner = "mixed_{m:[567][a-e]}/{unit:\\w+}"
    return Layout(rules(
        TORCH.conv("conv_{c:\\w+}/conv", lambda c: f"{stem(c)}.conv"),
        TORCH.norm("conv_{c:\\w+}/bn", lambda c: f"{stem(c)}.bn"),
        TORCH.conv(f"{inner}/conv", "Mixed_{m}.{unit}.conv"), TORCH.norm(f"{inner}/bn", "Mixed_{m}.{unit}.bn"),
        TORCH.dense("head/dense", "fc"),
        # The auxiliary classifier serves training from scratch only; the original drops it on loading, too.
    ), ignore=(r".*num_batches_tracked", r"AuxLogits\..*"), input_kernels=INPUT_KERNELS, modules={
        **{f"conv_{c}": stem(c) for c in STEM_SIZES}, **{f"mixed_{m}": f"Mixed_{m}" for m in MODULES}})


def convolutions() -> list[str]:
    """Our paths of all convolutions with their BatchNorm, in the order in which Keras makes them."""
    paths = list(STEM)
    for name, mixed in MODULES.items():
        units = [unit.name for branch in mixed.branches for step in branch for unit in step]
        paths += [f"mixed_{name}/{unit}" for unit in units + ["branch_pool"] * (mixed.projected is not None)]
    return paths


def _numbered(first: int) -> Callable[[InceptionV3], Layout]:
    """The layers of one kind are called `kind`, `kind_1`, `kind_2` ..., or from the first on by numbers."""
    numbers = {path: number for number, path in enumerate(convolutions(), first)}

    def name(kind: str, path: str) -> str:
        return f"{kind}_{numbers[path]}" if numbers[path] else kind

    def keras(backbone: InceptionV3) -> Layout:
        return Layout(rules(
            KERAS.conv("{path:(?:conv|mixed)_.+}/conv", lambda path: name("conv2d", path)),
            KERAS.norm("{path:(?:conv|mixed)_.+}/bn", lambda path: name("batch_normalization", path)),
            KERAS.dense("head/dense", "predictions"),
        ), input_kernels=INPUT_KERNELS, modules={f"mixed_{m}": f"mixed{i}" for i, m in enumerate(MODULES)})

    return keras


# Files of Keras before 2.3, among them the published ones, count from one.
LAYOUTS = {"torchvision": torchvision, "timm": torchvision, "keras": _numbered(0), "keras_from_1": _numbered(1)}
