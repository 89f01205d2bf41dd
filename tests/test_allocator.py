import subprocess
import sys

import pytest

from repae_jax.allocator import accelerated, keep_memory

# A large block that a thread frees, again and again: how many pages does the system hand out?
SCRIPT = """
import ctypes, resource, sys, threading
from repae_jax.allocator import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
SIZE = 200 << 20

def use():
    block = libc.malloc(ctypes.c_size_t(SIZE))
    ctypes.memset(block, 1, SIZE)
    libc.free(block)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def _faults(how):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def _on_glibc():
    import ctypes

    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not sys.platform.startswith("linux") or not _on_glibc(), reason="needs glibc")
def test_freed_memory_is_used_again():
    kept, handed_back = _faults("keep"), _faults("not")
    assert handed_back > 50 * max(kept, 1)


def test_settings_of_the_environment_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not keep_memory()


def test_nothing_changes_beside_an_accelerator(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr("repae_jax.allocator.glob.glob", lambda pattern: [pattern])
    assert accelerated()
    assert not keep_memory()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not accelerated()
