"""The best model for a number of FLOPs: the size and the tokens with the lowest expected loss.

    L(N, D) = E + A / N^alpha + B / D^beta            N parameters, D tokens
    C = D · 3 · flops_per_token(T)                    a step costs three forward passes

The loss is Chinchilla's (Hoffmann et al., arXiv 2203.15556, approach 3), in nats per token of its
own vocabulary of 32,000. It was fitted to dense transformers of 70M parameters and more; that it
ranks the sizes of another architecture is an assumption. For a mixture of experts N is what one
token meets, which promises too little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from specs import Spec, UserError, spec_type
from specs.base import did_you_mean

RESERVE = 0.9  # the share of a device's memory that training may take
_LOSING = 4  # sizes in a row, each worse than the best, after which none will be better
_WIDE = ("n_head", "n_kv_head", "d_ff", "q_lora_rank", "kv_lora_rank")  # grow with the width


@dataclass(frozen=True)
class Fit:
    """The constants of L(N, D)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


FITS = {
    "besiroglu": Fit(1.8172, 482.01, 2085.43, 0.3478, 0.3658,
                     "Besiroglu et al., arXiv 2404.10102: Chinchilla's runs, fitted anew"),
    "hoffmann": Fit(1.6934, 406.4, 410.7, 0.3392, 0.2849,
                    "Hoffmann et al., arXiv 2203.15556: Chinchilla as published"),
}


@dataclass(frozen=True)
class Plan:
    """A model and the tokens that it can see."""

    spec: Spec
    fields: dict[str, int]
    tokens: float
    loss: float
    memory: float  # bytes that training takes, one row at a time
    recompute: bool


def batch_tokens(flops: float) -> float:
    """Tokens of an update that suit training by so many FLOPs (DeepSeek LLM, arXiv 2401.02954,
    equation 1)."""
    return 0.2920 * flops**0.3271


def peak_lr(flops: float) -> float:
    """The learning rate that suits it (there)."""
    return 0.3118 * flops**-0.1250


def sizes(arch: str, preset: str | None, **fixed: Any) -> Iterator[tuple[dict[str, int], Spec]]:
    """(fields, spec) of the widths that an architecture can have, from the narrowest on, at most
    a sixteenth apart where that is more than a head.

    The form is the preset's (None: the largest one), its depth grows with its width, unless all
    layers are one; its heads keep their size. Raises `UserError` for an unknown name.
    """
    kind = spec_type(arch)
    base = kind.preset(preset or largest(arch), **fixed)
    given = base.to_dict()
    step = base.n_embd // given["n_head"] if "n_head" in given else given.get("head_dim", 64)
    heads = 0
    while True:
        heads = max(heads + 1, heads * 17 // 16)
        width = heads * step
        growth = width / base.n_embd
        depth = 1 if given.get("share_layers") else growth
        fields = {"n_embd": width, "n_layer": max(1, round(base.n_layer * depth))}
        fields |= {name: max(1, round(given[name] * growth)) for name in _WIDE if given.get(name)}
        try:
            yield fields, kind.preset(preset or largest(arch), **{**fixed, **fields})
        except UserError:  # such as heads that cannot be shared equally
            continue


def largest(arch: str) -> str:
    """The preset with the most parameters."""
    kind = spec_type(arch)
    if not kind.presets:
        raise UserError(f"{arch} has no presets" + did_you_mean(arch, []))
    return max(kind.presets, key=lambda name: kind.preset(name).param_count())


def best(found: Iterator[tuple[dict[str, int], Spec]], flops: Sequence[float],
         memory: Sequence[float], fit: Fit, half: bool) -> list[tuple[Plan, Plan | None]]:
    """For each of these numbers of FLOPs: the best plan, and the best that fits its memory."""
    free: list[Plan | None] = [None] * len(flops)
    held: list[Plan | None] = [None] * len(flops)
    losing = [0] * len(flops)
    for fields, spec in found:
        plain, lean = (training_bytes(spec, half, recompute) for recompute in (False, True))
        for i, (amount, room) in enumerate(zip(flops, memory, strict=True)):
            plan = planned(fields, spec, amount, fit, plain, recompute=False)
            before, losing[i] = free[i], losing[i] + 1
            if before is None or plan.loss < before.loss:
                free[i], losing[i] = plan, 0
            if plain > room:
                plan = planned(fields, spec, amount, fit, lean, recompute=True)
            fits = held[i]
            if plan.memory <= room and (fits is None or plan.loss < fits.loss):
                held[i] = plan
        if min(losing) >= _LOSING:
            break
    return [(plan, fits) for plan, fits in zip(free, held, strict=True) if plan]


def planned(fields: dict[str, int], spec: Spec, flops: float, fit: Fit, memory: float,
            recompute: bool) -> Plan:
    """What a model sees and learns for these FLOPs; recomputing costs it one more forward pass."""
    tokens = flops / ((4 if recompute else 3) * spec.flops_per_token(spec.block_size))
    loss = fit.loss(spec.active_param_count(), tokens)
    return Plan(spec, fields, tokens, loss, memory, recompute)


def training_bytes(spec: Spec, half: bool, recompute: bool) -> float:
    """Bytes that training by AdamW takes at least, with one window at a time, by the parameter
    table: float32 weights, gradients and two moments, a copy of the weights in half precision;
    what each product and norm reads and writes, kept for the backward pass; the logits four times.

    With `recompute` what lies between two layers is kept, and one layer's inside. What chunks of a
    scan keep beside this is not counted: measured in float32 on a CPU, `gpt` keeps 1.1 times these
    activations, `mamba2` 2.7 times. What it really takes is found by trying: train/memory.py.
    """
    T, size = spec.block_size, 2 if half else 4
    static = spec.param_count() * (16 + (2 if half else 0))
    layers = sum(_seen(spec, param.stack) for param in spec.params() if param.group == "hidden")
    layers += sum(2 * param.size for param in spec.params() if param.group == "vector")
    layers *= spec.n_layer if getattr(spec, "share_layers", False) else 1
    if recompute:
        inside = layers / spec.n_layer * size + 4 * spec.n_layer * spec.n_embd
    else:
        inside = layers * size
    return static + T * (inside + 16 * spec.vocab_size)


def _seen(spec: Spec, stack: tuple[int, int, int]) -> float:
    """Numbers that one token reads and writes at the products with a stack of matrices."""
    matrices, rows, columns = stack
    experts = getattr(spec, "n_experts", None)
    if experts and matrices == experts:
        matrices = getattr(spec, "n_experts_per_tok", experts)
    return matrices * (rows + columns)
