"""A JiT in torch, written from its paper and its tensors' names for the tests.

JiT (arXiv 2511.13720); the parts that it shares with LightningDiT are in torch_lightningdit.py.
Images are NCHW, and as in its authors' code the data are at t = 1.
"""

import torch
from torch import nn
from torch.nn import functional
from torch_lightningdit import Block, FinalLayer, Rotary
from torch_sit import TimeEmbedder


def reorder(module, *names):
    """Number the parameters of a module in the order of these submodules."""
    module._modules = {name: module._modules[name] for name in names}


class JiT(nn.Module):
    """The clean image, (B, C, h, w)."""

    def __init__(
        self, *, input_size, patch_size, in_channels, hidden_size, depth, num_heads, num_classes,
        bottleneck_dim, in_context_len, in_context_start,
    ):  # fmt: skip
        super().__init__()
        self.patch_size, self.start, dim = patch_size, in_context_start, hidden_size
        self.grid = input_size // patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, dim), requires_grad=False)
        self.context = in_context_len
        if in_context_len:
            self.in_context_posemb = nn.Parameter(torch.zeros(1, in_context_len, dim))
        self.t_embedder = TimeEmbedder(dim)
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(num_classes + 1, dim)
        self.x_embedder = nn.Module()
        self.x_embedder.proj1 = nn.Conv2d(
            in_channels, bottleneck_dim, patch_size, patch_size, bias=False
        )
        self.x_embedder.proj2 = nn.Conv2d(bottleneck_dim, dim, 1)
        options = dict(qk_norm=True, swiglu=True, rms=True, shift=True)
        self.blocks = nn.ModuleList(Block(dim, num_heads, **options) for _ in range(depth))
        for block in self.blocks:
            reorder(block, "norm1", "attn", "norm2", "mlp", "adaLN_modulation")
            reorder(block.attn, "q_norm", "k_norm", "qkv", "proj")
        self.final_layer = FinalLayer(dim, patch_size**2 * in_channels, rms=True)
        self.turn = [Rotary(self.grid, dim // num_heads)]  # in a list: no part of the state dict

    def rotary(self, x):
        """Turn the last tokens of (B, heads, N, d), those of the patches."""
        context = x.shape[2] - self.grid**2
        return torch.cat([x[:, :, :context], self.turn[0](x[:, :, context:])], dim=2)

    def tokens(self, x, t, labels):
        """The patches' tokens after each block, and the condition."""
        h = self.x_embedder.proj2(self.x_embedder.proj1(x)).flatten(2).transpose(1, 2)
        h = h + self.pos_embed
        label = self.y_embedder.embedding_table(labels)
        condition, found = self.t_embedder(t) + label, []
        for number, block in enumerate(self.blocks):
            if self.context and number == self.start:
                h = torch.cat([label[:, None] + self.in_context_posemb, h], dim=1)
            h = block(h, condition, self.rotary)
            found.append(h[:, -(self.grid**2) :])
        return found, condition

    def forward(self, x, t, labels):
        found, condition = self.tokens(x, t, labels)
        patches = self.final_layer(found[-1], condition)
        # A patch's features are its rows, columns and channels; fold wants channels first.
        patches = patches.unflatten(-1, (self.patch_size**2, -1)).transpose(-1, -2)
        patches = patches.flatten(2).transpose(1, 2)
        return functional.fold(patches, x.shape[-1], self.patch_size, stride=self.patch_size)
