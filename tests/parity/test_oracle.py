"""Both panels against figures of the original code, which no mistake in both of them can fool."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.ladder import climb
from parity.oracle import read_oracle, reproduce
from parity.subject import Subject
from specs import UserError
from specs.backend import Backend
from tests.parity.test_faults import FAULTS

FILES = sorted((Path(__file__).parent.parent / "data" / "oracles").glob("*.npz"))
BDH = next(file for file in FILES if file.stem == "bdh")


def subject_of(file: Path, panels: dict[str, Backend]) -> Subject:
    oracle = read_oracle(file)
    return Subject(oracle.spec, oracle.weights, panels, panels["torch"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_figure_is_reproduced(file: Path, panels: dict[str, Backend]) -> None:
    results = list(reproduce(subject_of(file, panels), read_oracle(file)))
    assert all(result.ok for result in results)
    exact = next(result for result in results if result.rung == "referee")
    logits = next(measure for measure in exact.measures if measure.name == "logits")
    assert logits.errors["torch"] < 1e-14 * logits.size


def test_a_mistake_in_both_twins_is_caught(panels: dict[str, Backend],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in FAULTS:
        if fault.name.startswith("LayerNorm eps") and "only" not in fault.name:
            fault.plant(monkeypatch)
    subject = subject_of(BDH, panels)
    assert all(result.ok for result in climb(subject, ["activations", "logits"]))
    results = {result.rung: result.ok for result in reproduce(subject, read_oracle(BDH))}
    assert not results["referee"] and not results["panels"]


def changed(**arrays: Any) -> bytes:
    with np.load(BDH, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files} | arrays
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in held.items() if value is not None})
    return file.getvalue()


BAD = {
    "text": b"no archive",
    "truncated": BDH.read_bytes()[:50_000],
    "damaged": BDH.read_bytes().replace(b"\x3f", b"\x3e"),
    "pickle": changed(tokens=np.array([{}], object)),
    "incomplete": changed(logits=None),
    "no such architecture": changed(arch=np.array("bhd")),
    "no JSON": changed(config=np.array("{")),
    "no object": changed(config=np.array("3")),
    "unknown field": changed(config=np.array('{"heads": 2}')),
    "another shape": changed(**{"param.lm_head": np.zeros((3, 3), np.float32)}),
    "gradient missing": changed(**{"grad.lm_head": None}),
    "targets of another shape": changed(targets=np.zeros((3, 20), np.int64)),
    "token out of range": changed(tokens=np.full((3, 21), 64)),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_oracle(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.npz"):
        read_oracle(tmp_path / "absent.npz")
