"""What the loop owes its hooks: every step, the end, and nothing that depends on a display."""

import jax
import numpy as np
import pytest
import tiny
from runs import words
from stub_loop import run_stub

from repae_jax.cli import main
from repae_jax.errors import RUN_AGAIN, UserError
from repae_jax.parallel.multihost import Processes
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.training.loop import train
from repae_jax.training.monitor import Monitor


class Recorded:
    """A hook that notes how it is called."""

    def __init__(self):
        self.steps, self.ends, self.params = [], [], None

    def __call__(self, end):
        assert end.step == int(end.state.step)
        self.steps.append(end.step)
        self.ends.append((end.ending, end.done))
        self.params = jax.device_get(getattr(end.state, "params", None))


@pytest.mark.slow
def test_without_hooks_the_same_steps_are_made(teacher, tmp_path, capsys):
    config = tiny.get_config()
    config.teachers.small.weights = str(teacher)
    config.run.steps = 3
    seen = Recorded()
    assert train(config, tmp_path / "run", make_hooks=lambda run: [seen], progress=False) == 0
    assert "done: 3 steps, not saved" in capsys.readouterr().out
    assert seen.steps == [1, 2, 3, 3]
    assert seen.ends == [(False, False), (False, False), (True, False), (True, True)]
    assert not (tmp_path / "run" / "samples").exists()
    with pytest.raises(UserError, match="no checkpoint"):
        restore_latest(tmp_path / "run")
    assert main(words(tmp_path / "run", teacher, steps=3)) == 0  # with those of the command
    saved = restore_latest(tmp_path / "run")["params"]
    jax.tree.map(np.testing.assert_array_equal, seen.params, saved)


def test_what_is_wrong_with_a_hooks_files_shows_before_anything_is_written(teacher, tmp_path):
    def broken(run):
        del run
        raise UserError("the reference is missing")

    config = tiny.get_config()
    config.teachers.small.weights = str(teacher)
    with pytest.raises(UserError, match="the reference is missing"):
        train(config, tmp_path / "run", make_hooks=broken, progress=False)
    assert not (tmp_path / "run").exists()


# --- with a step that does nothing ---


def run(monitor, *, processes=1, stop_at=None, steps=8, every=2, hooks=()):
    """Runs the loop; gives the status and the saved steps."""
    saved = {}

    def metrics_of(step):
        return {"skipped": 0, "stop": int(step == stop_at), "latent_std": 1.0}

    try:
        status = run_stub(
            saved, monitor, metrics_of, steps=steps, every=every, hooks=hooks,
            processes=Processes(0, processes),
        )  # fmt: skip
    except UserError:
        status = "ended"
    return status, list(saved)


def test_several_processes_stop_behind_the_step_that_brings_the_request():
    recorded = Recorded()
    monitor = Monitor(4, "warn", print, str)
    assert run(monitor, processes=2, stop_at=4, every=3, hooks=[recorded]) == (RUN_AGAIN, [3, 5])
    assert recorded.ends == 4 * [(False, False)] + [(True, False)]
    # One that is alone obeys its own signals: nobody asks it by way of a step.
    assert run(monitor, processes=1, stop_at=4, every=3) == (0, [3, 6, 8])


def test_a_state_at_which_the_monitor_ends_the_run_is_not_saved():
    class Ends(Monitor):
        def check_metrics(self, step, values):
            if step == 4:
                raise UserError("the latents collapse")

    config = tiny.get_config()
    assert config.run.log_every == 1
    assert run(Ends(4, "stop", print, str)) == ("ended", [2])
