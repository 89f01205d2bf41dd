"""The table of text encoders, by family.

`interop.text_encoder` reads the published weights of both families.
"""

from repae_jax.models.text_encoders import causal_lm, clip_text

TEXT_ENCODERS = {"causal_lm": causal_lm.FAMILY, "clip_text": clip_text.FAMILY}
"""Causal language models (Gemma, Qwen3), and CLIP's text tower."""
