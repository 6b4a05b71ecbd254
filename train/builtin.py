"""Real text that ships inside CPython, so that a first run needs no download."""

from __future__ import annotations

import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from specs.errors import UserError

# Not the library's own text: installed packages, tests, tables, what the build wrote.
_FOREIGN = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings",
            "pydoc_data"}
_GENERATED = ("_sysconfigdata", "config-")


def documentation() -> Iterator[str]:
    """The topics of Python's own `help()`, by name: about 370 KB.

    A third of the topics repeat sections of longer ones, which would carry training text into the
    held-out tail: those are left out. Raises `UserError` where Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError("this Python came without its documentation: use --data builtin-source "
                        "or a file of your own") from None
    kept: list[str] = []
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        lines = [line.strip() for line in topics[name].splitlines() if len(line) > 30]
        if sum(line in seen for line in lines) <= len(lines) / 2:
            kept.append(name)
            seen.update(lines)
    for name in sorted(kept):
        yield topics[name].rstrip("\n") + "\n\n"


def source_files() -> Iterator[str]:
    """The standard library's Python files, sorted by path, tests left out: some MB.

    Raises `UserError` where Python was packaged without sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    ours = [path for path in paths if not _FOREIGN.intersection(path.parts)
            and not any(part.startswith(_GENERATED) for part in path.parts)]
    if not ours:
        raise UserError(f"this Python came without sources in {root}: use --data builtin or a "
                        "file of your own")
    for path in sorted(ours, key=Path.as_posix):
        with tokenize.open(root / path) as file:
            yield file.read().rstrip("\n") + "\n\n"
