"""Pictures with captions as the sources read them: in a folder, and in a tar."""

import io
import json
import pathlib
import tarfile
import types
from collections.abc import Iterable, Mapping

from pictures import encoded, random_picture

TEXTS = ("a red disc", ["two rings", "rings, two of them", "café"], "a star", ["one of one"])


def caption_config(source: str, path: pathlib.Path | str, **values) -> types.SimpleNamespace:
    """A config's data section."""
    fields = dict(path=str(path), name="", resolution=16, num_classes=1, exif=False, flip=False)
    return types.SimpleNamespace(source=source, **fields | {"on_bad_image": "error"} | values)


def write_captioned(folder: pathlib.Path, texts: Iterable[str | list[str]] = TEXTS) -> pathlib.Path:
    """Pictures 0.png, 1.png, ... with a metadata.jsonl; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, text in enumerate(texts):
        random_picture(20, 24, seed=number).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_tar(path: pathlib.Path, members: Mapping[str, bytes]) -> pathlib.Path:
    """A tar of files; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def jpeg(seed: int) -> bytes:
    """A picture as a file of a tar."""
    return encoded(random_picture(20, 24, seed=seed), "JPEG")
