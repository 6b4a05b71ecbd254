"""AdamW and Muon for the parameter table of a spec; the twin is torch_models/optim.py.

AdamW is MLX's own with bias correction: decoupled decay, eps outside the root. Muon is
written here from the definition in docs/optimizers.md: decoupled decay, float32, every matrix of
a stack (heads, layers, experts) orthogonalised on its own, all of them in one batched call.
"""

import mlx.core as mx
import mlx.optimizers

from mlx_models.layers import choose, settle

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
        beside = settings.adam_lr_scale if muon else 1.0
        self.adam_scale = {p.name: beside * p.lr_scale for p in spec.params()}
        self.momentum = {name: mx.zeros_like(params[name]) for name in self.muon}
        self.adam_names = [p.name for p in spec.params() if p.trained and p.name not in self.muon]
        self.adam = {p.name: mlx.optimizers.AdamW(
            0.0, [settings.beta1, settings.beta2], settings.eps,
            settings.weight_decay if p.decays else 0.0, bias_correction=True)
            for p in spec.params() if p.name in self.adam_names}
        self.start_adam(0)

    def start_adam(self, step):
        """The state that AdamW would make at its first step; here before it, so it can be read."""
        for name, adam in self.adam.items():
            adam.init({name: self.params[name]})
            adam.state["step"] = mx.array(step, mx.uint64)
        settle([self.momentum, *(adam.state for adam in self.adam.values())])

    def update(self, grads, lr, good):
        """One step at rate `lr` from grads {name: array}, taken out of it; nothing where `good`
        is false.

        One parameter is asked for after the other: together they would need room for the old
        and the new of all.
        """
        for name in self.adam_names:
            self.adam_step(name, grads.pop(name), lr, good)
            settle([self.params[name], self.adam[name].state])
        for name, param in self.muon.items():
            self.muon_step(name, param, grads.pop(name), lr, good)
            settle([self.params[name], self.momentum[name]])

    def adam_step(self, name, grad, lr, good):
        adam, old = self.adam[name], self.params[name]
        adam.learning_rate = lr * self.adam_scale[name]
        old_step, old_state = adam.state["step"], dict(adam.state[name])
        new = adam.apply_gradients({name: grad}, {name: old})[name]
        self.params[name] = choose(good, new, old)
        adam.state["step"] = choose(good, adam.state["step"], old_step)
        adam.state[name] = {k: choose(good, adam.state[name][k], old_state[k]) for k in old_state}

    def muon_step(self, name, param, grad, lr, good):
        beta, decay = self.settings.momentum, self.settings.weight_decay
        weight, old = self.params[name], self.momentum[name]
        momentum = beta * old + (1 - beta) * grad
        U = (1 - beta) * grad + beta * momentum
        X = orthogonalise(U.reshape(param.stack)).reshape(param.shape)
        _, rows, columns = param.stack
        rate = lr * max(1, rows / columns) ** 0.5
        self.params[name] = choose(good, weight * (1 - lr * decay) - rate * X, weight)
        self.momentum[name] = choose(good, momentum, old)

    def state(self):
        """{neutral name: array}; `step` counts the updates that were made."""
        state = {f"momentum.{name}": momentum for name, momentum in self.momentum.items()}
        for name, adam in self.adam.items():
            state["step"] = adam.state["step"]
            state |= {f"m.{name}": adam.state[name]["m"], f"v.{name}": adam.state[name]["v"]}
        return state

    def load_state(self, state):
        """Take over {neutral name: array}, names and shapes checked by the caller."""
        self.start_adam(int(state["step"]))
        for name, adam in self.adam.items():
            adam.state[name] = {"m": state[f"m.{name}"], "v": state[f"v.{name}"]}
        self.momentum = {name: state[f"momentum.{name}"] for name in self.muon}

