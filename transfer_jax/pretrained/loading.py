"""From a source as the user names it to the leaves of a model, with report and provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Spec
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained import words as word_vectors
from transfer_jax.pretrained.conversion import Leaves, Options, detect_layout, leaf_shapes, to_ours
from transfer_jax.pretrained.formats import TensorFile, read_tensors, unwrap_state_dict
from transfer_jax.pretrained.own_files import from_own_file, is_own_file
from transfer_jax.pretrained.report import LoadReport
from transfer_jax.pretrained.sources import Fetched, fetch


class PretrainedSpec(Spec):
    """Where the parameters of one backbone come from, and what may differ.

    source: a file or folder, an https URL, hf://org/name, or a known name such as 'torchvision/resnet50'.
    layout: torchvision, timm, transformers, ... ; None: the one whose names the file has; word_vectors: a file of GloVe
        or word2vec, or a folder of such, fills the table of the words that the data have.
    head: our head that takes over the published classifier; None leaves it out.
    part: which of several dictionaries in one checkpoint ('state_dict_ema').
    allow_missing, allow_unused, channels: see `transfer_jax.pretrained.conversion.Options`.
    """

    source: str
    layout: str | None = None
    head: str | None = None
    part: str | None = None
    sha256: str | None = None
    revision: str | None = None
    allow_missing: tuple[str, ...] = ()
    allow_unused: tuple[str, ...] = ()
    channels: str | None = None

    @property
    def options(self) -> Options:
        return Options(self.allow_missing, self.allow_unused, self.channels)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Leaves of backbone and head ('head/...'), the account of all tensors, and where they came from."""

    leaves: Leaves
    report: LoadReport
    fetched: Fetched


def load(spec: PretrainedSpec, backbone: Backbone, head: nn.Module | None = None, example: Any = None,
         words: Sequence[str] = ()) -> Loaded:
    """Reads the source of `spec` into `backbone` (and `head`, if it is to be filled); `words`: what tokens stand for.

    Raises `LoadError`, which carries the report, for anything that is not explained.
    """
    fetched = fetch(spec.source, spec.sha256, spec.revision)
    if spec.layout == word_vectors.LAYOUT:
        leaves, report = word_vectors.from_word_vectors(fetched.path, words, leaf_shapes(backbone, None, example),
                                                        spec.source, type(backbone).__name__)
    elif is_own_file(file := read_tensors(fetched.path)):
        leaves, report = from_own_file(file, backbone, head, leaf_shapes(backbone, head, example), spec.options,
                                       spec.source)
    else:
        tensors = tensors_of(file, spec.part)
        layout = spec.layout or detect_layout(tensors, backbone)
        leaves, report = to_ours(tensors, backbone, layout, head, example, spec.options, spec.source)
    report.check()
    for path, leaf in leaves.items():
        if not np.isfinite(leaf).all():
            raise UserError(f"{spec.source}: {path!r} holds values that are not finite; the file is damaged or its "
                            f"training had failed; fetch another copy")
    return Loaded(leaves, report, fetched)


def tensors_of(file: TensorFile, part: str | None = None) -> Mapping[str, np.ndarray]:
    """The state dictionary inside a file: what training code wraps around it is taken off."""
    return unwrap_state_dict(file.tensors, part)


def provenance(loaded: Loaded, spec: PretrainedSpec) -> dict[str, Any]:
    """What `pretrained.json` and `model.json` record."""
    return {**{key: value for key, value in spec.model_dump(mode="json").items() if value},
            "path": str(Path(loaded.fetched.path)), "revision": loaded.fetched.revision,
            "sha256": loaded.fetched.sha256, "report": loaded.report.summary()}
