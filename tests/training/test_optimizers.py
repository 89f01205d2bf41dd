import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import pytest
import torch

from repae_jax.runs.optimizers import (
    adamw,
    clip_by_global_norm,
    global_norm,
    leafwise,
    muon,
    to_saved_form,
    to_template_form,
)

STEPS = 20
SHAPES = {"kernel": (5, 7), "bias": (7,), "scale": (3, 1, 2)}
RATE = 3e-3


def gradients(scales):
    """One dict a step, of global norm about `scales[step]`."""
    rng = np.random.default_rng(1)
    size = np.sqrt(sum(np.prod(shape) for shape in SHAPES.values()))
    return [
        {n: (rng.normal(size=s) * scale / size).astype(np.float32) for n, s in SHAPES.items()}
        for scale in scales
    ]


def start():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def run_torch(history, *, max_grad_norm, warmup_steps, **options):
    """Parameters after every step: clip_grad_norm_, AdamW, LambdaLR."""
    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start().items()}
    optimizer = torch.optim.AdamW(params.values(), lr=RATE, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / warmup_steps) if warmup_steps else 1.0
    )
    for gradient in history:
        for name, p in params.items():
            p.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(params.values(), max_grad_norm)
        optimizer.step()
        schedule.step()
        yield {name: p.detach().numpy().copy() for name, p in params.items()}


NEVER, ALWAYS = np.full(STEPS, 0.5), np.full(STEPS, 40.0)
CASES = {
    "defaults, clipping": (ALWAYS, {}),
    "defaults, no clipping": (NEVER, {}),
    "no bound to clip to": (ALWAYS, dict(max_grad_norm=np.inf)),
    # from 0.03 to 30: some steps are clipped, and eps matters in the first ones
    "weight decay": (
        np.geomspace(0.03, 30, STEPS),
        dict(weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-3, max_grad_norm=2.0),
    ),
    "warm-up": (np.geomspace(30, 0.03, STEPS), dict(weight_decay=0.03, warmup_steps=7)),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_equal_torch(case):
    scales, options = CASES[case]
    history = gradients(scales)
    theirs = dict(options)
    betas = theirs.pop("b1", 0.9), theirs.pop("b2", 0.999)
    # the original's: both libraries' own defaults for the weight decay differ
    theirs = dict(max_grad_norm=1.0, warmup_steps=0, weight_decay=0.0, eps=1e-8) | theirs
    optimizer = adamw(RATE, **options)
    params = start()
    state = optimizer.init(params)

    @parity.quick_jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    expected = run_torch(history, betas=betas, **theirs)
    for gradient, after in zip(history, expected, strict=True):
        params, state = step(params, state, gradient)
        parity.assert_tensors_close(params, after, tolerance=1e-5)
    # what was compared has moved by far more than the tolerance
    assert parity.relative_error(params["kernel"], start()["kernel"]) > 1e-3


def steps_of_muon(history, **options):
    """Parameters after every step."""
    optimizer = muon(RATE, **options)
    params = start()
    state = optimizer.init(params)
    step = parity.quick_jit(optimizer.update)
    for gradient in history:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield params


def moved(params):
    return {name: np.asarray(leaf) - start()[name] for name, leaf in params.items()}


def test_muon_moves_kernels_as_torch_and_the_rest_as_adamw():
    options = dict(weight_decay=0.1, max_grad_norm=2.0)
    history = gradients(np.geomspace(0.03, 30, STEPS))
    *_, found = steps_of_muon(history, **options)
    theirs = dict(betas=(0.9, 0.999), weight_decay=0.1, eps=1e-8)
    *_, expected = run_torch(history, max_grad_norm=2.0, warmup_steps=0, **theirs)
    kernel = torch.nn.Parameter(torch.tensor(start()["kernel"].T))  # (outputs, inputs)
    optimizer = torch.optim.Muon(
        [kernel], lr=RATE, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in history:
        norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
        kernel.grad = torch.tensor(gradient["kernel"].T * min(1, 2 / (norm + 1e-6)))
        optimizer.step()
    for name in ("bias", "scale"):
        parity.assert_close(found[name], expected[name], name, 1e-5)
    theirs = kernel.detach().numpy().T - start()["kernel"]
    # torch's iteration runs in bfloat16, and its first steps' momentum is not corrected for bias
    assert parity.relative_error(moved(found)["kernel"], theirs) < 0.05
    assert parity.relative_error(moved(expected)["kernel"], theirs) > 0.5  # AdamW's is another


def test_muons_step_has_the_size_of_adamws_whatever_the_gradient():
    for scale in (1e-3, 1e3):
        (params,) = steps_of_muon(gradients([scale]), max_grad_norm=np.inf)
        size = np.sqrt((moved(params)["kernel"] ** 2).mean())
        # singular values lie between 0.7 and 1.2 after five iterations
        assert size == pytest.approx(0.2 * RATE, rel=0.3)


def test_a_convolution_moves_as_the_matrix_of_all_its_inputs():
    rng = np.random.default_rng(3)
    params, gradient = rng.normal(size=(2, 3, 3, 4, 6)).astype(np.float32)
    optimizer = muon(RATE)
    updates = []
    for shape in ((3, 3, 4, 6), (36, 6)):
        tree = {"conv": {"kernel": params.reshape(shape)}}
        given = {"conv": {"kernel": gradient.reshape(shape)}}
        update, _ = optimizer.update(given, optimizer.init(tree), tree)
        updates.append(np.asarray(update["conv"]["kernel"]).reshape(36, 6))
    np.testing.assert_allclose(*updates, rtol=1e-4, atol=1e-8)
    singular = np.linalg.svd(updates[0], compute_uv=False) / (0.2 * RATE * 36**0.5)
    assert singular.min() > 0.6
    assert singular.max() < 1.3  # a gradient's singular values are 2 to 8


@pytest.mark.parametrize("norm", [1e-4, 0.999, 1.0, 1.001, 1e4])
def test_clipping_equals_torch(norm):
    (gradient,) = gradients([1.0])
    factor = norm / float(optax.global_norm(gradient))
    gradient = {name: g * np.float32(factor) for name, g in gradient.items()}
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradient, clip.init(gradient))
    params = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for name, p in params.items():
        p.grad = torch.tensor(gradient[name])
    torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
    # closer than the 1e-6 in the formula, by which optax's own clipping differs
    expected = {name: p.grad for name, p in params.items()}
    parity.assert_tensors_close(clipped, expected, tolerance=5e-7)


def test_clipping_leaves_zero_gradients_at_zero():
    zero = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    clipped, _ = clip_by_global_norm(1.0).update(zero, optax.EmptyState())
    assert not any(leaf.any() for leaf in jax.tree.leaves(clipped))


def rates(steps, **options):
    """The learning rate of every step over `RATE`."""
    optimizer = adamw(RATE, **options)
    params = {"a": jnp.ones(3)}
    state, sizes = optimizer.init(params), []
    for _ in range(steps):
        # a constant gradient: AdamW moves every entry by the rate itself
        updates, state = optimizer.update({"a": jnp.full(3, 0.1)}, state, params)
        sizes.append(float(-updates["a"][0]))
    return np.array(sizes) / RATE


def test_warm_up_starts_at_zero_and_ends_at_the_rate():
    np.testing.assert_allclose(rates(7, warmup_steps=4), [0, 0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-4)


@pytest.mark.parametrize("law", ["linear", "cosine"])
def test_a_decay_that_begins_later_is_that_of_rae(law):
    """bytetriper/RAE, src/utils/optim_utils.py: constant, then a fall that ends before the run."""
    start, end, last = 3, 8, 0.1
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        lambda step: last + (1 - last) * fallen(law, min(max(step - start, 0) / (end - start), 1)),
    )
    expected = []
    for _ in range(11):
        expected.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    found = rates(11, decay=law, decay_start=start, decay_steps=end, final_rate=last * RATE)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("make", "leaf"), [(adamw, "bias"), (muon, "bias"), (muon, "kernel")])
