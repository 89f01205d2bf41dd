"""What makes a process that computes on its host's processor faster: its memory, its convolutions.

Memory: on a CPU XLA allocates a step's temporaries when it begins and frees them when it ends.
glibc hands blocks of that size back to the system, which then clears every page again at the next
step.

Convolutions: XLA's CPU compiler gives them to YNNPACK, which is slower than Eigen, its other
library, at the sizes of a VAE, and several times slower at a kernel's gradient.

How much each gives is in docs/performance.md.
"""

import ctypes
import glob
import importlib.metadata
import os

# Of glibc's malloc.h; mallopt takes them and an int.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
_LIBRARY_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_KNOW_THE_FLAG = ("0.10.", "0.11.")  # XLA ends a process that names a flag which it does not know


def prepare() -> None:
    """`keep_memory` and `choose_convolutions`: before JAX starts, and does nothing elsewhere."""
    keep_memory()
    choose_convolutions()


def choose_convolutions() -> bool:
    """Let XLA's CPU compiler leave convolutions to Eigen, by XLA_FLAGS; before JAX starts.

    A choice that the variable already has stands.

    Returns:
      whether it does.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    known = importlib.metadata.version("jaxlib").startswith(_KNOW_THE_FLAG)
    if accelerated() or not known or _LIBRARY_FLAG in flags:
        return False
    choice = f"{_LIBRARY_FLAG}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    os.environ["XLA_FLAGS"] = f"{flags} {choice}".strip()
    return True


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
