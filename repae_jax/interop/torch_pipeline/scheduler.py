"""The samplers of a run: ODE, SDE, and the chain of DDPM. Time runs from 1, noise, to 0.

The methods differ in the numbers of their tables alone, which are computed in float64. The state
is float32 with compensated (Kahan) summation.
"""

import itertools
import math
import types

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

FLOW, CHAIN = ("euler", "heun", "euler-maruyama"), ("ddpm", "ddim")
CHAIN_STEPS = 1000
LAST_SDE_TIME = 0.04  # from here a step without noise leads to 0
MOST_STEPS = 100_000


class RepaeScheduler(SchedulerMixin, ConfigMixin):
    """Integrates a velocity, or runs the chain of a model of the noise.

    Attributes of its config:
      method: "euler" or "heun" (ODE), "euler-maruyama" (SDE); of a chain "ddpm" or "ddim".
      steps: the number of steps, unless `set_timesteps` is given one.
      interpolant: "linear" or "cosine" with a velocity, "ddpm" with the noise.
      guidance_scale, guidance_low, guidance_high: classifier-free guidance, and the interval of
        times in which it acts; a scale of 1 is none.
      guidance_channels: guide the first channels alone; 0: all.
      guidance_rule: "step": the interval, with its ends, is one of the times at which steps begin;
        "evaluation": one of the times of evaluations, without its ends except 0 and 1.
      class_token_guidance: the scale of a class token; 0: guidance_scale.
      noise_scale: the standard deviation of the noise at time 1.
      shift: multiplies the odds t / (1 - t) of the steps' times.
      last_time: the time before the shift at which an ODE ends.
      smallest_time: the time before the shift of an ODE's last evaluation; 0: even steps.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        method: str = "euler",
        steps: int = 250,
        interpolant: str = "linear",
        guidance_scale: float = 1.0,
        guidance_low: float = 0.0,
        guidance_high: float = 1.0,
        guidance_channels: int = 0,
        guidance_rule: str = "step",
        class_token_guidance: float = 0.0,
        noise_scale: float = 1.0,
        shift: float = 1.0,
        last_time: float = 0.0,
        smallest_time: float = 0.0,
    ):
        self.timesteps = None

    def set_timesteps(self, steps=None, device=None, *, method=None):
        """Begin a sampling: make the table of its evaluations, at `timesteps` (K,).

        Args:
          steps, method: None takes those of the config.
          device: of `timesteps`.

        Raises:
          ValueError: there is no such method for this model, or it has no such number of steps.
        """
        self.method = self.config.method if method is None else method
        self.steps = self.config.steps if steps is None else steps
        self._check()
        self.of_chain = self.config.interpolant == "ddpm"
        self.stochastic = self.method in ("euler-maruyama", "ddpm")
        self._rows = self._chain() if self.of_chain else self._flow()
        self.timesteps = torch.tensor([row.time for row in self._rows], dtype=torch.float32)
        self.timesteps = self.timesteps.to(device)
        self._residues = self._drifts = None

    def step_of(self, index):
        """The number of the step, from 0, that the evaluation `index` belongs to."""
        return self._rows[index].step

    def is_guided(self, index, low, high):
        """Whether an evaluation lies in the interval of guidance."""
        row = self._rows[index]
        if self.config.guidance_rule == "evaluation":
            time = row.time
            return (low < time or low == 0.0) and (time < high or high == 1.0)
        return low <= row.begin <= high

    def step(self, outputs, index, states, noise=None):
        """The states at which evaluation `index` + 1 takes place; after the last, the result.

        Args:
          outputs: the model's, a tuple of float tensors (B, ...).
          index: of the evaluation.
          states: those at which it took place, a tuple of float32 tensors.
          noise: a tuple of standard normal tensors; a stochastic method needs it.

        Returns:
          A tuple of float32 tensors.
        """
        row = self._rows[index]
        outputs = tuple(output.float() for output in outputs)
        if self.of_chain:
            return (self._chain_step(outputs[0], states[0], row, noise),)
        if self.stochastic:
            pairs = zip(outputs, states, strict=True)
            outputs = [self._reverse_drift(v, x, row.time) for v, x in pairs]
        if self._residues is None:
            self._bases = states
            self._residues = self._drifts = tuple(torch.zeros_like(x) for x in states)
        bases, residues, queries = [], [], []
        for number, drift in enumerate(outputs):
            x, residue = self._bases[number], self._residues[number]
            move = row.weight * drift + row.previous_weight * self._drifts[number]
            if row.noise_scale:
                move = move + row.noise_scale * noise[number].float()
            move = move - residue
            after = x + move
            residue = (after - x) - move
            bases.append(after)
            residues.append(residue)
            queries.append(after + (row.lookahead * drift - residue))
        self._bases, self._residues, self._drifts = bases, residues, outputs
        return tuple(queries)

    def _check(self):
        of_chain = self.config.interpolant == "ddpm"
        methods, steps, config = CHAIN if of_chain else FLOW, self.steps, self.config
        if self.method not in methods:
            raise ValueError(f"method is {self.method!r}: choose one of {', '.join(methods)}")
        fewest = 2 if self.method == "euler-maruyama" or config.smallest_time else 1
        most = CHAIN_STEPS if of_chain else MOST_STEPS
        if isinstance(steps, bool) or not isinstance(steps, int) or not fewest <= steps <= most:
            raise ValueError(
                f"num_inference_steps is {steps!r}: {self.method} takes a whole number from "
                f"{fewest} to {most}"
            )
        plain = (config.last_time, config.smallest_time, config.noise_scale) == (0.0, 0.0, 1.0)
        if self.method == "euler-maruyama" and not plain:
            raise ValueError(
                f"method is {self.method!r}, which takes a scheduler with last_time 0, "
                "smallest_time 0 and noise_scale 1: use 'euler' or 'heun'"
            )

    def _flow(self):
        """The rows of a velocity's evaluations.

        Evaluation k gives the drift d_k; then x += weight d_k + previous_weight d_(k-1) +
        noise_scale N(0, I), and the next takes place at x + lookahead d_k.
        """
        times = self._times()
        rows = []
        for step, (begin, end) in enumerate(itertools.pairwise(times)):
            dt, last = end - begin, step == self.steps - 1
            row = dict(step=step, begin=begin, previous_weight=0.0, lookahead=0.0, noise_scale=0.0)
            if self.method == "heun" and not last:
                rows.append({**row, "time": begin, "weight": 0.0, "lookahead": dt})
                rows.append(
                    {**row, "time": end, "weight": dt / 2, "previous_weight": dt / 2},
                )
                continue
            if self.stochastic and not last:
                row["noise_scale"] = math.sqrt(2.0 * begin * abs(dt))
            rows.append({**row, "time": begin, "weight": dt})
        return [types.SimpleNamespace(**row) for row in rows]

    def _times(self):
        """Times from 1 to the end of the ODE or SDE, one more than the steps."""
        config, wide = self.config, torch.float64
        smallest = LAST_SDE_TIME if self.stochastic else config.smallest_time
        if smallest:
            times = [*torch.linspace(1.0, smallest, self.steps, dtype=wide).tolist(), 0.0]
        else:
            times = torch.linspace(1.0, config.last_time, self.steps + 1, dtype=wide).tolist()
        shift = config.shift
        if shift == 1.0:
            return times
        return [shift * t / (1.0 + (shift - 1.0) * t) for t in times]

    def _reverse_drift(self, velocity, x, time):
        """v - t s, the drift of the reverse SDE whose diffusion is 2 t (arXiv 2401.08740)."""
        if self.config.interpolant == "linear":
            alpha, d_alpha, sigma, d_sigma = 1.0 - time, -1.0, time, 1.0
        else:
            turn = math.pi / 2
            alpha, d_alpha = math.cos(turn * time), -turn * math.sin(turn * time)
            sigma, d_sigma = math.sin(turn * time), turn * math.cos(turn * time)
        score = (alpha * velocity - d_alpha * x) / (sigma * (d_alpha * sigma - alpha * d_sigma))
        return velocity - time * score

    def _chain(self):
        """The rows of a chain through some of the 1,000 steps, from noise to data."""
        step = torch.tensor(self._chain_steps())
        beta = torch.linspace(1e-4, 0.02, CHAIN_STEPS, dtype=torch.float64)
        alpha_bar = (1.0 - beta).cumprod(0)[step]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        beta = 1.0 - alpha_bar / before
        posterior = beta * (1.0 - before) / (1.0 - alpha_bar)
        if len(step) > 1:  # it is 0 at the last step, which adds no noise
            posterior[0] = posterior[1]
        columns = {
            "time": step / CHAIN_STEPS,
            "begin": step / CHAIN_STEPS,
            "data_x": alpha_bar**-0.5,
            "data_noise": (1.0 / alpha_bar - 1.0).sqrt(),
            "from_data": beta * before.sqrt() / (1.0 - alpha_bar),
            "from_noisy": (1.0 - before) * (1.0 - beta).sqrt() / (1.0 - alpha_bar),
            "alpha_bar_before": before,
            "log_beta": beta.log(),
            "log_posterior": posterior.log(),
        }
        lists = {name: column.double().flip(0).tolist() for name, column in columns.items()}
        rows = range(len(step))
        return [
            types.SimpleNamespace(step=k, **{name: lists[name][k] for name in lists}) for k in rows
        ]

    def _chain_steps(self):
        """The steps in rising order; "ddim" takes every i-th for a whole i."""
        count = self.steps
        if self.method == "ddim":
            strides = [i for i in range(1, CHAIN_STEPS) if -(-CHAIN_STEPS // i) == count]
            if not strides:
                raise ValueError(
                    f"num_inference_steps is {count}, but no whole stride of ddim through "
                    f"{CHAIN_STEPS} steps gives that number"
                )
            return list(range(0, CHAIN_STEPS, strides[0]))
        stride = (CHAIN_STEPS - 1) / (count - 1) if count > 1 else 1.0
        place, steps = 0.0, []
        for _ in range(count):
            steps.append(round(place))
            place += stride
        return steps

    def _chain_step(self, output, x, row, noise):
        channels = x.shape[1]
        eps, fraction = output[:, :channels], output[:, channels:]
        data = row.data_x * x - row.data_noise * eps
        if self.method == "ddim":
            before = row.alpha_bar_before
            return math.sqrt(before) * data + math.sqrt(1.0 - before) * eps
        moved = row.from_data * data + row.from_noisy * x
        if row.step == len(self._rows) - 1:
            return moved
        log = row.log_beta
        if fraction.shape[1]:
            share = (fraction + 1.0) / 2.0
            log = share * row.log_beta + (1.0 - share) * row.log_posterior
        deviation = log.mul(0.5).exp() if fraction.shape[1] else math.exp(0.5 * log)
        return moved + deviation * noise[0].float()
