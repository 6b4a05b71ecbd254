"""Right panels raise no alarm, on a plain model and on odd ones.

The long form, with rows of 500 tokens and whole training runs:
python parity/check.py --random 20
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.cases import edge_cases, lively_weights, random_case, random_spec
from parity.ladder import RUNGS, climb, result
from parity.locate import locate
from parity.locate_decoding import locate_decoding
from parity.subject import Subject
from specs import Spec, architectures, init_weights, spec_type
from specs.backend import Backend
from specs.base import Param
from tests.parity.conftest import small_subject, subject_of

LONG = "trajectory", "resume"  # they share their training runs
# Logits show what activations would of one more spec, gradients what the loss would.
ODD = [rung for rung in RUNGS if rung not in ("activations", "loss", *LONG)]


@pytest.mark.parametrize("rungs", [[rung] for rung in RUNGS if rung not in LONG] + [LONG],
                         ids="-".join)
@pytest.mark.parametrize("arch", architectures())
def test_small_model_climbs(arch: str, rungs: list[str], panels: dict[str, Backend]) -> None:
    fields = {"n_layer": 1} if rungs is LONG else {}
    for found in climb(small_subject(panels, arch, **fields), rungs):
        assert found.ok and not found.divergences
        assert {panel for measure in found.measures for panel in measure.errors} == set(panels)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("arch", architectures())
def test_odd_model_climbs(arch: str, seed: int, panels: dict[str, Backend]) -> None:
    spec = random_spec(arch, seed).replace(block_size=24, n_layer=seed + 1)
    subject = subject_of(spec, panels, seed)
    assert not [(found.rung, found.worst()) for found in climb(subject, ODD) if not found.ok]


GPT_FORMS: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True,
             "n_kv_head": None},
    "llama": {"tie_embeddings": False},
    "qwen3": {"qk_norm": True, "head_dim": 6, "norm_eps": 1e-6, "rope_theta": 1e6},
    "mistral": {"window": 5, "tie_embeddings": False},
    "sinks": {"window": 7, "sinks": 3, "n_kv_head": 1},
    "gelu": {"mlp": "gelu", "norm": "layernorm", "qk_norm": True, "bias": True},
    "relu2": {"mlp": "relu2", "pos": "none", "logit_softcap": 2.0},
}


MOE_FORMS: dict[str, dict[str, Any]] = {
    "mixtral": {"tie_embeddings": False, "n_experts": 8},
    "qwen3": {"qk_norm": True, "head_dim": 6, "n_experts": 12, "n_experts_per_tok": 4},
    "shared": {"n_shared_experts": 2, "balance": "bias", "router_noise": 0.1},
    "gelu": {"expert_mlp": "gelu", "embed_scale": True, "norm_topk_prob": False, "d_ff": 7},
    "silu": {"expert_mlp": "silu", "n_experts_per_tok": 1, "aux_loss_coef": 1.0,
             "z_loss_coef": 1.0, "balance": "bias"},
}


@pytest.mark.parametrize("form", GPT_FORMS)
def test_every_form_of_gpt_climbs(form: str, panels: dict[str, Backend]) -> None:
    subject = small_subject(panels, "gpt", **GPT_FORMS[form])
    assert not [(found.rung, found.worst()) for found in climb(subject, ODD) if not found.ok]


@pytest.mark.parametrize("form", MOE_FORMS)
def test_every_form_of_moe_climbs(form: str, panels: dict[str, Backend]) -> None:
    subject = small_subject(panels, "moe", **MOE_FORMS[form])
    assert not [(found.rung, found.worst()) for found in climb(subject, ODD) if not found.ok]


def test_biases_that_move_climb(panels: dict[str, Backend]) -> None:
    subject = small_subject(panels, "moe", n_layer=1, **MOE_FORMS["shared"])
    assert not [(found.rung, found.worst()) for found in climb(subject, LONG) if not found.ok]


def test_a_cache_that_dropped_rows_is_right(panels: dict[str, Backend]) -> None:
    """520 tokens, of which blocks of 256 fall out of the window, but for the sinks."""
    subject = small_subject(panels, "gpt", n_layer=1, block_size=640, window=9, sinks=2)
    found = result(subject, "decoding", RUNGS["decoding"](subject))
    assert found.ok, found.worst()


def test_long_context_is_chunked_alike(panels: dict[str, Backend]) -> None:
    """513 tokens are two chunks and one token: the chunkwise form, and a cache that grew."""
    subject = small_subject(panels, n_layer=1, block_size=640)
    assert max(case.batch.tokens.shape[1] for case in edge_cases(subject.spec, 0)) == 513
    for found in climb(subject, ["logits", "gradients", "decoding"]):
        assert found.ok, found.worst()


@pytest.mark.parametrize("arch", ["toeplitz", "hyena"])
def test_long_texts_by_transforms_are_right_at_every_position(
        arch: str, panels: dict[str, Backend]) -> None:
    """Also at the first ones, whose outputs may be far smaller than the last."""
    subject = small_subject(panels, arch, n_layer=1, block_size=640)
    found = result(subject, "decoding", RUNGS["decoding"](subject))
    assert found.ok, found.worst()


def test_retnet_in_chunks_climbs(panels: dict[str, Backend]) -> None:
    """160 tokens are two chunks and half of one."""
    subject = small_subject(panels, "retnet", block_size=160)
    assert not [(found.rung, found.worst()) for found in climb(subject, ODD) if not found.ok]


def test_a_mean_by_sums_that_cross_zero_climbs_forwards(panels: dict[str, Backend]) -> None:
    """The budgets widen by themselves; the gradient of such a kernel is rounding, and left out."""
    spec = small_subject(panels, "toeplitz", do_toep_mean=True, kernel="raw").spec
    weights = init_weights(spec)
    kernel = weights["layers.0.mixer.kernel"]
    assert np.abs(np.cumsum(kernel, axis=1)).min() < 0.05
    subject = Subject(spec, weights, panels, panels["torch"])
    for found in climb(subject, ["activations", "logits", "decoding"]):
        assert found.ok, found.worst()


def test_random_specs_differ_and_repeat() -> None:
    specs = [random_spec("bdh", seed) for seed in range(12)]
    assert specs == [random_spec("bdh", seed) for seed in range(12)]
    for name in ("n_layer", "n_embd", "n_head", "share_layers", "score_scale", "window"):
        assert len({getattr(spec, name) for spec in specs}) > 1, name


def test_edge_cases_surround_the_window() -> None:
    spec = spec_type("bdh").preset("tiny", window=9)
    lengths = {case.batch.tokens.shape[1] for case in edge_cases(spec, 0)}
    assert {1, 2, 8, 9, 10, 63, 64, 65, 513} <= lengths


def test_lively_weights_leave_no_constant_tensor() -> None:
    class Constant(Spec):
        def params(self):  # type: ignore[no-untyped-def]
            return (Param("norm.weight", (8,), lambda rng, shape: np.ones(shape), "vector"),
                    Param("o_proj.weight", (4, 8), lambda rng, shape: np.zeros(shape), "hidden"))

    weights = lively_weights(Constant(), 0)
    assert all(np.ptp(value) > 0 and value.dtype == np.float32 for value in weights.values())
    assert abs(weights["norm.weight"].mean() - 1) < 0.2


@pytest.mark.parametrize(("B", "T"), [(3, 1), (2, 2), (2, 5), (2, 37)])
@pytest.mark.parametrize("arch", architectures())
def test_right_panels_part_nowhere(arch: str, B: int, T: int, panels: dict[str, Backend]) -> None:
    """Two tokens matter: a norm then makes the gradient at the scores zero but for rounding."""
    subject = small_subject(panels, arch)
    case = random_case(subject.spec, B, T, 0)
    assert not locate(subject, case, suspects=panels)
    assert not locate_decoding(subject, case, suspects=panels)
