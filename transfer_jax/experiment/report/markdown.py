"""A document as Markdown; its pictures lie beside it as files."""

from __future__ import annotations

from transfer_jax.experiment.report.document import Block, Document, Gallery, Picture
from transfer_jax.experiment.report.tables import escape_markdown, to_markdown

TILES = 6  # small pictures in a row


def render(document: Document, folder: str) -> str:
    """The text of the page; pictures are referred to as `<folder>/<name>.<kind>`."""
    parts = [f"# {escape_markdown(document.title)}"]
    for section in document.sections:
        parts.append(f"## {section.title}")
        parts += [_block(block, folder) for block in section.blocks]
    parts += ["## How to read the numbers", "\n".join(f"- {escape_markdown(text)}" for text in document.lead)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, folder: str) -> str:
    if isinstance(block, str):
        return escape_markdown(block)
    if isinstance(block, Picture):
        return f"{_image(block, folder)}\n\n*{escape_markdown(block.caption)}*"
    if isinstance(block, Gallery):
        return _tiles(block, folder)
    return to_markdown(block)


def _tiles(gallery: Gallery, folder: str) -> str:
    width = min(TILES if all(p.kind == "png" for p in gallery.pictures) else 3, len(gallery.pictures))
    rows = []
    for start in range(0, len(gallery.pictures), width):
        chosen = gallery.pictures[start:start + width]
        cells = [f"{_image(p, folder)} {escape_markdown(p.caption)}".strip() for p in chosen]
        rows.append("| " + " | ".join(cells + [""] * (width - len(cells))) + " |")
    return "\n".join(["|" + "  |" * width, "|" + " --- |" * width, *rows])


def _image(picture: Picture, folder: str) -> str:
    return f"![{escape_markdown(picture.caption or picture.name)}]({folder}/{picture.name}.{picture.kind})"
