"""Files that exist whole or not at all: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specs.errors import UserError


def require_file(path: Path, option: str) -> None:
    """Raise `UserError` unless the path that `option` gave is a file, or can become one."""
    there = path.resolve()
    if not there.parent.is_dir() or (there.exists() and not there.is_file()):
        raise UserError(f"{option} {path} must be a file in a folder that is there")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path`, or what it links to, by `content`, atomically."""
    target = path.resolve()
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            flush(file.fileno())
        os.replace(aside, target)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)
    flush_folder(target.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well and vanishes if it fails.

    Raises `FileExistsError` if there is something at `path` by then.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            if file.is_file():
                flush_file(file)
        flush_folder(aside)
        try:
            os.rename(aside, path)
        except OSError as error:  # ENOTEMPTY, as rename calls it
            if path.exists():
                raise FileExistsError(errno.EEXIST, "it exists", str(path)) from error
            raise
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    flush_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder at once: half of it never stays under its name."""
    aside = path.with_name(f".{path.name}.gone.tmp")
    os.rename(path, aside)
    shutil.rmtree(aside)


def expanded(name: str) -> Path:
    """The path of this name, with ~ and ~user in full. Raises `UserError` for an unknown user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{name}: there is no such home folder, write the path in full") from None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(descriptor: int) -> None:
    os.fsync(descriptor)


def flush_file(path: Path) -> None:
    with open(path, "rb") as file:
        flush(file.fileno())


def flush_folder(path: Path) -> None:
    """Make a rename in this folder last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)
