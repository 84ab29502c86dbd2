"""Our networks against the originals: names, shapes, outputs, statistics, gradients, and the way back.

Values are drawn leaf by leaf from the hash of our paths (statistics and affine parameters too: an untouched network
is nearly dead and hides errors), written in the original's layout and loaded there strictly. So the way back is
proven first, and no file of weights is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.compiler_options import quick_to_compile
from tests.parity.oracle import framework
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import (
    HEAD,
    STATISTICS,
    find_layout,
    foreign_gradient,
    leaf_shapes,
    published_head,
    to_foreign,
    to_ours,
)

CLASSES = 10
Tensors = dict[str, np.ndarray]


def quickly_compiled() -> dict[str, Any]:
    """Settings that compile programs that run once five times faster on a CPU."""
    return {"xla_backend_optimization_level": 0, **quick_to_compile()}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The same input twice: for our backbone, and as arguments of the original's forward (torch tensors)."""

    ours: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """One network in one foreign layout.

    backbone, arguments: our component. layout: which table.
    original: () -> torch module with CLASSES classes (or a headless one, then classes=None); call frameworks inside.
    size, channels: of the square test images; `inputs` replaces them for anything else.
    taps: our tap -> name of the original's module whose output it is, or (name, function of that output).
    layers: our leaf paths for the gradient check: first, middle, last.
    load: (original, tensors) puts our written tensors in; default `load_state_dict(strict=True)`.
    save: original -> the tensors as its own files have them; default `state_dict()`.
    logits: output of the original -> logits tensor (or the last feature vector of a headless one).
    gains: regex of our paths -> factor on the drawn values. Deep random networks are chaotic in training mode: rounding
        grows with the depth, in gradients twice over (float32 then differs from float64 in the original itself by
        percents). Small last scales of residual branches tame it, as training does.
    exact: training mode in float64 on both sides, where nothing tames it: a network without residual branches.
    """

    backbone: str
    layout: str
    original: Callable[[], Any]
    taps: Mapping[str, Any]
    layers: tuple[str, str, str]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 64
    channels: int = 3
    classes: int | None = CLASSES
    inputs: Callable[[np.random.Generator], Inputs] | None = None
    load: Callable[[Any, Tensors], None] | None = None
    save: Callable[[Any], Tensors] | None = None
    logits: Callable[[Any], Any] | None = None
    gains: Mapping[str, float] = dataclasses.field(default_factory=dict)
    exact: bool = False
    smallest: bool = False
    tolerance: float = 1e-5
    name: str = ""  # when backbone and layout are not unique

    @property
    def id(self) -> str:
        return f"{self.name or self.backbone}-{self.layout}"

    @property
    def module(self) -> Any:
        return build_backbone(Component(kind=self.backbone, **self.arguments))

    @property
    def head(self) -> Any:
        return None if self.classes is None else published_head(self.module, self.classes)

    def draw_inputs(self, batch: int = 2) -> Inputs:
        """Two seeded examples; `inputs` decides its own batch."""
        rng = np.random.default_rng(7)
        if self.inputs is not None:
            return self.inputs(rng)
        image = rng.normal(size=(batch, self.size, self.size, self.channels)).astype(np.float32)
        return Inputs(image, (image.transpose(0, 3, 1, 2),))

    def shapes(self) -> dict[str, Any]:
        """Our leaves for inputs of the case."""
        example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self.draw_inputs().ours)
        return leaf_shapes(self.module, self.head, example)

    def leaves(self) -> Tensors:
        """Seeded values of all leaves."""
        return {path: draw(path, leaf.shape) * np.float32(self._gain(path)) for path, leaf in self.shapes().items()}

    def _gain(self, path: str) -> float:
        return next((gain for pattern, gain in self.gains.items() if re.fullmatch(pattern, path)), 1.0)


