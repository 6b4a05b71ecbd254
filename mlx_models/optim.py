"""AdamW and Muon for the parameter table of a spec; the twin is torch_models/optim.py.

AdamW is MLX's own with bias correction: decoupled decay, eps outside the root. Muon is
written here from the definition in docs/optimizers.md: decoupled decay, float32, every matrix of
a stack (heads, layers, experts) orthogonalised on its own, all of them in one batched call.
"""

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_map

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al., 2024: five rounds of this quintic


def orthogonalise(U):
    """Nearest to the orthogonal factor of each matrix of U (K, rows, columns)."""
    a, b, c = NEWTON_SCHULZ
    tall = U.shape[-2] > U.shape[-1]
    X = U.swapaxes(-1, -2) if tall else U
    X = X / (mx.sqrt((X * X).sum(-1, keepdims=True).sum(-2, keepdims=True)) + 1e-7)
    for _ in range(5):
        A = X @ X.swapaxes(-1, -2)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.swapaxes(-1, -2) if tall else X


class Optimizer:
    """Moves `params` {name: array}, a dictionary it owns; everything stays on the device."""

    def __init__(self, spec, params, settings):
        self.params, self.settings = params, settings
        muon = settings.optimizer == "muon"
        self.muon = {p.name: p for p in spec.params() if muon and p.group == "hidden"}
        self.adam_scale = settings.adam_lr_scale if muon else 1.0
        self.momentum = {name: mx.zeros_like(params[name]) for name in self.muon}
        decays = [p.name for p in spec.params() if p.name not in self.muon and p.decays]
        spared = [p.name for p in spec.params() if p.name not in self.muon and not p.decays]
        groups = [(decays, settings.weight_decay), (spared, 0.0)]
        self.adam = [(names, mlx.optimizers.AdamW(
            0.0, [settings.beta1, settings.beta2], settings.eps, decay, bias_correction=True))
            for names, decay in groups]
        self.start_adam(0)

    def start_adam(self, step):
        """The state that AdamW would make at its first step; here before it, so it can be read."""
        for names, adam in self.adam:
            adam.init({name: self.params[name] for name in names})
            adam.state["step"] = mx.array(step, mx.uint64)

    def update(self, grads, lr, good):
        """One step at rate `lr` from grads {name: array}; nothing where `good` is false."""
        for names, adam in self.adam:
            adam.learning_rate = lr * self.adam_scale
            old = {name: self.params[name] for name in names}
            # apply_gradients changes the inner dictionaries, so `old_state` has its own.
            old_state = tree_map(lambda x: x, {key: adam.state[key] for key in ["step", *names]})
            new = adam.apply_gradients({name: grads[name] for name in names}, old)
            self.params |= _where(good, new, old)
            adam.state.update(_where(good, {key: adam.state[key] for key in old_state}, old_state))
        for name, param in self.muon.items():
            self.muon_step(name, param, grads[name], lr, good)

    def muon_step(self, name, param, grad, lr, good):
        beta, decay = self.settings.momentum, self.settings.weight_decay
        weight, old = self.params[name], self.momentum[name]
        momentum = beta * old + (1 - beta) * grad
        U = (1 - beta) * grad + beta * momentum
        X = orthogonalise(U.reshape(param.stack)).reshape(param.shape)
        _, rows, columns = param.stack
        rate = lr * max(1, rows / columns) ** 0.5
        self.params[name] = mx.where(good, weight * (1 - lr * decay) - rate * X, weight)
        self.momentum[name] = mx.where(good, momentum, old)

    def state(self):
        """{neutral name: array}; `step` counts the updates that were made."""
        state = {f"momentum.{name}": momentum for name, momentum in self.momentum.items()}
        for names, adam in self.adam:
            state["step"] = adam.state["step"]
            for name in names:
                state |= {f"m.{name}": adam.state[name]["m"], f"v.{name}": adam.state[name]["v"]}
        return state

    def load_state(self, state):
        """Take over {neutral name: array}, names and shapes checked by the caller."""
        self.start_adam(int(state["step"]))
        for names, adam in self.adam:
            for name in names:
                adam.state[name] = {"m": state[f"m.{name}"], "v": state[f"v.{name}"]}
        self.momentum = {name: state[f"momentum.{name}"] for name in self.muon}


def _where(good, new, old):
    """`new` where `good`, else `old`, through dictionaries of arrays."""
    if isinstance(new, dict):
        return {key: _where(good, new[key], old[key]) for key in new}
    return mx.where(good, new, old)
