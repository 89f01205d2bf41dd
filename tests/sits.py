"""SiTs steered by classes, from the fields that other implementations have."""

from repae_jax.models.backbones.sit import SiT
from repae_jax.models.conditioning.class_label import ClassLabel


def sit_of(*, num_classes: int, null_class: bool = True, **fields) -> SiT:
    """A SiT of that many classes, with a null class unless told otherwise."""
    return SiT(conditioner=ClassLabel(num_classes, null_class), **fields)
