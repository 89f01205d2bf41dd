"""Exceptions and warnings that are said in one line, and exit statuses."""

import contextlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator

# Exit statuses, the last two of sysexits.h: bad input, or a fault of the machine; a fault of this
# program (EX_SOFTWARE); what was ended before it was done: run the same command to go on
# (EX_TEMPFAIL).
BAD_INPUT, UNEXPECTED, RUN_AGAIN = 2, 70, 75
TRACEBACK = "REPAE_TRACEBACK"  # in the environment: print where an error arose, too
_LONGEST = 500  # characters of a name or value in a message
_LONGEST_LINE = 4000  # of a message: all that is missing fits in
# The packages that are imported under another name than the one that pip installs.
_PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "mpl_toolkits": "matplotlib",
    "orbax": "orbax-checkpoint",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow-cpu",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}


def first_line(error: Exception) -> str:
    """The beginning of another library's message, or the error's name if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def warn(text: str) -> None:
    """Say in one line what does not stop anything, but should be known."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def out_of_memory(error: Exception) -> bool:
    """Whether XLA says that a program does not fit the device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def not_installed(module: str) -> str:
    """The clause for a module that cannot be found, with the command that installs its package."""
    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name)
    known_as = "" if package.lower() == name.lower() else f" (imported as {name})"
    return f"{package}{known_as} is not installed: pip install {package}"


class UserError(ValueError):
    """Bad input: the message names the culprit, its value, and the way out, in one line.

    The command line prints it without a traceback and exits with status 2. Names and values are
    those of files, which may be damaged: a word of more than a few hundred characters is cut, a
    message of several thousand loses its middle, and lines are joined.
    """

    def __init__(self, message: str = ""):
        line = re.sub(rf"\S{{{_LONGEST},}}", _cut_word, " ".join(message.splitlines()))
        if len(line) > _LONGEST_LINE:
            half = _LONGEST_LINE // 2
            line = f"{line[:half]} ... ({len(line)} characters) ... {line[-half:]}"
        super().__init__(line)


def _cut_word(word):
    text = word[0]
    return f"{text[:100]}... ({len(text)} characters)"


class BadImage(UserError):
    """What was read is no image that can be decoded: cut short, empty, or something else.

    The only fault that `config.data.on_bad_image = "skip"` passes over. A file that cannot be read,
    or a damaged shard, is never skipped: the disk may be at fault, and tomorrow another file's.
    """


class Diverged(UserError):
    """A run whose losses stay not finite.

    Attributes:
      what: what happened, without the way out.
    """

    def __init__(self, what: str, way_out: str):
        super().__init__(f"{what}; {way_out}")
        self.what = what


class TryAgain(UserError):
    """A fault that may be gone when the same command runs again; its exit status is 75."""


class LostProcess(TryAgain):
    """Another process of the same job is gone, and with it what both were doing."""


@contextlib.contextmanager
def batch_size_advised() -> Iterator[None]:
    """A batch that does not fit the memory is a UserError that names --batch-size."""
    try:
        yield
    except RuntimeError as error:  # JAX's errors are; without its import
        if not out_of_memory(error):
            raise
        raise UserError(
            f"a batch does not fit the memory ({first_line(error)}): lower --batch-size"
        ) from error


@contextlib.contextmanager
def bad_images_advised(way_out: str) -> Iterator[None]:
    """A bad image is an error that ends with what the command can do about it."""
    try:
        yield
    except BadImage as error:
        raise BadImage(f"{error}; {way_out}") from error


def explained(error: Exception) -> tuple[int, str]:
    """The exit status and the line of an error that ends a command.

    A UserError says itself what is wrong. What the file system, the installation or JAX's devices
    lack is the machine's fault, and said as such. Anything else nobody has foreseen: the line then
    names the place and how to see more.
    """
    if isinstance(error, UserError):
        return RUN_AGAIN if isinstance(error, TryAgain) else BAD_INPUT, f"error: {error}"
    if fault := _fault_of_the_machine(error):
        return BAD_INPUT, f"error: {fault}"
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":")
    return UNEXPECTED, (
        f"error: unexpected {what}{_place(error)}; {TRACEBACK}=1 in the environment shows more"
    )


def _fault_of_the_machine(error):
    if isinstance(error, OSError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        name = name if len(name) < 200 else f"{name[:100]}... ({len(name)} letters)"
        return f"{name}: {error.strerror or error}" if name else first_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return not_installed(error.name)
    if _of_absent_devices(error):
        reason = f" ({first_line(error)})" if str(error).strip() else ""
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX finds no device: JAX_PLATFORMS is {platforms!r}{reason}; "
            "install the package of that device, such as jax[cuda12], or unset JAX_PLATFORMS"
        )
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return f"the device's memory is full ({first_line(error)})"
    return ""


def _of_absent_devices(error):
    # a RuntimeError for an unknown platform, an AssertionError for a known one without its package
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        return True
    return any(map(_starts_devices, traceback.extract_tb(error.__traceback__)))


def _starts_devices(frame):
    return frame.name == "backends" and pathlib.Path(frame.filename).name == "xla_bridge.py"


def _place(error):
    """Where in this package an error arose, as far as it did."""
    package = pathlib.Path(__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if package in pathlib.Path(frame.filename).parents
    ]
    if not frames:
        return ""
    path = pathlib.Path(frames[-1].filename).relative_to(package.parent)
    return f" ({path}:{frames[-1].lineno})"
