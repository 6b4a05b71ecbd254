"""What is said of each optimisation, and the trainings that measure it.

A `Setup` is a model and how it is trained, in words that train/run.py understands. The baseline is
GPT-2's form in float32 with all scores of attention held at once. Each option changes one thing of
it; the stack adds them one after the other in the order of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from specs import gpt, moe
from train.study.setup import Setup

GPT2 = {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True}
LLAMA = {"norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "bias": False}
ACCUMULATED = 4  # micro-batches
NO_UNITS = "no matrix units for it here: tensor cores and Metal have them"
Range = tuple[float, float]


Change = Callable[[Setup], Setup]


def spec(**changed: Any) -> Change:
    return lambda setup: replace(setup, fields={**setup.fields, **changed})


def run(**changed: Any) -> Change:
    return lambda setup: replace(setup, settings={**setup.settings, **changed})


def accumulated(setup: Setup) -> Setup:
    rows = setup.settings["batch_size"]
    return run(batch_size=ACCUMULATED * rows, micro_batch=rows)(setup)


def grouped(setup: Setup) -> Setup:
    return spec(n_kv_head=max(1, setup.fields["n_head"] // 2))(setup)


def experts(setup: Setup) -> Setup:
    """Eight experts, two of which are together as wide as the dense MLP."""
    known = {field.name for field in fields(moe.Spec)}
    kept = {name: value for name, value in setup.fields.items() if name in known}
    dense = gpt.Spec.from_dict({**setup.fields, **LLAMA})
    return Setup("moe", {**kept, "d_ff": dense.mlp_width // 2}, setup.settings)


@dataclass(frozen=True)
class Option:
    """One optimisation. `rate`, `memory`: the ratios that the claim promises; `learns`: it changes
    what is learnt; `base`: the setup it is held against; `unseen`: what a CPU cannot show of it,
    by backend."""

    key: str
    title: str
    claim: str
    change: Change
    rate: Range | None = None
    memory: Range | None = None
    learns: bool = False
    base: str = "baseline"
    unseen: tuple[tuple[str, str], ...] = ()
    stacked: bool = True


def both(text: str) -> tuple[tuple[str, str], ...]:
    return ("mlx", text), ("torch", text)


FUSED = (("mlx", "not fused on MLX's CPU backend: Metal and CUDA have the kernel"),
         ("torch", "a fused CPU kernel: flash attention itself is CUDA's"))
COMPILED = (("mlx", "C++ for the CPU here, not Metal kernels"),
            ("torch", "C++ for the CPU here, not Triton on CUDA"))

OPTIONS = (
    Option("recompute", "gradient checkpointing", "40–50 % less memory", run(recompute=True),
           memory=(0.5, 0.6)),
    Option("bfloat16", "mixed precision, bfloat16", "2 times as fast, 30–40 % less memory",
           run(dtype="bfloat16"), rate=(2, 2), memory=(0.6, 0.7), unseen=both(NO_UNITS)),
    Option("float16", "mixed precision, float16 with loss scaling",
           "2 times as fast, 30–40 % less memory", run(dtype="float16"), rate=(2, 2),
           memory=(0.6, 0.7), unseen=both(NO_UNITS), stacked=False),
    Option("sdpa", "fused attention", "2–4 times as fast", run(attention="sdpa"), rate=(2, 4),
           unseen=FUSED),
    Option("chunked", "attention in blocks", "", run(attention="chunked"), stacked=False),
    Option("compile", "compiled", "20–30 % faster", run(compile=True), rate=(1.2, 1.3),
           unseen=COMPILED),
    Option("accumulate", f"gradient accumulation, {ACCUMULATED} × the batch",
           "larger batch in the same memory, better gradients", accumulated, memory=(1, 1),
           learns=True),
    Option("rope", "RoPE for learned positions", "better positions", spec(pos="rope"), learns=True),
    Option("swiglu", "SwiGLU for GELU, equal parameters", "better activation", spec(mlp="swiglu"),
           learns=True),
    Option("rmsnorm", "RMSNorm for LayerNorm", "norms 10–15 % faster (here: the whole step)",
           spec(norm="rmsnorm"), learns=True),
    Option("grouped", "grouped heads, two queries a key", "", grouped, learns=True),
    Option("moe", "mixture of experts, 2 of 8, equal active parameters", "", experts, learns=True,
           base="llama", unseen=(("torch", "experts in turn here: CUDA has grouped products"),)),
)
LONG = (
    Option("long sdpa", "fused attention, long", "5–20 times less memory", run(attention="sdpa"),
           memory=(0.05, 0.2), base="long plain", unseen=FUSED),
    Option("long chunked", "attention in blocks, long", "", run(attention="chunked"),
           base="long plain"),
)
MODERN = ("rope", "swiglu", "rmsnorm", "grouped")  # change what is learnt, and nothing else


@dataclass(frozen=True)
class Plan:
    """What is measured: `only` these options, on a small model and these windows."""

    only: tuple[str, ...] = tuple(option.key for option in OPTIONS)
    layers: int = 4
    width: int = 128
    heads: int = 4
    block: int = 128
    batch: int = 4
    long: int = 4096
    lengths: tuple[int, ...] = (64, 128, 256, 512)

    @property
    def options(self) -> list[Option]:
        return [option for option in OPTIONS if option.key in self.only]

    @property
    def stacked(self) -> list[Option]:
        """In the order in which they are added."""
        return [option for option in self.options if option.stacked]

    @property
    def levels(self) -> list[str]:
        """The stack's setups, one for each of `stacked`: the first is an option alone."""
        return [option.key if number == 1 else f"stack {number}"
                for number, option in enumerate(self.stacked, 1)]

    @property
    def modern(self) -> list[Option]:
        return [option for option in self.options if option.key in MODERN]

    @property
    def learnt(self) -> list[str]:
        """The setups whose held-out loss is measured."""
        options = [option.key for option in self.options if option.learns]
        bases = sorted({self.base_of(name) for name in options})
        return [*bases, *options, *(["modern"] if len(self.modern) > 1 else [])]

    def base_of(self, name: str) -> str:
        """The setup that the figures of `name` are held against."""
        return {option.key: option.base for option in (*OPTIONS, *LONG)}.get(name, "baseline")

    def setups(self) -> dict[str, Setup]:
        """All that is measured, by name."""
        common = {"n_layer": self.layers, "n_embd": self.width, "n_head": self.heads}
        baseline = Setup("gpt", {**common, "block_size": self.block, **GPT2},
                         {"batch_size": self.batch, "attention": "plain"})
        llama = spec(**LLAMA)(baseline)
        found = {"baseline": baseline, "llama": llama}
        for option in self.options:
            found[option.key] = option.change(found[option.base])
        level = modern = baseline
        for name, option in zip(self.levels, self.stacked, strict=True):
            level = option.change(level)
            found.setdefault(name, level)
        for option in self.modern:
            modern = option.change(modern)
        if len(self.modern) > 1:
            found["modern"] = modern
        found["long plain"] = run(batch_size=1)(spec(block_size=self.long)(baseline))
        for option in LONG:
            found[option.key] = option.change(found["long plain"])
        fused = run(attention="sdpa")(llama)
        for length in self.lengths:
            rows = max(1, self.batch * self.block // length)
            found[f"length {length}"] = run(batch_size=rows)(spec(block_size=length)(fused))
        return found
