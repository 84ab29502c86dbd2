"""The language of the rule tables: foreign tensor names against our parameter paths, each with a layout operation.

A table is read from our side: for every leaf of a model the first rule whose template matches its path names the
foreign tensor and the operation between the two. So one table serves reading and writing.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.models.taps import Backbone

Array = np.ndarray
Naming = str | Callable[..., str]


@dataclasses.dataclass(frozen=True)
class Op:
    """A layout operation and its inverse. Neither loses anything: `inverse(forward(a))` is `a`, bit for bit.

    An op with `count` > 1 takes the part `index` of `count` equal parts of the foreign tensor along `axis`; when
    writing, the parts of one foreign tensor are joined again. `edges`: where parts begin that are not equal.
    """

    name: str
    forward: Callable[[Array], Array]  # theirs -> ours
    inverse: Callable[[Array], Array]  # ours -> theirs
    index: int = 0
    count: int = 1
    axis: int = 0
    edges: tuple[int, ...] = ()


def permuted(*axes: int) -> Op:
    """Their axes in the order that ours have: `ours = theirs.transpose(axes)`."""
    back = tuple(int(i) for i in np.argsort(axes))
    return Op(f"transpose{axes}", lambda a: a.transpose(axes), lambda a: a.transpose(back))


def reshaped(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Op:
    """The same numbers in the same order under another shape (one entry of each may be -1)."""
    return Op(f"reshape{theirs}->{ours}", lambda a: a.reshape(ours), lambda a: a.reshape(theirs))


def chained(first: Op, second: Op) -> Op:
    """Their tensor goes through `first`, then `second`. Parts are taken by `first` only."""
    return dataclasses.replace(first, name=f"{first.name}, {second.name}",
                               forward=lambda a: second.forward(first.forward(a)),
                               inverse=lambda a: first.inverse(second.inverse(a)))


def part(index: int, count: int, op: Op | None = None, axis: int = 0) -> Op:
    """Part `index` of `count` equal parts of their tensor along `axis`, then `op`: packed q | k | v projections."""
    op = op or AS_IS
    return Op(f"part {index + 1} of {count}, {op.name}", op.forward, op.inverse, index, count, axis)


def section(index: int, edges: tuple[int, ...], op: Op | None = None, axis: int = 0) -> Op:
    """Section `index` of their tensor along `axis`, which is cut before each of the `edges`, then `op`."""
    op = op or AS_IS
    return Op(f"section {index + 1} cut at {edges}, {op.name}", op.forward, op.inverse, index, len(edges) + 1, axis,
              edges)


def dense_after_flatten(channels: int, height: int, width: int) -> Op:
    """Kernel of a dense layer behind a flattened map: (F, C * H * W) -> (H * W * C, F)."""
    def forward(a: Array) -> Array:
        return a.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    def inverse(a: Array) -> Array:
        return a.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(a.shape[1], -1)

    return Op(f"flatten C, H, W = {channels}, {height}, {width}", forward, inverse)


AS_IS = Op("as it is", lambda a: a, lambda a: a)
TRANSPOSE = permuted(1, 0)
OIHW = permuted(2, 3, 1, 0)  # also right for depthwise and grouped kernels: (C, 1, h, w) -> (h, w, 1, C)
DEPTHWISE_HWCM = Op("depthwise (h, w, C, 1)", lambda a: a.reshape(*a.shape[:2], 1, -1),
                    lambda a: a.reshape(*a.shape[:2], -1, 1))
POINTWISE = Op("1x1 convolution as a dense layer", lambda a: a.reshape(a.shape[:2]).T,
               lambda a: a.T.reshape(*a.T.shape, 1, 1))  # (O, I, 1, 1) <-> (I, O)
POINTWISE_HWIO = Op("1x1 convolution (1, 1, I, O) as a dense layer", lambda a: a.reshape(a.shape[2:]),
                    lambda a: a[None, None])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    ours: path template; `{b}` stands for digits, or for what `{b:pattern}` says.
    theirs: foreign name with `{b}`, `{b+1}`, `{b-1}` ..., or a callable of the captured fields (digits as int).
    """

    ours: str
    theirs: Naming
    op: Op = AS_IS

    def name(self, path: str) -> str | None:
        """The foreign name of our leaf `path`; None if the rule does not apply to it."""
        found = _pattern(self.ours).fullmatch(path)
        if found is None:
            return None
        fields = {key: int(value) if value.isdigit() else value for key, value in found.groupdict().items()}
        return self.theirs(**fields) if callable(self.theirs) else _fill(self.theirs, fields)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)(?::([^{}]+))?\}", template)
    text = re.escape(pieces[0])
    for i in range(1, len(pieces), 3):
        text += f"(?P<{pieces[i]}>{pieces[i + 1] or '[0-9]+'})" + re.escape(pieces[i + 2])
    return re.compile(text)


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    def value(found: re.Match[str]) -> str:
        field = fields[found[1]]
        return str(field + int(found[2])) if found[2] else str(field)

    return re.sub(r"\{(\w+)([+-]\d+)?\}", value, template)


