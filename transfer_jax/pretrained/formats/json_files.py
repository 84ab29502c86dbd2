"""JSON inside files of parameters: read with the checks that a hostile file calls for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from transfer_jax.pretrained.formats.tensor_file import damaged, shown


def parse_json(data: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object in `data`; no name may occur twice in it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise damaged(where, f"{shown(twice)} occurs twice in its JSON")
        return content

    try:
        content = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"its JSON cannot be read ({shown(error)})") from error
    if not isinstance(content, dict):
        raise damaged(where, "its JSON is not an object")
    return content
