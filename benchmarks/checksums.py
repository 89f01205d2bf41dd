"""What a checkpoint's checksums cost beside its writing and its reading.

    python benchmarks/checksums.py --gb 12 --folder /a/disk/with/room

saves a state of random float32 numbers as a run does, reads it back, and prints how long each part
takes; the folder is removed again. `--hashes` compares algorithms on a file of 1 GB in memory.
"""

import argparse
import hashlib
import os
import pathlib
import resource
import shutil
import statistics
import time
import zlib
from unittest import mock

import jax
import jax.numpy as jnp
import xxhash

from repae_jax.runs import checkpoints as checkpoints_module
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.integrity import Sums, check_checkpoint
from repae_jax.runs.state import TrainState
from repae_jax.utils import checksums

LEAF = 1 << 24  # numbers in an array, 64 MiB


class Timed(Sums):
    """Sums that note what they take of a core, and how long saving waits for them at its end."""

    tail = work = 0.0

    def begin(self, checkpoints, step):
        original = checksums._size_and_checksum

        def timed(path, stop=None):
            started = time.thread_time()
            found = original(path, stop)
            self.work += time.thread_time() - started
            return found

        self.patch = mock.patch.object(checksums, "_size_and_checksum", timed)
        self.patch.start()
        super().begin(checkpoints, step)

    def write(self):
        started = time.perf_counter()
        super().write()
        self.tail = time.perf_counter() - started
        self.patch.stop()


class Nothing(Timed):
    """None at all."""

    def begin(self, checkpoints, step):
        pass

    def write(self):
        pass


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=1.0, help="of the state, 10^9 bytes")
    parser.add_argument("--times", type=int, default=2, help="saved with and without")
    parser.add_argument("--no-restore", action="store_true", help="which needs the memory again")
    parser.add_argument("--folder", type=pathlib.Path, default="checksums_benchmark")
    parser.add_argument("--hashes", action="store_true", help="compare algorithms instead")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        if options.hashes:
            compare_hashes(options.folder)
        else:
            measure(options.folder, options.gb, options.times, not options.no_restore)
    finally:
        shutil.rmtree(options.folder)


def measure(folder, gb, times, restore):
    """Save a state of so many GB, with checksums and without; then check and restore it."""
    state = random_state(gb)
    print(f"a state of {sum(a.nbytes for a in jax.tree.leaves(state)) / 1e9:.2f} GB, "
          f"{os.cpu_count()} cores")  # fmt: skip
    seconds = {Nothing: [], Timed: []}
    for _ in range(times):
        for sums in seconds:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            seconds[sums].append(save(folder, state, sums()))
    plain, summed = (statistics.median(values) for values in seconds.values())
    print(
        f"medians: {plain:.2f} s without, {summed:.2f} s with: {100 * (summed / plain - 1):+.1f} %"
    )
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    del state
    read(folder, shapes if restore else None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"at most {peak / 1e9:.1f} GB of memory")


def random_state(gb):
    make = jax.jit(lambda key: jax.random.uniform(key, (LEAF,)))
    keys = jax.random.split(jax.random.key(0), max(1, round(gb * 1e9 / LEAF / 4)))
    params = {f"leaf{i}": make(key) for i, key in enumerate(keys)}
    return jax.block_until_ready(TrainState(jnp.int32(1), {"backbone": params}, {}, {}, {}, {}))


def save(folder, state, sums):
    """Seconds of a whole save."""
    checkpoints_module.Sums = lambda: sums
    checkpoints = Checkpoints(folder)
    started = time.perf_counter()
    checkpoints.save(1, state, {})
    checkpoints.wait()
    seconds = time.perf_counter() - started
    checkpoints.close()
    if isinstance(sums, Nothing):
        print(f"saved in {seconds:.2f} s without checksums")
    else:
        print(
            f"saved in {seconds:.2f} s with checksums, which at the end keep it for "
            f"{sums.tail:.2f} s ({100 * sums.tail / seconds:.1f} %), and take {sums.work:.2f} s "
            f"of a core in all ({100 * sums.work / seconds:.1f} %)"
        )
    return seconds


def read(folder, shapes):
    """Check a checkpoint, and restore it if `shapes` are given."""
    checkpoints = Checkpoints(folder, read_only=True)
    folder = checkpoints.folder / "1"
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(f"{sum(path.stat().st_size for path in files) / 1e9:.2f} GB on disk, {len(files)} files")
    steps = {"checking": lambda: check_checkpoint(folder)}
    if shapes is not None:
        restore = checkpoints.restore
        steps["restoring, with checking"] = lambda: jax.block_until_ready(restore(shapes))
    for name, step in steps.items():
        for path in files:
            forget(path)
        started = time.perf_counter()
        step()
        print(f"{name}: {time.perf_counter() - started:.2f} s, from the disk")
    checkpoints.close()


def forget(path):
    """Let the system drop what it keeps of a file in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare_hashes(folder):
    """GB/s of algorithms, over a file that is in memory, read as `checksums` reads it."""
    path = folder / "random"
    with open(path, "wb") as file:
        for _ in range(16):
            file.write(os.urandom(1 << 26))
    makers = {
        "none, reading alone": lambda: Update(lambda block: None),
        "XXH3, 128 bits": xxhash.xxh3_128,
        "CRC-32 (zlib)": lambda: Update(zlib.crc32),
        "SHA-256 (hashlib)": hashlib.sha256,
        "BLAKE2b (hashlib)": hashlib.blake2b,
    }
    for name, make in makers.items():
        seconds = min(once(path, make()) for _ in range(3))
        print(f"{name}: {path.stat().st_size / 1e9 / seconds:.1f} GB/s")


class Update:
    """A function of a block as a hash."""

    def __init__(self, update):
        self.update = update


def once(path, total):
    """Seconds to put a file through a hash."""
    started = time.perf_counter()
    block = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            total.update(block[:count])
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
