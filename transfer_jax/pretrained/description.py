"""What lies beside published weights: which model it is, its classes, and how it wants its images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.models import BACKBONES, build_backbone
from transfer_jax.pretrained.architectures import from_timm, from_transformers, published_for
from transfer_jax.pretrained.catalog import Published, imagenet_classes, published_file
from transfer_jax.pretrained.images import Preprocessing, of_timm, of_torchvision, of_transformers

__all__ = ["Description", "Preprocessing", "describe", "pooling"]
WRONG = (TypeError, ValueError, KeyError, AttributeError, IndexError, StopIteration, ArithmeticError)
LARGEST_FILE = 64 * 2**20  # bytes; descriptions are small
NAME_LISTS = ("class_names.txt", "labels.txt", "imagenet.shortnames.list")  # of ml5.js, of TensorFlow Hub, of Darknet
SENTENCE_POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first",
                  "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "last"}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a source says of itself; None where it is silent.

    architecture: the original's own name. backbone, head: our components as plain dicts, the head with its number of
    classes. layout: of its tensors. native_size: (height, width) that position embeddings were made for, if that is
    not the size of the preprocessing.
    """

    source: str = ""
    architecture: str | None = None
    backbone: Mapping[str, Any] | None = None
    head: Mapping[str, Any] | None = None
    layout: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    native_size: tuple[int, int] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) of the inputs."""
        found = self.preprocessing
        return (*found.image_size, found.channels) if found else None

    def stream_arguments(self, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """The preprocessing as arguments of a stream, if need be for another size of the input."""
        if self.preprocessing is None:
            return {} if image_size is None else {"image_size": image_size}
        found = self.preprocessing if image_size is None else self.preprocessing.at(image_size)
        return dataclasses.asdict(found)


def describe(path: Path, source: str | None = None) -> Description:
    """Reads what lies beside the weights at `path` (a file or a folder); strangers are silent, damage is an error."""
    source = source or str(path)
    folder = path if path.is_dir() else path.parent
    if path.is_file() and (published := published_file(path.name)):
        return _torchvision(published, source)
    if (folder / "model.json").is_file() and (path.is_dir() or path.name == "parameters.safetensors"):
        return _checked(_beside_ours, folder / "model.json", source)
    if (folder / "config.json").is_file() and (path.is_dir() or path.suffix in (".safetensors", ".bin", ".json")):
        return _checked(_beside_theirs, folder / "config.json", source)
    return Description(source)


def _checked(read: Any, path: Path, source: str) -> Description:
    try:
        return read(_read(path), path.parent, source)
    except WRONG as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | StopIteration) else error
        raise UserError(f"{path} is not as such files are ({what}); correct it or fetch another copy") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("it is too large for a description")
        found = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); fetch another copy") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no mapping; fetch another copy")
    return found


def _torchvision(entry: Published, source: str) -> Description:
    classes = imagenet_classes()
    return Description(source, entry.architecture, entry.component, _head(entry.component, len(classes)),
                       "torchvision", classes, of_torchvision(entry))


def _head(backbone: Mapping[str, Any] | None, classes: int) -> dict[str, Any] | None:
    """The head that the family is published with."""
    if backbone is None or not classes or backbone["kind"] not in BACKBONES:
        return None
    head = build_backbone(build(Component, backbone)).classifier
    return {**head.model_dump(), "classes": classes} if head else None


def _beside_ours(found: dict[str, Any], folder: Path, source: str) -> Description:
    """The `model.json` of an export of ours; TF.js calls its own file the same."""
    if "weightsManifest" in found:
        return Description(source, layout="keras", classes=_listed_classes(folder))
    backbones, heads, tasks = found["model"]["backbones"], found["model"]["heads"], found.get("tasks", {})
    backbone = next(iter(backbones.values()))
    task = next((task for task in tasks.values() if task["evaluated_here"]), next(iter(tasks.values()), None))
    if task is None:
        return Description(source, backbone=backbone, layout="transfer_jax")
    told = task["preprocessing"]
    if len(task["image_shape"]) != 3:  # no images
        return Description(source, None, backbone, heads[task["task"]["head"]], "transfer_jax",
                           tuple(task["class_names"]) or None)
    height, width, channels = task["image_shape"]
    mean, std = (tuple(map(float, told[key])) if isinstance(told[key], list) else (float(told[key]),) * channels
                 for key in ("mean", "std"))
    resize = told.get("resize")
    images = Preprocessing((height, width), tuple(resize) if isinstance(resize, list) else resize, told["fit"],
                           told["interpolation"], mean, std, channels)
    return Description(source, None, backbone, heads[task["task"]["head"]], "transfer_jax",
                       tuple(task["class_names"]) or None, images)


def _listed_classes(folder: Path) -> tuple[str, ...] | None:
    """Names of classes in a text file, one a line in the order of the outputs; such lists may be too long."""
    for name in NAME_LISTS:
        if (folder / name).is_file() and (folder / name).stat().st_size <= LARGEST_FILE:
            return tuple((folder / name).read_text(errors="replace").splitlines()) or None
    return None


def _beside_theirs(found: dict[str, Any], folder: Path, source: str) -> Description:
    if "architecture" in found:
        return _timm(found, source)
    if "model_type" in found:
        return _transformers(found, folder, source)
    return Description(source)


def _timm(found: dict[str, Any], source: str) -> Description:
    """Both forms of timm's config.json: settings below `pretrained_cfg`, or flat in older files."""
    told = found.get("pretrained_cfg") or found
    name = found["architecture"]
    backbone = from_timm(name, found.get("model_args") or {}, found.get("global_pool") or "")
    count = int(found.get("num_classes", told.get("num_classes", 0)) or 0)
    names = found.get("label_names") or told.get("label_names") or found.get("labels")
    if isinstance(names, Mapping):  # by number, perhaps with gaps
        names = [names.get(str(i), f"class {i}") for i in range(count)]
    if not names and count == 1000 and "in1k" in f"{told.get('tag', '')}.{name}":
        names = imagenet_classes()
    classes = tuple(map(str, names)) if names else None
    if classes is not None and len(classes) != count:
        raise ValueError(f"{len(classes)} names for {count} classes")
    head = None if backbone and _projects(backbone) else _head(backbone, count)
    return Description(source, name, backbone, head, "timm", classes, of_timm(told))


