"""A text that waits on the disk, however long it is, and is read again part by part."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import Progress

from specs.errors import UserError

_IN_MEMORY = 1 << 26  # bytes
_BLOCK = 1 << 20  # characters read at a time
_LONG = 1 << 22  # characters from which a progress bar is worth it


class Spool:
    """Strings put together; `length` says how many characters they are, `blank` whether nothing
    can be seen of them. To be used in a `with` statement.

    Up to 64 MB stay in memory. More go to a file without a name in `folder`, so that it is gone
    with the process, however that ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.length, self.blank = folder, 0, True
        self._file: IO[str] = tempfile.SpooledTemporaryFile(
            _IN_MEMORY, "w+", encoding="utf-8", errors="surrogatepass", newline="",
            dir=str(folder))

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, text: Iterable[str], most: int | None) -> None:
        """Take the strings of `text`, `most` characters of them at most, and no more strings than
        that needs. Raises `UserError` if there is no room for them."""
        for part in shown("Reading", text, most or 0):
            part = part if most is None else part[:most - self.length]
            self.length += len(part)
            self.blank = self.blank and (not part or part.isspace())
            with self._room():
                self._file.write(part)
            if self.length == most:
                break
        with self._room():
            self._file.flush()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"the text cannot wait in {self.folder} ({error.strerror}): make room, "
                            "set DIPTYCH_CACHE to another folder, or read less with "
                            "--data-tokens") from None

    def read(self, first: int, last: int) -> Iterator[str]:
        """The characters from `first` to before `last`, in parts. Nothing else may be read
        meanwhile."""
        self._file.seek(0)
        for size in blocks(first):
            self._file.read(size)
        yield from map(self._file.read, blocks(last - first))


def blocks(length: int) -> Iterator[int]:
    """Sizes that add up to `length`."""
    for start in range(0, length, _BLOCK):
        yield min(_BLOCK, length - start)


def shown(title: str, text: Iterable[str], total: int) -> Iterator[str]:
    """The strings of `text`, with a progress bar if they will be long; it begins with the first
    one, for what gets that may have a bar of its own."""
    parts, console = iter(text), Console(stderr=True)
    first = list(itertools.islice(parts, 1))
    with Progress(console=console, transient=True,
                  disable=total < _LONG or not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        for part in itertools.chain(first, parts):
            yield part
            progress.advance(task, len(part))
