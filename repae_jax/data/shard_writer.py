"""Writes packed data sets (see `shards`); a killed run resumes, and ends with the same bytes."""

import contextlib
import functools
import json
import os
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any

from repae_jax.data.manifest import (
    FORMAT,
    check_there,
    check_writable,
    checksum,
    read_manifest,
    write_json,
    write_manifest,
)
from repae_jax.data.processes import over_processes
from repae_jax.data.records import Value, pack
from repae_jax.data.write_progress import Plan, begin, check_begun, check_entries, claim
from repae_jax.errors import UserError, first_line, warn
from repae_jax.parallel.multihost import ALONE, Processes
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.schema import read_json
from repae_jax.utils.sealed import seal, unseal

WriteShard = Callable[[range, "ShardWriter"], Mapping[str, Any]]

# One record per group, so that each can be read alone. Uncompressed: pictures are compressed
# already, latents hardly compress, and the bytes must not depend on a compressor's version.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class ShardWriter:
    """A context manager that appends records to one shard."""

    def __init__(self, path: pathlib.Path, advance: Callable[[], Any] = lambda: None):
        """Write to `path`; `advance` is called after every record."""
        from array_record.python.array_record_module import ArrayRecordWriter

        self.count = 0
        self._advance = advance
        with _as_os_error():
            self._writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)

    def write(self, record: Mapping[str, Value]) -> None:
        """Append a record (see `records.pack`).

        Raises:
          TypeError: the record holds a value that cannot be packed.
          OSError: the disk is full; `write_shards` turns this into a UserError.
        """
        data = pack(record)
        with _as_os_error():
            self._writer.write(data)
        self.count += 1
        self._advance()

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            with _as_os_error():
                self._writer.close()
        except OSError:
            if kind is None:  # otherwise the error that ended the block is raised
                raise


@contextlib.contextmanager
def _as_os_error():
    """Turn ArrayRecord's errors into OSError, which `replacing` explains."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(first_line(error)) from error


def write_shards(
    folder: str | os.PathLike,
    count: int,
    per_shard: int,
    write_shard: WriteShard,
    made: Mapping[str, Any],
    *,
    manifest: Mapping[str, Any],
    summarize: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
    workers: int = 0,
    processes: Processes = ALONE,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a packed data set, or its missing shards.

    The same call resumes a run that ended early, however it ended: complete shards are kept, the
    others are written again, and all bytes equal those of an uninterrupted run, provided that
    `write_shard` gives the same records for the same indexes. Unfinished files never have a final
    name. In a finished data set, missing and truncated shards are written again.

    Args:
      folder: the data set's folder; made if missing.
      count: the number of elements of the source.
      per_shard: elements per shard; shard k begins at element k * per_shard.
      write_shard: writes the elements of a range of indexes as records, in order (it may leave
        some out), and returns a small dict that JSON can hold, for `summarize`.
      made: everything that determines the content, such as names and options; a folder with
        another `made` is refused. It must hold no times, machine names or absolute paths.
      manifest: further entries of the manifest: "kind", "num_classes", and optionally "classes".
      summarize: the dicts of `write_shard`, in the order of the shards -> further entries of the
        manifest.
      workers: number of processes that write shards; with 0 this process does. Processes are
        spawned: `write_shard` must be picklable, and a script's own code must stand under
        `if __name__ == "__main__"`.
      processes: the processes that make this call at the same time, in one folder that all of
        them see; each writes every count-th shard.
      progress: show a progress bar.

    Returns:
      The manifest.

    Raises:
      UserError: the folder holds something else or another `made`, another process is writing
        there, a disk is full, or there is nothing to write.
      Exception: an error that `write_shard` raised.
    """
    _check_numbers(count, per_shard, workers)
    made = {**made, "per_shard": per_shard, "source_count": count}
    begins = {"format": FORMAT, "classes": None, **manifest, "made": made}
    check_writable(begins)
    plan = Plan(pathlib.Path(folder), count, per_shard, _as_read(begins))
    check = _nothing  # raises in process 0 if another process has taken the lock
    with contextlib.ExitStack() as stack:
        with processes.together():
            if processes.first:
                check_entries(plan)
                check = stack.enter_context(claim(plan)).check
                begin(plan)
        with processes.together():
            finished = check_begun(plan)
            done = _intact_shards(plan, finished) if finished else _read_sidecars(plan)
        with processes.together():
            share = range(processes.index, plan.shards, processes.count)
            shown = progress and processes.first
            _write_missing(plan, share, done, write_shard, workers, check, shown)
            check()
        with processes.together():
            if processes.first and not finished:
                _finish(plan, summarize)
            elif processes.first:
                _check_repaired(plan, set(range(plan.shards)).difference(done), finished)
        with processes.together():
            return read_manifest(plan.folder)


