"""Files of the Hugging Face hub, through its own library and cache."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from repae_jax.errors import UserError
from repae_jax.interop import files, weight_files
from repae_jax.interop.files import SUFFIXES

PREFIX = "hf://"
PRETRAINED = pathlib.Path("pretrained")
_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as owner/repository, or as a folder or a file of weights in one."""
    parts = name.split("/")
    return _ID.fullmatch(name) is not None and not (len(parts) == 2 and _is_file(parts[1]))


def locate(
    name: str | pathlib.Path,
    needed: Sequence[str] = (),
    weights: weight_files.Naming = (),
    *,
    variant: str | None = None,
    bare: bool = False,
) -> pathlib.Path:
    """The local path of `name`: a path that exists, or what the hub has of that name, fetched.

    Looked for in this order: the path itself; pretrained/NAME; the hub's cache; the hub.

    Args:
      name: a path, owner/repository, or owner/repository/folder, such as
        "black-forest-labs/FLUX.1-dev/vae", or a file in one, the last three with "hf://" before
        them.
      needed: the names of files that are needed of a folder on the hub.
      weights: how the file with the weights is called there; the first that is there is fetched.
      variant: of the weights.
      bare: "hf://" may be left out. (A mistyped path would be looked for on the hub.)

    Raises:
      UserError: nothing is there, or the hub does not give it.
    """
    given = pathlib.Path(name)
    if given.exists():
        return given
    on_hub = str(name).startswith(PREFIX) or (bare and not _is_file(given.name))
    name = str(name).removeprefix(PREFIX)
    path = pathlib.Path(name)
    if (PRETRAINED / path).exists():
        return PRETRAINED / path
    if not on_hub or path.is_absolute() or not is_hub_id(name):
        raise UserError(
            f"{name}: no such file or folder (and not hf://owner/repository, which would name one "
            "on the Hugging Face hub)"
        )
    owner, repository, *inside = name.split("/")
    folder = _Folder(f"{owner}/{repository}", inside)
    if inside and _is_file(inside[-1]):
        folder = _Folder(f"{owner}/{repository}", inside[:-1])
        return folder.fetch_file(inside[-1], PRETRAINED / path)
    return folder.fetch(needed, weight_files.file_names(weights, variant), weights)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder of a repository on the hub: the repository's name, and the path in it."""

    repository: str
    inside: Sequence[str]

    @property
    def name(self) -> str:
        return "/".join((self.repository, *self.inside))

    def fetch(self, needed, choices, naming) -> pathlib.Path:
        """The folder in the hub's cache, with the files `needed` and the first of `choices`."""
        alternative = PRETRAINED / self.name
        wanted = f"{' and '.join([*needed, *choices[:1]])} there another way and put them into"
        advice = f"get {wanted} {alternative}/"
        found = [self._download(file, advice) for file in needed]
        if choices:
            found.append(self._first(choices, naming, advice))
        return found[0].parent

    def fetch_file(self, file, alternative) -> pathlib.Path:
        """A file, with what may stand beside it: its shards, its config and statistics."""
        advice = f"get it another way and put it there: {alternative}"
        path = self._download(file, advice)
        self._fetch_shards(path, advice)
        for name in (f"{path.stem}-latents-stats.pt", "config.json"):
            self._download(name, advice, optional=True)
        return path

    def _first(self, choices, naming, advice):
        for name in choices:
            if path := self._download(name, advice, optional=True):
                self._fetch_shards(path, advice)
                return path
        there = weight_files.variants_among(self._list(), naming)
        if there:
            raise UserError(weight_files.without(f"{PREFIX}{self.name}", choices[0], there))
        return self._download(choices[0], advice)

    def _fetch_shards(self, path, advice):
        if path.name.endswith(files.INDEX_SUFFIX):
            for shard in files.shards_of(path):
                self._download(shard, advice)

    def _download(self, file, advice, *, optional=False) -> pathlib.Path | None:
        """Its path in the cache; None if it is `optional` and not there."""
        hub = _library(self.repository)
        inside = "/".join((*self.inside, file))
        try:
            return pathlib.Path(hub.hf_hub_download(self.repository, inside))
        except Exception as error:  # network, permission and absence come in many classes
            if optional and isinstance(error, hub.errors.EntryNotFoundError):
                return None
            raise UserError(
                f"{self.repository}: cannot fetch {inside} from the Hugging Face hub "
                f"({type(error).__name__}); {advice}"
            ) from error

    def _list(self):
        """The names of the folder's files; none without a network."""
        try:
            names = _library(self.repository).list_repo_files(self.repository)
        except Exception:  # whatever it is: another message says what is missing
            return []
        paths = map(pathlib.PurePosixPath, names)
        return [path.name for path in paths if path.parent.parts == tuple(self.inside)]


def _is_file(name):
    return pathlib.PurePath(name).suffix in SUFFIXES or name.endswith(files.INDEX_SUFFIX)


def _library(repository):
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"{repository} needs huggingface_hub to be fetched: pip install huggingface_hub"
        ) from error
    return huggingface_hub
