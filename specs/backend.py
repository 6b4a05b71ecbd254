"""What a panel offers to the rest of the house: numpy at the border, lazy inside.

`train`, `generate`, `parity` and `bench` speak to this protocol and never import a framework;
`mlx_models/backend.py` and `torch_models/backend.py` implement it. A model is opaque outside
its panel.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from specs.base import Spec, did_you_mean
from specs.errors import UserError

BACKENDS = ("mlx", "torch")
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "plain", "chunked"]
Arrays = dict[str, np.ndarray]
Model = Any


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch.

    `tokens` and `targets` are (B, T) int32, a target of −1 counts for nothing; `keys` (B,) int32
    are the rows' dropout keys (None: no dropout). A row's mask depends on its key alone, so
    splitting a batch changes nothing.
    """

    tokens: np.ndarray
    targets: np.ndarray
    keys: np.ndarray | None = None

    @property
    def counted(self) -> int:
        """How many targets count."""
        return int(np.count_nonzero(self.targets >= 0))


@dataclass(frozen=True)
class OptimizerSettings:
    """One definition for both panels (docs/optimizers.md).

    Muon moves the matrices of the group "hidden" at rate `lr`; AdamW moves everything else at
    `lr` too, or at lr·`adam_lr_scale` beside Muon.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # 0: no clipping
    momentum: float = 0.95
    adam_lr_scale: float = 0.1


@dataclass(frozen=True)
class Call:
    """One submodule's call as seen by a hook: `path` ("layers.1.attn"), the arrays that went in
    (positional, None where there was none), what came out, and d loss / d output if asked for.
    A module called twice has paths "layers.1.encode" and "layers.1.encode#2"."""

    path: str
    inputs: tuple[Any, ...]
    output: np.ndarray
    grad: np.ndarray | None = None


@dataclass
class Progress:
    """What happened since the last `Trainer.read`, one entry a step.

    A step whose loss or gradient norm is not finite changed nothing (neither weights nor
    optimizer state): it was skipped.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    loss_scale: float = 1.0
    load: np.ndarray | None = None  # (L, E) how often each expert of each layer was chosen

    @property
    def finite(self) -> list[bool]:
        pairs = zip(self.losses, self.grad_norms, strict=True)
        return [bool(np.isfinite(loss) and np.isfinite(norm)) for loss, norm in pairs]


class Trainer(Protocol):
    """Owns a model's optimizer."""

    def step(self, batches: Sequence[Batch], lr: float) -> None:
        """One update from the mean gradient over all rows of `batches`; waits for nothing. At
        rate 0 the model stays what it is."""

    def read(self) -> Progress:
        """Wait for the steps so far and tell of those since the last call."""

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        """(summed cross-entropy in nats, number of right first guesses) over (B, T) targets."""

    def state(self) -> Arrays:
        """Optimizer state by neutral names: m.<param>, v.<param>, momentum.<param>, step,
        and loss_scale, loss_scale.good_steps in float16."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the state of either panel's trainer. Raises `UserError` if it does not fit."""


class Decoder(Protocol):
    """Cached decoding of B sequences that stand at the same position."""

    offset: int

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """Read (B, T) tokens, in one piece or several; logits (B, T, V) in float32 or float64."""

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read (B, T) tokens as `prefill` does; the logits behind the last ones, (B, V)."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence, (B,); logits (B, V)."""

    def trace(self, tokens: np.ndarray) -> list[Call]:
        """Read (B, T) tokens as `prefill` does; every submodule call in execution order."""

    def fork(self, rows: Sequence[int]) -> Decoder:
        """A decoder of its own whose sequences are copies of `rows` of this one."""

    def state_bytes(self) -> int:
        """Bytes of what is held for all sequences, spare room left out."""

    def state(self) -> Arrays:
        """What is held, by neutral names: "offset", and "LAYER.NAME"."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where a decoder of the same model and kind stood, on either panel and in any
        dtype, when it gave `state`."""


