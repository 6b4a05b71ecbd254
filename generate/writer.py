"""A checkpoint of a run on one backend, ready to continue texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from generate.memory import Memory
from generate.sampling import Sampler
from generate.text import Piece, Speed, write
from specs.backend import Arrays, Backend, Dtype
from train.rundir import RunDir


class Writer:
    """The model of `run` with the weights of a `checkpoint`, (step, weights), as `RunDir.load`
    gives it; `state` is the decoder's."""

    def __init__(self, run: RunDir, checkpoint: tuple[int, Arrays], backend: Backend,
                 dtype: Dtype = "float32", state: str = "auto") -> None:
        self.run, self.spec, self.tokenizer = run, run.spec, run.tokenizer()
        self.step, weights = checkpoint
        self.backend, self.dtype, self.state = backend, dtype, state
        self._model = backend.build(self.spec, weights, dtype)

    def __str__(self) -> str:
        return f"{self.run.name} on {self.backend.name} ({self.backend.device}, {self.dtype})"

    def write(self, prompts: Sequence[str], sampler: Sampler, max_tokens: int,
              stop: Sequence[str] = (), speed: Speed | None = None,
              memory: Memory | None = None) -> Iterator[Piece]:
        """`generate.text.write` with this model."""
        return write(self.backend, self._model, self.tokenizer, prompts, sampler, max_tokens, stop,
                     self.state, speed, self.spec.max_length, memory)
