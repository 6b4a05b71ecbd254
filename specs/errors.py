"""What the user did wrong, said in one line: every command ends through `main_exit`."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what is wrong and what to do."""


def main_exit(main: Callable[[], int | None]) -> None:
    """Run `main` and leave with its exit code: 2 and one line for a `UserError` or a full disk."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of a pipe (`| head`) went away
        sys.stderr.close()
        code = 0
    except OSError as error:
        name = error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(f"error: no room to write {name}: free some space, then run the same command "
                  "again; nothing half-written was kept", file=sys.stderr)
        elif error.filename:
            print(f"error: {name}: {error.strerror}", file=sys.stderr)
        else:
            raise
        code = 2
    except MemoryError as error:
        print(f"error: not enough memory: {str(error) or 'choose smaller sizes'}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
