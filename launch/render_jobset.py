"""Fills in launch/gke_jobset.yaml: `python launch/render_jobset.py name=mine image=IMAGE config=configs/X.py ...`.

Every word of the template must get a value; those with a default here may be left out. The manifest goes to stdout.
"""

from __future__ import annotations

import difflib
import re
import string
import sys
from collections.abc import Sequence
from pathlib import Path

TEMPLATE = Path(__file__).with_name("gke_jobset.yaml")
DEFAULTS = {"restarts": "50", "slices": "1", "mount": "/mnt/runs"}
NUMBERS = ("restarts", "slices", "hosts", "chips")


def render(values: dict[str, str]) -> str:
    """The manifest. Raises ValueError, in one sentence, for a value that is missing, unknown or of the wrong form."""
    text = "\n".join(line for line in TEMPLATE.read_text().splitlines() if not line.startswith("#")) + "\n"
    template = string.Template(text)
    words = list(dict.fromkeys(template.get_identifiers()))
    for name in values:
        if name not in words:
            close = difflib.get_close_matches(name, words, 1)
            raise ValueError(f"unknown value {name!r}; " + (f"did you mean {close[0]!r}?" if close else
                                                            f"the template has {', '.join(words)}"))
    filled = DEFAULTS | values
    missing = [word for word in words if word not in filled]
    if missing:
        raise ValueError(f"no value for {', '.join(missing)}; write {missing[0]}=...")
    for name, value in filled.items():
        if name in NUMBERS and not re.fullmatch(r"[1-9]\d*", value):
            raise ValueError(f"{name}={value!r} is not a positive number")
        if not re.fullmatch(r"[\w./:@=,+-]+", value):
            raise ValueError(f"{name}={value!r} is empty or has characters that YAML could read otherwise")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?", filled["name"]):
        raise ValueError(f"name={filled['name']!r} is no name for Kubernetes: lower case letters, digits and '-'")
    if not (filled["workdir"] + "/").startswith(filled["mount"].rstrip("/") + "/"):
        raise ValueError(f"workdir={filled['workdir']} is not below mount={filled['mount']}, and would be lost")
    return template.substitute(filled)


def main(arguments: Sequence[str]) -> int:
    try:
        pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if len(pairs) < len(arguments):
            raise ValueError("every argument is KEY=VALUE, each key once")
        sys.stdout.write(render(pairs))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
