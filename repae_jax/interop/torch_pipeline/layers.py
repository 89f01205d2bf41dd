"""Layers of the transformers; images are NCHW, tokens (B, N, D)."""

import functools
import math

import torch
from diffusers import ModelMixin
from torch import nn
from torch.nn import functional


class Denoiser(ModelMixin):
    """What all transformers here share: strict loading, patches, and the latents' statistics.

    Time runs from the data at 0 to noise at 1. `bn` holds the mean and the variance of the latents
    by which they were normalized in training, (c,) or (c, h, w) each. It is float32 in a model of
    any type, as are tables of positions and the frequencies of the time.
    """

    _supports_gradient_checkpointing = False

    @classmethod
    def from_pretrained(
        cls, *args, output_loading_info=False, dtype=None, torch_dtype=None, **kwargs
    ):
        """As in diffusers, but a missing, unexpected or misshapen tensor is an error."""
        model, info = super().from_pretrained(
            *args, output_loading_info=True, torch_dtype=torch.float32, **kwargs
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                found = sorted(map(str, info[kind]))
                raise ValueError(f"{args[0]}: {kind.replace('_', ' ')}: {', '.join(found[:3])}")
        narrow = dtype or torch_dtype or torch.float32
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            wide = name.endswith(("running_mean", "running_var", "pos_embed", "t_embedder.W"))
            tensor.data = tensor.data.to(torch.float32 if wide else narrow)
        return (model, info) if output_loading_info else model

    def make_statistics(self, channels, by_position, side):
        """Make `bn`."""
        shape = (channels, side, side) if by_position else (channels,)
        self.bn = nn.Module()
        self.bn.register_buffer("running_mean", torch.zeros(shape, dtype=torch.float32))
        self.bn.register_buffer("running_var", torch.ones(shape, dtype=torch.float32))

    def denormalize(self, latents):
        """Sampled latents (B, c, h, w) -> latents for the VAE's decoder."""
        mean, var = self.bn.running_mean.float(), self.bn.running_var.float()
        if mean.ndim == 1:
            mean, var = mean[:, None, None], var[:, None, None]
        return latents * var.sqrt() + mean

    def table(self, name, tokens, width):
        """Make a fixed table of positions (1, tokens, width) under `name`."""
        zeros = torch.zeros(1, tokens, width, dtype=torch.float32)
        setattr(self, name, nn.Parameter(zeros, requires_grad=False))


def image_of(patches, side, size):
    """(B, N, p * p * c) with a patch's rows, columns and channels -> (B, c, h, w)."""
    grid = side // size
    x = patches.unflatten(-1, (size, size, -1)).unflatten(1, (grid, grid))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def fed(layer, x):
    """A layer's output for values of any type."""
    return layer(x.to(layer.weight.dtype))


def patch_embedding(channels, width, size):
    """A module whose `proj` turns patches of a side of `size` into features."""
    module = nn.Module()
    module.proj = nn.Conv2d(channels, width, size, size)
    return module


def tokens_of(embedding, x):
    """Tokens (B, N, D) of an image (B, c, h, w)."""
    return fed(embedding.proj, x).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """256 cosines and sines of t, and two linear layers."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        """(B,) -> (B, D)."""
        return self.mlp[1:](fed(self.mlp[0], time_features(t)))


def time_features(t):
    """Times (B,) -> (B, 256)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float64) / 128)
    angles = t.float()[:, None] * frequencies.float().to(t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FourierTimeEmbedder(nn.Module):
    """Sines and cosines of 2 pi w t for 256 learned frequencies w, and two linear layers."""

    def __init__(self, width, tokens=0):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(256, dtype=torch.float32))
        if tokens:
            self.learnable_tokens = nn.Parameter(torch.zeros(tokens, width))
        self.mlp = nn.Sequential(nn.Linear(512, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        """(B,) -> (B, D)."""
        angles = t.float()[:, None] * self.W.float() * 2.0 * math.pi
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.mlp[1:](fed(self.mlp[0], features))


class LabelEmbedder(nn.Module):
    """A row for each class; with a null class, the last row is its."""

    def __init__(self, rows, width, tokens=0):
        super().__init__()
        if tokens:
            self.learnable_tokens = nn.Parameter(torch.zeros(tokens, width))
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, labels):
        """(B,) -> (B, D)."""
        return self.embedding_table(labels)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * (offset + weight), in float32."""

    def __init__(self, width, offset=0.0):
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x):
        """(..., D) -> (..., D)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * (self.offset + self.weight.float())).to(x.dtype)


