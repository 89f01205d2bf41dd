"""The configurations that come with the package: the files of configs/, found by their names."""

import ast
import difflib
import pathlib

from repae_jax.errors import UserError

PACKAGE = pathlib.Path(__file__).parents[1]


def packaged_folder() -> pathlib.Path:
    """The folder of the packaged configurations.

    A wheel carries it inside the package; a checkout has it beside the package.
    """
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def packaged() -> dict[str, pathlib.Path]:
    """Name -> file of every packaged configuration, in the order of their names."""
    return {path.stem: path for path in sorted(packaged_folder().glob("*.py"))}


def title(path: pathlib.Path) -> str:
    """The first line of a configuration's docstring; nothing is executed."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def find_file(name: str) -> pathlib.Path:
    """The file of a configuration: a packaged one by its name, such as `digits`, or any path.

    A packaged configuration comes before a file of the same name without ".py".

    Raises:
      UserError: neither exists.
    """
    known = packaged()
    if name in known:
        return known[name]
    path = pathlib.Path(name)
    if path.is_file():
        return path
    hint = " or ".join(_near(path.name.removesuffix(".py"), known))
    raise UserError(
        f"no config file {name}, nor a packaged configuration of that name: "
        + (f"did you mean {hint}? " if hint else "")
        + "`python -m repae_jax configs` lists them"
    )


def _near(name, known):
    """Up to three names that contain `name` or look like it."""
    containing = [other for other in known if name and name in other]
    return (containing or difflib.get_close_matches(name, known))[:3]
