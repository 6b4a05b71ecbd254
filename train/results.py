"""A file of results that grows: who asks for the same again goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specs import UserError


def resumed(file: Path, about: dict[str, Any], part: str, option: str) -> dict[str, Any] | None:
    """What `file` holds, its results under `part`; None where there is no such file.

    Raises `UserError` if it is no such file, or is about something else: choose another `option`.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(
            isinstance(found.get(name), dict) for name in ("about", part)):
        raise UserError(f"{file} holds something else than these results: choose another {option}, "
                        "or move it away")
    other = [name for name, value in about.items() if found["about"].get(name) != value]
    if other:
        raise UserError(f"{file} was made with another {', '.join(other)}: choose another "
                        f"{option}, or delete it")
    return found