class Backend(Protocol):
    """One panel on one device."""

    name: str
    device: str

    def versions(self) -> dict[str, str]:
        """Framework, device, chip, BLAS: what a measurement needs to be understood."""

    def build(self, spec: Spec, weights: Mapping[str, np.ndarray], dtype: Dtype = "float32",
              recompute: bool = False, attention: Attention = "sdpa") -> Model:
        """The model with these weights, which must match the parameter table exactly.

        Parameters are kept in float32 (float64 if `dtype` is), products are done in `dtype`.
        `recompute`: a layer's activations are computed again in the backward pass.
        `attention`: how softmax attention is computed, by the framework's fused kernel, with all
        scores at once, or in blocks (memory linear in the length). Raises `UserError` for another
        than the first where the architecture has none.
        """

    def weights(self, model: Model) -> Arrays:
        """All tensors of the parameter table by name."""

    def logits(self, model: Model, tokens: np.ndarray) -> np.ndarray:
        """(B, T) tokens → (B, T, V)."""

    def loss_and_grads(self, model: Model, batch: Batch) -> tuple[float, Arrays]:
        """Mean cross-entropy and its gradient by parameter name."""

    def trace(self, model: Model, batch: Batch, grads: bool = False) -> list[Call]:
        """Every submodule call in execution order."""

    def replay(self, model: Model, path: str, inputs: tuple[Any, ...]) -> np.ndarray:
        """The output of the submodule at `path` for these inputs (from another panel's trace)."""

    def pullback(self, model: Model, path: str, inputs: tuple[Any, ...],
                 grad: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """The gradients at these inputs for `grad` at the output of the submodule at `path`.

        None where an input is no array of floats.
        """

    def trainer(self, model: Model, settings: OptimizerSettings, compile: bool = False) -> Trainer:
        ...

    def decoder(self, model: Model, batch_size: int = 1, length: int | None = None,
                state: str = "auto") -> Decoder:
        """`length`: how long the sequences may become; `state`: one of the spec's decode kinds,
        or "auto" for the cheaper one at that length, or the one with sums ("online")."""

    def synchronize(self) -> None:
        """Wait for everything that was asked for."""

    def peak_memory(self) -> int:
        """Bytes at most in use since the last `reset_peak_memory` (on a CPU: by the process,
        and on macOS since it began)."""

    def reset_peak_memory(self) -> None: ...

    def matmul_rate(self, dtype: Dtype = "float32") -> float:
        """FLOP/s of a large matrix product in `dtype`, measured now: the bound that the share
        of it reached (MFU) refers to."""

    def bandwidth(self) -> float:
        """Bytes per second at which a large matrix is read for a product with one vector,
        measured now: the bound of decoding."""


def available_backends() -> list[str]:
    """The backends whose framework is installed here, preferred one first."""
    return [name for name in BACKENDS if importlib.util.find_spec(name)]


def load_backend(name: str | None = None, device: str | None = None) -> Backend:
    """The panel `name` ("mlx" or "torch"; None: mlx where it is installed) on `device`.

    `device` is "cpu", "gpu" (MLX), "cuda", "cuda:1", "mps" (PyTorch), or None for MLX's GPU or
    CUDA where there is one, else the CPU: on a Mac MLX is for the GPU, and PyTorch's mps only used
    when asked for.
    Raises `UserError` for an unknown backend, one that is not installed, or a missing device.
    """
    here = available_backends()
    if name is None:
        if not here:
            raise UserError("neither MLX nor PyTorch is installed: pip install -e '.[all]'")
        name = here[0]
    if name not in BACKENDS:
        raise UserError(f"no backend {name!r}" + did_you_mean(name, list(BACKENDS)))
    if name not in here:
        other = f", or use --backend {here[0]}" if here else ""
        raise UserError(f"{name} is not installed here: pip install -e '.[{name}]'{other}")
    return importlib.import_module(f"{name}_models.backend").Backend(device)


def device_of(name: str, devices: Sequence[str]) -> str | None:
    """The first of `devices` that the backend `name` may have; None if there is none."""
    known = {"mlx": ("cpu", "gpu"), "torch": ("cpu", "cuda", "mps")}[name]
    return next((each for each in devices if each.partition(":")[0] in known), None)


def load_strictly(spec: Spec, weights: Mapping[str, np.ndarray], source: str = "the weights",
                  ) -> Arrays:
    """`weights` checked against the parameter table in both directions, foreign keys left out.

    Raises `UserError` that names the first missing, unknown or misshapen tensor.
    """
    table = {param.name: param.shape for param in spec.params()}
    found = {name: w for name, w in weights.items() if name not in spec.foreign_keys}
    for name in sorted(table.keys() ^ found.keys()):
        problem = "lacks" if name in table else "holds an unknown"
        raise UserError(f"{source} does not fit this {spec.arch}: it {problem} {name!r}")
    for name, shape in table.items():
        if found[name].shape != shape:
            raise UserError(f"{source} does not fit this {spec.arch}: {name} is "
                            f"{found[name].shape}, the spec says {shape}")
    return {name: found[name] for name in table}


def settings_from(values: Mapping[str, Any]) -> OptimizerSettings:
    """The optimizer's part of a run's training settings."""
    names = {f.name for f in dataclasses.fields(OptimizerSettings)}
    return OptimizerSettings(**{k: v for k, v in values.items() if k in names})


def fresh_state(spec: Spec, settings: OptimizerSettings) -> Arrays:
    """The optimizer state before the first step, as `Trainer.state` gives it in float32."""
    state: Arrays = {"step": np.array(0)}
    for param in spec.params():
        muon = settings.optimizer == "muon" and param.group == "hidden"
        for name in ("momentum",) if muon else ("m", "v"):
            state[f"{name}.{param.name}"] = np.zeros(param.shape, np.float32)
    return state


def fitting_state(own: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]) -> Arrays:
    """`state` for a trainer whose present state is `own`: the same names and shapes, or
    `UserError`. A loss scale is float16's alone: one too many is left out, a missing one is new.
    """
    scale = {name: value for name, value in own.items() if name.startswith("loss_scale")}
    state = {**scale, **{name: value for name, value in state.items()
                         if name in own or not name.startswith("loss_scale")}}
    for name in sorted(own.keys() ^ state.keys()):
        problem = "lacks" if name in own else "holds an unknown"
        raise UserError(f"the optimizer state does not fit: it {problem} {name!r}; "
                        "resume with the optimizer that wrote it")
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise UserError(f"the optimizer state does not fit: {name} is {state[name].shape}, "
                            f"the model's is {value.shape}")
    return {name: state[name] for name in own}
