"""A small language model whose states are whitened, as `pretrain-text-encoder` trains it."""

import torch
from torch import nn
from transformers import Qwen3Model


class RepaeTextEncoder(Qwen3Model):
    """Qwen3, and behind its last norm an affine map of the states."""

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.whitening = nn.Module()
        self.whitening.mean = nn.Parameter(torch.zeros(width))
        self.whitening.matrix = nn.Parameter(torch.eye(width))

    def forward(self, *args, **kwargs):
        """As Qwen3's; `last_hidden_state` (B, L, C) is whitened."""
        output = super().forward(*args, **kwargs)
        states = output.last_hidden_state - self.whitening.mean
        output.last_hidden_state = states @ self.whitening.matrix
        return output
