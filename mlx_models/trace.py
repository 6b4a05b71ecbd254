"""What went in and out of every submodule, without a word in the model files.

MLX has no hooks: for the time of a trace each submodule becomes an instance of a subclass whose
`__call__` records. The gradient at an output is that of a zero added to it.
"""

from collections import Counter
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from mlx_models.loss import mean_cross_entropy
from specs.backend import Call


def trace(model, batch, grads):
    """All submodule calls in execution order, with d loss / d output where `grads`."""
    tokens, targets, key = batch

    def run(zeros):
        calls = []
        with recording(model, calls, zeros):
            loss = mean_cross_entropy(model(tokens, key=key), targets)
        return loss, [inputs for _, inputs, _ in calls], [o for _, _, o in calls], [
            path for path, _, _ in calls]

    _, inputs, outputs, paths = run(None)
    gradients = [None] * len(paths)
    if grads:
        zeros = [mx.zeros_like(output) for output in outputs]
        gradients = mx.grad(lambda zeros: run(zeros)[0])(zeros)
    return [Call(path, tuple(map(_numpy, args)), _numpy(output), _numpy(grad))
            for path, args, output, grad in zip(paths, inputs, outputs, gradients, strict=True)]


def trace_decoding(model, tokens, cache):
    """All submodule calls in execution order while `tokens` are read."""
    calls = []
    with recording(model, calls):
        model(tokens, cache)
    return [Call(path, tuple(map(_numpy, inputs)), _numpy(output))
            for path, inputs, output in calls]


@contextmanager
def recording(model, calls, zeros=None):
    """(path, inputs, output) of every submodule call joins `calls`; `zeros` join the outputs."""
    seen = Counter()

    def record(name, inputs, output):
        output = output + zeros[len(calls)] if zeros else output
        seen[name] += 1
        calls.append((name if seen[name] == 1 else f"{name}#{seen[name]}", inputs, output))
        return output

    with watched(model, record):
        yield


@contextmanager
def watched(model, record):
    """Every submodule's call passes through record(name, inputs, output) → output."""
    classes = []

    def watch(name, module, cls):
        def call(self, *inputs):
            return record(name, inputs, cls.__call__(self, *inputs))
        classes.append((module, cls))
        module.__class__ = type(cls.__name__, (cls,), {"__call__": call})

    try:
        for name, module in model.named_modules():
            if name:
                watch(name, module, type(module))
        yield
    finally:
        for module, cls in classes:
            module.__class__ = cls


def replay(model, path, inputs):
    """The output of the submodule at `path` for numpy inputs."""
    module = dict(model.named_modules())[path.partition("#")[0]]
    return _numpy(module(*(_array(x, model.dtype) for x in inputs)))


def pullback(model, path, inputs, grad):
    """The gradients at numpy inputs of the submodule at `path` for a gradient at its output."""
    module = dict(model.named_modules())[path.partition("#")[0]]
    args = [_array(x, model.dtype) for x in inputs]
    floats = {str(i): x for i, x in enumerate(args) if _is_float(x)}
    cotangent = mx.array(grad.astype(np.float32))

    def product(floats):
        return mx.sum(module(*(floats.get(str(i), x) for i, x in enumerate(args))) * cotangent)

    grads = mx.grad(product)(floats) if floats else {}
    return tuple(_numpy(grads.get(str(i))) for i in range(len(args)))


def _is_float(x):
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)


def _numpy(x):
    if not isinstance(x, mx.array):
        return x
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def _array(x, dtype):
    if not isinstance(x, np.ndarray):
        return x
    return mx.array(x.astype(np.float32)).astype(dtype) if x.dtype.kind == "f" else mx.array(x)
