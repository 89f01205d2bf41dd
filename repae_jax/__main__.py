"""Entry point of `python -m repae_jax`."""

import sys

from repae_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
