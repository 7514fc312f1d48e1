"""JSON that a user may have written: each key of an object once, and every mistake a ValueError of one line."""

import json
from collections import Counter
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value that a text, or the UTF-8 of one, says. Raises ValueError: no JSON, a key twice, or nested too deep."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # of which Python would keep the last and say nothing
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name!r:.80} must stand once, stands {times} times")
    return found
