"""How cost grows: from end to end at the smallest sizes, and the arithmetic."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import growth, scaling
from bench.exponents import aims, exponent, shown
from specs import UserError, architectures, init_weights
from specs.backend import BACKENDS, Backend
from train.study import writing

SMALLEST = ["--layers", "1", "--width", "64", "--lengths", "8", "16", "32", "--contexts", "64",
            "256", "--tokens", "4", "--rounds", "2", "--fit", "8", "--generation", "1", "64", "64"]
CONTEXT = 256


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command, with its processes in this one; which pairs these were asked for."""
    monkeypatch.setattr(growth, "PROBES", (64, 128))
    monkeypatch.setattr(growth, "CALLED", 0)
    for name, value in {"TOKENS": 16, "READ": [8], "ROUNDS": (1, 1)}.items():
        monkeypatch.setattr(writing, name, value)
    monkeypatch.setattr("train.files.flush", lambda _: None)

    def run(*options: str) -> list[tuple[str, str]]:
        asked = []

        def here(arch: str, backend: str) -> dict[str, Any]:
            asked.append((arch, backend))
            args = scaling.parser().parse_args(sys.argv[1:])
            return json.loads(json.dumps(growth.measure(args, arch, backend)))

        monkeypatch.setattr(scaling, "again", here)
        monkeypatch.setattr(sys, "argv", ["scaling.py", *SMALLEST, "--out", str(tmp_path),
                                          *options])
        scaling.main()
        return asked

    return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_architecture_is_measured(call: Any, tmp_path: Path, backend: str,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--backend", backend) == [(arch, backend) for arch in architectures()]
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "scaling.json").read_text())
    for arch in architectures():
        found = document["measured"][f"{arch} {backend}"]
        for kind in ("train", "prefill", "anew"):
            assert list(found[kind]) == ["8", "16", "32"]
            assert all(figures["seconds"] > 0 and figures["bytes"] > 0
                       for figures in found[kind].values())
        for figures in found["decode"].values():
            assert figures["256"]["tokens"] == 4
            assert 0 < figures["256"]["seconds"] <= figures["256"]["p99"]
        assert found["generation"]["anew"] > 0 and len(found["generation"]) > 1
        assert arch in said
    page = (tmp_path / "scaling.md").read_text()
    assert page.startswith("# How cost grows")
    assert all(f"| {arch} |" in page for arch in architectures())
    assert (tmp_path / "scaling.png").stat().st_size > 20_000


@pytest.mark.needs(*BACKENDS)
def test_going_on(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "draw", lambda *_: None)
    pairs = [("retnet", backend) for backend in BACKENDS]
    page, file = tmp_path / "scaling.md", tmp_path / "scaling.json"
    page.write_text("# A page\n\n<!-- measured -->\nold\n<!-- end of what was measured -->\nends\n")
    assert call("--arch", "retnet") == pairs
    assert page.read_text().startswith("# A page\n") and page.read_text().endswith("-->\nends\n")
    assert "\nold\n" not in page.read_text()
    assert call("--arch", "retnet") == []
    assert call("--arch", "retnet", "gpt", "--backend", "torch") == [("gpt", "torch")]
    document = json.loads(file.read_text())
    document["measured"]["retnet mlx"]["version"] = "0.1"
    file.write_text(json.dumps(document))
    assert call("--arch", "retnet") == [("retnet", "mlx")]
    with pytest.raises(UserError, match="made with another rounds: choose another --out"):
        call("--rounds", "1")


@pytest.mark.parametrize("options, message", [
    (["--contexts", "96"], "--contexts 96 must be a power of two"),
    (["--contexts", "32"], "--contexts 32 must be at least 64"),
    (["--tokens", "6"], "--tokens 6 must be a power of two"),
    (["--lengths", "0"], "--lengths must be at least 1"),
    (["--generation", "1", "64"], "three numbers"), (["--limit", "0"], "positive"),
    (["--arch", "gtp"], "did you mean 'gpt'")])
def test_bad_input(call: Any, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(*options)


@pytest.mark.parametrize("arch", architectures())
def test_a_state_is_made_up_as_reading_would_leave_it(backend: Backend, arch: str) -> None:
    spec = growth.spec_of(arch, 1, 64, 2 * CONTEXT)
    model = backend.build(spec, init_weights(spec))
    for kind in spec.decode_kinds:
        short, long = (growth.probe(backend, model, spec, kind, T) for T in (64, 128))
        made = growth.grown(short, long, CONTEXT)
        read = growth.probe(backend, model, spec, kind, CONTEXT)
        assert {name: array.shape for name, array in made.items()} == {
            name: array.shape for name, array in read.items()}
        decoder = backend.decoder(model, 1, spec.block_size, kind)
        decoder.load_state(made)
        assert decoder.offset == CONTEXT
        assert np.isfinite(decoder.step(np.array([1], np.int32))).all()


def test_the_exponent_is_that_of_the_line() -> None:
    cost = {256: 1.0, **{T: 3e-6 * T**1.5 for T in (2048, 4096, 8192, 16384)}}
    found = exponent(cost, 2048)
    assert found and found == (pytest.approx(1.5), 2048, 16384)
    assert shown(cost, 2048) == "1.50 (2,048 … 16,384)"
    assert exponent(cost, 16384) is None and shown(cost, 16384) == ""


@pytest.mark.parametrize("needs, reason", [
    ({256: (1.0, 1), 512: (2.0, 1)}, None),       # 4 s expected of 5
    ({256: (1.0, 1), 512: (3.0, 1)}, "time"),     # 9 s
    ({256: (1.0, 1), 512: (0.5, 1)}, None),       # it does not fall
    ({256: (1.0, 2**27), 512: (1.0, 2**29)}, "memory"),  # 2 GB of 1
    ({256: (9.0, 2**40)}, None)])
def test_what_is_left_out(needs: dict[int, tuple[float, int]], reason: str | None) -> None:
    args = Namespace(limit=15, rounds=2, memory=1)
    assert growth.beyond(args, needs, 1024) == reason


def made_up(**decode: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A document whose training cost grows as T^1.2."""
    train = {str(T): {"seconds": T**1.2} for T in (2048, 4096)}
    return {"about": {"fit": 2048}, "measured": {f"{arch} torch": {
        "train": train, "decode": decode,
        "generation": {"recurrent": 40.0, "online": 60.0, "anew": 10.0}}
        for arch in ("gpt", "hyena", "retnet")}}


def test_aims() -> None:
    found = [(aim.partition(",")[0], measured, kept) for aim, measured, kept in aims(made_up(
        recurrent={"256": {"seconds": 1.0}, "512": {"seconds": 0.9}, "65536": {"seconds": 1.04}},
        online={"256": {"mean": 1.0}, "65536": {"mean": 1.5}}))]
    assert found[:2] == [("gpt", "-10.0% at most", False), ("gpt", "1.50 times", True)]
    assert ("hyena", "1.2000 from 2,048 to 4,096", True) in found
    assert ("hyena", "6.0 times", True) in found
    assert ("retnet", "1.2000 from 2,048 to 4,096", False) in found
