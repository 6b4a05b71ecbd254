"""An exported BDH in mlx_lm, with no code of ours but its model file: the same numbers as ours."""

from __future__ import annotations

import ast
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.budget import Verdict, distance
from specs import Spec, init_weights, spec_type
from specs.backend import Arrays, load_backend
from tests.models.test_bdh import tokens
from tests.train.neighbourhood import BYTES, agrees, greedy, verdict
from train.neighbours import bdh, retnet
from train.neighbours.bdh import to_upstream
from train.neighbours.folder import write_folder

pytestmark = [pytest.mark.needs("mlx"), pytest.mark.xdist_group("neighbours")]

TINY = spec_type("bdh").preset("tiny")
FIELDS: dict[str, dict[str, Any]] = {
    "official": {}, "own layers": {"share_layers": False, "score_scale": "sqrt"},
    "scaled": {"score_scale": "linear", "norm_eps": 1e-3, "n_head": 4}}
each_form = pytest.mark.parametrize("form", FIELDS)
MODEL_FILES = [bdh.MODEL_FILE, retnet.MODEL_FILE]
MISTAKES = {
    "a token sees itself": (", -1) @ x_i", ", 0) @ x_i"),
    "the state is not read": ("y + r_i @ state", "y"),
    "the state is not kept": ("state + update", "update"),
    "turned the other way": ("odd * cos + even * sin", "odd * cos - even * sin"),
    "another frequency": ("65536.0**e", "10000.0**e"),
    "every piece begins at 0": ("place = place + start[:, None]", "pass"),
    "heads mixed up": ("g.swapaxes(1, 2).reshape", "g.reshape"),
    "eps of the norms": ("args.norm_eps", "1e-2"),
}


def weights_of(spec: Spec) -> Arrays:
    return {name: 5 * w for name, w in init_weights(spec).items()}


def export(spec: Spec, path: Path) -> Path:
    write_folder(path, to_upstream(spec, weights_of(spec), "mlx-lm"),
                 BYTES.to_json(), path / "none")
    return path


def load(path: Path) -> Any:
    import mlx_lm

    load_backend("mlx", "cpu")
    return mlx_lm.load(str(path), trust_remote_code=True)[0]


def truth(spec: Spec, data: np.ndarray) -> Verdict:
    return verdict(spec, weights_of(spec), data)


def in_pieces(model: Any, data: np.ndarray, pieces: list[int]) -> np.ndarray:
    import mlx.core as mx

    cache, found = model.make_cache(), []
    for piece in np.split(data, np.cumsum(pieces)[:-1], axis=1):
        found.append(model(mx.array(piece), cache))
        mx.eval([layer.state for layer in cache])
    return np.array(mx.concatenate(found, axis=1).astype(mx.float32))


def generated(model: Any, prompt: list[int], count: int = 12) -> list[int]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(prompt), model, mx.default_stream(mx.cpu), max_tokens=count,
                          prefill_step_size=16)
    return [token for token, _ in steps]


def in_batches(model: Any, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
    """The greedy tokens after each prompt, all at once."""
    from mlx_lm.generate import BatchGenerator

    batch = BatchGenerator(model, prefill_step_size=16)
    wanted = dict(zip(batch.insert(prompts, max_tokens=counts), counts, strict=True))
    found: dict[int, list[int]] = {uid: [] for uid in wanted}
    while any(len(found[uid]) < count for uid, count in wanted.items()):
        for response in batch.next()[1]:
            found[response.uid].append(response.token)
    return list(found.values())


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.stem)
def test_a_model_file_needs_mlx_lm_alone(file: Path) -> None:
    found = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
             if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in found if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in names}
    assert {"mlx", "mlx_lm"} <= roots and roots - {"mlx", "mlx_lm"} <= sys.stdlib_module_names


@each_form
@pytest.mark.parametrize("T", [1, 2, 255, 256, 257, 600], ids=lambda T: f"T{T}")
def test_logits(form: str, T: int, tmp_path: Path) -> None:
    import mlx.core as mx

    spec = TINY.replace(**FIELDS[form])
    model, data = load(export(spec, tmp_path / "model")), tokens(spec, 2, T)
    assert agrees(np.array(model(mx.array(data))), truth(spec, data))


