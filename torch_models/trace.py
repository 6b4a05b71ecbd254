"""What went in and out of every submodule, taken by hooks: the model files hold nothing for it."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch

from specs.backend import Call
from torch_models.loss import mean_cross_entropy


def trace(model, batch, grads):
    """All submodule calls in execution order, with d loss / d output where `grads`."""
    tokens, targets, key = batch
    calls = []
    with torch.set_grad_enabled(grads), recording(model, calls, grads):
        loss = mean_cross_entropy(model(tokens, key=key), targets)
    if grads:
        loss.backward()
        model.zero_grad()
    return [Call(path, tuple(map(_numpy, inputs)), _numpy(output),
                 _numpy(output.grad) if grads else None) for path, inputs, output in calls]


@torch.inference_mode()
def trace_decoding(model, tokens, cache):
    """All submodule calls in execution order while `tokens` are read."""
    calls = []
    with recording(model, calls):
        model(tokens, cache)
    return [Call(path, tuple(map(_numpy, inputs)), _numpy(output))
            for path, inputs, output in calls]


@contextmanager
def recording(model, calls, grads=False):
    """(path, inputs, output) of every submodule call joins `calls`; with `grads` the outputs keep
    their gradients."""
    seen, hooks = Counter(), []

    def watch(name):
        def hook(module, inputs, output):
            seen[name] += 1
            if grads:
                output.retain_grad()
            calls.append((name if seen[name] == 1 else f"{name}#{seen[name]}", inputs, output))
        return hook

    try:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.nn.ModuleList):
                hooks.append(module.register_forward_hook(watch(name)))
        yield
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def replay(model, path, inputs, device):
    """The output of the submodule at `path` for numpy inputs."""
    module = model.get_submodule(path.partition("#")[0])
    return _numpy(module(*(_tensor(x, model.dtype, device) for x in inputs)))


def pullback(model, path, inputs, grad, device):
    """The gradients at numpy inputs of the submodule at `path` for a gradient at its output."""
    module = model.get_submodule(path.partition("#")[0])
    args = [_tensor(x, model.dtype, device) for x in inputs]
    floats = [x.requires_grad_() for x in args if _is_float(x)]
    output = module(*args)
    grads = iter(torch.autograd.grad(output, floats, _tensor(grad, output.dtype, device),
                                     materialize_grads=True) if floats else ())
    return tuple(_numpy(next(grads)) if _is_float(x) else None for x in args)


def _is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _numpy(x):
    if not isinstance(x, torch.Tensor):
        return x
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy(force=True).copy()


def _tensor(x, dtype, device):
    if not isinstance(x, np.ndarray):
        return x
    return torch.tensor(x, dtype=dtype if x.dtype.kind == "f" else None, device=device)
