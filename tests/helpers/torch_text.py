"""Small text encoders of transformers with random weights, and ours of the same sizes."""

from typing import NamedTuple

import numpy as np
import parity
import torch
import transformers

from repae_jax.models.text_encoders.causal_lm import GEMMA, QWEN3, CausalLM
from repae_jax.models.text_encoders.clip_text import CLIPText

VOCABULARY, LENGTH, PROJECTION = 64, 12, 24
EOS = VOCABULARY - 1
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4,
)  # fmt: skip
OURS = dict(vocabulary=VOCABULARY, dim=32, mlp_hidden=48, depth=2, num_heads=4)
CAUSAL_LMS = ("gemma", "qwen3")


class Pair(NamedTuple):
    """transformers' module in evaluation mode, and our module without weights."""

    reference: torch.nn.Module
    encoder: CausalLM | CLIPText


def causal_lm(kind: str, head: bool = False, tied: bool = True) -> Pair:
    """A Gemma or Qwen3 whose heads are together wider than its states, with `head` the whole LM."""
    heads = dict(head_dim=16, num_key_value_heads={"gemma": 1, "qwen3": 2}[kind])
    style = {"gemma": GEMMA, "qwen3": QWEN3}[kind]
    config = getattr(transformers, f"{kind.title()}Config")(
        **SIZES, **heads,
        hidden_act={"gemma": "gelu_pytorch_tanh", "qwen3": "silu"}[kind],
        rope_parameters={"rope_type": "default", "rope_theta": style["rope_base"]},
        tie_word_embeddings=tied,
    )  # fmt: skip
    name = f"{kind.title()}{'ForCausalLM' if head else 'Model'}"
    reference = parity.randomise(getattr(transformers, name)(config))
    for part in reference.modules():
        if type(part).__name__.endswith("RMSNorm"):
            part.weight.data *= 3.0
            part.weight.data += 1.0 - style["norm_offset"]
    encoder = CausalLM(**OURS, **style, head_dim=16, num_kv_heads=heads["num_key_value_heads"])
    return Pair(reference.eval(), encoder)


def clip_config(**changes) -> transformers.CLIPTextConfig:
    """The configuration of a small text tower."""
    ids = dict(bos_token_id=1, eos_token_id=EOS, pad_token_id=EOS)
    sizes = dict(max_position_embeddings=16, projection_dim=PROJECTION)
    return transformers.CLIPTextConfig(**SIZES | sizes | ids | changes)


def clip_text(kind: str = "CLIPTextModelWithProjection", **changes) -> Pair:
    """CLIP's text tower, alone or with its projection, or in the complete CLIP ("CLIPModel")."""
    config = clip_config(**changes)
    if kind == "CLIPModel":
        vision = dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            image_size=8, patch_size=4,
        )  # fmt: skip
        config = transformers.CLIPConfig(
            text_config=config.to_dict(), vision_config=vision, projection_dim=PROJECTION
        )
    reference = parity.randomise(getattr(transformers, kind)(config))
    encoder = CLIPText(
        **OURS, length=16, projection=0 if kind == "CLIPTextModel" else PROJECTION, pad_id=EOS,
        null_ids=(1, EOS), eos_id=EOS,
    )  # fmt: skip
    return Pair(reference.eval(), encoder)


def captions(*lengths: int, length: int = LENGTH, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids (B, L) int32, right-padded with `pad`, and their mask (B, L)."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (len(lengths), length))
    mask = np.arange(length) < np.array(lengths)[:, None]
    return np.where(mask, ids, pad).astype(np.int32), mask


def states_of(reference: torch.nn.Module, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """transformers' last hidden states (B, L, D); without a mask padding takes part."""
    mask = None if mask is None else torch.tensor(mask).long()
    with torch.no_grad():
        output = reference(torch.tensor(ids).long(), attention_mask=mask)
    return output.last_hidden_state.numpy()