@each_form
@pytest.mark.parametrize("pieces", [[300], [1] * 24, [7, 1, 260, 1, 20]], ids=str)
def test_pieces(form: str, pieces: list[int], tmp_path: Path) -> None:
    spec = TINY.replace(**FIELDS[form])
    model, data = load(export(spec, tmp_path / "model")), tokens(spec, 3, sum(pieces))
    assert agrees(in_pieces(model, data, pieces), truth(spec, data))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake: str, tmp_path: Path) -> None:
    path, data, pieces = export(TINY, tmp_path / "model"), tokens(TINY, 2, 301), [260, 40, 1]
    exact = truth(TINY, data)
    assert agrees(in_pieces(load(path), data, pieces), exact)
    right, wrong = MISTAKES[mistake]
    code = (path / "bdh.py").read_text(encoding="utf-8")
    assert code.count(right) == 1
    (path / "bdh.py").write_text(code.replace(right, wrong), encoding="utf-8")
    assert not agrees(in_pieces(load(path), data, pieces), exact)


@pytest.mark.parametrize("fields", [
    {}, {"n_embd": 48, "mlp_internal_dim_multiplier": 10, "n_head": 3}, {"n_embd": 160},
    {"n_embd": 256, "n_head": 4, "mlp_internal_dim_multiplier": 128}], ids=str)
def test_positions_far_away_are_those_of_the_spec(fields: dict[str, Any], tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import ArraysCache

    spec = TINY.replace(n_layer=1, vocab_size=8, **fields)
    model, cache = load(export(spec, tmp_path / "model")), ArraysCache(2)
    cache[1] = mx.array([1_000_000, 0])
    cos, sin, _ = model.positions(mx.zeros((2, 3), mx.int32), cache)
    for row, start in enumerate((1_000_000, 0)):
        angle = mx.array(spec.rotary(start, 3))
        np.testing.assert_array_equal(cos[row, 0], mx.cos(angle))
        np.testing.assert_array_equal(sin[row, 0], mx.sin(angle))


@each_form
def test_greedy_tokens(form: str, tmp_path: Path) -> None:
    spec = TINY.replace(**FIELDS[form])
    prompt = tokens(spec, 1, 50)[0]
    wanted = greedy("mlx", spec, weights_of(spec), prompt, 12)
    assert generated(load(export(spec, tmp_path / "model")), prompt.tolist()) == wanted
    assert len(set(wanted)) > 3


def test_prompts_of_several_lengths_at_once(tmp_path: Path) -> None:
    """As mlx_lm.server does: rows are padded, join, and leave at different times."""
    model = load(export(TINY, tmp_path / "model"))
    prompts = [tokens(TINY, 1, T, seed=T)[0].tolist() for T in (5, 70, 37, 1)]
    counts = [4, 12, 9, 12]
    assert in_batches(model, prompts, counts) == [
        generated(model, *one) for one in zip(prompts, counts, strict=True)]


def test_a_server_may_use_another_thread(tmp_path: Path) -> None:
    """Which cannot compute what was left to be computed on the streams of this one."""
    model = load(export(TINY, tmp_path / "model"))
    with ThreadPoolExecutor() as threads:
        frequency = threads.submit(np.array, model._frequency).result()
    assert frequency.shape == (TINY.d_state // 2,)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    import mlx.core as mx

    model = load(export(TINY, tmp_path / "model"))
    sizes = set()
    for T in (1, 40, 600):
        cache, data = model.make_cache(), tokens(TINY, 1, T)
        model(mx.array(data), cache)
        sizes.add(sum(layer.nbytes for layer in cache))
    state = 4 * TINY.n_layer * TINY.n_head * TINY.d_state * TINY.n_embd
    assert sizes == {state + 4}  # and how many tokens were read


@pytest.mark.parametrize("form, options, least, most", [
    ("official", {"quantize": True, "q_bits": 8, "q_group_size": 32}, 1e-3, 0.05),
    ("own layers", {"quantize": True, "q_bits": 4, "q_group_size": 32}, 1e-2, 0.5),
    ("official", {"dtype": "bfloat16"}, 1e-3, 0.05),
    ("official", {"dtype": "float16"}, 1e-4, 0.01)], ids=str)
def test_converted(form: str, options: dict[str, Any], least: float, most: float,
                   tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import convert
    from mlx_lm.models.mla import QuantizedMultiLinear

    spec = TINY.replace(**FIELDS[form])
    convert(str(export(spec, tmp_path / "model")), str(tmp_path / "other"), trust_remote_code=True,
            **options)
    model, data = load(tmp_path / "other"), tokens(spec, 2, 300)
    assert isinstance(model.layers[-1].encoder_v, QuantizedMultiLinear) == ("quantize" in options)
    logits, exact = np.array(model(mx.array(data)).astype(mx.float32)), truth(spec, data).truth
    size = np.linalg.norm(logits)
    assert least < distance(logits, exact["logits"]) / size < most
    assert distance(in_pieces(model, data, [260, 1, 1, 38]), logits) < most / 10 * size


def test_it_is_run_by_those_who_trust_it(tmp_path: Path) -> None:
    import mlx_lm

    path = export(TINY, tmp_path / "model")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        mlx_lm.load(str(path))
