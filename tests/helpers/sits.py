"""SiTs steered by classes, from the fields that other implementations have."""

from repae_jax.models.backbones.sit import SiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.projectors import MLP


def sit_of(
    *, num_classes: int, null_class: bool = True, projector_dim: int = 2048, **fields
) -> SiT:
    """A SiT of that many classes, with a null class unless told otherwise."""
    conditioner, projector = ClassLabel(num_classes, null_class), MLP(projector_dim)
    return SiT(conditioner=conditioner, projector=projector, **fields)
