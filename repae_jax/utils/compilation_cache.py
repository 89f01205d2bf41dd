"""XLA's compilation cache on disk: a program that was compiled before starts at once."""

import hashlib
import os
import pathlib
import platform
import sys

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable; if empty, JAX keeps nothing


def use_compilation_cache() -> None:
    """Keep compiled programs in `default_folder()`, unless the environment or JAX says otherwise.

    If that folder cannot be made, programs are compiled anew each time.
    """
    if VARIABLE in os.environ:
        return
    folder = default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ[VARIABLE] = str(folder)  # JAX reads it when it is imported, here and in children
    if "jax" in sys.modules:
        import jax

        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", str(folder))


def default_folder() -> pathlib.Path:
    """repae_jax/xla/CPU in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache).

    Each kind of processor has its own folder: hosts share home folders, and code compiled for one
    processor may not run on another.
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "repae_jax" / "xla" / _processor()


def _processor():
    """A name for this host's architecture and its instruction sets, which Linux lists."""
    known = pathlib.Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
