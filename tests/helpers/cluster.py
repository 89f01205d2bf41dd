"""Several processes on this machine that are one job, as hosts of a pod are."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def command(
    words: Sequence[str],
    processes: int,
    devices: int = 1,
    own_words: Sequence[str] = (),
    program: Sequence[str] = ("-m", "repae_jax"),
    **environment: str,
) -> list[subprocess.Popen]:
    """`python -m repae_jax` with these words, once a process, with virtual CPU devices each.

    `own_words`: one more for each process, if there are any. `program`: Python's words in place of
    `-m repae_jax`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    started = []
    for index in range(processes):
        job = ["--coordinator", f"localhost:{port}", "--process-count", str(processes)]
        job += own_words[index : index + 1]
        started.append(
            subprocess.Popen(
                [sys.executable, *program, *words, *job, "--process-index", str(index)],
                env={**os.environ, "XLA_FLAGS": flags, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started: Sequence[subprocess.Popen], timeout: float = 600) -> list[tuple]:
    """Each process's (exit status, stdout, stderr); none outlives the call."""
    try:
        ends = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *end) for p, end in zip(started, ends, strict=True)]
