"""AdamW and Muon for the parameter table of a spec; the twin is mlx_models/optim.py.

AdamW is PyTorch's own, fused: decoupled decay, bias correction, eps outside the root; called as
a function, for the class imports PyTorch's compiler, 60 MB of it. Muon is
written here from the definition in docs/optimizers.md: decoupled decay, float32, every matrix of
a stack (heads, layers, experts) orthogonalised on its own, all of them in one batched call.
"""

import torch
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al., 2024: five rounds of this quintic


def orthogonalise(U):
    """Nearest to the orthogonal factor of each matrix of U (K, rows, columns)."""
    a, b, c = NEWTON_SCHULZ
    tall = U.shape[-2] > U.shape[-1]
    X = U.swapaxes(-1, -2) if tall else U
    X = X / (torch.sqrt((X * X).sum(-1, keepdim=True).sum(-2, keepdim=True)) + 1e-7)
    for _ in range(5):
        A = X @ X.swapaxes(-1, -2)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.swapaxes(-1, -2) if tall else X


class Optimizer:
    """Moves `params` {name: tensor} in place; everything stays on the device."""

    def __init__(self, spec, params, settings):
        self.params, self.settings = params, settings
        muon = settings.optimizer == "muon"
        self.muon = {p.name: p for p in spec.params() if muon and p.group == "hidden"}
        beside = settings.adam_lr_scale if muon else 1.0
        self.adam_scale = {p.name: beside * p.lr_scale for p in spec.params()}
        self.momentum = {name: torch.zeros_like(params[name]) for name in self.muon}
        self.adam_names = [p.name for p in spec.params() if p.trained and p.name not in self.muon]
        self.groups = {}  # (scale of the rate, decay): names
        for p in spec.params():
            if p.name in self.adam_names:
                kind = self.adam_scale[p.name], settings.weight_decay * p.decays
                self.groups.setdefault(kind, []).append(p.name)
        self.start_adam(0)

    def start_adam(self, step):
        """The state that AdamW would make at its first step; here before it, so it can be read."""
        self.adam = {}
        for name in self.adam_names:
            p = self.params[name]
            self.adam[name] = {"step": torch.tensor(float(step), device=p.device),
                               "m": torch.zeros_like(p), "v": torch.zeros_like(p)}

    @torch.no_grad()
    def update(self, grads, lr, good):
        """One step at rate `lr` from grads {name: tensor}; nothing where `good` is false."""
        for (scale, decay), names in self.groups.items():
            self.adam_step(names, [grads[name] for name in names], lr * scale, good, decay)
        for name, param in self.muon.items():
            self.muon_step(name, param, grads[name], lr, good)

    def adam_step(self, names, grads, lr, good, decay):
        settings = self.settings
        adam = {key: [self.adam[name][key] for name in names] for key in ("m", "v", "step")}
        adamw([self.params[name] for name in names], grads, adam["m"], adam["v"], [],
              adam["step"], fused=True, found_inf=1 - good.to(torch.float32), amsgrad=False,
              beta1=settings.beta1, beta2=settings.beta2, lr=lr,
              weight_decay=decay, eps=settings.eps, maximize=False)

    def muon_step(self, name, param, grad, lr, good):
        beta, decay = self.settings.momentum, self.settings.weight_decay
        weight, old = self.params[name], self.momentum[name]
        momentum = beta * old + (1 - beta) * grad
        U = (1 - beta) * grad + beta * momentum
        X = orthogonalise(U.reshape(param.stack)).reshape(param.shape)
        _, rows, columns = param.stack
        rate = lr * max(1, rows / columns) ** 0.5
        weight.copy_(torch.where(good, weight * (1 - lr * decay) - rate * X, weight))
        self.momentum[name] = torch.where(good, momentum, old)

    def state(self):
        """{neutral name: tensor}; `step` counts the updates that were made."""
        state = {f"momentum.{name}": momentum for name, momentum in self.momentum.items()}
        for name in self.adam_names:
            adam = self.adam[name]
            state |= {f"m.{name}": adam["m"], f"v.{name}": adam["v"]}
            state["step"] = adam["step"]
        return state

    def load_state(self, state):
        """Take over {neutral name: tensor}, names and shapes checked by the caller."""
        self.start_adam(int(state["step"]))
        for name in self.adam_names:
            self.adam[name]["m"].copy_(state[f"m.{name}"])
            self.adam[name]["v"].copy_(state[f"v.{name}"])
        self.momentum = {name: state[f"momentum.{name}"].clone() for name in self.muon}
