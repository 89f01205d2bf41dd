"""Text-to-image backbones in torch, written for the tests; their tensors have the published names.

The DiT of fuse-dit, the MMDiT of REPA (arXiv 2403.03206, 2410.06940), and the DDT of
diffusion-bench with text. Images are NCHW, text is (B, L, C) with a mask (B, L).
"""

import torch
import torch_ddt
from torch import nn
from torch.nn import functional
from torch_lightningdit import RMSNorm
from torch_sit import MLP, FinalLayer, TimeEmbedder, modulated, projector


class ZeroCenteredNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return functional.rms_norm(x, x.shape[-1:], 1 + self.weight, eps=1e-6)


class ModulatedNorm(nn.Module):
    """A linear layer from the time to `parts` vectors, and a norm."""

    def __init__(self, dim, parts):
        super().__init__()
        self.linear = nn.Linear(dim, parts * dim)
        self.norm = ZeroCenteredNorm(dim)

    def parts(self, time):
        return self.linear(functional.silu(time))[:, None].tensor_split(
            self.linear.out_features // self.linear.in_features, dim=-1
        )


class TextAttention(nn.Module):
    def __init__(self, dim, heads, kv_heads, head):
        super().__init__()
        self.head, self.groups = head, heads // kv_heads
        self.q_norm, self.k_norm = ZeroCenteredNorm(head), ZeroCenteredNorm(head)
        self.q_proj = nn.Linear(dim, heads * head, bias=False)
        for name in ("k", "v", "text_k", "text_v"):
            setattr(self, f"{name}_proj", nn.Linear(dim, kv_heads * head, bias=False))
        self.o_proj = nn.Linear(heads * head, dim, bias=False)

    def forward(self, x, text, mask):
        q = self.q_norm(self._heads(self.q_proj(x)))
        text_k, k = self._heads(self.text_k_proj(text)), self._heads(self.k_proj(x))
        k = torch.cat([self.k_norm(text_k), self.k_norm(k)], dim=2)
        v = torch.cat([self._heads(self.text_v_proj(text)), self._heads(self.v_proj(x))], dim=2)
        out = []
        for j, of_head in enumerate(q.unbind(1)):
            scores = of_head @ k[:, j // self.groups].transpose(-1, -2) * self.head**-0.5
            length = text.shape[1]
            left_out = functional.pad(~mask, (0, scores.shape[-1] - length))
            weights = scores.masked_fill(left_out[:, None], -torch.inf).softmax(dim=-1)
            out.append(weights @ v[:, j // self.groups])
        return self.o_proj(torch.cat(out, dim=-1))

    def _heads(self, x):
        return x.unflatten(-1, (-1, self.head)).transpose(1, 2)


class TextBlock(nn.Module):
    def __init__(self, dim, heads, kv_heads, head, hidden):
        super().__init__()
        self.input_layernorm = ModulatedNorm(dim, 6)
        self.self_attn = TextAttention(dim, heads, kv_heads, head)
        self.post_attention_layernorm = ZeroCenteredNorm(dim)
        self.mlp = nn.Module()
        self.mlp.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.mlp.up_proj = nn.Linear(dim, hidden, bias=False)
        self.mlp.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x, time, text, mask):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.input_layernorm.parts(time)
        h = self.input_layernorm.norm(x) * (1 + scale) + shift
        x = x + gate * self.self_attn(h, text, mask)
        h = self.post_attention_layernorm(x) * (1 + mlp_scale) + mlp_shift
        gated = functional.gelu(self.mlp.gate_proj(h), approximate="tanh") * self.mlp.up_proj(h)
        return x + mlp_gate * self.mlp.down_proj(gated)


def quarter_step_table(dim, patch_size):
    """(1, 64 * 64, dim): x before y, sines before cosines, a step of 16/64 with patches of 2."""
    place = torch.arange(64, dtype=torch.float64) * (32 // patch_size) / 64
    angles = place[:, None] / 1e4 ** (torch.arange(dim // 4, dtype=torch.float64) * 4 / dim)
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    both = [line[None].expand(64, 64, -1), line[:, None].expand(64, 64, -1)]
    return torch.cat(both, dim=-1).reshape(1, 64 * 64, dim).float()


class FuseDiT(nn.Module):
    def __init__(
        self, *, channels, patch_size, hidden_size, depth, num_heads, kv_heads, head_width,
        mlp_width, text_width, **_,
    ):  # fmt: skip
        super().__init__()
        dim, self.patch_size = hidden_size, patch_size
        sizes = (num_heads, kv_heads, head_width, mlp_width)
        self.layers = nn.ModuleList(TextBlock(dim, *sizes) for _ in range(depth))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.patch_embed.register_buffer("pos_embed", quarter_step_table(dim, patch_size))
        self.timestep_embedder = TimeEmbedder(dim).mlp
        self.context_embedder = nn.Sequential(
            ZeroCenteredNorm(text_width), nn.Linear(text_width, dim)
        )
        self.norm_out = ModulatedNorm(dim, 2)
        self.proj_out = nn.Linear(dim, patch_size**2 * channels)

    def forward(self, x, t, text, mask):
        h = self.patch_embed.proj(x)
        side = h.shape[-1]
        first = (64 - side) // 2
        table = self.patch_embed.pos_embed.unflatten(1, (64, 64)).permute(0, 3, 1, 2)
        h = (h + table[:, :, first : first + side, first : first + side]).flatten(2).mT
        angles = torch.outer(t, 1e4 ** (-torch.arange(128) / 128))
        time = self.timestep_embedder(torch.cat([angles.cos(), angles.sin()], dim=-1))
        text = self.context_embedder(text)
        for block in self.layers:
            h = block(h, time, text, mask)
        scale, shift = self.norm_out.parts(time)
        patches = self.proj_out(self.norm_out.norm(h) * (1 + scale) + shift)
        return image_of(patches, x.shape[-1], self.patch_size)


def image_of(patches, side, p):
    """(B, N, p * p * c) -> (B, c, h, w)."""
    patches = patches.unflatten(-1, (p * p, -1)).transpose(-1, -2).flatten(2).transpose(1, 2)
    return functional.fold(patches, side, p, stride=p)


class Stream(nn.Module):
    def __init__(self, dim, heads, last):
        super().__init__()
        self.heads = heads
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(dim, 3 * dim)
        if not last:
            self.attn.proj = nn.Linear(dim, dim)
            self.mlp = MLP(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, (2 if last else 6) * dim))

    def parts(self, time):
        return self.adaLN_modulation(time).unflatten(-1, (-1, self.attn.qkv.in_features)).unbind(1)

    def qkv(self, x, time):
        h = modulated(x, *self.parts(time)[:2])
        return self.attn.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def after(self, x, attended, time):
        _, _, gate, shift, scale, mlp_gate = self.parts(time)
        x = x + gate[:, None] * self.attn.proj(attended)
        return x + mlp_gate[:, None] * self.mlp(modulated(x, shift, scale))


class JointBlock(nn.Module):
    def __init__(self, dim, heads, last):
        super().__init__()
        self.last = last
        self.context_block, self.x_block = Stream(dim, heads, last), Stream(dim, heads, False)

    def forward(self, context, x, time):
        both = [self.context_block.qkv(context, time), self.x_block.qkv(x, time)]
        q, k, v = torch.cat(both, dim=3)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        of_context, of_x = attended.tensor_split([context.shape[1]], dim=1)
        if not self.last:
            context = self.context_block.after(context, of_context, time)
        return context, self.x_block.after(x, of_x, time)


class MMDiT(nn.Module):
    """The velocity and the projections of the patches' tokens after block `encoder_depth`."""

    def __init__(
        self, *, size, channels, patch_size, hidden_size, depth, num_heads, text_width,
        encoder_depth, teacher_dims, projector_dim, **_,
    ):  # fmt: skip
        super().__init__()
        dim, self.patch_size, self.encoder_depth = hidden_size, patch_size, encoder_depth
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.t_embedder = TimeEmbedder(dim)
        self.context_embedder = nn.Linear(text_width, dim)
        self.register_buffer("pos_embed", torch.zeros(1, (size // patch_size) ** 2, dim))
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, num_heads, i == depth - 1) for i in range(depth)
        )
        self.final_layer = FinalLayer(dim, patch_size**2 * channels)
        self.projectors = nn.ModuleList(
            projector(dim, projector_dim, features) for features in teacher_dims
        )

    def forward(self, x, t, context):
        h = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        time, context = self.t_embedder(t), self.context_embedder(context)
        for depth, block in enumerate(self.joint_blocks, start=1):
            context, h = block(context, h, time)
            if depth == self.encoder_depth:
                projections = [head(h) for head in self.projectors]
        patches = self.final_layer(h, time)
        return image_of(patches, x.shape[-1], self.patch_size), projections


class TextContext(nn.Module):
    def __init__(self, width, dim):
        super().__init__()
        self.norm = RMSNorm(width)
        self.proj = nn.Linear(width, dim)

    def forward(self, text):
        return self.proj(self.norm(text))


class DDT(torch_ddt.DDT):
    """The text's tokens stand where the class's would; the encoder's keys are masked."""

    def __init__(self, *, text_length, text_width, **config):
        super().__init__(num_classes=1, class_tokens=text_length, **config)
        self.ctx_embedder = TextContext(text_width, config["hidden_size"][0])

    def forward(self, x, t, context, attn_mask):
        time = self.t_embedder(t)[:, None]
        patches = self.tokens(self.s_embedder, x)
        of_time = self.t_embedder.learnable_tokens + time
        s = torch.cat([patches, of_time, self.ctx_embedder(context)], dim=1)
        mask = functional.pad(attn_mask.bool(), (s.shape[1] - attn_mask.shape[1], 0), value=True)
        for block in self.blocks[: self.depth]:
            s = block(s, self.enc_rope, mask=mask)
        s = self.s_projector(functional.silu(time + s[:, : self.grid**2]))
        h = self.tokens(self.x_embedder, x)
        for block in self.blocks[self.depth :]:
            h = block(h, self.dec_rope, s)
        return self.image(self.final_layer(h, s), x.shape[-1])


MODELS = {"fusedit": FuseDiT, "mmdit": MMDiT, "ddt": DDT}
