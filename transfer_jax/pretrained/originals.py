"""The same network in the framework it comes from, where that is installed: outputs compared stage by stage."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone, build_head
from transfer_jax.pretrained.conversion import HEAD, STATISTICS, Leaves, find_layout
from transfer_jax.pretrained.formats import write_tensors

TOLERANCE = 1e-3  # a wrong epsilon, padding or activation is far above, rounding in float32 far below
TORCHVISION = {"vit_base": "vit_b_16", "vit_large": "vit_l_16", "swin_tiny": "swin_t", "swin_small": "swin_s",
               "swin_base": "swin_b"}


def compare_outputs(component: Component, head: Component | None, leaves: Leaves, written: Mapping[str, np.ndarray],
                    layout: str, example: Any, console: Console, architecture: str | None = None,
                    folder: Path | None = None) -> dict[str, float] | None:
    """Prints the relative error of every stage against the original on the same random input.

    Args:
        written: the foreign tensors, as `to_foreign` gives them.
        architecture: the original's own name of the model, if the source tells it.
        folder: of a source with a `config.json`; transformers needs it.

    Returns:
        Errors by tap, and of the 'output'; None where the framework (or the original) is not there. Raises UserError
        if they differ by more than rounding.
    """
    build = ORIGINALS.get(layout)
    if build is None:
        console.print(f"outputs not compared: there is no original to run for the layout {layout!r}")
        return None
    try:
        torch = importlib.import_module("torch")
        model = build(component, head, written, example, architecture, folder)
    except (ImportError, RuntimeError) as error:
        console.print(f"outputs not compared: the framework of the layout {layout!r} is not usable here "
                      f"({str(error).splitlines()[0]})")
        return None
    if model is None:
        console.print(f"outputs not compared: the original of {component.kind} is not known by name")
        return None
    inputs = example_input(example)
    table = find_layout(build_backbone(component), layout)
    theirs = run_original(model, torch, inputs, table.modules, table.channels_last)
    ours = run_ours(component, head, leaves, inputs)
    errors = {name: relative_error(ours[name], value) for name, value in theirs.items() if name in ours}
    console.print(_table(errors, f"{component.kind} against {layout}, the same random input"))
    worst = max(errors, key=errors.get)
    if errors[worst] > TOLERANCE:
        raise UserError(f"{component.kind} and its original differ at {worst!r} by {errors[worst]:.1e} of the largest "
                        f"value; the model's arguments do not fit these parameters (epsilon, padding, activation ...)")
    return errors


def example_input(example: Any) -> np.ndarray:
    """Two seeded examples: normal numbers for images, token numbers for text."""
    rng = np.random.default_rng(0)
    shape = (2, *example.shape[1:])
    if np.issubdtype(example.dtype, np.integer):
        return rng.integers(5, 500, shape).astype(np.int32)
    return rng.normal(size=shape).astype(np.float32)


def run_ours(component: Component, head: Component | None, leaves: Leaves, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Taps by name, and the 'output': of the head, or of the last tap."""
    backbone = build_backbone(component)

    def split(prefix: bool) -> dict[str, Any]:
        own = {path.removeprefix(HEAD): leaf for path, leaf in leaves.items() if path.startswith(HEAD) == prefix}
        return {"params": unflatten({p: a for p, a in own.items() if p.rpartition("/")[2] not in STATISTICS}),
                "batch_stats": unflatten({p: a for p, a in own.items() if p.rpartition("/")[2] in STATISTICS})}

    @jax.jit
    def run(variables: Any, head_variables: Any, x: jax.Array) -> dict[str, jax.Array]:
        taps = backbone.apply(variables, x, train=False)
        output = taps[backbone.tap_names[-1]]
        if head is not None:
            output = build_head(head).apply(head_variables, taps, train=False)
        return {**taps, "output": output}

    return {name: np.asarray(value) for name, value in run(split(False), split(True), inputs).items()}


