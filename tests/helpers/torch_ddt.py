"""The DiT^DH of RAE and the DDT of diffusion-bench in torch, written for the tests.

From their papers (arXiv 2504.05741, 2510.11690) and the names of their tensors; images are NCHW.
"""

import torch
from torch import nn
from torch.nn import functional
from torch_lightningdit import Attention, Block, FinalLayer, RMSNorm, Rotary


class FourierTime(nn.Module):
    def __init__(self, dim, tokens=0):
        super().__init__()
        self.W = nn.Parameter(torch.randn(256), requires_grad=False)
        if tokens:
            self.learnable_tokens = nn.Parameter(torch.randn(tokens, dim))
        self.mlp = nn.Sequential(nn.Linear(512, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        turns = torch.outer(t, self.W) * 2 * torch.pi
        return self.mlp(torch.cat([turns.sin(), turns.cos()], dim=-1))


class Labels(nn.Module):
    def __init__(self, rows, dim, tokens=0):
        super().__init__()
        if tokens:
            self.learnable_tokens = nn.Parameter(torch.randn(tokens, dim))
        self.embedding_table = nn.Embedding(rows, dim)

    def forward(self, labels):
        return self.embedding_table(labels)


class PaddedRotary(Rotary):
    """Turns the grid's tokens, and none of those behind."""

    def __init__(self, grid, head, more):
        super().__init__(grid, head)
        self.freqs_cos = torch.cat([self.freqs_cos, torch.ones(more, head)])
        self.freqs_sin = torch.cat([self.freqs_sin, torch.zeros(more, head)])


class SplitAttention(Attention):
    def __init__(self, dim, heads):
        super().__init__(dim, heads, True, True)
        norms = self.q_norm, self.k_norm
        del self.qkv, self.proj, self.q_norm, self.k_norm
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.q_norm, self.k_norm = norms  # in their order

    def qkv(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


class SplitSwiGLU(nn.Module):
    def __init__(self, dim):
        super().__init__()
        hidden = int(2 / 3 * dim * 4)
        self.w1, self.w2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.w3(functional.silu(self.w1(x)) * self.w2(x))


class SplitBlock(nn.Module):
    """Without a condition nothing is modulated."""

    def __init__(self, dim, heads, modulated):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.attn, self.mlp = SplitAttention(dim, heads), SplitSwiGLU(dim)
        if modulated:
            self.adaln_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, rotary, condition=None, mask=None):
        if condition is None:
            x = x + self.attn(self.norm1(x), rotary, mask)
            return x + self.mlp(self.norm2(x))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaln_modulation(condition).chunk(
            6, dim=-1
        )
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rotary)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class TokenBlock(Block):
    """LightningDiT's block with a condition of each token."""

    def forward(self, x, condition, rotary):
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rotary)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class SplitFinal(nn.Module):
    def __init__(self, dim, features):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.linear = nn.Linear(dim, features)
        self.adaln_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, condition):
        shift, scale = self.adaln_modulation(condition).chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class TokenFinal(FinalLayer):
    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class WideHead(nn.Module):
    def __init__(self, first, input_size, patch_size, in_channels, hidden_size, num_heads):
        super().__init__()
        self.patch_size, self.grid = patch_size, input_size // patch_size
        for name in sorted("sx", reverse=first == "x"):
            embedder = nn.Module()
            dim = hidden_size["sx".index(name)]
            embedder.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
            setattr(self, f"{name}_embedder", embedder)
        self.s_projector = nn.Linear(*hidden_size)
        self.features = patch_size**2 * in_channels
        self.widths = [d // n for d, n in zip(hidden_size, num_heads, strict=True)]

    def tokens(self, embedder, x):
        return embedder.proj(x).flatten(2).transpose(1, 2)

    def image(self, tokens, side):
        p = self.patch_size
        patches = tokens.unflatten(-1, (p * p, -1)).transpose(-1, -2).flatten(2).transpose(1, 2)
        return functional.fold(patches, side, p, stride=p)


class DiTDH(WideHead):
    def __init__(
        self, *, input_size, patch_size, in_channels, hidden_size, depth, num_heads, num_classes,
        qk_norm=False, rms_norm=True,
    ):  # fmt: skip
        super().__init__("x", input_size, patch_size, in_channels, hidden_size, num_heads)
        self.t_embedder = FourierTime(hidden_size[0])
        self.y_embedder = Labels(num_classes + 1, hidden_size[0])
        self.pos_embed = nn.Parameter(
            torch.zeros(1, self.grid**2, hidden_size[0]), requires_grad=False
        )
        self.enc_feat_rope, self.dec_feat_rope = (Rotary(self.grid, w) for w in self.widths)
        self.final_layer = TokenFinal(hidden_size[1], self.features, rms_norm)
        self.depth = depth[0]
        self.blocks = nn.ModuleList(
            kind(dim, heads, qk_norm, True, rms_norm, True)
            for kind, dim, heads, count in zip(
                (Block, TokenBlock), hidden_size, num_heads, depth, strict=True
            )
            for _ in range(count)
        )

    def forward(self, x, t, labels):
        time = self.t_embedder(t)
        condition = functional.silu(time + self.y_embedder(labels))
        s = self.tokens(self.s_embedder, x) + self.pos_embed
        for block in self.blocks[: self.depth]:
            s = block(s, condition, self.enc_feat_rope)
        s = self.s_projector(functional.silu(time[:, None] + s))
        h = self.tokens(self.x_embedder, x)
        for block in self.blocks[self.depth :]:
            h = block(h, s, self.dec_feat_rope)
        return self.image(self.final_layer(h, s), x.shape[-1])


class DDT(WideHead):
    def __init__(
        self, *, input_size, patch_size, in_channels, hidden_size, depth, num_heads, num_classes,
        time_tokens, class_tokens,
    ):  # fmt: skip
        super().__init__("s", input_size, patch_size, in_channels, hidden_size, num_heads)
        self.t_embedder = FourierTime(hidden_size[0], time_tokens)
        self.ctx_embedder = Labels(num_classes + 1, hidden_size[0], class_tokens)
        self.depth = depth[0]
        self.blocks = nn.ModuleList(
            SplitBlock(dim, heads, modulated)
            for modulated, dim, heads, count in zip(
                (False, True), hidden_size, num_heads, depth, strict=True
            )
            for _ in range(count)
        )
        self.final_layer = SplitFinal(hidden_size[1], self.features)
        self.enc_rope = PaddedRotary(self.grid, self.widths[0], time_tokens + class_tokens)
        self.dec_rope = Rotary(self.grid, self.widths[1])

    def forward(self, x, t, context):
        time, label = self.t_embedder(t)[:, None], self.ctx_embedder(context)[:, None]
        s = torch.cat(
            [
                self.tokens(self.s_embedder, x),
                self.t_embedder.learnable_tokens + time,
                self.ctx_embedder.learnable_tokens + label,
            ],
            dim=1,
        )
        for block in self.blocks[: self.depth]:
            s = block(s, self.enc_rope)
        s = self.s_projector(functional.silu(time + s[:, : self.grid**2]))
        h = self.tokens(self.x_embedder, x)
        for block in self.blocks[self.depth :]:
            h = block(h, self.dec_rope, s)
        return self.image(self.final_layer(h, s), x.shape[-1])


MODELS = {"ditdh": DiTDH, "ddt": DDT}
