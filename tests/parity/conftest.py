"""A model small enough that a rung takes a fraction of a second."""

from __future__ import annotations

from typing import Any

import pytest

from parity.cases import lively_weights
from parity.subject import Subject
from specs import Spec, spec_type
from specs.backend import Backend, load_backend


@pytest.fixture(scope="session")
def panels() -> dict[str, Backend]:
    return {"mlx": load_backend("mlx", "cpu"), "torch": load_backend("torch", "cpu")}


def small_subject(panels: dict[str, Backend], arch: str = "bdh", **fields: Any) -> Subject:
    small = {"n_layer": 2, "n_embd": 16, "vocab_size": 32, "block_size": 40, "dropout": 0.1}
    return subject_of(spec_type(arch).preset("tiny", **{**small, **fields}), panels)


def subject_of(spec: Spec, panels: dict[str, Backend], seed: int = 0) -> Subject:
    return Subject(spec, lively_weights(spec, seed), panels, panels["torch"], seed)
