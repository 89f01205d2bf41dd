import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.models.batch_norm import (
    BatchNorm,
    LatentNorm,
    denormalize,
    denormalize_samples,
    normalize,
)

CHANNELS = 5
CASES = {
    "LatentNorm": (LatentNorm(), dict(eps=1e-4, momentum=0.1, affine=False)),
    "BatchNorm": (BatchNorm(), dict(eps=1e-5, momentum=0.1, affine=True)),
    "others": (BatchNorm(momentum=0.3, epsilon=1e-2), dict(eps=1e-2, momentum=0.3, affine=True)),
}


def batches(count):
    """Few values a channel, so that n / (n - 1) shows, of scales from eps up; means away from 0."""
    rng = np.random.default_rng(0)
    scale = np.array([0.01, 0.1, 1.0, 3.0, 0.02], np.float32)
    mean = np.array([0.0, 2.0, -1.0, 5.0, 0.1], np.float32)
    return rng.normal(size=(count, 2, 3, 2, CHANNELS)).astype(np.float32) * scale + mean


def pair(case):
    """torch's module with random affine part and running statistics, ours with the same."""
    model, options = CASES[case]
    reference = parity.randomise(torch.nn.BatchNorm2d(CHANNELS, **options))
    rng = np.random.default_rng(1)
    mean = rng.normal(size=CHANNELS).astype(np.float32)
    var = rng.uniform(0.5, 2.0, CHANNELS).astype(np.float32)
    reference.running_mean, reference.running_var = torch.tensor(mean), torch.tensor(var)
    variables = {"batch_stats": {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}}
    if options["affine"]:
        affine = {"scale": parity.as_numpy(reference.weight), "bias": reference.bias}
        variables["params"] = {n: jnp.array(parity.as_numpy(p)) for n, p in affine.items()}
    return model, variables, reference


@pytest.mark.parametrize("case", CASES)
def test_training_then_evaluation_equals_torch(case):
    model, variables, reference = pair(case)
    weight = parity.normal(2, 3, 2, CHANNELS, seed=2)

    @parity.quick_jit
    def train(variables, x):
        def weighted(params, x):
            state = {**variables, "params": params}
            y, new = model.apply(state, x, train=True, mutable=["batch_stats"])
            return (y * weight).sum(), (y, new)

        params = variables.get("params", {})
        return jax.grad(weighted, argnums=(0, 1), has_aux=True)(params, x)

    for x in batches(4):
        reference.zero_grad()
        leaf = parity.to_nchw(x).requires_grad_()
        expected = reference.train()(leaf)
        (expected * parity.to_nchw(weight)).sum().backward()
        (by_params, by_x), (y, new) = train(variables, x)
        variables = {**variables, **new}
        parity.assert_close(y, parity.to_nhwc(expected), "normalised")
        parity.assert_close(by_x, parity.to_nhwc(leaf.grad), "gradient through the statistics")
        for ours, theirs in (("scale", reference.weight), ("bias", reference.bias)):
            if theirs is not None:
                parity.assert_close(by_params[ours], theirs.grad, f"gradient by the {ours}")
        parity.assert_close(new["batch_stats"]["mean"], reference.running_mean, "running mean")
        parity.assert_close(new["batch_stats"]["var"], reference.running_var, "running variance")

    x = batches(5)[4]
    leaf = parity.to_nchw(x).requires_grad_()
    expected = reference.eval()(leaf)
    (expected * parity.to_nchw(weight)).sum().backward()

    def evaluate(x):
        y = model.apply(variables, x, train=False)
        return (y * weight).sum(), y

    by_x, y = parity.quick_jit(jax.grad(evaluate, has_aux=True))(x)
    parity.assert_close(y, parity.to_nhwc(expected), "normalised by running statistics")
    parity.assert_close(by_x, parity.to_nhwc(leaf.grad), "gradient with running statistics")


def test_statistics_stay_where_they_are_not_asked_to_move():
    model, variables, _ = pair("LatentNorm")
    x = batches(1)[0]
    for train in (True, False):
        y, new = model.apply(variables, x, train=train, mutable=["intermediates"])
        assert not new
        _, new = model.apply(variables, x, train=train, mutable=["batch_stats"])
        moved = [
            bool((new["batch_stats"][name] != variables["batch_stats"][name]).any())
            for name in ("mean", "var")
        ]
        assert moved == [train, train]
        assert y.shape == x.shape


