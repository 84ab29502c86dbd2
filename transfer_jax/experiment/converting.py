"""Conversion of whole files: read in any layout, written in any other, with report and proof."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.experiment.export import DESCRIPTION, write_converted
from transfer_jax.models import build_backbone, build_head
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained.conversion import (
    OWN,
    Leaves,
    Options,
    detect_layout,
    find_layout,
    layouts_of,
    source_classes,
    source_example,
    to_foreign,
    to_ours,
)
from transfer_jax.pretrained.description import Description, Preprocessing, describe
from transfer_jax.pretrained.formats import TensorFile, read_tensors, unwrap_state_dict, write_tensors
from transfer_jax.pretrained.formats.writing import WRITERS
from transfer_jax.pretrained.originals import compare_outputs
from transfer_jax.pretrained.own_files import is_own_file, own_leaves
from transfer_jax.pretrained.roundtrip import check_round_trip
from transfer_jax.pretrained.sources import fetch
from transfer_jax.training.progress import output_console

WRITABLE = tuple(WRITERS)  # suffixes of files


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command `convert`, under the same names."""

    source: str
    model: str | None = None
    output: Path | None = None
    layout: str = OWN
    from_layout: str | None = None
    part: str | None = None
    sha256: str | None = None
    revision: str | None = None
    allow_missing: tuple[str, ...] = ()
    allow_unused: tuple[str, ...] = ()
    check: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """A model as it was read: components, leaves, and what its files say of it."""

    component: Component
    head: Component | None
    leaves: Leaves
    layout: str
    example: Any
    description: Description
    folder: Path | None = None  # where its files lie
    tensors: Any = None  # the foreign tensors, if it is no file of ours

    @property
    def backbone(self) -> Backbone:
        return build_backbone(self.component)


def convert(request: Request) -> Source:
    """Reads, checks and writes as the request says, and prints the report. Every fault is a UserError."""
    if request.output is None and not request.check:
        raise UserError("convert has nothing to do: give --output, --check or both")
    console = output_console()
    if request.output is not None:
        _require_writable(request.output, request)
    fetched = fetch(request.source, request.sha256, request.revision)
    file = read_tensors(fetched.path)
    description = describe(fetched.path, request.source)
    source = (_read_own if is_own_file(file) else _read_foreign)(request, file, description, console)
    source = dataclasses.replace(source, folder=fetched.path if fetched.path.is_dir() else fetched.path.parent)
    if request.check:
        _check(source, request, console)
    if request.output is not None:
        _write(source, request)
        _say(console, f"written: {request.output} ({request.layout})")
    return source


def _require_writable(output: Path, request: Request) -> None:
    """Says what is wrong with the output before anything is read."""
    if request.layout == OWN and output.suffix in WRITABLE:
        raise UserError(f"{output} would be a folder, since that is what the layout {OWN!r} is; for a file choose "
                        f"another --layout, for the folder a name without {output.suffix!r}")
    if request.layout != OWN and output.suffix not in WRITABLE:
        raise UserError(f"{output}: a file of the layout {request.layout!r} needs one of the suffixes "
                        f"{', '.join(WRITABLE)}")
    if output.exists() and not request.overwrite:
        raise UserError(f"{output} exists; give another --output, or --overwrite")
    if output.exists() and output.is_dir() != (request.layout == OWN):
        kind = "folder" if output.is_dir() else "file"
        raise UserError(f"{output} is a {kind}, which is not overwritten by what the layout {request.layout!r} is; "
                        f"give another --output")


def _say(console: Console, text: str) -> None:
    """Prints a line as it is: paths are neither broken nor taken for markup."""
    console.print(text, soft_wrap=True, markup=False)


def _read_foreign(request: Request, file: TensorFile, description: Description, console: Console) -> Source:
    component = _component(request, description)
    backbone = build_backbone(component)
    tensors = unwrap_state_dict(file.tensors, request.part)
    _require_layouts(request, backbone)
    layout = request.from_layout or detect_layout(tensors, backbone)
    classes = source_classes(tensors, backbone, layout)
    head = backbone.classifier.model_copy(update={"classes": classes}) if classes else None
    size = description.preprocessing.image_size if description.preprocessing else None
    example = source_example(tensors, backbone, layout, size)
    options = Options(request.allow_missing, request.allow_unused)
    leaves, report = to_ours(tensors, backbone, layout, _module(head), example, options, request.source)
    console.print(report.table())
    report.check()
    description = dataclasses.replace(description, classes=_fitting(description.classes, classes))
    if request.output is not None and request.layout == OWN and description.preprocessing is None:
        description = dataclasses.replace(description, preprocessing=_assumed(example, request, console))
    return Source(component, head, leaves, layout, example, description, tensors=tensors)


