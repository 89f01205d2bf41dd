"""Files that may be missing, but must not be anything else."""

import os
import pathlib
import stat

from repae_jax.errors import UserError


def is_file_there(path: str | os.PathLike, way_out: str = "restore or remove it") -> bool:
    """Whether there is a file, or a link to one; False if there is nothing.

    Args:
      path: of the file.
      way_out: what an error advises.

    Raises:
      UserError: there is something else (a link that leads nowhere, a folder, a pipe), or it cannot
        be told.
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