def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values for the leaf `path`, float32, from the hash of the path; sized so that signals neither die nor explode."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    kind = path.rpartition("/")[2]
    if kind in ("scale", "var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind == "kernel":
        fan_in = max(1, int(np.prod(shape[:-1])))
        return (rng.normal(size=shape) * np.sqrt(1.5 / fan_in)).astype(np.float32)
    return (rng.normal(size=shape) * 0.1).astype(np.float32)


def signature(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Number of tensors and numbers, and a hash over all names and shapes."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return {"tensors": len(lines), "numbers": int(sum(np.prod(t.shape, dtype=np.int64) for t in tensors.values())),
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def error(ours: Any, reference: Any) -> float:
    """Largest difference relative to the largest magnitude of the reference."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"shape {ours.shape} against {reference.shape}"
    assert np.isfinite(ours).all()
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-12))


class Ours:
    """Our network with the seeded leaves: eval outputs, and one pass in training mode with gradients."""

    def __init__(self, case: Case, leaves: Tensors) -> None:
        self.case, self.module, self.head = case, case.module, case.head
        self.leaves = dict(leaves)  # numpy arrays: becoming double would compile a program for every shape

    def run(self, leaves: Mapping[str, Any], inputs: Any, train: bool) -> tuple[Any, Any, Any]:
        """(taps, logits, moved statistics by path)."""
        taps, moved = _apply(self.module, variables_of(leaves, ""), train, inputs)
        if self.head is None:
            return taps, taps["pooled"], moved
        logits, more = _apply(self.head, variables_of(leaves, HEAD), train, taps)
        return taps, logits, moved | {HEAD + path: leaf for path, leaf in more.items()}

    def evaluate(self, inputs: Any) -> tuple[dict[str, Any], Any]:
        """(taps, logits) with stored statistics."""
        run = jax.jit(lambda leaves, x: self.run(leaves, x, False)[:2], compiler_options=quickly_compiled())
        return run(self.leaves, inputs)

    def train(self, inputs: Any, weights: np.ndarray) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """(logits, moved statistics, gradients of sum(logits * weights) to the case's layers) with batch statistics."""
        def loss(moving, leaves, x):
            _, logits, moved = self.run(leaves | moving, x, True)
            return (logits * weights).sum(), (logits, moved)

        moving = {path: self.leaves[path] for path in self.case.layers}
        differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quickly_compiled())
        (_, (logits, moved)), gradients = differentiate(moving, self.leaves, inputs)
        return logits, moved, gradients

    def become_double(self) -> None:
        """From here on in float64."""
        self.leaves = _doubled(self.leaves)
        self.module = self.module.clone(dtype=jnp.float64)
        self.head = None if self.head is None else self.head.clone(dtype=jnp.float64)


def _doubled(tree: Any) -> Any:
    """Arrays of float32 as float64; everything else as it is."""
    def double(leaf: Any) -> Any:
        return leaf.astype(np.float64) if getattr(leaf, "dtype", None) == np.float32 else leaf

    return jax.tree.map(double, tree)


def variables_of(leaves: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The variables of the backbone, or with the prefix HEAD of the head, among leaves by path."""
    own = {path.removeprefix(HEAD): leaf for path, leaf in leaves.items() if path.startswith(HEAD) == bool(prefix)}
    statistics = {path: leaf for path, leaf in own.items() if path.rpartition("/")[2] in STATISTICS}
    params = {path: leaf for path, leaf in own.items() if path not in statistics}
    return {"params": unflatten(params), "batch_stats": unflatten(statistics)}


def _apply(module: Any, variables: Any, train: bool, inputs: Any) -> tuple[Any, dict[str, Any]]:
    if not train:
        return module.apply(variables, inputs, train=False), {}
    output, moved = module.apply(variables, inputs, train=True, mutable=["batch_stats"],
                                 rngs={"dropout": jax.random.key(0)})
    return output, flatten(moved.get("batch_stats", {}))


class Original:
    """The original network with our tensors in it."""

    def __init__(self, case: Case, tensors: Tensors) -> None:
        self.case, self.torch = case, framework("torch")
        self.model = case.original()
        if case.load is not None:
            case.load(self.model, tensors)
        else:
            self.model.load_state_dict({name: self.torch.from_numpy(np.array(t)) for name, t in tensors.items()},
                                       strict=True)
        _silence_dropout(self.model)

    def tensors(self) -> Tensors:
        """Its tensors as its own files have them."""
        if self.case.save is not None:
            return self.case.save(self.model)
        return {name: tensor.detach().numpy().copy() for name, tensor in self.model.state_dict().items()}

    def evaluate(self, inputs: Inputs) -> tuple[dict[str, Any], np.ndarray]:
        """(taps that the case names, logits), maps as NHWC."""
        found: dict[str, Any] = {}
        hooks = [self._watch(tap, place, found) for tap, place in self.case.taps.items()]
        self.model.eval()
        with self.torch.no_grad():
            logits = self._call(inputs)
        for hook in hooks:
            hook.remove()
        return found, logits.numpy()

    def _watch(self, tap: str, place: Any, found: dict[str, Any]) -> Any:
        name, convert = (place, None) if isinstance(place, str) else place
        module = self.model.get_submodule(name)

        def keep(_, args, output):
            value = output[0] if isinstance(output, tuple) else output
            value = convert(value) if convert else value
            value = value.detach().numpy().copy()
            found[tap] = value.transpose(0, 2, 3, 1) if value.ndim == 4 and convert is None else value

        return module.register_forward_hook(keep)

    def train(self, inputs: Inputs, weights: np.ndarray) -> tuple[np.ndarray, Tensors, Tensors]:
        """(logits, tensors after one pass in training mode, gradients by foreign name)."""
        self.model.train()
        self.model.zero_grad()
        logits = self._call(inputs)
        (logits * self.torch.from_numpy(weights)).sum().backward()
        return logits.detach().numpy(), self.tensors(), self._gradients()

    def _gradients(self) -> Tensors:
        """By the names of files: if the case says how to save, the gradients lie in the parameters' place for that."""
        if self.case.save is None:
            return {name: p.grad.numpy() for name, p in self.model.named_parameters() if p.grad is not None}
        kept = [(parameter, parameter.data) for parameter in self.model.parameters()]
        for parameter, data in kept:
            parameter.data = self.torch.zeros_like(data) if parameter.grad is None else parameter.grad
        gradients = self.tensors()
        for parameter, data in kept:
            parameter.data = data
        return gradients

    def _call(self, inputs: Inputs) -> Any:
        as_torch = lambda a: self.torch.from_numpy(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a  # noqa: E731
        output = self.model(*map(as_torch, inputs.args), **{k: as_torch(v) for k, v in inputs.kwargs.items()})
        if self.case.logits is not None:
            return self.case.logits(output)
        if hasattr(output, "logits"):
            return output.logits
        return output[0] if isinstance(output, tuple) else output


def _silence_dropout(model: Any) -> None:
    """Random layers off, so that training mode can be compared."""
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "Dropout2d", "StochasticDepth"):
            module.p = 0.0
        for name in ("drop_prob", "dropout_prob", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@dataclasses.dataclass(frozen=True)
class Proof:
    """Worst relative errors of one case."""

    case: str
    parameters: int
    taps: float
    logits: float
    train: float
    statistics: float
    gradients: float

    @property
    def worst(self) -> float:
        return max(self.taps, self.logits, self.train, self.statistics, self.gradients)


def prove(case: Case) -> Proof:
    """Runs every comparison of a case; names, shapes and the round trip are asserted, errors are returned."""
    leaves, inputs = case.leaves(), case.draw_inputs()
    tensors = to_foreign(leaves, case.module, case.layout)
    original = Original(case, tensors)
    _assert_round_trip(case, leaves, original.tensors(), inputs)
    ours = Ours(case, leaves)
    taps, logits = ours.evaluate(inputs.ours)
    their_taps, their_logits = original.evaluate(inputs)
    assert set(their_taps) <= set(taps), f"taps {set(their_taps) - set(taps)} are not ours"
    tap_errors = {tap: error(taps[tap], value) for tap, value in their_taps.items()}
    weights = np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)
    example = _example(inputs)
    with jax.enable_x64(case.exact):
        if case.exact:
            ours.become_double()
            original.model.double()
            inputs, weights = Inputs(*map(_doubled, (inputs.ours, inputs.args, dict(inputs.kwargs)))), _doubled(weights)
        trained, moved, gradients = ours.train(inputs.ours, weights)
        their_trained, their_moved, their_gradients = original.train(inputs, weights)
    back, _ = to_ours(their_moved, case.module, case.layout, case.head, example)
    layout = find_layout(case.module, case.layout)
    gradient_errors = [error(gradients[path], foreign_gradient(their_gradients, path, layout)) for path in case.layers]
    assert all(np.abs(np.asarray(gradients[path])).max() > 0 for path in case.layers)
    numbers = sum(int(np.prod(leaf.shape)) for path, leaf in leaves.items()
                  if path.rpartition("/")[2] not in STATISTICS)
    return Proof(case.id, numbers, max(tap_errors.values(), default=0.0), error(logits, their_logits),
                 error(trained, their_trained),
                 max((error(leaf, back[path]) for path, leaf in moved.items()), default=0.0), max(gradient_errors))


def _example(inputs: Inputs) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), inputs.ours)


def _assert_round_trip(case: Case, leaves: Tensors, saved: Tensors, inputs: Inputs) -> None:
    """What the original saves comes back as the leaves that were written, bit for bit, and nothing is left over."""
    back, report = to_ours(saved, case.module, case.layout, case.head, _example(inputs))
    report.check()
    assert set(back) == set(leaves)
    for path, leaf in leaves.items():
        assert np.array_equal(back[path], leaf), f"{path} came back changed"
