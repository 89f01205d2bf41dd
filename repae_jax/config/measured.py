"""In whose features a run's samples are measured: `config.evaluation.network`."""

from ml_collections import ConfigDict

from repae_jax.errors import UserError

INCEPTION = "inception"
_PREFIX = "teachers."


def measuring_teacher(config: ConfigDict) -> str | None:
    """The teacher that `evaluation.network` names; None for InceptionV3.

    "teachers.NAME" is a teacher whatever it is called. A bare NAME is one too, as in
    configurations of version 1, but for "inception".

    Raises:
      UserError: there is no such network.
    """
    network = config.evaluation.network
    name = network.removeprefix(_PREFIX)
    if network == INCEPTION:
        return None
    if name not in config.teachers:
        choices = ", ".join([INCEPTION, *(f"{_PREFIX}{name}" for name in config.teachers)])
        raise UserError(f"config.evaluation.network is {network!r}: use one of {choices}")
    return name
