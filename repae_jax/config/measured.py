"""The network whose features measure a run's samples: `config.evaluation.network`."""

from ml_collections import ConfigDict

from repae_jax.errors import UserError

INCEPTION = "inception"
_PREFIX = "teachers."


def measuring_teacher(config: ConfigDict) -> str | None:
    """The name of the teacher that `config.evaluation.network` selects; None for InceptionV3.

    "teachers.NAME" selects the teacher NAME. A bare NAME does so too, as in configurations of
    version 1; only "inception" alone always selects InceptionV3.

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
