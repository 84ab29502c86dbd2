"""Converts pretrained parameters between frameworks, either way, and proves that nothing was lost.

    python -m transfer_jax.convert --source SRC --model NAME --output OUT [--layout LAYOUT] [--check]

SRC: a file or folder, an https URL, hf://org/name, a known name (torchvision/resnet50) or a run or `model/` folder of
ours. LAYOUT: transfer_jax (a `model/` folder, the default) or a foreign one, written to a file .pth, .safetensors or
.npz. `--check` converts there and back and compares bit for bit; where the original framework is installed it also
compares the outputs stage by stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--source", required=True, help="where the parameters are")
    options.add_argument("--model", help="name of the backbone, with arguments: mobilenet_v1:width=0.25 (default: "
                                         "what the source says)")
    options.add_argument("--output", type=Path, help="folder (transfer_jax) or file (.pth, .safetensors, .npz)")
    options.add_argument("--layout", default="transfer_jax", help="layout of the output")
    options.add_argument("--from_layout", help="layout of the source (default: the one whose names it has)")
    options.add_argument("--part", help="which dictionary of a checkpoint, for example state_dict_ema")
    options.add_argument("--sha256", help="what the file's hash must be")
    options.add_argument("--revision", help="revision of a hub's repository")
    options.add_argument("--allow_missing", nargs="*", default=(), help="regexes of our leaves that may be missing")
    options.add_argument("--allow_unused", nargs="*", default=(), help="regexes of foreign tensors to leave behind")
    options.add_argument("--check", action="store_true", help="prove the round trip, and the outputs where possible")
    options.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    given, _ = command_line.parse(options, arguments)

    from transfer_jax.experiment.converting import Request, convert  # heavy imports come after the arguments are good

    convert(Request(**{name: value for name, value in vars(given).items() if name != "debug"}))
    return 0


if __name__ == "__main__":
    command_line.run(main)
