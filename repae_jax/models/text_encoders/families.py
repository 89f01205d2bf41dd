"""The table of text encoders, by family; `config.text_encoder.family` names one of them.

`interop.text_encoder` reads the published weights of both families.
"""

from repae_jax.models.family import Family
from repae_jax.models.text_encoders import causal_lm, clip_text

NONE = "none"  # the family of a run without captions
TEXT_ENCODERS = {
    NONE: Family(lambda **_: None),
    "causal_lm": causal_lm.FAMILY,
    "clip_text": clip_text.FAMILY,
}
"""Causal language models (Gemma, Qwen3), and CLIP's text tower."""
