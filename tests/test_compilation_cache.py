"""What is compiled is kept in the user's cache folder, unless they say otherwise."""

import os
import subprocess
import sys

import jax
import pytest

from repae_jax.cli import main
from repae_jax.utils.compilation_cache import VARIABLE, default_folder, use_compilation_cache


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No wish of the environment, and a cache folder of the test's own."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = jax.config.jax_compilation_cache_dir
    yield tmp_path / "cache"
    os.environ.pop(VARIABLE, None)  # what was set meanwhile, before the former value comes back
    jax.config.update("jax_compilation_cache_dir", before)


def test_every_command_uses_the_users_cache(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", None)
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert os.environ[VARIABLE] == jax.config.jax_compilation_cache_dir == str(default_folder())
    assert default_folder().is_relative_to(unset)
    assert default_folder().is_dir()


def test_what_jax_was_told_stays(unset):
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


@pytest.mark.parametrize("wish", ["", "elsewhere"])
def test_the_environment_decides(unset, monkeypatch, wish):
    monkeypatch.setenv(VARIABLE, wish)
    use_compilation_cache()
    assert os.environ[VARIABLE] == wish
    assert not unset.exists()


def test_without_a_place_nothing_is_kept(unset):
    unset.write_text("a file in its place")
    use_compilation_cache()
    assert VARIABLE not in os.environ


def test_a_second_process_compiles_nothing(unset):
    """The same program in two processes: the second one finds what the first has compiled."""
    code = (
        "from repae_jax.utils.compilation_cache import use_compilation_cache as use; use()\n"
        "import jax\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "found = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: found.append(name))\n"
        "jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8)))\n"
        "print(found.count('/jax/compilation_cache/cache_hits'))\n"
    )
    hits = [
        int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0