def test_a_schedule_may_come_and_go(make, leaf):
    params = {leaf: np.ones((3, 1), np.float32)}
    constant, falling = make(0.1), make(0.1, warmup_steps=2, decay_steps=9)
    states = {}
    for name, optimizer in (("constant", constant), ("falling", falling)):
        state = optimizer.init(params)
        for _ in range(5):
            state = optimizer.update(params, state, params)[1]
        states[name] = state
    held = {"constant": [None, [{}, None, None]], "falling": [None, [{}, None, {"count": 0}]]}
    for before, after in (("constant", "falling"), ("falling", "constant")):
        template = to_saved_form(states[after], held[before])
        assert jax.tree.structure(template) == jax.tree.structure(states[before])
        state = to_template_form(states[before], states[after])
        jax.tree.map(np.testing.assert_array_equal, state, states[after])
    # and the rate is that of the step which the run has come to
    updates, _ = falling.update(
        params, to_template_form(states["constant"], states["falling"]), params
    )
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 9)(5)
    unscaled, _ = constant.update(params, states["constant"], params)
    np.testing.assert_allclose(updates[leaf], unscaled[leaf] * rate / 0.1, rtol=1e-5)


def fallen(law, progress):
    return 1 - progress if law == "linear" else 0.5 * (1 + np.cos(np.pi * progress))


def nested():
    """Parameters of three layers, two of one shape."""
    rng = np.random.default_rng(2)
    shapes = {"kernel": (5, 7), "bias": (7,)}
    layers = {f"layer{i}": shapes for i in range(2)} | {"last": {"kernel": (7, 3)}}
    return {
        layer: {name: jnp.float32(rng.normal(size=shape)) for name, shape in own.items()}
        for layer, own in layers.items()
    }


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_leaf_by_leaf_gives_the_same_updates_and_state():
    chain = optax.chain(
        clip_by_global_norm(1.0),
        optax.adamw(optax.linear_schedule(0.0, RATE, 4), weight_decay=0.1),
    )
    ours = leafwise(chain)
    params = nested()
    state = expected_state = ours.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(chain.init(params))
    for step in range(3):
        gradient = jax.tree.map(lambda p, step=step: jnp.sin(p * (step + 1)), params)
        norm = optax.global_norm(gradient)
        assert norm > 1.0
        expected, expected_state = chain.update(gradient, expected_state, params)
        for known in ({}, {"norm": norm}):
            updates, new_state = ours.update(gradient, state, params, **known)
            for found, wanted in ((updates, expected), (new_state, expected_state)):
                assert jax.tree.structure(found) == jax.tree.structure(wanted)
                jax.tree.map(close, found, wanted)
        state = new_state
        params = optax.apply_updates(params, updates)
    assert int(state[1][0].count) == 3


def test_leaf_by_leaf_an_optimizer_is_traced_once_for_each_shape():
    traced = []

    def update(updates, state, params=None):
        traced.append(updates.shape)
        return jax.tree.map(jnp.negative, updates), state

    optimizer = leafwise(optax.GradientTransformation(lambda params: optax.EmptyState(), update))
    params = nested()
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert sorted(traced) == [(5, 7), (7,), (7, 3)]
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_the_global_norm_is_that_of_optax():
    params = nested()
    assert float(global_norm(params)) == pytest.approx(float(optax.global_norm(params)), rel=1e-6)
