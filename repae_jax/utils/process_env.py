"""Settings of the process and of XLA that make steps faster; to be set before JAX starts.

Memory: on a CPU, XLA allocates a step's temporaries when the step begins and frees them when it
ends. glibc hands blocks of that size back to the system, which clears every page again at the next
step.

Convolutions: XLA's CPU compiler gives them to YNNPACK. At the sizes of a VAE, YNNPACK is slower
than XLA's other library, Eigen, and several times slower at a kernel's gradient.

NVIDIA GPUs: XLA tries kernels of Triton and of cuBLAS for a matrix product; with Triton's a step is
slower than with cuBLAS alone. XLA may also leave out a rounding to bfloat16; it then writes a
VAE's gradients, which two operations read, in float32 at twice the size.

docs/performance.md gives the gain of each setting.
"""

import ctypes
import glob
import importlib.metadata
import os

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NVIDIA = "/dev/nvidia[0-9]*"
_ACCELERATORS = (_NVIDIA, "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Options of XLA's compilers.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
}
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_allow_excess_precision": False}
_KNOW_THEM = ("0.10.", "0.11.")  # jaxlib versions with these flags; XLA aborts on unknown ones


def prepare() -> None:
    """Apply `keep_memory` and `choose_options`; call it before JAX starts.

    It also keeps JAX's own frames in tracebacks: they identify an error of an absent device.
    """
    os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
    keep_memory()
    choose_options()


def choose_options() -> bool:
    """Set XLA's compiler options for this machine in XLA_FLAGS; call it before JAX starts.

    Options that XLA_FLAGS names already keep their value.

    Returns:
      whether an option was set.
    """
    if not importlib.metadata.version("jaxlib").startswith(_KNOW_THEM):
        return False
    if not accelerated():
        options = _CPU_OPTIONS
    elif accelerated((_NVIDIA,)):
        options = GPU_OPTIONS
    else:
        options = {}
    given = os.environ.get("XLA_FLAGS", "")
    new = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in options.items()
        if name not in given
    ]
    if new:
        os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()
    return bool(new)


def keep_memory() -> bool:
    """Make malloc keep freed memory for this process; call it before JAX starts threads.

    It acts only where JAX computes on the CPU, glibc allocates, and no variable MALLOC_* is set.
    The process then stays at its largest size.

    Returns:
      whether malloc keeps freed memory.
    """
    if accelerated() or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return False
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # One heap: a thread's own heap ends at 64 MiB, and larger blocks would be mapped.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all([libc.mallopt(name, value) for name, value in settings.items()])


def accelerated(devices: tuple[str, ...] = _ACCELERATORS) -> bool:
    """Whether JAX may find a GPU or a TPU here, judged by the device files of their drivers."""
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    return any(glob.glob(pattern) for pattern in devices)
