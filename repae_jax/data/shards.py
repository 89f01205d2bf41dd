"""Reads packed data sets: folders of ArrayRecord shards and a manifest that `shard_writer` wrote.

FOLDER/
  shard-00000-of-00012.array_record ...   records (see `records`), in the source's order
  manifest.json                           their description; written last, when all is finished
  progress/                               only while the data set is being written:
    made.json                             the description of the unfinished data set
    shard-00000.json ...                  a sidecar for every complete shard
"""

from __future__ import annotations

import bisect
import itertools
import os
import pathlib
import threading
import typing
from collections.abc import Sequence
from typing import Any

from repae_jax.data.manifest import HEAL, check_all_there, check_there, checksum, read_manifest
from repae_jax.data.records import Value, unpack
from repae_jax.errors import UserError, first_line

if typing.TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader

# For random access: no read-ahead and no threads, as ArrayRecord advises.
_READER_OPTIONS = {
    "options": "readahead_buffer_size:0,max_parallelism:0",
    "file_reader_buffer_size": 1 << 15,
}


class PackedRecords(Sequence):
    """Random access to the records of a packed data set, in the order of writing.

    Threads can share it, and it can be pickled: each process opens a file on its first access.
    ArrayRecord keeps a checksum of every record, so a damaged record always raises.
    """

    def __init__(self, folder: str | os.PathLike):
        """Open `folder`.

        Raises:
          UserError: the data set is missing, its manifest is damaged, or a shard is missing or
            truncated.
        """
        self._folder = pathlib.Path(folder)
        self._shards = read_manifest(folder)["shards"]
        check_all_there(self._folder, self._shards)
        self._stops = list(itertools.accumulate(shard["count"] for shard in self._shards))
        self._forget_readers()

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> dict[str, Value]:
        """The record at `index`, from 0 to the length - 1; its arrays are read-only.

        Raises:
          IndexError: the index is out of range.
          UserError: the shard or the record is damaged.
        """
        number, path, position = self._place(index)
        reader = self._reader(number)
        try:
            (data,) = reader.read([position])
        except RuntimeError as error:
            raise UserError(
                f"{path}: record {position} is damaged ({first_line(error)}); {HEAL}"
            ) from error
        return unpack(data, self.record_name(index))

    def record_name(self, index: int) -> str:
        """The name of a record in messages: its shard, and its position in the shard."""
        _, path, position = self._place(index)
        return f"{path}, record {position}"

    def _place(self, index):
        """(number of the record's shard, path of the shard, position in the shard)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self._stops, index)
        shard = self._shards[number]
        position = int(index - self._stops[number] + shard["count"])
        return number, self._folder / shard["file"], position

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_shards": self._shards, "_stops": self._stops}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_readers()

    def _forget_readers(self):
        self._readers, self._lock = {}, threading.Lock()

    def _reader(self, number):
        with self._lock:
            if number not in self._readers:
                shard = self._shards[number]
                path = self._folder / shard["file"]
                self._readers[number] = _open_reader(path, shard["count"])
            return self._readers[number]


def verify(folder: str | os.PathLike, *, progress: bool = False) -> None:
    """Read all of a packed data set and compare it with its manifest.

    Args:
      folder: the data set.
      progress: show a progress bar.

    Raises:
      UserError: the manifest is wrong, or a shard is missing or has another content; the error
        names the first.
    """
    from tqdm import tqdm

    folder = pathlib.Path(folder)
    shards = read_manifest(folder)["shards"]
    total = sum(shard["bytes"] for shard in shards)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=not progress) as bar:
        for shard in shards:
            path = folder / shard["file"]
            check_there(path, shard)
            if checksum(path) != shard["sha256"]:
                raise UserError(f"{path}: damaged, its checksum differs; {HEAL}")
            _open_reader(path, shard["count"]).close()
            bar.update(shard["bytes"])


def _open_reader(path: pathlib.Path, count: int) -> ArrayRecordReader:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), **_READER_OPTIONS)
    if reader.ok() and reader.num_records() == count:
        return reader
    reason = f"{reader.num_records()} records instead of {count}"
    if not reader.ok():  # only an attempt to read gives the reason
        try:
            reader.read([0])
        except RuntimeError as error:
            reason = first_line(error)
    raise UserError(f"{path}: cannot be read or is damaged ({reason}); {HEAL}")
