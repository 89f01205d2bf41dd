"""One run of `encode` on the tiny configuration, which may kill itself with -9 on the way.

  python killed_encode.py FOLDER OUTPUT [SECONDS]

FOLDER holds the VAE and the teacher of test_encode.py. Prints the seconds that encoding took.
"""

import os
import pathlib
import signal
import sys
import threading
import time

from test_encode import make_config

from repae_jax.training import encode as module


def main(folder: pathlib.Path, output: pathlib.Path, seconds: float | None) -> None:
    """Encode; `seconds` after the first image is asked for, die."""
    open_source, started = module.open_source, []

    def watched(*arguments, **options):
        started.append(time.monotonic())
        if seconds is not None:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return open_source(*arguments, **options)

    module.open_source = watched
    module.encode(make_config(folder), output, per_shard=200, images=True, progress=False)
    print(time.monotonic() - started[0])


if __name__ == "__main__":
    words = sys.argv[1:]
    delay = float(words[2]) if len(words) > 2 else None
    main(pathlib.Path(words[0]), pathlib.Path(words[1]), delay)
    os._exit(0)  # a timer that is still running has nothing left to kill
