"""torch-fidelity's InceptionV3 with random weights, and what each of its blocks gives."""

import functools
from unittest import mock

import numpy as np
import torch
from parity import as_numpy, randomise, to_nchw, to_nhwc
from torch_fidelity import feature_extractor_inceptionv3 as published


class TorchInception(published.FeatureExtractorInceptionV3):
    """The network without the download of its weights."""

    def __init__(self):
        with mock.patch.object(published, "load_state_dict_from_url"):
            super().__init__("random", ["2048", "logits_unbiased"])

    def load_state_dict(self, tensors):
        """Nothing: the weights stay random."""


@functools.cache
def random_inception() -> TorchInception:
    """Weights random, running statistics those of noise: no block dies out, none grows."""
    network = randomise(TorchInception())
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    network.train()
    network(to_nchw(random_images(2, 40, 40, seed=9)))
    return network.eval()


def random_images(*shape: int, seed: int) -> np.ndarray:
    """Noise, (B, H, W) -> (B, H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def torch_blocks(network: TorchInception, images: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 images (B, H, W, 3) -> the outputs of all top-level parts (B, h, w, C) by name.

    Beside them pool (B, 2048), logits (B, 1008) without bias, and branch1x1 of Mixed_6d.
    """
    outputs, handles = {}, []

    def keep(name):
        return lambda module, inputs, output: outputs.update({name: to_nhwc(output)})

    parts = {n: m for n, m in network.named_children() if n.startswith(("Conv", "Mixed"))}
    for name, part in {**parts, "branch1x1": network.Mixed_6d.branch1x1}.items():
        handles.append(part.register_forward_hook(keep(name)))
    pool, logits = network(to_nchw(images))
    for handle in handles:
        handle.remove()
    return {**outputs, "pool": as_numpy(pool), "logits": as_numpy(logits)}
