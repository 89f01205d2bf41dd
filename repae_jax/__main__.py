"""Entry point of `python -m repae_jax` and of `repae`; it sets up streams and signals first."""

import sys

from repae_jax.utils import signals, streams


def main() -> int:
    """Run the command in `sys.argv`; returns the exit status, see `cli.main`."""
    streams.take()
    signals.take()

    def command():
        from repae_jax.cli import main

        return main()

    return signals.until_signal(command)


if __name__ == "__main__":
    sys.exit(main())
