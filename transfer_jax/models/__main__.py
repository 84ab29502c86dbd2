"""Lists the backbones: python -m transfer_jax.models [part of a name ...]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from rich.table import Table

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import BACKBONES, build_backbone
from transfer_jax.models.cost import forward_flops, parameter_count
from transfer_jax.pretrained.catalog import known_sources
from transfer_jax.pretrained.conversion import layouts_of
from transfer_jax.training.progress import output_console


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("names", nargs="*", help="show those whose names contain one of these")
    given, _ = command_line.parse(options, arguments)
    print_backbones(given.names)
    return 0


def describe_backbone(name: str) -> dict[str, Any]:
    """What the table says of one backbone: name, parameters, flops, input, taps, layouts, sources."""
    backbone = build_backbone(Component(kind=name))
    shapes = [list(leaf.shape[1:]) for leaf in jax.tree.leaves(backbone.example)]
    return {"name": name, "parameters": parameter_count(backbone), "flops": forward_flops(backbone),
            "input": shapes[0], "taps": list(backbone.tap_names), "layouts": list(layouts_of(backbone)),
            "sources": list(known_sources(name))}


def print_backbones(parts: Sequence[str] = ()) -> None:
    """Prints the table for the backbones whose names contain one of `parts` (all if there are none)."""
    names = [name for name in BACKBONES if not parts or any(part in name for part in parts)]
    if not names:
        raise UserError(f"no backbone's name contains {' or '.join(map(repr, parts))}; there are: "
                        f"{', '.join(BACKBONES)}")
    console = output_console()
    table = Table(title="Backbones. GFLOPs: one forward pass at the input size, a multiply-add counts as two",
                  title_justify="left")
    for column, justify in (("backbone", "left"), ("parameters", "right"), ("GFLOPs", "right"), ("input", "left"),
                            ("taps", "left"), ("layouts", "left"), ("weights", "left")):
        table.add_column(column, justify=justify, overflow="fold")
    with console.status("measuring shapes") as status:
        for name in names:
            status.update(f"measuring shapes of {name}")
            row = describe_backbone(name)
            table.add_row(name, f"{row['parameters']:,}", f"{row['flops'] / 1e9:.3g}", "x".join(map(str, row["input"])),
                          _taps(row["taps"]), ", ".join(row["layouts"]) or "-", "\n".join(row["sources"]) or "-")
    console.print(table)


def _taps(names: Sequence[str]) -> str:
    """Names in a row, numbered blocks as a range: 'block0 .. block11'."""
    blocks = [name for name in names if name.startswith("block") and name[5:].isdigit()]
    if len(blocks) < 4:
        return " ".join(names)
    kept = [f"{blocks[0]}..{blocks[-1]}" if name == blocks[0] else name for name in names
            if name == blocks[0] or name not in blocks]
    return " ".join(kept)


if __name__ == "__main__":
    command_line.run(main)