def _projects(backbone: Mapping[str, Any]) -> bool:
    """CLIP's image tower: what timm calls its head is the projection."""
    return backbone["kind"].startswith("clip_image")


def _transformers(found: dict[str, Any], folder: Path, source: str) -> Description:
    told = folder / "preprocessor_config.json"
    images = of_transformers(_read(told)) if told.is_file() else None
    backbone = from_transformers(found, pooling(folder))
    names = found.get("id2label") or {}
    classes = tuple(str(names[key]) for key in sorted(names, key=int)) or None
    count = 0
    if "Classification" in published_for(found):
        count = len(names) or int(found.get("num_labels", 2))
    if count == 0 or (classes and all(name == f"LABEL_{i}" for i, name in enumerate(classes))):
        classes = None
    size = found.get("image_size")
    native = (size, size) if isinstance(size, int) else tuple(size) if size else None
    native = None if images is None or native == images.image_size else native
    return Description(source, found["model_type"], backbone, _head(backbone, count), "transformers", classes, images,
                       native)


def pooling(folder: Path) -> dict[str, Any]:
    """How a sentence encoder pools its tokens: {'pool': 'mean', 'normalize': True}; empty for other models."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return {}
    told = _read(file)
    chosen = [kind for key, kind in SENTENCE_POOLS.items() if told.get(key)]
    if "pooling_mode" in told:  # newer files name it
        chosen = [{"cls": "first", "lasttoken": "last"}.get(told["pooling_mode"], told["pooling_mode"])]
    others = [key for key, value in told.items() if key.startswith("pooling_mode_") and value is True
              and key not in SENTENCE_POOLS]
    if len(chosen) != 1 or others or chosen[0] not in SENTENCE_POOLS.values():
        raise UserError(f"{file} pools in a way that is not known here ({', '.join([*chosen, *others]) or 'none'}); "
                        f"name the model and its pooling yourself")
    modules = folder / "modules.json"
    return {"pool": chosen[0], "normalize": modules.is_file() and "Normalize" in modules.read_text()}
