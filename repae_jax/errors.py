"""One-line errors and warnings, and the exit statuses of commands."""

import contextlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator

# Exit statuses; the last two are those of sysexits.h. 2: bad input or a fault of the machine.
# 70 (EX_SOFTWARE): a fault of this program. 75 (EX_TEMPFAIL): the command ended early, and the same
# command resumes it.
BAD_INPUT, UNEXPECTED, RUN_AGAIN = 2, 70, 75
TRACEBACK = "REPAE_TRACEBACK"  # environment variable: print tracebacks, too
_LONGEST = 500  # characters of a name or value in a message
_LONGEST_LINE = 4000  # characters of a message: a list of everything that is missing fits
# Import name -> pip's name, where the two differ.
_PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "mpl_toolkits": "matplotlib",
    "orbax": "orbax-checkpoint",
    "skimage": "scikit-image",
    "cleanfid": "clean-fid",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow-cpu",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters; its class if it is empty."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def warn(text: str) -> None:
    """Print a one-line warning to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def out_of_memory(error: Exception) -> bool:
    """Whether an error of XLA says that a program does not fit the device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def not_installed(module: str) -> str:
    """The message for a missing module, with the pip command that installs its package."""
    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name)
    known_as = "" if package.lower() == name.lower() else f" (imported as {name})"
    return f"{package}{known_as} is not installed: pip install {package}"


class UserError(ValueError):
    """Bad input: a one-line message names the culprit, its value, and the way out.

    The command line prints the message without a traceback and exits with status 2. Messages quote
    names and values from files, which may be damaged; so lines are joined, a word over 500
    characters is cut, and a message over 4000 characters loses its middle.
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
    """Content that cannot be decoded as an image: cut short, empty, or of another format.

    `config.data.on_bad_image = "skip"` skips this error alone. A file that cannot be read and a
    damaged shard always raise: the disk may be at fault, and tomorrow it would be another file.
    """


class Diverged(UserError):
    """A run whose losses stay NaN or infinite.

    Attributes:
      what: what happened, without the way out.
    """

    def __init__(self, what: str, way_out: str):
        super().__init__(f"{what}; {way_out}")
        self.what = what


class TryAgain(UserError):
    """A fault that the same command may not meet again; its exit status is 75."""


class LostProcess(TryAgain):
    """Another process of the same job has ended, so this one cannot continue."""


@contextlib.contextmanager
def advise_batch_size() -> Iterator[None]:
    """Turn an out-of-memory error within the block into a UserError that names --batch-size."""
    try:
        yield
    except RuntimeError as error:  # the base of JAX's errors, which need no import of JAX
        if not out_of_memory(error):
            raise
        raise UserError(
            f"a batch does not fit the memory ({first_line(error)}): lower --batch-size"
        ) from error


@contextlib.contextmanager
def advise_on_bad_images(way_out: str) -> Iterator[None]:
    """Append `way_out` to the message of a BadImage that the block raises."""
    try:
        yield
    except BadImage as error:
        raise BadImage(f"{error}; {way_out}") from error


def describe_error(error: Exception) -> tuple[int, str]:
    """The exit status and the one-line message for an error that ends a command.

    A UserError gives its own message. Errors of the file system, a missing package, and missing or
    full devices count as faults of the machine. Any other error is a fault of this program: the
    line names its place in the code and the variable that shows its traceback.
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
    """The text " (file:line)" for the innermost frame in this package; "" if there is none."""
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
