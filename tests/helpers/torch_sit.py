"""A SiT in torch, written from the papers for the tests; its tensors have the published names.

DiT (arXiv 2212.09748), SiT (2401.08740), REPA (2410.06940). Images are NCHW.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, dim, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(self, x):
        q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    def _split(self, x):
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


def modulated(x, shift, scale):
    normalised = functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normalised * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, dim, heads, qk_norm):
        super().__init__()
        self.attn = Attention(dim, heads, qk_norm)
        self.mlp = MLP(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, condition):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = torch.tensor_split(
            self.adaLN_modulation(condition), 6, dim=-1
        )
        x = x + gate[:, None] * self.attn(modulated(x, shift, scale))
        return x + mlp_gate[:, None] * self.mlp(modulated(x, mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    def __init__(self, dim, features):
        super().__init__()
        self.linear = nn.Linear(dim, features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).tensor_split(2, dim=-1)
        return self.linear(modulated(x, shift, scale))


class TimeEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        angles = torch.outer(t, 1e4 ** (-torch.arange(128) / 128))
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


def projector(dim, hidden, features):
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, features),
    )


class SiT(nn.Module):
    """velocity, tokens after block `encoder_depth`, one projection per teacher."""

    def __init__(
        self,
        *,
        latent_size,
        latent_channels,
        patch_size,
        hidden_size,
        depth,
        num_heads,
        num_classes,
        encoder_depth=8,
        teacher_dims=(),
        projector_dim=2048,
        qk_norm=False,
        null_class=True,
    ):
        super().__init__()
        self.patch_size, self.encoder_depth = patch_size, encoder_depth
        dim = hidden_size
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(latent_channels, dim, patch_size, patch_size)
        self.t_embedder = TimeEmbedder(dim)
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(num_classes + null_class, dim)
        tokens = (latent_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads, qk_norm) for _ in range(depth))
        self.projectors = nn.ModuleList(
            projector(dim, projector_dim, features) for features in teacher_dims
        )
        self.final_layer = FinalLayer(dim, patch_size**2 * latent_channels)
        self.bn = nn.BatchNorm2d(latent_channels, eps=1e-4, affine=False)

    def forward(self, x, t, labels):
        p, side = self.patch_size, x.shape[-1]
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder.embedding_table(labels)
        for depth, block in enumerate(self.blocks, start=1):
            h = block(h, condition)
            if depth == self.encoder_depth:
                tokens = h
        # A patch's features are its rows, columns and channels; fold wants channels first.
        patches = self.final_layer(h, condition).unflatten(-1, (p * p, -1))
        patches = patches.transpose(-1, -2).flatten(2).transpose(1, 2)
        velocity = functional.fold(patches, side, p, stride=p)
        return velocity, tokens, [head(tokens) for head in self.projectors]
