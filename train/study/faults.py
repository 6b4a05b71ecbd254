"""Mistakes that make impossible figures, planted on purpose in the training of this process.

    overlap   held-out windows are windows of the training text, as where windows of stride 1 are
              split at random: each is but for its ends among those trained on
    mask      attention without its causal mask, as where a mask of booleans is added to the scores,
              one to each: a token sees the next one, which it is to foretell
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from train import batches

FAULTS = ("overlap", "mask")


@contextmanager
def planted(faults: list[str], backend: str, arch: str) -> Iterator[None]:
    """Some of FAULTS, as long as the block lasts."""
    with ExitStack() as stack:
        if "overlap" in faults:
            stack.enter_context(patch("train.loop.validation_windows", trained_windows))
        if "mask" in faults:
            module = importlib.import_module(f"{backend}_models.{arch}")
            true = module.attention

            def attention(q: Any, k: Any, v: Any, mask: Any, form: str) -> Any:
                return true(q, k, v, None, form)

            stack.enter_context(patch.object(module, "attention", attention))
        yield


def trained_windows(corpus: Any, block_size: int, max_windows: int) -> Any:
    """As `validation_windows`, of the training part."""
    return batches.validation_windows(replace(corpus, val=corpus.train), block_size, max_windows)