def _check_numbers(count, per_shard, workers):
    if count < 1:
        raise UserError("there is nothing to write: the source is empty")
    if per_shard < 1:
        raise UserError(f"per_shard = {per_shard}: give at least 1 record a shard")
    if workers < 0:
        raise UserError(f"workers = {workers}: give 0 for this process, or a number of processes")


def _as_read(content):
    """`content` as JSON would return it."""
    return json.loads(json.dumps(content))


# --- the shards, their sidecars, and the manifest ---


def _read_sidecars(plan: Plan) -> dict[int, dict[str, Any]]:
    """{number: sidecar} of the shards that an earlier run completed."""
    done = {}
    for number in range(plan.shards):
        if not plan.sidecar(number).is_file():
            continue
        try:
            sidecar = _read_sidecar(plan, number)
            check_there(plan.shard(number), sidecar["shard"])
            done[number] = sidecar
        except UserError as error:
            warn(f"a shard is made again: {error}")
    return done


def _read_sidecar(plan, number):
    """The content of a complete shard's sidecar; raises UserError if it is missing or damaged."""
    path = plan.sidecar(number)
    sidecar, untouched = unseal(read_json(path, dict[str, Any]))
    if not untouched or sidecar["shard"]["file"] != plan.shard(number).name:
        raise UserError(f"{path}: damaged, edited, or of an older version")
    return sidecar


def _intact_shards(plan, finished):
    """The numbers of the shards of a finished data set that exist in their full length."""
    there = set()
    for number, shard in enumerate(finished["shards"]):
        with contextlib.suppress(UserError):
            check_there(plan.shard(number), shard)
            there.add(number)
    return there


def _nothing():
    pass


def _write_missing(plan, numbers, done, write_shard, workers, check, progress):
    """Write the shards that are not done, and the sidecar of each when it is complete."""
    from tqdm import tqdm

    todo = [number for number in numbers if number not in done]
    if not todo:
        return
    count, missing = (sum(len(plan.indexes(n)) for n in part) for part in (numbers, todo))
    with tqdm(
        total=count,
        initial=count - missing,
        desc=plan.folder.name,
        unit="image",
        disable=not progress,
    ) as bar:
        if workers and len(todo) > 1:
            write = functools.partial(_write_one, plan, write_shard)
            with over_processes(write, todo, min(workers, len(todo))) as results:
                for number, sidecar in results:
                    check()
                    write_json(plan.sidecar(number), seal(sidecar))
                    bar.update(len(plan.indexes(number)))
            return
        for number in todo:
            check()
            sidecar = _write_one(plan, write_shard, number, bar.update)
            write_json(plan.sidecar(number), seal(sidecar))
            # images that were left out count as done
            bar.update(len(plan.indexes(number)) - sidecar["shard"]["count"])


def _write_one(plan, write_shard, number, advance=lambda: None):
    """Write one shard; return its sidecar."""
    path = plan.shard(number)
    with replacing(path) as temporary:
        with ShardWriter(temporary, advance) as writer:
            notes = write_shard(plan.indexes(number), writer)
        # A complete shard must survive a power failure; and some file systems report only now that
        # they are full.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        shard = {
            "file": path.name,
            "count": writer.count,
            "bytes": temporary.stat().st_size,
            "sha256": checksum(temporary),
        }
    return {"shard": shard, "notes": dict(notes)}


def _finish(plan: Plan, summarize) -> dict[str, Any]:
    """Merge the sidecars into the manifest."""
    sidecars = list(_read_sidecars(plan).values())
    shards = [sidecar["shard"] for sidecar in sidecars]
    if len(shards) != plan.shards:
        raise UserError(f"{plan.folder}: something else removed files there; run this again")
    count = sum(shard["count"] for shard in shards)
    if not count:
        raise UserError(f"{plan.folder}: there is nothing to write, every element was left out")
    extra = summarize([sidecar["notes"] for sidecar in sidecars]) if summarize else {}
    manifest = _as_read({**plan.begun, "count": count, **extra, "shards": shards})
    write_manifest(plan.folder, manifest)
    return manifest


def _check_repaired(plan, numbers, finished):
    """Remove a shard that was written again with another content, and raise UserError."""
    for number in numbers:
        shard = _read_sidecar(plan, number)["shard"]
        if shard != finished["shards"][number]:
            plan.shard(number).unlink()
            raise UserError(
                f"{plan.shard(number)}: made again, it has another content, so the source or the "
                f"libraries have changed since; delete {plan.folder} and make it anew"
            )
