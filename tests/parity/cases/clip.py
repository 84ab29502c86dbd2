"""Both towers of CLIP against transformers, timm, and OpenAI's layout.

The framework of the last cannot be installed. What stands for it here is written from the paper around torch's own
attention, which OpenAI's files pack their tensors for.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import numpy as np

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case, Inputs
from tests.parity.oracle import framework
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import find_layout

PATCHES = 3  # per side of the test images
LENGTHS = (11, 7)  # tokens of the two texts, their end included
VOCABULARY = 800


def _transformers_image(backbone: Any) -> Any:
    transformers = framework("transformers")
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
        hidden_size=backbone.width, intermediate_size=4 * backbone.width, num_hidden_layers=backbone.layers,
        num_attention_heads=backbone.heads, projection_dim=backbone.projection, patch_size=backbone.patch,
        image_size=PATCHES * backbone.patch))


def _transformers_text(backbone: Any) -> Any:
    transformers = framework("transformers")
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        vocab_size=backbone.vocabulary, hidden_size=backbone.width, intermediate_size=4 * backbone.width,
        num_hidden_layers=backbone.layers, num_attention_heads=backbone.heads, projection_dim=backbone.projection,
        max_position_embeddings=backbone.positions, eos_token_id=backbone.vocabulary - 1))


def _timm(backbone: Any) -> Any:
    size = {768: "base", 1024: "large"}[backbone.width]
    return framework("timm").create_model(
        f"vit_{size}_patch{backbone.patch}_clip_quickgelu_224", img_size=PATCHES * backbone.patch,
        depth=backbone.layers, num_classes=backbone.projection or CLASSES)


def _blocks(backbone: Any, causal: bool) -> Any:
    """`resblocks` in front of which a norm stands in each branch."""
    torch = framework("torch")

    class QuickGELU(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x / (1 + torch.exp(-1.702 * x))

    class Block(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            self.attn = torch.nn.MultiheadAttention(width, backbone.heads, batch_first=True)
            self.mlp = torch.nn.Sequential(OrderedDict(
                c_fc=torch.nn.Linear(width, 4 * width), act=QuickGELU(), c_proj=torch.nn.Linear(4 * width, width)))

        def forward(self, x: Any) -> Any:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if causal else None
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=later)[0]
            return x + self.mlp(self.ln_2(x))

    blocks = torch.nn.Module()
    blocks.resblocks = torch.nn.Sequential(*(Block(backbone.width) for _ in range(backbone.layers)))
    return blocks


def _openai_image(backbone: Any) -> Any:
    torch, width = framework("torch"), backbone.width

    class Visual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, width, backbone.patch, backbone.patch, bias=False)
            self.class_embedding = torch.nn.Parameter(torch.zeros(width))
            self.positional_embedding = torch.nn.Parameter(torch.zeros(PATCHES**2 + 1, width))
            self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            self.transformer = _blocks(backbone, causal=False)
            self.proj = torch.nn.Parameter(torch.zeros(width, backbone.projection))

        def forward(self, image: Any) -> Any:
            patches = self.conv1(image).flatten(2).transpose(1, 2)
            first = self.class_embedding.expand(len(image), 1, width)
            x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
            return self.ln_post(self.transformer.resblocks(x)[:, 0]) @ self.proj

    class Clip(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Visual()

        def forward(self, image: Any) -> Any:
            return self.visual(image)

    return Clip()


def _openai_text(backbone: Any) -> Any:
    torch, width = framework("torch"), backbone.width

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = torch.nn.Embedding(backbone.vocabulary, width)
            self.positional_embedding = torch.nn.Parameter(torch.zeros(backbone.positions, width))
            self.transformer = _blocks(backbone, causal=True)
            self.ln_final = torch.nn.LayerNorm(width)
            self.text_projection = torch.nn.Parameter(torch.zeros(width, backbone.projection))

        def forward(self, tokens: Any) -> Any:
            x = self.token_embedding(tokens) + self.positional_embedding[:tokens.shape[1]]
            x = self.ln_final(self.transformer.resblocks(x))
            return x[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection

    return Text()


def _texts(rng: np.random.Generator, end: int, masked: bool) -> Inputs:
    """Two texts that end with the largest number, padded by zeros; with the mask of transformers, or without."""
    tokens = rng.integers(1, VOCABULARY - 1, (2, LENGTHS[0])).astype(np.int32)
    numbers, lengths = np.arange(LENGTHS[0])[None], np.array(LENGTHS)[:, None]
    tokens[numbers >= lengths] = 0
    tokens[np.arange(2), np.array(LENGTHS) - 1] = end
    if not masked:
        return Inputs(tokens, (tokens.astype(np.int64),))
    mask = numbers < lengths
    return Inputs({"tokens": tokens, "mask": mask}, kwargs={
        "input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64)})


FILES = {"load": transformers_original.load, "save": transformers_original.save}
ORIGINALS = {
    "image": {"transformers": (_transformers_image, {"logits": lambda output: output.image_embeds, **FILES}),
              "timm": (_timm, {}), "openai": (_openai_image, {})},
    "text": {"transformers": (_transformers_text, {"logits": lambda output: output.text_embeds, **FILES}),
             "openai": (_openai_text, {})},
}


def _case(tower: str, size: str, layout: str, few: bool = True, **arguments: Any) -> Case:
    """few: two blocks, and for texts fewer rows; everything else is as published."""
    kind = f"clip_{tower}_{size}"
    arguments |= {"layers": 2} if few else {}
    if few and tower == "text":
        arguments |= {"vocabulary": VOCABULARY, "positions": 40}
    backbone = build_backbone(Component(kind=kind, **arguments))
    taps = dict(find_layout(backbone, layout).modules)
    if layout == "timm":
        taps["features"] = ("norm", lambda tokens: tokens[:, 0])
    original, more = ORIGINALS[tower][layout]
    if tower == "text":
        more = more | {"inputs": functools.partial(_texts, end=backbone.vocabulary - 1,
                                                   masked=layout == "transformers")}
        first = "word/embedding"
    else:
        more = more | {"size": PATCHES * backbone.patch}
        first = "patches/kernel"
    classes = None if backbone.projection else CLASSES
    name = kind + ("_few" if few else "") + ("" if backbone.projection else "_linear")
    return Case(kind, layout, functools.partial(original, backbone), taps,
                (first, "block1/attention/key/kernel" if tower == "text" else "block1/attention/query/kernel",
                 "projection/kernel" if backbone.projection else "head/dense/kernel"),
                arguments, classes=classes, name=name, tolerance=1e-4, smallest=few and size == "b32",
                **more)


CASES = [
    *(_case("image", "b32", layout) for layout in ORIGINALS["image"]),
    _case("image", "b32", "timm", projection=None),
    *(_case("image", size, layout) for size in ("b16", "l14") for layout in ORIGINALS["image"]),
    _case("image", "b32", "transformers", few=False), _case("image", "b16", "timm", few=False),
    *(_case("text", size, layout) for size in ("b32", "l14") for layout in ORIGINALS["text"]),
    _case("text", "b32", "transformers", few=False), _case("text", "l14", "openai", few=False),
]