def rules(*groups: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules and groups of rules as one flat table."""
    return tuple(rule for group in groups for rule in ([group] if isinstance(group, Rule) else group))


def _joined(theirs: Naming, suffix: str) -> Naming:
    if callable(theirs):
        return lambda **fields: theirs(**fields) + suffix
    return theirs + suffix


@dataclasses.dataclass(frozen=True)
class Style:
    """How one framework names and lays out the tensors of a layer."""

    separator: str
    kernel: str
    conv_op: Op
    dense_op: Op
    scale: str
    norm_bias: str
    mean: str
    var: str
    table: str

    def _leaf(self, ours: str, theirs: Naming, leaf: str, name: str, op: Op = AS_IS) -> Rule:
        return Rule(f"{ours}/{leaf}", _joined(theirs, self.separator + name), op)

    def conv(self, ours: str, theirs: Naming, op: Op | None = None) -> tuple[Rule, ...]:
        """Kernel and bias of a convolution (of any grouping)."""
        return (self._leaf(ours, theirs, "kernel", self.kernel, op or self.conv_op),
                self._leaf(ours, theirs, "bias", "bias"))

    def dense(self, ours: str, theirs: Naming, op: Op | None = None) -> tuple[Rule, ...]:
        """Kernel and bias of a dense layer."""
        return (self._leaf(ours, theirs, "kernel", self.kernel, op or self.dense_op),
                self._leaf(ours, theirs, "bias", "bias"))

    def norm(self, ours: str, theirs: Naming) -> tuple[Rule, ...]:
        """Scale and bias of any normalisation, and the statistics of BatchNorm."""
        return (self._leaf(ours, theirs, "scale", self.scale), self._leaf(ours, theirs, "bias", self.norm_bias),
                self._leaf(ours, theirs, "mean", self.mean), self._leaf(ours, theirs, "var", self.var))

    def embedding(self, ours: str, theirs: Naming) -> tuple[Rule, ...]:
        """The table of `nn.Embed`."""
        return (self._leaf(ours, theirs, "embedding", self.table),)


TORCH = Style(".", "weight", OIHW, TRANSPOSE, "weight", "bias", "running_mean", "running_var", "weight")
KERAS = Style("/", "kernel", AS_IS, AS_IS, "gamma", "beta", "moving_mean", "moving_variance", "embeddings")
FLAX = Style("/", "kernel", AS_IS, AS_IS, "scale", "bias", "mean", "var", "embedding")


@dataclasses.dataclass(frozen=True)
class Layout:
    """All about one foreign layout of one model.

    rules: the table.
    ignore: regexes (whole names) of foreign tensors that carry nothing to learn: counters, index buffers, old heads.
    prefix: what the names of a file may or may not start with ('bert.'); written when writing. The table has it.
    input_kernels: our paths of kernels that read the input's channels, for another number of channels.
    resized: our path -> function (theirs in our layout, our shape) -> array, for another image or window size.
    modules: our tap -> the original's module whose output it is, for comparisons of outputs stage by stage.
    channels_last: whether maps that these modules give are [B, H, W, C] or [B, H * W, C], not [B, C, H, W].
    extras: (backbone, written tensors) -> further tensors that the original expects when it loads strictly.
    """

    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    prefix: str = ""
    input_kernels: tuple[str, ...] = ()
    resized: Mapping[str, Callable[[Array, tuple[int, ...]], Array]] = dataclasses.field(default_factory=dict)
    modules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    channels_last: bool = False
    extras: Callable[[Backbone, Mapping[str, Array]], dict[str, Array]] | None = None

    def find(self, path: str) -> tuple[str, Op] | None:
        """Foreign name and operation for our leaf `path`; None if no rule covers it."""
        for rule in self.rules:
            name = rule.name(path)
            if name is not None:
                return name, rule.op
        return None
