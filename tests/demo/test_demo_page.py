"""The page in a browser: sampling, guidance, a picture, bad input, two users, and the end."""

import contextlib
import io
import re
import signal
import time

import numpy as np
import pytest
from browsers import local_context, open_browser, require_browser
from pictures import png, random_picture
from PIL import Image
from run_fixtures import save_random
from runs import start

from repae_jax import Pipeline
from repae_jax.demo import actions

pytestmark = pytest.mark.slow  # servers, which import JAX and Gradio, and a browser

SECONDS = 300  # for an answer: the first one compiles a program


@pytest.fixture(scope="module")
def browser():
    with open_browser(require_browser("gradio", "playwright")) as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("demo") / "run", {4: 0})


@contextlib.contextmanager
def serving(run, folder):
    """(the server's process, its address); it works in a folder of its own, temporary files too."""
    (folder / "tmp").mkdir()
    (folder / "cwd").mkdir()
    words = ["demo", "--workdir", run, "--port", 0]
    command = f'cd "{folder / "cwd"}" && TMPDIR="{folder / "tmp"}" exec "$@"'
    process = start(words, command)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, process.communicate()[1][-3000:]
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def end(process, number, folder):
    """Send the signal; the exit status, once nothing of the server is left."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert not list((folder / "tmp").iterdir())
    assert not list((folder / "cwd").iterdir())
    return process.returncode


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


class User:
    """A window of its own."""

    def __init__(self, context, address):
        self.page = context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.goto(address)
        self.page.get_by_text("ready", exact=True).wait_for()

    def fill(self, **fields):
        for name, value in fields.items():  # "what" is a list that takes other words as well
            field = self.page.locator(f"#{name} input:not([type=range])").first
            field.fill(str(value))
            field.press("Enter" if name == "what" else "Tab")

    def press(self, name):
        """Press a button; `line` then waits for the answer."""
        self.before = self.page.locator("#message p").get_attribute("data-time")
        self.page.locator(f"#{name}").click()

    def line(self):
        """The answer's line."""
        newer = "before => document.querySelector('#message p')?.dataset.time != before"
        self.page.wait_for_function(newer, arg=self.before)
        return self.page.locator("#message p").inner_text()

    def picture(self, name):
        """The pixels of a picture on the page, (height, width, 3)."""
        address = self.page.locator(f"#{name} img").evaluate("image => image.src")
        response = self.page.request.get(address)
        with Image.open(io.BytesIO(response.body())) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def sample(self, **fields):
        self.fill(**fields)
        self.press("sample")
        return self.line()


def expected(pipeline, **fields):
    """What the page should show, computed in this process."""
    given = dict(what="3", count=2, steps=3, method="euler", scale=1.5, low=0, high=1, seed=0)
    return actions.sample(pipeline, **{**given, **fields})


def assert_shows(user, made, names=("images", "strip", "colors")):
    """The pictures may come a moment after the line."""
    for name in names:
        most = 8 if "colors" in name else 1  # colors are stretched to the whole range
        for _ in range(50):
            found, wanted = user.picture(name), getattr(made, name)
            if found.shape == wanted.shape and np.abs(found - wanted).max() <= most:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"{name}: {found.shape} and {wanted.shape}, or other pixels")


def test_it_is_used_and_stopped(browser, run, tmp_path):
    """One server for all, as each takes seconds to start."""
    pipeline, before, called = Pipeline.from_pretrained(run), files(run), []
    with serving(run, tmp_path) as (process, address):
        user = User(local_context(browser, address, called), address)
        assert user.sample(what=3, count=2).startswith("2 images of class 3 in ")
        made = expected(pipeline)
        assert_shows(user, made)

        user.sample(scale=4)
        assert_shows(user, expected(pipeline, scale=4))
        assert np.abs(expected(pipeline, scale=4).images.astype(int) - made.images).max() > 8

        assert user.sample(steps=0) == "steps is 0: give a whole number from 1 to 1000"
        line = user.sample(steps=3, what="cat")
        assert line.startswith("the model has no class 'cat', and no names of classes")
        assert_shows(user, expected(pipeline, scale=4))  # the pictures of before

        reconstruct(user, pipeline, tmp_path)
        two_users(browser, pipeline, address, called)

        user.page.get_by_role("tab", name="Sample").click()
        user.fill(what=3, steps=1000, count=64)
        user.press("sample")  # and the signal comes while it computes
        time.sleep(1)
        assert end(process, signal.SIGTERM, tmp_path) == 75
    assert files(run) == before
    assert not called


def reconstruct(user, pipeline, folder):
    """A picture, a file that is none, and one that claims to be huge."""
    random_picture(48, 32, seed=3).save(folder / "own.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "huge.png").write_bytes(png(11_000, 11_000, 8, 2, b"\0"))
    user.page.get_by_role("tab", name="Reconstruct").click()
    user.press("reconstruct")
    assert user.line() == "there is no picture: upload one"
    for name, message in {
        "notes.txt": "notes.txt: not a readable image",
        "huge.png": "huge.png: not a readable image (11000 x 11000 pixels are more than",
        "own.png": "PSNR ",
    }.items():
        upload(user, folder / name)
        user.press("reconstruct")
        assert message in user.line()
    made = actions.reconstruct(pipeline, folder / "own.png")
    assert_shows(user, made, ["pair"])


def upload(user, path):
    """Choose a file, in place of one that was chosen before."""
    clear = user.page.locator("#file").get_by_label("Clear")
    if clear.count():
        clear.click()
    user.page.locator("#file input[type=file]").set_input_files(path)
    user.page.locator("#file").get_by_text(path.stem).first.wait_for()


def two_users(browser, pipeline, address, called):
    """Two at once get their own images, and see nothing of each other's."""
    users = [User(local_context(browser, address, called), address) for _ in range(2)]
    wanted = [dict(what="5", seed=1), dict(what="7", seed=2)]
    for user, fields in zip(users, wanted, strict=True):
        user.fill(count=2, **fields)
    for user in users:
        user.press("sample")
    for user, fields in zip(users, wanted, strict=True):
        assert user.line().startswith(f"2 images of class {fields['what']} in ")
        assert_shows(user, expected(pipeline, **fields))


def test_control_c_ends_it(run, tmp_path):
    require_browser("gradio")
    with serving(run, tmp_path) as (process, _):
        assert end(process, signal.SIGINT, tmp_path) == 130
