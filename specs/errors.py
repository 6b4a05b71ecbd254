"""What the user did wrong, said in one line: every command ends through `main_exit`."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what is wrong and what to do."""


# PyTorch's and MLX's words for it, on CPU, CUDA and Metal; both raise a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(r"out of memory|insufficient memory|alloc_failed|invalid buffer size|"
                            r"(unable|attempting|can't|cannot) (to )?allocate", re.IGNORECASE)


def lacking(error: BaseException) -> str | None:
    """What the machine had too little of, disk or memory, in words; None for any other error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no room to write {error.filename or 'a file'}"
    if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return f"not enough memory ({(str(error) or 'none left').splitlines()[0]})"
    return None


def main_exit(main: Callable[[], int | None]) -> None:
    """Run `main` and leave with its exit code: 2 and one line for a `UserError`, a full disk or
    too little memory."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of a pipe (`| head`) went away
        sys.stderr.close()
        code = 0
    except (OSError, MemoryError, RuntimeError) as error:
        lacked = lacking(error)
        if lacked is not None:
            way_out = "free some space, then run the same command again; nothing half-written " \
                "was kept" if isinstance(error, OSError) else "choose smaller sizes"
            print(f"error: {lacked}: {way_out}", file=sys.stderr)
        elif isinstance(error, OSError) and error.filename:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
