"""Each benchmark measures what it says, at sizes that take seconds."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare_backends import best_rates
from specs.backend import BACKENDS, device_of

both = pytest.mark.needs(*BACKENDS)
BENCH = Path(__file__).parent.parent.parent / "bench"


def bench(folder: Path, script: str, *options: str) -> str:
    done = subprocess.run([sys.executable, BENCH / f"{script}.py", *options], cwd=folder,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(folder: Path, script: str) -> dict:
    return json.loads((folder / "runs" / "bench" / f"{script}.json").read_text())


def test_each_backend_has_its_device() -> None:
    given = ["mps", "gpu", "cuda:1"]
    assert [device_of(name, given) for name in BACKENDS] == ["gpu", "mps"]
    assert [device_of(name, given[2:]) for name in BACKENDS] == [None, "cuda:1"]
    found = {name: [{"matmul": rate, "bandwidth": 1.0, "versions": {"device": device}}]
             for name, device, rate in (("mlx", "gpu", 9.0), ("torch", "cpu", 2.0))}
    assert best_rates(found, "torch")["matmul"] == 2
    found["mlx"][0]["versions"] = {"device": "cpu"}
    assert best_rates(found, "torch")["matmul"] == 9


@both
def test_compare_backends(tmp_path: Path) -> None:
    said = bench(tmp_path, "compare_backends", "--arch", "bdh", "--preset", "tiny", "--seq", "32",
                 "--batch", "2", "--contexts", "8", "16", "--quick")
    assert "mlx/torch" in said and "training memory" in said
    model, = result(tmp_path, "compare_backends")["models"]
    assert list(model["figures"]) == ["train", "forward", "prefill", "decode 8", "decode 16"]
    for figures in model["figures"].values():
        assert all(figures[name]["tokens_per_s"] > 0 for name in BACKENDS)
    assert (tmp_path / "runs" / "bench" / "compare_backends.png").stat().st_size > 5000


@pytest.mark.needs("torch")
def test_neighbours(tmp_path: Path) -> None:
    said = bench(tmp_path, "neighbours", "--set", "n_layer=1", "n_embd=32", "n_head=2", "d_ff=64",
                 "--seq", "16", "--batch", "2", "--rounds", "2", "--who", "torch", "transformers")
    found = result(tmp_path, "neighbours-gpt")["found"]
    assert list(found) == ["torch", "transformers"] and len(re.findall(r"\d \(\d", said)) == 3
    for each in found.values():
        assert all(len(each[kind]) == 2 and min(each[kind]) > 0
                   for kind in ("train", "read", "decode"))
        assert each["peak"] > 1e7 and each["flops"] > 1e8 and each["bandwidth"] > 1e8


@both
def test_decoding(tmp_path: Path) -> None:
    bench(tmp_path, "decoding", "--preset", "tiny", "--contexts", "8", "60", "--tokens", "3",
          "--memory", "1e-4")
    for name in BACKENDS:
        figures = result(tmp_path, "decoding")["backends"][name]
        assert list(figures["recurrent"]) == list(figures["anew"]) == ["8", "60"]
        assert list(figures["cache"]) == ["8"]  # the other one is larger than --memory


@both
def test_decoding_of_another_spec(tmp_path: Path) -> None:
    bench(tmp_path, "decoding", "--arch", "mla", "--preset", "tiny", "--set", "kv_lora_rank=5",
          "--contexts", "8", "60", "--tokens", "3", "--backend", "torch")
    found = result(tmp_path, "decoding")
    assert found["spec"]["kv_lora_rank"] == 5
    assert list(found["backends"]["torch"]["cache"]) == ["8", "60"]


@both
def test_precision(tmp_path: Path) -> None:
    bench(tmp_path, "precision", "--preset", "tiny", "--steps", "3", "--seq", "16", "--vary",
          "score_scale=sqrt")
    rows = result(tmp_path, "precision")["rows"]
    assert [(row["backend"], row["dtype"]) for row in rows] == [
        (name, dtype) for name in BACKENDS for dtype in ("float32", "bfloat16", "float16")]
    assert all(math.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bdh_memory(tmp_path: Path, backend: str) -> None:
    file = tmp_path / "figures.json"
    bench(tmp_path, "bdh_memory", "--preset", "tiny", "--shapes", "2x16", "--micro-batch", "1",
          "--who", backend, f"{backend}-plain", "--rounds", "1", "--steps", "1", "--json",
          str(file))
    assert [(row["who"], row["shape"]) for row in json.loads(file.read_text())["rows"]] == [
        (backend, "2x16"), (f"{backend}-plain", "2x16")]


def test_states(tmp_path: Path) -> None:
    rows = bench(tmp_path, "states", "--layers", "2", "--width", "128", "--tokens", "1", "10")
    gpt, = (row.split() for row in rows.splitlines() if row.strip().startswith("gpt"))
    assert [float(cell) for cell in gpt[2:]] == [0.0, round(10 * 2 * 2 * 128 * 4 / 1e6, 1)]
