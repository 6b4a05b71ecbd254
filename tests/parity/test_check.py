"""The command: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import parity.subject
from parity import check
from parity.ladder import RUNGS
from specs import architectures, main_exit
from specs.backend import Backend
from tests.parity.test_faults import FAULTS

ORACLE = Path(__file__).parent.parent / "data" / "oracles" / "bdh.npz"
SMALL = ["--arch", "bdh", "--set", "n_layer=2", "--set", "n_embd=16", "--set", "block_size=24"]


@pytest.fixture(autouse=True)
def both_panels_on_the_cpu(panels: dict[str, Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "load_panels", lambda small: panels)


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["parity/check.py", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        main_exit(check.main)
    return int(ended.value.code or 0)


def test_climbs_the_rungs_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "parity.json"
    assert run(monkeypatch, *SMALL, "--rungs", "parameters,logits", "--json", file) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] in (["parameters"], ["logits"])]
    assert [(row[0], "ok" in row) for row in rows] == [("parameters", True), ("logits", True)]
    written = json.loads(file.read_text())
    assert written["ok"] and set(written["versions"]) == {"python", "numpy", "mlx", "torch"}
    parameters, logits = written["models"][0]["rungs"]
    assert written["models"][0]["spec"]["n_embd"] == 16
    assert all(0 < measure["errors"]["mlx"] < measure["budget"] for measure in logits["measures"])


def test_by_default_all_rungs_of_a_tiny_model_and_an_odd_one() -> None:
    args = check.parser().parse_args([])
    models = list(check.chosen_models(args))
    assert [title for title, *_ in models] == [
        f"{arch} {which}" for arch in architectures() for which in ("tiny", "odd, seed 0")]
    assert check.chosen_rungs(args.rungs) == list(RUNGS)


def test_random_specs_follow_the_seed() -> None:
    args = check.parser().parse_args(["--arch", "bdh", "--random", "3", "--seed", "5"])
    assert [title for title, *_ in check.chosen_models(args)] == [
        "bdh odd, seed 5", "bdh odd, seed 6", "bdh odd, seed 7"]


def test_a_mismatch_ends_with_1_and_names_the_module(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    next(fault for fault in FAULTS if fault.name == "token sees itself").plant(monkeypatch)
    file = tmp_path / "parity.json"
    assert run(monkeypatch, *SMALL, "--rungs", "logits", "--json", file) == 1
    out = capsys.readouterr().out
    assert "MISMATCH" in out
    assert "mlx leaves the referee in the forward pass at layers.0.attn" in out
    written = json.loads(file.read_text())
    assert not written["ok"]
    assert written["models"][0]["rungs"][0]["divergences"][0]["module"] == "layers.0.attn"


def test_an_oracle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--oracle", ORACLE) == 0
    out = capsys.readouterr().out
    assert "pathwaycom/bdh" in out and "greedy text" in out


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert "examples:" in out and "exit code" in out and all(rung in out for rung in RUNGS)


@pytest.mark.parametrize(("args", "part"), [
    (["--arch", "bhd"], "did you mean 'bdh'"),
    (["--rungs", "logit"], "did you mean 'logits'"),
    (["--preset", "tinny"], "did you mean 'tiny'"),
    (["--set", "n_layer"], "FIELD=VALUE"),
    (["--set", "n_layers=2"], "did you mean 'n_layer'"),
    (["--set", "n_embd=wide"], "n_embd = 'wide' must be a whole number"),
    (["--run", "absent"], "no run 'absent'"),
    (["--run", "absent", "--preset", "tiny"], "--run and --preset exclude each other"),
    (["--step", "3"], "give --run"),
    (["--oracle", "absent.npz"], "there is no file absent.npz"),
    (["--oracle", __file__], "is damaged, or no .npz file"),
    (["--oracle", ORACLE, "--rungs", "logits"], "exclude each other"),
    (["--random", "-1"], "--random -1 must be at least 1"),
    (["--json", "absent/parity.json"], "must be a file in a folder"),
], ids=lambda value: " ".join(Path(str(part)).name for part in value)
    if isinstance(value, list) else "")
def test_bad_input_ends_with_2_and_one_line(
        args: list[object], part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *args) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and part in said.err
    assert not said.out


@pytest.mark.parametrize("here", [["mlx"], ["torch"], []], ids=["no torch", "no mlx", "neither"])
def test_a_missing_backend_is_said_in_one_line(
        here: list[str], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(parity.subject, "available_backends", lambda: here)
    assert run(monkeypatch, *SMALL) == 2
    assert "pip install -e '.[all]'" in capsys.readouterr().err
