"""A benchmark's contestants, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from specs import UserError
from train.rundir import RUNS

RESULTS = RUNS / "bench"


def again(*run: str) -> dict[str, Any]:
    """The JSON in the last line that this very command prints when called with --run `run` too.

    Raises `UserError` if that fails.
    """
    done = subprocess.run([sys.executable, *sys.argv, "--run", *run], stdout=subprocess.PIPE,
                          text=True)
    if done.returncode:
        raise UserError(f"{' '.join(run)} failed: see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
