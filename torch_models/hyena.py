"""hyena in PyTorch: see specs/hyena.py for the equations; the twin is mlx_models/hyena.py.

B batch, T time, C width, P order, N block_size, K = (P−1)·C filters, E and W entries of what their
network reads and of its layers, V vocabulary. Products with matrices and gates take `dtype` inputs;
the filters, all convolutions, norms, the residual stream and logits are in at least float32. MLP is
gpt's.
"""

from functools import cache as once
from functools import partial

import torch
from torch import nn

from specs.online import KINDS
from torch_models import gpt
from torch_models.layers import Linear, dropout, fold, lasting, unset
from torch_models.longconv import long_conv
from torch_models.model import LanguageModel
from torch_models.online import CONVS
from torch_models.shortconv import short_conv


class Filter(nn.Module):
    """features (T, E) and decay (T, K) of T distances → filters (T, K), in at least float32."""

    def __init__(self, spec):
        super().__init__()
        E, W = spec.emb_dim, spec.filter_order
        self.l1, self.l2, self.l3 = Linear(E, W), Linear(W, W), Linear(W, W)
        self.freq = unset(W)
        self.out = Linear(W, spec.filters, bias=False)

    def forward(self, features, decay):
        z = features
        for layer in (self.l1, self.l2, self.l3):
            z = torch.sin(self.freq * layer(z))
        return self.out(z) * decay


class Hyena(nn.Module):
    """Convolutions of x (B, T, C) between gates, behind what the cache holds."""

    def __init__(self, spec):
        super().__init__()
        C, wide = spec.n_embd, (spec.order + 1) * spec.n_embd
        self.order = spec.order
        self.in_proj = Linear(C, wide)
        self.conv_weight = unset(wide, spec.short_filter)
        self.conv_bias = unset(wide)
        self.filter = Filter(spec)
        self.filter_bias = unset(spec.order - 1, C)
        self.out_proj = Linear(C, C)

    def forward(self, x, features, decay, cache=None):
        before = None if cache is None else cache.inputs
        u, inputs = short_conv(self.in_proj(x), self.conv_weight, self.conv_bias, before)
        *gates, v = torch.chunk(u.to(x.dtype), self.order + 1, dim=-1)
        if cache is None:
            T = x.shape[1]
            convs = [partial(long_conv, h=h) for h in self.filters(features[:T], decay[:T])]
        else:
            cache.inputs = inputs
            filters = once(lambda: self.filters(features, decay))
            convs = [partial(conv, kernel=lambda o=o: filters()[o])
                     for o, conv in enumerate(cache.convs)]
        for gate, conv in zip(reversed(gates[1:]), convs, strict=True):
            v = conv((v * gate)[..., None])[..., 0]
        return self.out_proj(v * gates[0])

    def filters(self, features, decay):
        """h_o (C, T) for each o. What filter_bias adds is a token's own: it joins their first
        entries."""
        h = self.filter(features, decay)
        h = torch.cat((h[:1] + self.filter_bias.reshape(1, -1), h[1:]), dim=0)
        return torch.chunk(h.T, self.order - 1, dim=0)


class HyenaCache:
    """What decoding keeps of a layer: the last inputs of the short convolution (B, ·, (P+1)·C), in
    at least float32, and what each long one keeps."""

    def __init__(self, convs):
        self.inputs, self.convs = None, convs

    @property
    def offset(self):
        return self.convs[0].offset

    def arrays(self):
        """What is held, by name."""
        held = {f"{o}.{name}": array for o, conv in enumerate(self.convs)
                for name, array in conv.arrays().items()}
        return {"inputs": self.inputs, **held} if self.offset else {}

    def load(self, arrays, offset, dtype):
        """Hold what `arrays` gave after `offset` tokens, in at least float32 whatever `dtype`."""
        self.inputs = arrays.get("inputs")
        for o, conv in enumerate(self.convs):
            conv.load({name.removeprefix(f"{o}."): array for name, array in arrays.items()
                       if name.startswith(f"{o}.")}, offset, dtype)

    @property
    def nbytes(self):
        short = 0 if self.inputs is None else self.inputs.nbytes
        return short + sum(conv.nbytes for conv in self.convs)

    def take(self, index):
        """A copy that holds these sequences of the batch only."""
        copy = HyenaCache([conv.take(index) for conv in self.convs])
        copy.inputs = None if self.inputs is None else self.inputs.index_select(0, index)
        return copy


class Block(gpt.Block):
    """One layer: x (B, T, C) → (B, T, C)."""

    def forward(self, x, features, decay, key=None, cache=None):
        h = self.mixer(self.mixer_norm(x).to(self.dtype), features, decay, cache)
        x = x + dropout(h, self.dropout, fold(key, 0))
        h = self.mlp(self.mlp_norm(x).to(self.dtype))
        return x + dropout(h, self.dropout, fold(key, 1))


class Model(LanguageModel):
    """The frame with what the filters of all layers are made of."""

    def __init__(self, spec, dtype=torch.float32):
        super().__init__(spec, dtype)
        self._tables = None

    def block(self, i):
        return Block(self.spec, self.dtype, Hyena(self.spec), gpt.MLP(self.spec))

    def make_cache(self, batch_size=1, length=None, kind="auto"):
        """One cache a layer: "cache" or "online"."""
        kind = KINDS[-1] if kind == "auto" else kind
        self.spec.check_decode_kind(kind)
        return [self.new_cache(kind) for _ in self.layers]

    def new_cache(self, kind="online"):
        convs = [CONVS[kind](self.spec.block_size) for _ in range(self.spec.order - 1)]
        return HyenaCache(convs)

    @lasting
    def context(self, tokens, start, cache):
        """(features, decay) of all N distances, computed once."""
        if self._tables is None:
            tables = self.spec.features(), self.spec.decay()
            self._tables = tuple(torch.from_numpy(t).to(self.embed.weight) for t in tables)
        return self._tables
