"""fuse-dit's text-to-image DiT: every block attends to a text that no block changes."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn import functional

from repae_jax.interop.torch_pipeline.layers import (
    Denoiser,
    RMSNorm,
    fed,
    image_of,
    modulated,
    text_norm,
    time_features,
)

TABLE_GRID = 64  # rows and columns of the position table


class ModulatedNorm(nn.Module):
    """A norm, and a linear layer from the time to its modulation."""

    def __init__(self, width, parts):
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self.norm = RMSNorm(width, 1.0)
        self.parts = parts

    def modulation(self, time):
        """(B, D) -> `parts` vectors (B, 1, D)."""
        return self.linear(functional.silu(time))[:, None].chunk(self.parts, dim=-1)


class TextAttention(nn.Module):
    """Attention from the image's tokens to the text's and the image's, with grouped queries."""

    def __init__(self, width, heads, kv_heads, head_width):
        super().__init__()
        self.head_width, self.groups = head_width, heads // kv_heads
        self.q_norm, self.k_norm = RMSNorm(head_width, 1.0), RMSNorm(head_width, 1.0)
        self.q_proj = nn.Linear(width, heads * head_width, bias=False)
        for name in ("k", "v", "text_k", "text_v"):
            layer = nn.Linear(width, kv_heads * head_width, bias=False)
            setattr(self, f"{name}_proj", layer)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x, text, mask):
        """x (B, N, D), text (B, L, D), mask (B, 1, 1, L + N) -> (B, N, D)."""
        q = self.q_norm(self._heads(self.q_proj(x)))
        k = torch.cat([self._heads(self.text_k_proj(text)), self._heads(self.k_proj(x))], dim=2)
        v = torch.cat([self._heads(self.text_v_proj(text)), self._heads(self.v_proj(x))], dim=2)
        k, v = (part.repeat_interleave(self.groups, dim=1) for part in (self.k_norm(k), v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x):
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class GatedMLP(nn.Module):
    """down(gelu(gate x) * up x), without biases."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        """(..., D) -> (..., D)."""
        gate = functional.gelu(self.gate_proj(x), approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


class TextBlock(nn.Module):
    """A block with adaLN-Zero, whose norms keep a learned scale beside the modulation."""

    def __init__(self, width, heads, kv_heads, head_width, hidden):
        super().__init__()
        self.input_layernorm = ModulatedNorm(width, 6)
        self.self_attn = TextAttention(width, heads, kv_heads, head_width)
        self.post_attention_layernorm = RMSNorm(width, 1.0)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x, time, text, mask):
        """(B, N, D) -> (B, N, D)."""
        parts = self.input_layernorm.modulation(time)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        h = modulated(self.input_layernorm.norm(x), shift_a, scale_a)
        x = x + gate_a * self.self_attn(h, text, mask)
        return x + gate_m * self.mlp(modulated(self.post_attention_layernorm(x), shift_m, scale_m))


class RepaeFuseDiT(Denoiser, ConfigMixin):
    """Predicts the velocity of latents, conditioned by the states of a text."""

    @register_to_config
    def __init__(
        self,
        latent_size: int = 32,
        latent_channels: int = 16,
        patch_size: int = 2,
        hidden_size: int = 2048,
        depth: int = 30,
        num_heads: int = 16,
        kv_heads: int = 4,
        head_width: int = 128,
        mlp_width: int = 8192,
        text_width: int = 2048,
        text_embedding: str = "gemma",
        statistics_by_position: bool = False,
    ):
        super().__init__()
        sizes = (num_heads, kv_heads, head_width, mlp_width)
        self.layers = nn.ModuleList(TextBlock(hidden_size, *sizes) for _ in range(depth))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(latent_channels, hidden_size, patch_size, patch_size)
        zeros = torch.zeros(1, TABLE_GRID**2, hidden_size, dtype=torch.float32)
        self.patch_embed.pos_embed = nn.Parameter(zeros, requires_grad=False)
        self.timestep_embedder = nn.Sequential(
            nn.Linear(256, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        norm = text_norm(text_width, text_embedding)
        self.context_embedder = nn.Sequential(
            nn.Identity() if norm is None else norm, nn.Linear(text_width, hidden_size)
        )
        self.norm_out = ModulatedNorm(hidden_size, 2)
        self.proj_out = nn.Linear(hidden_size, patch_size**2 * latent_channels)
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, text, mask):
        """Latents (B, c, h, w), times (B,), text (B, L, C) and its mask (B, L) -> the velocity."""
        h = fed(self.patch_embed.proj, x).flatten(2).transpose(1, 2)
        h = h + self._positions().to(h.dtype)
        features = time_features(1000.0 * t.float())
        time = self.timestep_embedder[1:](fed(self.timestep_embedder[0], features))
        text = self.context_embedder(text.to(time.dtype))
        mask = functional.pad(mask, (0, h.shape[1]), value=True)[:, None, None]
        for block in self.layers:
            h = block(h, time, text, mask)
        scale, shift = self.norm_out.modulation(time)
        patches = self.proj_out(modulated(self.norm_out.norm(h), shift, scale))
        return image_of(patches, self.config.latent_size, self.config.patch_size)

    def _positions(self):
        """The center of the table, (N, D)."""
        grid = self.config.latent_size // self.config.patch_size
        first = (TABLE_GRID - grid) // 2
        table = self.patch_embed.pos_embed.unflatten(1, (TABLE_GRID, TABLE_GRID))[0]
        return table[first : first + grid, first : first + grid].flatten(0, 1)
