"""Files of the Hugging Face hub, through huggingface_hub and its cache."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from repae_jax.errors import UserError, first_line
from repae_jax.interop import files, weight_files
from repae_jax.interop.files import SUFFIXES

PREFIX = "hf://"
PRETRAINED = pathlib.Path("pretrained")
PIPELINE = "model_index.json"  # names the parts of a pipeline's folder
_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")
_REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+")
_VARIANTS = ["*.fp16.*", "*.bf16.*", "*.ema.*", "*.non_ema.*"]  # beside the plain weights


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/repository, or names a folder or weight file in one."""
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
    """The local path of `name`: an existing path, or a fetched file or folder of the hub.

    The search order is: the path itself; pretrained/NAME; the hub's cache; the hub.

    Args:
      name: a path; or, after "hf://", an owner/repository, a folder in it such as
        "black-forest-labs/FLUX.1-dev/vae", or a file in it.
      needed: the names of files to fetch from a folder on the hub.
      weights: the possible names of the weight file; the first that exists is fetched.
      variant: the variant of the weights, such as "fp16".
      bare: accept names on the hub without "hf://". (A mistyped path would then be looked up on
        the hub.)

    Raises:
      UserError: nothing has this name, or the hub refuses to give it.
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


def obstacle(name: str) -> str:
    """Why the hub does not give `name` (hf://...); "" if it does, or if files are here already.

    Asks the hub for the header of one file, if neither pretrained/ nor the hub's cache has any.
    """
    name = name.removeprefix(PREFIX)
    if (PRETRAINED / name).exists() or not is_hub_id(name):
        return ""
    hub = _library(name)
    owner, repository, *inside = name.split("/")
    repository = f"{owner}/{repository}"
    file = "/".join(inside) if inside and _is_file(inside[-1]) else ""
    try:
        if file:
            found = isinstance(hub.try_to_load_from_cache(repository, file), str)
        else:
            found = bool(hub.snapshot_download(repository, local_files_only=True))
    except Exception:  # nothing of this repository is in the cache, in many classes
        found = False
    if found:
        return ""
    asked = file or "/".join((*inside, "config.json"))
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, asked))
    except Exception as error:
        absent = isinstance(error, hub.errors.EntryNotFoundError)  # the repository itself is there
        return "" if absent and not file else type(error).__name__
    return ""


def pipeline_index(name: str | pathlib.Path) -> pathlib.Path | None:
    """The `PIPELINE` of a repository on the hub, in the hub's cache; None for another content.

    Args:
      name: "hf://" and an owner/repository; a path, or what `PRETRAINED` holds, gives None.
    """
    path = pathlib.Path(str(name).removeprefix(PREFIX))
    if not str(name).startswith(PREFIX) or (PRETRAINED / path).exists():
        return None
    if not is_hub_id(str(path)) or len(path.parts) != 2:
        return None
    advice = f"get it another way and put it there: {PRETRAINED / path}/"
    return _Folder(str(path), ())._download(PIPELINE, advice, optional=True)


def fetch_pipeline(name: str) -> pathlib.Path:
    """Fetch a repository in the form of a diffusers pipeline: JSON and weights, no code.

    Args:
      name: "hf://" and an owner/repository.

    Returns:
      Its folder in the hub's cache.

    Raises:
      UserError: the hub refuses to give a file.
    """
    folder = _Folder(name.removeprefix(PREFIX), ())
    found = folder.fetch_all(("*.json", "*.safetensors"))
    if not any(found.glob("*/*.safetensors")):
        found = folder.fetch_all(("*.json", "*.bin"))
    return found


def upload(
    folder: pathlib.Path, repository: str, *, private: bool | None = None, message: str = ""
) -> str:
    """Upload a folder's files to a repository on the hub, which is made if it does not exist.

    Args:
      folder: the folder.
      repository: owner/name, or the name alone for the account that is logged in.
      private: whether a new repository is private; None: as the account has it.
      message: the commit's message; "": huggingface_hub's.

    Returns:
      The address of the repository.

    Raises:
      UserError: the name is invalid, or the hub refuses the upload.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository!r} is no name of a repository: give owner/name")
    hub = _library(repository)
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message=message or None
        )
    except Exception as error:  # network, permission and names come in many classes
        raise UserError(
            f"{repository}: cannot upload to the Hugging Face hub ({type(error).__name__}: "
            f"{first_line(error)}); `hf auth login` gives the permission to write"
        ) from error
    return str(address)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder on the hub: the repository's name, and the path within the repository."""

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

    def fetch_all(self, patterns) -> pathlib.Path:
        """The repository's folder in the hub's cache, with the files of these names."""
        hub = _library(self.repository)
        try:
            return pathlib.Path(
                hub.snapshot_download(
                    self.repository, allow_patterns=list(patterns), ignore_patterns=_VARIANTS
                )
            )
        except Exception as error:  # network, permission and absence come in many classes
            raise UserError(
                f"{self.repository}: cannot be fetched from the Hugging Face hub "
                f"({type(error).__name__}); get it another way and put it into "
                f"{PRETRAINED / self.name}/"
            ) from error

    def fetch_file(self, file, alternative) -> pathlib.Path:
        """Fetch a file, and its shards, config.json and latent statistics where they exist."""
        advice = f"get it another way and put it there: {alternative}"
        path = self._download(file, advice)
        self._fetch_shards(path, advice)
        for name in (f"{path.stem}-latents-stats.pt", "stat.pt", "stats.pt", "config.json"):
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
        """The file's path in the cache; None if it is `optional` and missing on the hub."""
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
        """The names of the folder's files; empty if the hub cannot be reached."""
        try:
            names = _library(self.repository).list_repo_files(self.repository)
        except Exception:  # the caller reports the missing file
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
