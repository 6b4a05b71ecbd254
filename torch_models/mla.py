"""mla in PyTorch: see specs/mla.py for the equations; the twin is mlx_models/mla.py.

B batch, T time, S keys, C width, H heads, V vocabulary; sizes of a head are nope (content), rope
(rotary) and v (value), rkv that of a latent. Products take `dtype` inputs; norms, rotation,
softmax, the residual stream and logits are in at least float32. Block, MLP and Model are gpt's.
"""

import torch
from torch import nn

from torch_models import gpt
from torch_models.attention import attention
from torch_models.layers import Linear, PairRotary, RMSNorm, upcast


class LatentAttention(nn.Module):
    """Softmax attention of x (B, T, C) to itself and to the latents that the cache holds."""

    def __init__(self, spec):
        super().__init__()
        C, H, D, eps = spec.n_embd, spec.n_head, spec.head_size, spec.norm_eps
        rq, rkv, bias = spec.q_lora_rank, spec.kv_lora_rank, spec.attn_bias
        self.n_head, self.nope, self.rank = H, spec.qk_nope_head_dim, rkv
        self.scale, self.absorbs, self.low_rank_q = D**-0.5, spec.absorbs, rq is not None
        self.form = "sdpa"
        if self.low_rank_q:
            self.q_a_proj = Linear(C, rq, bias)
            self.q_a_norm = RMSNorm(rq, eps)
            self.q_b_proj = Linear(rq, H * D, bias=False)
        else:
            self.q_proj = Linear(C, H * D, bias=False)
        self.kv_a_proj = Linear(C, rkv + spec.qk_rope_head_dim, bias)
        self.kv_a_norm = RMSNorm(rkv, eps)
        self.kv_b_proj = Linear(rkv, H * (self.nope + spec.v_head_dim), bias=False)
        self.o_proj = Linear(H * spec.v_head_dim, C, bias)
        self.rotary = PairRotary()

    def forward(self, x, cos, sin, mask, cache=None):
        q, kv = self.heads(self.query(x), self.n_head), self.heads(self.kv_a_proj(x), 1)
        q_c, q_r = q[..., : self.nope], q[..., self.nope :]  # (B, H, T, nope), (B, H, T, rope)
        c, k_r = kv[..., : self.rank], kv[..., self.rank :]  # (B, 1, T, rkv), (B, 1, T, rope)
        c = self.kv_a_norm(c).to(x.dtype)
        r = self.rotary(torch.cat((q_r, k_r), dim=1), cos, sin).to(x.dtype)
        q_r, k_r = r[:, :-1], r[:, -1:]  # the shared key is turned as one head more
        if cache is not None:
            c, k_r = cache.update_and_fetch(c, k_r)  # S rows
        absorb = self.absorbs(x.shape[1], c.shape[2])
        form = self.absorbed if absorb else self.materialised
        y = form(q_c, q_r, c, k_r, mask)  # (B, H, T, v)
        return self.o_proj(y.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def query(self, x):
        if not self.low_rank_q:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_norm(self.q_a_proj(x)).to(x.dtype))

    def heads(self, y, count):
        return y.reshape(*y.shape[:2], count, -1).swapaxes(1, 2)

    def materialised(self, q_c, q_r, c, k_r, mask):
        """Ordinary attention: the latents are made keys and values (B, H, S, ·)."""
        kv = self.heads(self.kv_b_proj(c[:, 0]), self.n_head)
        k_c, v = kv[..., : self.nope], kv[..., self.nope :]
        k_r = k_r.expand(*k_c.shape[:3], k_r.shape[-1])
        q, k = (torch.cat(parts, dim=-1) for parts in ((q_c, q_r), (k_c, k_r)))
        return attention(q, k, v, mask, self.form)

    def absorbed(self, q_c, q_r, c, k_r, mask):
        """Attention to the latents: kv_b_proj's key part turns the query, its value part the sum.

        All heads read the same rows, so a product has H·T queries: each row is read once.
        """
        B, H, T, _ = q_r.shape
        q_c, q_r = (q * self.scale for q in (q_c, q_r))
        weight = self.kv_b_proj.weight.to(c.dtype).reshape(H, -1, self.rank)
        scores = q_r.reshape(B, 1, H * T, -1) @ k_r.swapaxes(-1, -2)
        if self.nope:
            q_c = q_c @ weight[:, : self.nope]  # (B, H, T, rkv)
            scores = scores + q_c.reshape(B, 1, H * T, -1) @ c.swapaxes(-1, -2)
        scores = upcast(scores).reshape(B, H, T, -1)
        if mask is not None:
            scores = torch.where(mask, scores, -torch.inf)
        share = torch.softmax(scores, dim=-1).to(c.dtype)
        y = (share.reshape(B, 1, H * T, -1) @ c).reshape(B, H, T, -1)
        return y @ weight[:, self.nope :].swapaxes(-1, -2)


class Model(gpt.Model):
    """tokens (B, T) → logits (B, T, V). A cache's keys are latents, its values rotary keys."""

    def block(self, i):
        return gpt.Block(self.spec, self.dtype, LatentAttention(self.spec), gpt.MLP(self.spec))
