"""Foreign tensors <-> the leaves of one backbone and its published classifier, with an account of every tensor.

Leaves have flat paths without collection ('stage1/block0/bn1/mean'); those of the classifier start with `head/`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.paths import flatten
from transfer_jax.models import build_head
from transfer_jax.models.blocks import stack_blocks, unstack_blocks
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained.channels import adapt_channels
from transfer_jax.pretrained.report import Entry, LoadReport
from transfer_jax.pretrained.rules import LAYOUTS
from transfer_jax.pretrained.rules.table import Array, Layout, Op

HEAD = "head/"
STATISTICS = ("mean", "var")  # last part of the path of leaves that are no parameters
OWN = "transfer_jax"  # the layout of our own files: our paths, our shapes
Leaves = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """What may differ between a source and the model.

    allow_missing, allow_unused: regexes (whole names) of our leaves that may keep fresh values, and of foreign tensors
        that may stay behind.
    channels: how kernels are adapted to another number of input channels: sum, repeat or mean; None: an error.
    """

    allow_missing: tuple[str, ...] = ()
    allow_unused: tuple[str, ...] = ()
    channels: str | None = None


def layouts_of(backbone: Backbone) -> tuple[str, ...]:
    """Names of the foreign layouts that have a table for this backbone."""
    return tuple(LAYOUTS.get(type(backbone), ()))


def find_layout(backbone: Backbone, name: str) -> Layout:
    """The table of the layout `name` for this backbone."""
    tables = LAYOUTS.get(type(backbone), {})
    if name not in tables:
        raise unknown("layout", name, (*tables, OWN), f"the tables of {type(backbone).__name__}")
    return tables[name](whole(backbone))


def whole(backbone: Backbone) -> Backbone:
    """The same network uncut, with its blocks one by one: the form that tables speak of."""
    return backbone.clone(until=None, scan=False) if hasattr(backbone, "scan") else backbone.clone(until=None)


def leaf_shapes(backbone: Backbone, head: nn.Module | None = None, example: Any = None) -> dict[str, Any]:
    """Shape and dtype of every leaf, for inputs like `example` (default: those the family was published with)."""
    example = backbone.example if example is None else example
    leaves, tree = jax.tree.flatten(example)
    return dict(_leaf_shapes(backbone, head, tree, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)))


@functools.lru_cache(maxsize=64)  # a conversion asks for the same shapes again and again, and tracing takes seconds
def _leaf_shapes(backbone: Backbone, head: nn.Module | None, tree: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    def draw(key: jax.Array) -> Any:
        example = jax.tree.unflatten(tree, [jnp.zeros(leaf.shape, leaf.dtype) for leaf in inputs])
        taps, variables = backbone.init_with_output({"params": key, "dropout": key}, example, train=False)
        return variables, head.init({"params": key, "dropout": key}, taps, train=False) if head is not None else {}

    parts = jax.eval_shape(draw, jax.random.key(0))
    return {prefix + path: leaf for prefix, variables in zip(("", HEAD), parts, strict=True)
            for collection in ("params", "batch_stats")
            for path, leaf in flatten(variables.get(collection, {})).items()}


def published_head(backbone: Backbone, classes: int) -> nn.Module | None:
    """The classifier of the family for `classes` classes; None if it has none."""
    component = backbone.classifier
    if component is None:
        return None
    return build_head(component.model_copy(update={"classes": classes}))


def source_classes(tensors: Mapping[str, Array], backbone: Backbone, layout_name: str) -> int | None:
    """How many classes the head of the source has; None if it holds no head."""
    if backbone.classifier is None:
        return None
    few, more = (leaf_shapes(whole(backbone), published_head(backbone, n)) for n in (5, 7))
    layout = find_layout(backbone, layout_name)
    tensors = unwrapped(tensors, layout, few)
    for path, leaf in few.items():
        axes = [i for i, (a, b) in enumerate(zip(leaf.shape, more[path].shape, strict=True)) if a != b]
        found = layout.find(path)
        if axes and found and found[0] in tensors:
            return int(_taken(tensors[found[0]], found[1]).shape[axes[0]])
    return None


def source_example(tensors: Mapping[str, Array], backbone: Backbone, layout_name: str,
                   image_size: tuple[int, int] | None = None) -> Any:
    """An input like those of the source: its own number of channels, at `image_size` (default: the published one)."""
    example = backbone.example
    if not isinstance(example, jax.ShapeDtypeStruct) or len(example.shape) != 4:
        return example
    layout = find_layout(backbone, layout_name)
    tensors = unwrapped(tensors, layout, leaf_shapes(whole(backbone)))
    channels = example.shape[3]
    for path in layout.input_kernels:
        found = layout.find(path)
        if found and found[0] in tensors:
            channels = _taken(tensors[found[0]], found[1]).shape[-2]
    return jax.ShapeDtypeStruct((1, *(image_size or example.shape[1:3]), channels), example.dtype)


def detect_layout(tensors: Mapping[str, Array], backbone: Backbone) -> str:
    """The layout whose names the file has most of."""
    shapes = leaf_shapes(whole(backbone))
    shares = {}
    for name in layouts_of(backbone):
        layout = find_layout(backbone, name)
        names = {found[0] for path in shapes if (found := layout.find(path))}
        shares[name] = len(names & set(unwrapped(tensors, layout, shapes))) / max(1, len(names))
    best = max(shares, key=shares.get, default=None)
    if best is None or shares[best] < 0.5:
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) or "none is known"
        raise UserError(f"the tensors have the names of no layout of {type(backbone).__name__} (found of each: "
                        f"{told}); the first are {', '.join(list(tensors)[:3])}; is this the right model?")
    return best


def to_ours(tensors: Mapping[str, Array], backbone: Backbone, layout_name: str, head: nn.Module | None = None,
            example: Any = None, options: Options = Options(), source: str = "source") -> tuple[Leaves, LoadReport]:
    """Our leaves out of foreign tensors.

    Args:
        tensors: foreign tensors by name, float of any width; they become float32.
        backbone: may be cut by `until`: what lies behind is left out. With `scan` the blocks come out stacked.
        head: the classifier to fill; None leaves the source's head out.
        example: an input of the model's shape (image size, channels), `ShapeDtypeStruct`.

    Returns:
        The leaves that were found, and the account of all. Nothing raises here: see `LoadReport.check`.
    """
    layout = find_layout(backbone, layout_name)
    blockwise = backbone.clone(scan=False) if hasattr(backbone, "scan") else backbone
    wanted = leaf_shapes(blockwise, head, example)
    any_head = head if head is not None else published_head(backbone, 1)
    every = leaf_shapes(whole(backbone), any_head, example)
    tensors = unwrapped(tensors, layout, every)
    leaves: Leaves = {}
    entries: list[Entry] = []
    for path, shape in wanted.items():
        leaf, entry = _convert(path, shape.shape, tensors, layout, options)
        entries.append(entry)
        if leaf is not None:
            leaves[path] = leaf
    entries += _remaining(tensors, layout, wanted, every, options)
    report = LoadReport(source, layout_name, type(backbone).__name__, tuple(entries))
    return (stack_blocks(leaves) if getattr(backbone, "scan", False) else leaves), report


def to_foreign(leaves: Mapping[str, Array], backbone: Backbone, layout_name: str) -> Leaves:
    """Foreign tensors out of our leaves: the inverse of `to_ours`, with what the original expects besides."""
    layout = find_layout(backbone, layout_name)
    if getattr(backbone, "scan", False):
        leaves = unstack_blocks(leaves)
    pieces: dict[str, dict[int, Array]] = {}
    ops: dict[str, Op] = {}
    for path, leaf in leaves.items():
        name, op = _required(layout, path)
        piece = op.inverse(np.asarray(leaf))
        earlier = pieces.setdefault(name, {}).setdefault(op.index, piece)
        if earlier is not piece and not np.array_equal(earlier, piece):
            raise UserError(f"{name!r} of the layout {layout_name!r} stands for several of our leaves, among them "
                            f"{path!r}, and these have become different; write another layout")
        ops[name] = op
    written = {}
    for name, parts in pieces.items():
        if len(parts) != ops[name].count:
            raise UserError(f"{name!r} of the layout {layout_name!r} needs {ops[name].count} leaves of ours, "
                            f"but only {len(parts)} are there")
        written[name] = np.ascontiguousarray(np.concatenate([parts[i] for i in range(len(parts))], ops[name].axis)
                                             if len(parts) > 1 else parts[0])
    return written | (layout.extras(whole(backbone), written) if layout.extras else {})


def _required(layout: Layout, path: str) -> tuple[str, Op]:
    found = layout.find(path)
    if found is None:
        raise UserError(f"this layout has no name for our leaf {path!r}: the model has a part that the original "
                        f"lacks; choose another layout or the published form of the model")
    return found


def unwrapped(tensors: Mapping[str, Array], layout: Layout, shapes: Mapping[str, Any]) -> dict[str, Array]:
    """The tensors under the names that the table has: wrappers of training code removed, `layout.prefix` present."""
    known = {found[0] for path in shapes if (found := layout.find(path))}
    bare = {name.removeprefix(layout.prefix) for name in known}
    # Distinctive names only: 'weight' alone would end many names.
    probes = sorted(bare, key=lambda name: (-len(re.findall("[./]", name)), -len(name), name))[:5]
    fronts = Counter(name[:-len(probe)] for probe in probes for name in tensors
                     if name.endswith(probe) and (name == probe or name[-len(probe) - 1] in "./"))
    front = max(fronts, key=lambda text: (fronts[text], -len(text)), default="")
    wrapper = front.removesuffix(layout.prefix)
    if not wrapper and front == layout.prefix:
        return dict(tensors)

    def renamed(name: str) -> str:
        inner = name.removeprefix(wrapper)
        return layout.prefix + inner if layout.prefix + inner in known else inner

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _taken(tensor: Array, op: Op) -> Array:
    piece = np.split(tensor, op.edges or op.count, op.axis)[op.index] if op.count > 1 else tensor
    return op.forward(piece)


def _convert(path: str, shape: tuple[int, ...], tensors: Mapping[str, Array], layout: Layout,
             options: Options) -> tuple[Array | None, Entry]:
    found = layout.find(path)
    if found is None or found[0] not in tensors:
        allowed = matches(options.allow_missing, path)
        return None, Entry("new" if allowed else "missing", path, found[0] if found else None, shape)
    name, op = found
    try:
        leaf = _taken(tensors[name], op)
    except ValueError:
        return None, Entry("mismatch", path, name, shape, f"theirs has the shape {list(tensors[name].shape)}")
    note = "rounded to float32" if leaf.dtype == np.float64 and (leaf != leaf.astype(np.float32)).any() else ""
    leaf = np.ascontiguousarray(leaf.astype(np.float32))
    if leaf.shape == shape:
        return leaf, Entry("adapted" if note else "loaded", path, name, shape, note)
    other_channels = path in layout.input_kernels and leaf.shape[:-2] + leaf.shape[-1:] == shape[:-2] + shape[-1:]
    resize = next((function for pattern, function in layout.resized.items() if re.fullmatch(pattern, path)), None)
    if other_channels and options.channels:
        note = f"{leaf.shape[-2]} input channels -> {shape[-2]} by {options.channels!r}"
        return adapt_channels(leaf, shape[-2], options.channels), Entry("adapted", path, name, shape, note)
    if resize is not None:
        note = f"{list(leaf.shape)} resized by {resize.__name__}"
        return resize(leaf, shape).astype(np.float32), Entry("adapted", path, name, shape, note)
    note = f"theirs has the shape {list(leaf.shape)} in our layout"
    if other_channels:
        note += "; set channels to 'sum', 'repeat' or 'mean'"
    if matches(options.allow_missing, path):
        return None, Entry("new", path, name, shape, note)
    return None, Entry("mismatch", path, name, shape, note)


def _remaining(tensors: Mapping[str, Array], layout: Layout, wanted: Mapping[str, Any], every: Mapping[str, Any],
               options: Options) -> list[Entry]:
    """What becomes of the foreign tensors that no wanted leaf took."""
    used = {found[0] for path in wanted if (found := layout.find(path))}
    elsewhere = {found[0]: path for path in every if (found := layout.find(path))}
    entries = []
    for name, tensor in tensors.items():
        if name in used:
            continue
        if name in elsewhere:
            why = "another head takes its place" if elsewhere[name].startswith(HEAD) else "behind the cut"
            entries.append(Entry("left out", None, name, tensor.shape, why))
        elif matches(layout.ignore, name):
            entries.append(Entry("ignored", None, name, tensor.shape))
        elif matches(options.allow_unused, name):
            entries.append(Entry("left out", None, name, tensor.shape, "allowed by allow_unused"))
        else:
            entries.append(Entry("unused", None, name, tensor.shape))
    return entries


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether one of the regexes is the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def foreign_gradient(gradients: Mapping[str, Array], path: str, layout: Layout) -> Array:
    """The part of the original's gradients (by foreign name) that belongs to our leaf `path`, in our layout."""
    name, op = _required(layout, path)
    return _taken(gradients[name], op)
