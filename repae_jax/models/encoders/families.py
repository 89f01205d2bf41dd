"""The encoders that the `family` of an entry of `config.teachers` chooses from.

Published weights are read by the loader of the family's name in runs/weights.py. Without one
there, an encoder has the weights that `pretrain-teacher` makes.
"""

from repae_jax.models.encoders import vit

ENCODERS = {"vit": vit.FAMILY}
