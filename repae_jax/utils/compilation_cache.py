"""What XLA has compiled, kept on disk, so that the same program starts at once the next time."""

import hashlib
import os
import pathlib
import platform
import sys

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; empty: nothing is kept


def use_compilation_cache() -> None:
    """Keep compiled programs in `default_folder()`, unless the environment or JAX says otherwise.

    Where that folder cannot be made, nothing is kept.
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

    One for each kind of processor: home folders are shared by hosts, and code for one processor
    may not run on another.
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "repae_jax" / "xla" / _processor()


def _processor():
    """A name for what this host's processor can do, as far as Linux tells."""
    known = pathlib.Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
