"""What the monitor says, when, and when it is silent."""

import numpy as np
import pytest

from repae_jax.errors import Diverged, UserError
from repae_jax.training.monitor import Monitor

FINE = dict(latent_std=0.7, grad_norm_sit=0.5, grad_norm_vae=2.0, denoising_loss=1.0)


class Told(list):
    def __call__(self, text):
        self.append(text)


def make(on_collapse="warn", max_skipped=3):
    told = Told()
    return Monitor(max_skipped, on_collapse, told, "train --from-step {}".format), told


def test_a_few_skipped_steps_are_counted_and_said_once_a_row():
    monitor, told = make()
    broken = {**FINE, "denoising_loss": np.nan, "reconstruction_loss": np.inf}
    for step, skipped in enumerate([0, 1, 1, 0, 1, 0], start=1):
        monitor.check_step(step, bool(skipped), lambda: broken)
    assert monitor.skipped == 3
    # in the order in which the step computes them
    assert [line.split(":")[1] for line in told] == [
        " reconstruction_loss is inf at step 2",
        " reconstruction_loss is inf at step 5",
    ]


def test_too_many_in_a_row_name_the_first_cause():
    monitor, _ = make()
    monitor.check_step(7, True, lambda: {**FINE, "grad_norm_vae": np.nan})
    monitor.check_step(8, True, lambda: {**FINE, "denoising_loss": np.nan})
    with pytest.raises(
        Diverged, match=r"step 9: 3 steps in a row .*grad_norm_vae is nan at st"
    ) as e:
        monitor.check_step(9, True, dict)
    assert str(e.value).endswith("train --from-step 7")  # where it began
    assert "train" not in e.value.what  # which a study keeps, wherever it lies


@pytest.mark.parametrize(
    ("name", "low"), [("latent_std", 0.05), ("grad_norm_sit", 1e-5), ("grad_norm_vae", 0.0)]
)
def test_a_collapse_is_said_once(name, low):
    monitor, told = make()
    for step in range(40):
        monitor.check_metrics(step, {**FINE, name: low if step >= 20 else FINE[name]})
    (line,) = told
    assert line.startswith(f"warning: step 22: {name} is")


def test_slow_change_and_noise_are_no_collapse():
    monitor, told = make()
    rng = np.random.default_rng(0)
    for step in range(500):
        scale = 30.0 ** (-step / 500) * rng.uniform(0.3, 3)
        monitor.check_metrics(step, {**FINE, "grad_norm_sit": 0.5 * scale})
        if step % 50 == 25:  # a single outlier
            monitor.check_metrics(step, {**FINE, "grad_norm_vae": 0.0})
    assert told == []


def test_a_discriminator_that_joins_later_is_not_dead():
    monitor, told = make("stop")
    for step in range(60):
        monitor.check_metrics(step, {**FINE, "grad_norm_disc": 0.0 if step < 30 else 0.4})
    assert told == []
    for step in range(60, 62):
        monitor.check_metrics(step, {**FINE, "grad_norm_disc": 1e-6})
    with pytest.raises(UserError, match="that network is dead"):
        monitor.check_metrics(62, {**FINE, "grad_norm_disc": 1e-6})


def test_a_collapse_can_stop_the_run():
    monitor, _ = make("stop")
    for step in range(22):
        monitor.check_metrics(step, {**FINE, "latent_std": 0.01 if step >= 20 else 0.7})
    said = "the latents collapse; to go back.*: train --from-step 20 .*on_collapse=warn"
    with pytest.raises(UserError, match=said):  # 20 is the first look that was low
        monitor.check_metrics(22, {**FINE, "latent_std": 0.01})


def test_alike_samples_lead_back_to_those_that_were_not():
    monitor, _ = make("stop")
    rng = np.random.default_rng(0)
    monitor.check_samples(10, rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8))
    with pytest.raises(UserError, match="look alike.* train --from-step 11 "):
        monitor.check_samples(20, np.zeros((16, 8, 8, 3), np.uint8))


def test_samples_that_are_all_alike():
    monitor, told = make()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3))
    monitor.check_samples(1, rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8))
    assert told == []
    same = np.clip(image + rng.integers(-1, 2, (16, 8, 8, 3)), 0, 255)
    monitor.check_samples(2, same.astype(np.uint8))
    assert "step 2: the samples of all classes look alike" in told[0]


def test_samples_that_are_not_finite():
    monitor, told = make()
    monitor.check_faults(1, np.zeros(16, np.int32))
    assert told == []
    monitor.check_faults(2, np.array([0, 3, -1, 0], np.int32))
    assert told == [
        "warning: step 2: 2 of 4 samples are black, of the first its latents are NaN or infinite "
        "from sampling step 3 on"
    ]
    monitor, _ = make("stop")
    with pytest.raises(
        UserError, match="1 of 1 samples are black, of the first its pixels are NaN"
    ):
        monitor.check_faults(3, np.array([-1], np.int32))
