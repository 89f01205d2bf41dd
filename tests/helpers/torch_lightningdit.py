"""A LightningDiT in torch, written from its paper and its tensors' names for the tests.

LightningDiT (arXiv 2501.01423), RoFormer (2104.09864), SwiGLU (2002.05202), RMSNorm (1910.07467).
Images are NCHW, and as in its authors' code the data are at t = 1.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch_sit import MLP, TimeEmbedder


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return functional.rms_norm(x, x.shape[-1:], self.weight, eps=1e-6)


def norm_of(dim, rms):
    return RMSNorm(dim) if rms else nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


class Rotary(nn.Module):
    """Complex numbers x[2 i] + x[2 i + 1] j, turned by the row (first half) and the column."""

    def __init__(self, grid, head):
        super().__init__()
        frequency = 1e4 ** (-torch.arange(head // 4, dtype=torch.float64) * 4 / head)
        place = torch.arange(grid, dtype=torch.float64)
        rows = (place[:, None, None] * frequency).expand(grid, grid, -1)
        columns = (place[None, :, None] * frequency).expand(grid, grid, -1)
        turns = torch.cat([rows, columns], dim=-1).reshape(grid * grid, -1)
        turns = turns.repeat_interleave(2, dim=-1)
        self.register_buffer("freqs_cos", turns.cos().float())
        self.register_buffer("freqs_sin", turns.sin().float())

    def forward(self, x):
        turn = torch.complex(self.freqs_cos[:, ::2], self.freqs_sin[:, ::2])
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn
        return torch.view_as_real(turned).flatten(-2)


class Attention(nn.Module):
    def __init__(self, dim, heads, qk_norm, rms):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        make = RMSNorm if rms else nn.LayerNorm
        self.q_norm = make(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = make(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, rotary, mask=None):
        """`mask` (B, N) is False for keys to leave out."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, dim):
        super().__init__()
        hidden = int(2 / 3 * (4 * dim))
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, dim, heads, qk_norm, swiglu, rms, shift):
        super().__init__()
        self.norm1, self.norm2 = norm_of(dim, rms), norm_of(dim, rms)
        self.attn = Attention(dim, heads, qk_norm, rms)
        self.mlp = SwiGLU(dim) if swiglu else MLP(dim)
        parts = 6 if shift else 4
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, parts * dim))
        self.shift = shift

    def forward(self, x, condition, rotary):
        modulation = self.adaLN_modulation(condition)[:, None]
        if self.shift:
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=-1)
        else:
            scale, gate, mlp_scale, mlp_gate = modulation.chunk(4, dim=-1)
            shift = mlp_shift = 0
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rotary)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class FinalLayer(nn.Module):
    def __init__(self, dim, features, rms):
        super().__init__()
        self.norm_final = norm_of(dim, rms)
        self.linear = nn.Linear(dim, features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class LightningDiT(nn.Module):
    """The velocity toward the data, (B, C, h, w)."""

    def __init__(
        self, *, input_size, patch_size, in_channels, hidden_size, depth, num_heads, num_classes,
        use_qknorm=False, use_swiglu=True, use_rope=True, use_rmsnorm=True, wo_shift=False,
    ):  # fmt: skip
        super().__init__()
        self.patch_size, dim = patch_size, hidden_size
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.t_embedder = TimeEmbedder(dim)
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(num_classes + 1, dim)
        grid = input_size // patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, dim), requires_grad=False)
        self.feat_rope = Rotary(grid, dim // num_heads) if use_rope else None
        options = (dim, num_heads, use_qknorm, use_swiglu, use_rmsnorm, not wo_shift)
        self.blocks = nn.ModuleList(Block(*options) for _ in range(depth))
        self.final_layer = FinalLayer(dim, patch_size**2 * in_channels, use_rmsnorm)

    def forward(self, x, t, labels):
        p, side = self.patch_size, x.shape[-1]
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder.embedding_table(labels)
        for block in self.blocks:
            h = block(h, condition, self.feat_rope)
        # A patch's features are its rows, columns and channels; fold wants channels first.
        patches = self.final_layer(h, condition).unflatten(-1, (p * p, -1))
        patches = patches.transpose(-1, -2).flatten(2).transpose(1, 2)
        return functional.fold(patches, side, p, stride=p)