def _assumed(example: Any, request: Request, console: Console) -> Preprocessing | None:
    """What `predict` shall do with images where the source is silent: values in 0..1 at the published size."""
    if not isinstance(example, jax.ShapeDtypeStruct) or len(example.shape) != 4:
        return None
    height, width, channels = example.shape[1:]
    _say(console, f"the source does not tell how it wants its images: values in 0..1 of {height} x {width} pixels are "
                  f"assumed; if that is wrong, correct `preprocessing` in {request.output / DESCRIPTION}")
    return Preprocessing((height, width), mean=(0.0,) * channels, std=(1.0,) * channels, channels=channels)


def _require_layouts(request: Request, backbone: Backbone) -> None:
    """Both layouts of the request must be known before the work begins."""
    for name in (request.from_layout, None if request.layout == OWN else request.layout):
        if name is not None:
            find_layout(backbone, name)


def _fitting(names: tuple[str, ...] | None, count: int | None) -> tuple[str, ...] | None:
    """The names of `count` classes. Lists may go on with classes that the network does not know, as Darknet's do."""
    return names[:count] if names and count and len(names) >= count else None


def _read_own(request: Request, file: TensorFile, description: Description, console: Console) -> Source:
    if description.backbone is None:
        raise UserError(f"{request.source} has no {DESCRIPTION} beside its parameters; convert the whole model/ folder")
    component = build(Component, description.backbone, request.source)
    if request.model is not None and _component(request, description).kind != component.kind:
        raise UserError(f"{request.source} is the model {component.kind!r}, not {request.model!r}; leave out --model")
    backbone = build_backbone(component)
    _require_layouts(request, backbone)
    head = build(Component, description.head, request.source) if description.head else None
    published = backbone.classifier
    if request.layout != OWN and head and (published is None or head.kind != published.kind):
        known = f"a head of kind {published.kind!r}" if published else "no head"
        raise UserError(f"the head of {request.source} is of kind {head.kind!r}, but other frameworks know "
                        f"{component.kind} with {known}; train with that one to take it along")
    leaves = own_leaves(file)
    shape = description.image_shape
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32) if shape else backbone.example
    _say(console, f"{request.source}: {component.kind} of ours, {len(leaves)} tensors, "
                  f"{sum(leaf.size for leaf in leaves.values()):,} numbers")
    return Source(component, head, leaves, OWN, example, description)


def _component(request: Request, description: Description) -> Component:
    if request.model is not None:
        kind, _, text = request.model.partition(":")
        return build(Component, {"kind": kind, **arguments(text)}, "--model")
    if description.backbone is None:
        raise UserError(f"{request.source} does not say which model it is; name it with --model (python -m "
                        f"transfer_jax.models lists them)")
    return build(Component, description.backbone, request.source)


def arguments(text: str) -> dict[str, Any]:
    """'width=0.25,activation=relu' -> {'width': 0.25, 'activation': 'relu'}."""
    found: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--model: {item!r} is not of the form argument=value")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _module(head: Component | None) -> Any:
    return build_head(head) if head is not None else None


def _check(source: Source, request: Request, console: Console) -> None:
    backbone = source.backbone
    foreign = [name for name in dict.fromkeys((source.layout, request.layout)) if name != OWN]
    layouts = foreign or list(layouts_of(backbone)[:1])
    if not layouts:
        raise UserError(f"no other framework's layout is known for {source.component.kind}: there is nothing to "
                        f"--check against")
    for layout in layouts:
        given = source.tensors if layout == source.layout else None
        written = check_round_trip(source.leaves, backbone, _module(source.head), layout, source.example, given)
        _say(console, f"round trip through the layout {layout}: all {len(source.leaves)} tensors of ours and "
                      f"{len(written)} of theirs come back bit for bit")
    compare_outputs(source.component, source.head, source.leaves, written, layout, source.example, console,
                    source.description.architecture, source.folder)


def _write(source: Source, request: Request) -> None:
    output = request.output
    if request.layout == OWN:
        write_converted(output, source.component, source.head, source.leaves, source.description,
                        source.example.shape[1:])
        return
    tensors = to_foreign(source.leaves, source.backbone, request.layout)
    write_tensors(output, tensors, {"format": "pt"} if output.suffix == ".safetensors" else None,
                  overwrite=request.overwrite)
