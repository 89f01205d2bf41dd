"""What the configurations of other codes' text-to-image checkpoints share."""

from ml_collections import ConfigDict

from repae_jax.config.modules import build_text_encoder
from repae_jax.errors import UserError


def check_text_width(width: int, config: ConfigDict, source: str) -> None:
    """Raise UserError unless text of this width is that of the configuration's text encoder."""
    dim = build_text_encoder(config).dim
    if width != dim:
        raise UserError(
            f"{source}: its text is {width} wide, but the states of {config.text_encoder.arch} are "
            f"{dim}: give a configuration with --config, whose text encoder makes states of that "
            "width"
        )
