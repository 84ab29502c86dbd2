"""What makers publish of their accelerators, for plans and predictions. No measurement of ours is in here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transfer_jax.core.errors import UserError, unknown


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      memory: bytes.
      flops: peak floating point operations a second in bfloat16, dense.
      bandwidth: bytes a second between the device and its memory.
      link: bytes a second that a device sends to its neighbours, one direction, all links together.
      cores: devices are counted in these in the maker's names of slices (v5p-1024 has 512 chips).
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    cores: int = 1


# Data sheets: NVIDIA A100 80 GB SXM (2021), H100 SXM (2022), H200 (2023); Google Cloud's pages on TPU v4, v5e, v5p,
# v6e, whose interconnect is given in Gbit/s for both directions together: 2400, 1600, 4800, 3584.
CHIPS = {
    "a100": Chip(80e9, 312e12, 2.04e12, 300e9),
    "h100": Chip(80e9, 989e12, 3.35e12, 450e9),
    "h200": Chip(141e9, 989e12, 4.8e12, 450e9),
    "v4": Chip(32e9, 275e12, 1.228e12, 150e9, cores=2),
    "v5e": Chip(16e9, 197e12, 0.819e12, 100e9),
    "v5p": Chip(95e9, 459e12, 2.765e12, 300e9, cores=2),
    "v6e": Chip(32e9, 918e12, 1.64e12, 224e9),
}


def machine(text: str) -> tuple[Chip | None, int]:
    """The chip and the number of devices: 'v5e-256' has 256, 'v5p-1024' has 512, as the maker counts cores there, and
    '8' has 8 of an unknown chip."""
    found = re.fullmatch(r"(?:([a-z0-9]+)-)?(\d+)", text)
    if found is None or int(found[2]) < 1:
        raise UserError(f"{text!r} names no machine; write a number of devices, or a chip with one, for example h100-8 "
                        f"or v5e-256")
    if found[1] is None:
        return None, int(found[2])
    if found[1] not in CHIPS:
        raise unknown("chip", found[1], CHIPS, f"the machine {text!r}")
    chip = CHIPS[found[1]]
    if int(found[2]) % chip.cores:
        raise UserError(f"{text!r}: slices of {found[1]} are counted in cores, {chip.cores} a chip")
    return chip, int(found[2]) // chip.cores
