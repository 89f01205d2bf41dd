"""The process that reads changed files, which may hang, die or take memory without end."""

import contextlib
import faulthandler
import io
import pathlib
import re
import resource
import shutil
import sys
import time
import traceback

from fuzz import contents, mutations
from fuzz.target import FREE, leaves

GIGABYTE = 2**30
MEMORY = 2 * GIGABYTE
_PACKAGE = "repae_jax/"
_REPLACEABLE = (".png", ".jpg", ".jpeg", ".webp", ".npz")  # another one is another one


def serve(connection, root: str, stderr: str) -> None:
    """Answer (target's name, case) with what became of it, until None comes."""
    log = open(stderr, "a")  # noqa: SIM115  (for the rest of the process)
    sys.stdout = sys.stderr = log
    faulthandler.enable(log)
    from fuzz.targets import by_name

    known = {}
    for name, case in iter(connection.recv, None):
        try:
            target = by_name(name)
            folder = pathlib.Path(root) / "seeds" / target.folder
            if name not in known:
                known[name] = _prepared(target, folder)
                connection.send(("ready", target.list_files(folder)))
            if case is None:
                continue
            faulthandler.dump_traceback_later(50, file=log)
            answer = _tried(target, folder, pathlib.Path(root) / "scratch", known[name], case)
            faulthandler.cancel_dump_traceback_later()
        except BaseException:
            answer = ("broken", traceback.format_exc())
        connection.send(answer)


def _prepared(target, folder):
    """The seed, and what the unchanged files hold."""
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        target.write(making)
        making.rename(folder)
    scratch = folder.parents[1] / "scratch"
    for _ in range(2):  # the second time everything is imported and cached
        mutations.copy_tree(folder, scratch)
        expected = dict(leaves(target.read(scratch)))
    return expected


def _tried(target, folder, scratch, expected, case):
    """(outcome, what of it)."""
    mutations.copy_tree(folder, scratch)
    try:
        mutations.apply(scratch, case)
    except Exception as error:  # there is no such file
        return "impossible", f"{type(error).__name__}: {error}"[:200]
    original, changed = folder / case[0], scratch / case[0]
    if changed.is_file() and changed.read_bytes() == original.read_bytes():
        return "impossible", "nothing changed"
    started = time.perf_counter()
    with _memory() as used:
        outcome = _read(target, scratch)
    seconds = time.perf_counter() - started
    if used["peak"] > MEMORY:
        outcome = "memory", f"{used['peak'] / GIGABYTE:.1f} GB"
    if outcome[0] == "read":
        outcome = _judged(target, folder, expected, outcome[1], case)
    return *outcome, seconds


def _read(target, scratch):
    from repae_jax.errors import UserError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            found = target.read(scratch)
            return "read", dict(leaves(found))
    except UserError as error:
        if _of_memory(error):
            return "memory", f"refused after {error.__cause__!r}"[:300]
        text = str(error)
        if "\n" in text.strip() or len(text) > 2000:
            return (
                "message",
                f"{len(text)} characters, {text.count(chr(10)) + 1} lines: {text[:200]!r}",
            )
        return "refused", text
    except MemoryError as error:
        return "memory", _where(error)
    except BaseException as error:
        return ("memory" if _of_memory(error) else "exception"), _where(error)


def _of_memory(error):
    """Whether an allocation failed behind it."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(
            sign in text
            for sign in ("bad_alloc", "can't allocate memory", "cannot allocate memory",
                         "unable to allocate", "out of memory")
        ):  # fmt: skip
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error):
    """The last place in the package, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"/{_PACKAGE}" in f.filename]
    place = "outside"
    if own:
        name = own[-1].filename.rpartition(f"/{_PACKAGE}")[2]
        place = f"{name}:{own[-1].lineno} {own[-1].name}"
    text = str(error).partition("\n")[0][:120]
    return f"{place} | {type(error).__name__}: {text}"


def _judged(target, folder, expected, found, case):
    """What reading without an error is worth."""
    if found == expected:
        return "same", ""
    file, change, *arguments = case
    missing = [k for k in expected if k not in found]
    other = [k for k in expected if k in found and expected[k] != found[k]]
    extra = [k for k in found if k not in expected]
    first = [f"{k}: {expected[k]} -> {found[k]}" for k in other[:1]]
    first += [f"{k} is gone" for k in missing[:1]] + [f"{k} is new" for k in extra[:1]]
    told = "; ".join(first)[:400]
    sealed = re.fullmatch(target.sealed, file)
    if all(re.fullmatch(target.optional, key) for key in [*other, *missing, *extra]):
        # nothing in a file tells that the file is gone
        return ("silent" if sealed and change != "missing" else "other"), told
    if change == "remove" and file.endswith(".jsonl") and len(arguments[0]) == 1:
        return "other", told  # a line that is gone, nobody can miss
    if change in ("set", "remove", "rename"):
        path = "/".join(str(key) for key in arguments[0])
        if _is_choice(folder / file, case) and re.fullmatch(target.follows, path):
            return "other", told
        if re.fullmatch(target.names, path):
            return "other", told
        return "silent", told
    if sealed and not (change == "cut" and file.endswith(".jsonl")):  # between two lines
        return "silent", told
    if change in ("flip", "zero", "cut", "append", "text") and re.fullmatch(FREE, file):
        return "other", told
    if change in ("hostile", "missing", "folder") and file.endswith(_REPLACEABLE):
        return "other", told
    if mutations.covers(folder / file, folder.parents[1] / "scratch" / file):
        return "other", told
    return "silent", told


def _is_choice(path, case):
    """Whether a changed key has another value that somebody may want, or none."""
    _, change, *arguments = case
    if change != "set" or arguments[1] in (*contents.NUMBERS, "null"):
        return True
    node = contents.load(path)
    for step in arguments[0]:
        node = dict(contents.children(node))[step]
    return arguments[1] == "true" and isinstance(node, bool)


@contextlib.contextmanager
def _memory():
    """At most `MEMORY` more than now; "peak" is then how much more was resident."""
    before = _status("VmRSS")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, hard))
    used = {"peak": 0}
    try:
        yield used
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        used["peak"] = _status("VmHWM") - before


def _status(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
