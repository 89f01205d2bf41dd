"""Files of the Hugging Face hub, through its own library and cache."""

import pathlib
import re
from collections.abc import Sequence

from repae_jax.errors import UserError
from repae_jax.interop.files import SUFFIXES

PREFIX = "hf://"
PRETRAINED = pathlib.Path("pretrained")
_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as owner/repository or owner/repository/folder."""
    return _ID.fullmatch(name) is not None and pathlib.Path(name).suffix not in SUFFIXES


def locate(name: str | pathlib.Path, files: Sequence[str], *, bare: bool = False) -> pathlib.Path:
    """The local path of `name`: a path that exists, or a folder on the hub, fetched.

    Looked for in this order: the path itself; the folder pretrained/NAME; the hub's cache; the
    hub.

    Args:
      name: a path, owner/repository, or owner/repository/folder, such as
        "black-forest-labs/FLUX.1-dev/vae", the last two with "hf://" before them.
      files: the names of the files that are needed from the hub.
      bare: "hf://" may be left out. (A mistyped path would be looked for on the hub.)

    Raises:
      UserError: nothing is there, or the hub does not give it.
    """
    given = pathlib.Path(name)
    if given.exists():
        return given
    on_hub = bare or str(name).startswith(PREFIX)
    name = str(name).removeprefix(PREFIX)
    path = pathlib.Path(name)
    if (PRETRAINED / path).is_dir():
        return PRETRAINED / path
    if not on_hub or path.is_absolute() or not is_hub_id(name):
        raise UserError(
            f"{name}: no such file or folder (and not hf://owner/repository, which would name one "
            "on the Hugging Face hub)"
        )
    owner, repository, *folder = name.split("/")
    return _fetched(f"{owner}/{repository}", "/".join(folder), files, PRETRAINED / path)


def _fetched(repository, folder, files, alternative):
    """The folder of the hub's cache that holds `files` of `repository`."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"{repository} needs huggingface_hub to be fetched: pip install huggingface_hub"
        ) from error
    paths = []
    for file in files:
        inside = f"{folder}/{file}" if folder else file
        try:
            paths.append(hf_hub_download(repository, inside))
        except Exception as error:  # network, permission and absence come in many classes
            reason = type(error).__name__
            raise UserError(
                f"{repository}: cannot fetch {inside} from the Hugging Face hub ({reason}); "
                f"get {' and '.join(files)} there another way and put them into {alternative}/"
            ) from error
    return pathlib.Path(paths[0]).parent
