"""Memory that a process keeps for its next step, in place of asking the system for it anew.

On a CPU XLA allocates a step's temporaries when it begins and frees them when it ends. glibc hands
blocks of that size back to the system, which then clears every page again at the next step: with a
full-size VAE a fifth of the time (docs/performance.md).
"""

import ctypes
import glob
import os

# Of glibc's malloc.h; mallopt takes them and an int.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def keep_memory() -> bool:
    """Let malloc keep what is freed, for as long as this process lives; before JAX starts threads.

    Only where the host's processor is what computes, and glibc allocates; settings of malloc in
    the environment stand. The process then stays as large as it has been at most.

    Returns:
      whether it does.
    """
    if accelerated() or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return False
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # One heap: a thread's own ones do not grow beyond 64 MiB, whatever is larger is mapped.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all([libc.mallopt(name, value) for name, value in settings.items()])


def accelerated() -> bool:
    """Whether JAX may find a GPU or a TPU here."""
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    return any(glob.glob(pattern) for pattern in _ACCELERATORS)