def run_original(model: Any, torch: Any, inputs: np.ndarray, modules: Mapping[str, str],
                 channels_last: bool = False) -> dict[str, np.ndarray]:
    """Outputs of the named modules, maps as NHWC, and the 'output'. Modules of other versions are left out."""
    found: dict[str, np.ndarray] = {}
    present = {name for name, _ in model.named_modules()}

    def watch(tap: str, name: str) -> Any:
        def keep(_, __, output):
            value = (output[0] if isinstance(output, tuple) else output).detach().numpy()
            found[tap] = value.transpose(0, 2, 3, 1) if value.ndim == 4 and not channels_last else value
        return model.get_submodule(name).register_forward_hook(keep)

    hooks = [watch(tap, name) for tap, name in modules.items() if name in present]
    model.eval()
    given = inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs.astype(np.int64)
    with torch.no_grad():
        output = model(torch.from_numpy(np.ascontiguousarray(given)))
    for hook in hooks:
        hook.remove()
    for name in ("logits", "pooler_output", "last_hidden_state"):
        output = getattr(output, name) if getattr(output, name, None) is not None else output
    return found | {"output": output.numpy()}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest magnitude of theirs; infinite for other shapes.

    A map that they have as rows of tokens [B, H * W, C] is one of the same shape.
    """
    if ours.ndim == 4 and theirs.shape == (ours.shape[0], ours.shape[1] * ours.shape[2], ours.shape[3]):
        theirs = theirs.reshape(ours.shape)
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max() / max(np.abs(theirs).max(), 1e-12))


def _table(errors: Mapping[str, float], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    table.add_column("largest difference / largest value", justify="right")
    for name, error in errors.items():
        table.add_row(name, f"{error:.1e}", style="bold red" if error > TOLERANCE else None)
    return table


def _loaded(model: Any, written: Mapping[str, np.ndarray]) -> Any:
    torch = importlib.import_module("torch")
    model.load_state_dict({name: torch.from_numpy(np.array(leaf)) for name, leaf in written.items()}, strict=True)
    return model


def _torchvision(component: Component, head: Component | None, written: Mapping[str, np.ndarray],
                 example: Any, architecture: str | None, folder: Path | None) -> Any:
    models = importlib.import_module("torchvision").models
    name, patch = TORCHVISION.get(component.kind, component.kind), component.arguments.get("patch", 16)
    if name.startswith("vit_"):
        name = f"{name.rpartition('_')[0]}_{patch}"
    if name not in models.list_models() or head is None:
        return None
    # Only for Inception and GoogLeNet do these change the network: no auxiliary heads, inputs as they come.
    more = dict(aux_logits=False, init_weights=False) if name in ("googlenet", "inception_v3") else {}
    if name == "mobilenet_v2":
        more = {"width_mult": component.arguments.get("width", 1.0)}
    if "encoder.pos_embedding" in written:
        more = {"image_size": example.shape[1]}
    return _loaded(models.get_model(name, weights=None, num_classes=head.arguments["classes"], **more), written)


def _timm(component: Component, head: Component | None, written: Mapping[str, np.ndarray],
          example: Any, architecture: str | None, folder: Path | None) -> Any:
    timm = importlib.import_module("timm")
    name = (architecture or _timm_name(component)).split(".")[0]
    if not timm.is_model(name):
        return None
    more = {"img_size": example.shape[1:3]} if "pos_embed" in written or name.startswith("swin_") else {}
    if name.startswith("swin_"):
        more["window_size"] = window = component.arguments.get("window", 7)
        if any(side % (32 * window) for side in example.shape[1:3]):
            raise RuntimeError(f"it fills maps otherwise unless images are multiples of {32 * window} pixels")
    return _loaded(timm.create_model(name, num_classes=head.arguments["classes"] if head else 0, **more), written)


def _timm_name(component: Component) -> str:
    """What timm calls our backbone, or our own name."""
    if component.kind == "mobilenet_v2":
        return f"mobilenetv2_{round(100 * component.arguments.get('width', 1.0)):03d}"
    name, arguments = component.kind, component.arguments
    if name.startswith(("vit_", "deit_")):
        return f"{name}_patch{arguments.get('patch', 16)}_224" if "pool" not in arguments else ""
    if name.startswith("dinov2_"):
        registers = f"_reg{arguments['registers']}" if arguments.get("registers") else ""
        return f"vit_{name.removeprefix('dinov2_')}_patch14{registers}_dinov2"
    if name.startswith("swin_"):
        return f"{name}_patch4_window7_224"
    if name.startswith("mobilenet_v3_"):
        name = f"mobilenetv3_{name.removeprefix('mobilenet_v3_')}_100"
    return f"tf_{name}" if component.arguments.get("form") == "timm_tf" else name


def _transformers(component: Component, head: Component | None, written: Mapping[str, np.ndarray],
                  example: Any, architecture: str | None, folder: Path | None) -> Any:
    transformers = importlib.import_module("transformers")
    if folder is None or not (folder / "config.json").is_file():
        return None
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "config.json", place)
        write_tensors(Path(place) / "model.safetensors", written, {"format": "pt"})
        config = transformers.AutoConfig.from_pretrained(place)
        name = (config.architectures or ["AutoModel"])[0]
        return getattr(transformers, name, transformers.AutoModel).from_pretrained(place)


ORIGINALS: dict[str, Callable[..., Any]] = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}