def plain_norm(width, rms):
    """The norm before a modulation: RMSNorm, or a LayerNorm without scale and bias."""
    return RMSNorm(width) if rms else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def text_norm(width, embedding):
    """The norm of a text's states; None for the embedding "linear"."""
    return {
        "gemma": functools.partial(RMSNorm, width, 1.0),
        "rms_norm": functools.partial(RMSNorm, width),
        "linear": lambda: None,
    }[embedding]()


@functools.lru_cache(maxsize=8)
def _turns(grid, width, after):
    """Cosines and sines (N, width / 2) of a grid's turns; `after` tokens behind stay."""
    count = width // 4
    frequencies = 1e4 ** (-torch.arange(count, dtype=torch.float64) / count)
    place = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    rows = place[:, None].expand(grid, grid, count)
    columns = place[None].expand(grid, grid, count)
    turns = torch.cat([rows, columns], dim=-1).reshape(grid * grid, 2 * count)
    turns = functional.pad(turns, (0, 0, 0, after))
    return turns.cos().float(), turns.sin().float()


def rotate(x, grid):
    """Rotate the pairs (2 i, 2 i + 1) of queries or keys (B, heads, N, d) by the place in a grid.

    Tokens behind the grid's stay as they are.
    """
    cos, sin = _turns(grid, x.shape[-1], x.shape[2] - grid**2)
    cos, sin = cos.to(x.device), sin.to(x.device)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Self-attention; with `split`, queries, keys and values have layers of their own."""

    def __init__(self, width, heads, qk_norm=False, rms=False, grid=0, split=False):
        super().__init__()
        self.heads, self.grid = heads, grid
        if split:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        make = RMSNorm if rms else functools.partial(nn.LayerNorm, eps=1e-5)
        self.q_norm = make(width // heads) if qk_norm else nn.Identity()
        self.k_norm = make(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask=None):
        """(B, N, D) -> (B, N, D); the mask is False for keys that are left out."""
        if hasattr(self, "qkv"):
            parts = self.qkv(x).chunk(3, dim=-1)
        else:
            parts = self.q(x), self.k(x), self.v(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.grid:
            q, k = rotate(q, self.grid), rotate(k, self.grid)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, the tanh approximation of GELU, linear."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        """(..., D) -> (..., D)."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x); without `split`, w12 is both."""

    def __init__(self, width, hidden, split=False):
        super().__init__()
        if split:
            self.w1, self.w2 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        else:
            self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x):
        """(..., D) -> (..., D)."""
        if hasattr(self, "w12"):
            gate, value = self.w12(x).chunk(2, dim=-1)
        else:
            gate, value = self.w1(x), self.w2(x)
        return self.w3(functional.silu(gate) * value)


def modulated(x, shift, scale):
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


def per_token(condition):
    """A condition of all tokens (B, D) as (B, 1, D); one of each token stays."""
    return condition if condition.ndim == 3 else condition[:, None]


class Block(nn.Module):
    """Attention and MLP, which a condition modulates (adaLN-Zero)."""

    def __init__(
        self, width, heads, mlp_ratio=4.0, qk_norm=False, grid=0, swiglu=False, rms=False,
        shift=True,
    ):  # fmt: skip
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.shift = shift
        self.norm1, self.norm2 = plain_norm(width, rms), plain_norm(width, rms)
        self.attn = Attention(width, heads, qk_norm, rms, grid)
        self.mlp = SwiGLU(width, int(2 / 3 * hidden)) if swiglu else MLP(width, hidden)
        parts = 6 if shift else 4
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))

    def forward(self, x, condition):
        """x (B, N, D), condition (B, D) or (B, N, D) -> (B, N, D)."""
        modulation = self.adaLN_modulation(per_token(condition))
        if self.shift:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        else:
            scale_a, gate_a, scale_m, gate_m = modulation.chunk(4, dim=-1)
            shift_a = shift_m = 0
        x = x + gate_a * self.attn(modulated(self.norm1(x), shift_a, scale_a))
        return x + gate_m * self.mlp(modulated(self.norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    """A modulated norm and a linear layer; a class token has a layer of its own."""

    def __init__(self, width, features, rms=False, class_token_dim=0):
        super().__init__()
        self.norm_final = plain_norm(width, rms)
        self.linear = nn.Linear(width, features)
        if class_token_dim:
            self.linear_cls = nn.Linear(width, class_token_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, condition):
        """The patches (B, N, features), and the class token, the last of the tokens, or None."""
        shift, scale = self.adaLN_modulation(per_token(condition)).chunk(2, dim=-1)
        x = modulated(self.norm_final(x), shift, scale)
        if not hasattr(self, "linear_cls"):
            return self.linear(x), None
        return self.linear(x[:, :-1]), self.linear_cls(x[:, -1])