def test_one_value_a_channel_is_refused_in_training():
    model, variables, _ = pair("LatentNorm")
    x = jnp.ones((1, 1, 1, CHANNELS))
    with pytest.raises(ValueError, match=r"more than one value.*\(1, 1, 1, 5\)"):
        model.apply(variables, x, train=True, mutable=["batch_stats"])
    model.apply(variables, x, train=False)


def test_fresh_statistics_are_those_of_normalised_latents():
    variables = LatentNorm().init(jax.random.key(0), jnp.ones((2, 2, 2, 3)), train=True)
    assert set(variables) == {"batch_stats"}
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))


def test_normalize_is_the_norm_of_evaluation():
    model, variables, reference = pair("LatentNorm")
    statistics = variables["batch_stats"]
    x = batches(1)[0]
    found = normalize(x, **statistics)
    np.testing.assert_array_equal(found, model.apply(variables, x, train=False))
    expected = reference.eval()(parity.to_nchw(x))
    parity.assert_close(found, parity.to_nhwc(expected), "normalised")
    small = {"mean": statistics["mean"], "var": jnp.full(CHANNELS, 1e-4)}  # as the epsilon
    parity.assert_close(denormalize(normalize(x, **small), **small), x, "and back", 1e-6)


def test_samples_are_denormalised_without_the_epsilon():
    model, variables, _ = pair("LatentNorm")
    mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
    x = batches(1)[0]
    restored = denormalize_samples(model.apply(variables, x, train=False), mean, var)
    # the normalisation adds epsilon to the variance, its inverse does not
    exact = (x - np.float64(mean)) * np.sqrt(var / (np.float64(var) + 1e-4)) + np.float64(mean)
    parity.assert_close(restored, exact, "restored", 1e-6)
    assert 1e-6 < parity.relative_error(restored, x) < 1e-4


def test_samples_are_denormalised_as_checkpoints_say():
    """They keep 1 / std: latents / scale + bias."""
    z, mean = parity.normal(2, 4, 3, CHANNELS, seed=0), parity.normal(CHANNELS, seed=1)
    var = parity.normal(CHANNELS, seed=2) ** 2
    scale = torch.rsqrt(torch.tensor(var)).reshape(1, -1, 1, 1)
    expected = parity.to_nchw(z) / scale + torch.tensor(mean).reshape(1, -1, 1, 1)
    found = denormalize_samples(z, mean, var)
    parity.assert_close(found, parity.to_nhwc(expected), "latents", 1e-6)


def test_statistics_by_position_equal_those_of_torch():
    """Every position of a channel is one of torch's channels."""
    shape = (3, 2, CHANNELS)
    count = int(np.prod(shape))
    reference = torch.nn.BatchNorm1d(count, eps=1e-4, momentum=0.1, affine=False)
    model = LatentNorm(positions=shape[:2])
    variables = model.init(jax.random.key(0), np.zeros((1, *shape), np.float32), train=False)
    assert variables["batch_stats"]["var"].shape == shape
    x = 2.0 + 3.0 * parity.normal(4, *shape, seed=0)
    weight = parity.normal(4, *shape, seed=1)
    leaf = torch.tensor(x.reshape(4, count)).requires_grad_()
    expected = reference(leaf)
    (expected * torch.tensor(weight.reshape(4, count))).sum().backward()

    def weighted(x):
        y, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return (y * weight).sum(), (y, new)

    gradient, (y, new) = jax.grad(weighted, has_aux=True)(x)
    parity.assert_close(y.reshape(4, count), expected, "values")
    parity.assert_close(gradient.reshape(4, count), leaf.grad, "gradient")
    for name in ("mean", "var"):
        running = getattr(reference, f"running_{name}")
        parity.assert_close(new["batch_stats"][name].reshape(-1), running, name)
    reference.eval()
    evaluated = model.apply(new, x, train=False)
    parity.assert_close(evaluated.reshape(4, count), reference(leaf), "evaluation")
    mean, var = new["batch_stats"]["mean"], new["batch_stats"]["var"]
    np.testing.assert_allclose(normalize(x, mean, var), evaluated, rtol=1e-6)
