"""Optional files: a path holds a regular file or nothing."""

import os
import pathlib
import stat

from repae_jax.errors import UserError


def is_file_there(path: str | os.PathLike, way_out: str = "restore or remove it") -> bool:
    """Whether `path` is a file or a link to one; False if nothing is there.

    Args:
      path: the file's path.
      way_out: the advice in an error.

    Raises:
      UserError: `path` is a broken link, a folder or a pipe, or cannot be read.
    """
    path = pathlib.Path(path)
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return True
        what = "is no file"
    except FileNotFoundError:
        if not path.is_symlink():
            return False
        what = f"is a link to {os.readlink(path)}, where no file is"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    raise UserError(f"{path} {what}: {way_out}")
