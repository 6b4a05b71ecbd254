"""What the user did wrong, said in one line: every command ends through `main_exit`."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what is wrong and what to do."""


# PyTorch's and MLX's words for it, on CPU, CUDA and Metal; both raise a plain RuntimeError. And
# numpy's for what no machine holds, a ValueError.
_OUT_OF_MEMORY = re.compile(r"out of memory|insufficient memory|alloc_failed|invalid buffer size|"
                            r"(unable|attempting|can't|cannot) (to )?allocate|"
                            r"array is too big|maximum allowed dimension", re.IGNORECASE)


def lacking(error: BaseException) -> str | None:
    """What the machine had too little of, disk or memory, in words; None for any other error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no room to write {error.filename or 'a file'}"
    if isinstance(error, MemoryError) or (
            isinstance(error, (RuntimeError, ValueError)) and _OUT_OF_MEMORY.search(str(error))):
        return f"not enough memory ({(str(error) or 'none left').splitlines()[0]})"
    return None


def in_one_line(error: BaseException) -> str | None:
    """What went wrong and what to do: of a `UserError`, a full disk, a file that cannot be used
    or too little memory. None for any other error, which is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    lacked = lacking(error)
    if lacked is not None:
        return f"{lacked}: " + (
            "free some space, then run the same command again; nothing half-written was kept"
            if isinstance(error, OSError) else "choose smaller sizes")
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return None


def main_exit(main: Callable[[], int | None]) -> None:
    """Run `main` and leave with its exit code: 2 and one line for what `in_one_line` knows."""
    try:
        code = main() or 0
    except BrokenPipeError:  # the reader of a pipe (`| head`) went away
        sys.stderr.close()
        code = 0
    except (UserError, OSError, MemoryError, RuntimeError, ValueError) as error:
        message = in_one_line(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
