"""Where transformers and mlx_lm run Mamba-2 otherwise than it is defined.

python docs/upstream/mamba2.py

Each library is compared with itself or with the definition in float64, on a small random model.
It needs transformers, torch and mlx_lm, and nothing of this project.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.models import mamba2 as mlx_mamba2
from mlx_lm.utils import load_model

SIZES = {"num_heads": 4, "head_dim": 16, "hidden_size": 32, "state_size": 8, "expand": 2,
         "num_hidden_layers": 2, "vocab_size": 64, "conv_kernel": 4, "chunk_size": 8}
FOR_MLX_LM = {"intermediate_size": 64, "time_step_rank": 2, "time_step_limit": [0.0, 1e30],
              "use_bias": False, "use_conv_bias": True, "model_type": "mamba2"}
TOKENS = np.random.default_rng(0).integers(64, size=(1, 24))


def apart(one: np.ndarray, two: np.ndarray) -> str:
    return f"{np.linalg.norm(one - two) / np.linalg.norm(two):.1e}"


def in_transformers(**fields: object) -> transformers.Mamba2ForCausalLM:
    torch.manual_seed(0)
    config = transformers.Mamba2Config(**{**SIZES, "n_groups": 1, **fields})
    return transformers.Mamba2ForCausalLM(config).eval()


@torch.no_grad()
def at_once(model: transformers.Mamba2ForCausalLM) -> np.ndarray:
    return model(torch.tensor(TOKENS), use_cache=False).logits.numpy()


@torch.no_grad()
def by_steps(model: transformers.Mamba2ForCausalLM) -> np.ndarray:
    """One token after the other, with the model's own cache."""
    found, cache = [], None
    for t in range(TOKENS.shape[1]):
        output = model(torch.tensor(TOKENS[:, t : t + 1]), cache_params=cache, use_cache=True)
        cache = output.cache_params
        found.append(output.logits.numpy())
    return np.concatenate(found, axis=1)


def in_mlx_lm(model: transformers.Mamba2ForCausalLM) -> np.ndarray:
    """The logits of mlx_lm for the same weights."""
    config = {**SIZES, **FOR_MLX_LM, "n_groups": model.config.n_groups,
              "layer_norm_epsilon": model.config.layer_norm_epsilon, "tie_word_embeddings": False}
    made = mlx_mamba2.Model(mlx_mamba2.ModelArgs.from_dict(config))
    weights = {name: mx.array(w.detach().numpy()) for name, w in model.state_dict().items()}
    made.load_weights(list(made.sanitize(weights).items()))
    return np.array(made(mx.array(TOKENS)))


def with_one_norm(model: transformers.Mamba2ForCausalLM) -> transformers.Mamba2ForCausalLM:
    """The same, but the gated norm is over all channels, whatever the groups."""
    wrong = copy.deepcopy(model)
    for layer in wrong.backbone.layers:
        layer.mixer.norm.group_size = layer.mixer.intermediate_size
    return wrong


def loads_in_mlx_lm(model: transformers.Mamba2ForCausalLM) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            load_model(Path(folder))
        except TypeError as error:
            return str(error)
    return "loads"


def main() -> None:
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {version('transformers')}, mlx_lm {version('mlx-lm')}; relative "
          "distances of logits, rounding is 1e-6")
    free, bound = (in_transformers(time_step_limit=limit)
                   for limit in ([0.0, float("inf")], [0.2, 0.5]))
    print("transformers, one token at a time against all at once:")
    print("  without limits of the time step    ", apart(by_steps(free), at_once(free)))
    print("  time_step_limit = [0.2, 0.5]       ", apart(by_steps(bound), at_once(bound)))
    one, two = in_transformers(n_groups=1), in_transformers(n_groups=2)
    print("mlx_lm against transformers:")
    print("  n_groups = 1                       ", apart(in_mlx_lm(one), at_once(one)))
    print("  n_groups = 2                       ", apart(in_mlx_lm(two), at_once(two)))
    print("  n_groups = 2, one norm for all     ",
          apart(in_mlx_lm(two), at_once(with_one_norm(two))))
    eps = in_transformers(layer_norm_epsilon=1e-2)
    print("  layer_norm_epsilon = 1e-2          ", apart(in_mlx_lm(eps), at_once(eps)))
    for layer in eps.backbone.layers:
        layer.norm.variance_epsilon = 1e-5
    print("  the same, 1e-5 in the layers' norms", apart(in_mlx_lm(eps), at_once(eps)))
    print("mlx_lm, a folder saved by transformers:", loads_in_mlx_lm(one))


if __name__ == "__main__":
    main()
