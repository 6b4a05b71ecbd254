"""The state of rwkv7 over chunks of tokens, and the gradient of it by hand.

The twin is mlx_models/rwkv7_fast.py, the plain forms are `recurrent` of rwkv7.py, and `forward`
here as the framework differentiates it. B batch, N chunks of Q tokens, H heads, D head size. All
have the decays of their chunk in them: P is the product of those up to each token, P⁻ before it,

    κ' = κ ⊙ P⁻, r' = r ⊙ P     b' = κ ⊙ a/P, k' = k/P      asks = [κ'; r'], tells = [b'; k']

What the tokens erase, the rows of U, depends on each other and on the state Z before the chunk,
which is S transposed (the UT transform, Yang et al., arXiv 2406.06484):

    (I + tril(κ' b'ᵀ, −1)) U = −(κ' Z + tril(κ' k'ᵀ, −1) V)
    y = r' Z + tril(r' b'ᵀ) U + tril(r' k'ᵀ) V              Z ← P_end ⊙ (Z + b'ᵀ U + k'ᵀ V)

All but Z and U is made for all chunks at once, forwards and backwards.
"""

import torch


def forward(asks, tells, V, end, Z):
    """asks, tells (B, N, H, 2Q, D), V (B, N, H, Q, D), end (B, N, H, D, 1), Z (B, 1, H, D, D) →
    (y as V, Z after them, and what `backward` needs)."""
    Q = V.shape[-2]
    scores = asks @ turned(tells) * seen(V)
    M = -inverse(scores[..., :Q, :Q])
    W, U = M @ asks[..., :Q, :], M @ (scores[..., :Q, Q:] @ V)
    erase, write = turned(tells[..., :Q, :]), turned(tells[..., Q:, :]) @ V
    states, erased = [], []
    for w, u, b, kv, p in each(W, U, erase, write, end):
        u = u + w @ Z
        states.append(Z)
        erased.append(u)
        Z = p * (Z + kv + b @ u)
    states = joined(states)
    UV = below(joined(erased), V)
    y = asks[..., Q:, :] @ states + scores[..., Q:, :] @ UV
    return y, Z, scores, M, W, states, UV


def backward(asks, tells, V, end, Z, scores, M, W, states, UV, dy, dZ):
    """The gradients at the inputs of `forward`, from its inputs, what it gave (Z is the last), and
    the gradients at y and Z."""
    Q = V.shape[-2]
    dUV = turned(scores[..., Q:, :]) @ dy
    into = turned(asks[..., Q:, :]) @ dy + turned(W) @ dUV[..., :Q, :]
    after, decayed = [], []
    for w, b, p, dread in reversed(list(each(turned(W), tells[..., :Q, :], end, into))):
        after.append(dZ)
        dZ = p * dZ
        decayed.append(dZ)
        dZ = dread + dZ + w @ (b @ dZ)
    after, decayed = (joined(y[::-1]) for y in (after, decayed))
    dUV = dUV + tells @ decayed
    X = turned(M) @ dUV[..., :Q, :]
    F = below(X, dy)
    dscores = F @ turned(UV) * seen(V)
    dasks = F @ turned(states) + dscores @ tells
    dtells = UV @ turned(decayed) + turned(dscores) @ asks
    dV = dUV[..., Q:, :] + turned(scores[..., :Q, Q:]) @ X
    dend = (after * joined((states[:, 1:], Z))).sum(-1, keepdim=True) / end
    return dasks, dtells, dV, dend, dZ


def inverse(A):
    """(I + A)⁻¹ for a strictly lower triangular A (…, Q, Q), by doubling: once the blocks of s rows
    on the diagonal are inverted, those of 2s are so by one product from each side.

    Powers of A would need no more of them, but where keys repeat they grow like binomials and
    cancel; the inverse itself stays small.
    """
    t = torch.arange(A.shape[-1], device=A.device)
    M, size = (t[:, None] == t).to(A.dtype), 1
    while size < len(t):
        block = t // size
        corner = (block[:, None] == block + 1) & (block % 2 == 0)
        below = A * corner.to(A.dtype)
        M = M - (M @ below @ M if size > 1 else below)
        size *= 2
    return M


def seen(V):
    """What each of the asks sees of the tells, (2Q, 2Q): κ those before it, r its own too."""
    t = torch.arange(V.shape[-2], device=V.device)
    rows = below(t[:, None] > t, t[:, None] >= t)
    return torch.cat((rows, rows), dim=1).to(V.dtype)


def turned(y):
    return y.swapaxes(-1, -2)


def each(*arrays):
    """Chunk after chunk: (B, N, …) as N times (B, 1, …)."""
    return zip(*(y.split(1, dim=1) for y in arrays), strict=True)


def joined(chunks):
    return torch.cat(chunks, dim=1)


def below(*parts):
    """The rows of one matrix below those of the other."""
    return torch.cat(parts, dim=-2)


class Chunks(torch.autograd.Function):
    """(y, Z after them) of `forward`, with `backward`."""

    @staticmethod
    def forward(ctx, *inputs):
        y, Z, *kept = forward(*inputs)
        ctx.save_for_backward(*inputs[:-1], Z, *kept)
        return y, Z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dZ):
        return backward(*ctx.saved_tensors, dy, dZ)


def in_chunks(*inputs):
    if torch.compiler.is_compiling():  # which would unroll the loop, for minutes
        return torch.compiler.disable(Chunks.apply)(*inputs)
    return Chunks.apply(*inputs)
