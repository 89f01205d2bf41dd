"""What `Backbone` promises, for every row of `BACKBONES`, at small sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import quick_jit

from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.conditioning.text import Text
from repae_jax.models.projectors import MLP
from repae_jax.models.remat import POLICIES
from repae_jax.objectives.paths import PATHS

# The options of each family; a new row needs its own.
_SIZES = dict(patch_size=2, hidden_size=16, depth=3, num_heads=2, encoder_depth=2)
SMALL = {
    "sit": _SIZES,
    "lightningdit": _SIZES,
    "dit": _SIZES,
    "ditdh": dict(**_SIZES, head_size=24, head_depth=2, head_heads=2),
    "ddt": dict(**_SIZES, head_size=24, head_depth=2, head_heads=2, time_tokens=1, class_tokens=2),
    "jit": dict(**_SIZES, bottleneck=6, context_tokens=3, context_start=1),
    "fusedit": dict(**_SIZES, kv_heads=1, head_width=6, mlp_width=20),
    "mmdit": _SIZES,
}
BATCH, SIDE, CHANNELS, CLASSES, TEACHERS = 3, 8, 4, 5, (6, 10)
LENGTH, WIDTH = 3, 7  # of texts
TEXT = ("fusedit", "mmdit", "ddt with text")  # conditioned by text, the others by classes
CASES = [*BACKBONES, "ddt with text"]


def make(case, **fields):
    family = case.removesuffix(" with text")
    row = BACKBONES[family]
    given = dict(dtype=jnp.float32, remat="none", scan=False) | fields
    module = row.build(
        latent_size=SIDE, latent_channels=CHANNELS,
        conditioner=Text(LENGTH, WIDTH) if case in TEXT else ClassLabel(CLASSES),
        teacher_dims=TEACHERS, projector=MLP(8), **SMALL[family], **given,
    )  # fmt: skip
    row.check(module, {"family": family}, "config.backbone")
    return module


def variables_of(module):
    """Random variables: at initialization many weights are zero."""
    variables = quick_jit(module.init)(jax.random.key(0), *blank_inputs(module))
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, drawn)}


@pytest.fixture(scope="module", params=CASES)
def made(request):
    module = make(request.param)
    return request.param, module, variables_of(module)


def inputs(module):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIDE, SIDE, CHANNELS)).astype(np.float32)
    condition = {"label": np.array([0, 3, CLASSES])}
    if isinstance(module.conditioner, Text):
        tokens = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
        condition = {"tokens": tokens, "mask": np.arange(LENGTH) <= np.arange(BATCH)[:, None]}
    return x, np.linspace(0.1, 0.9, BATCH, dtype=np.float32), condition


def other(condition):
    """Another condition of every image."""
    if "label" in condition:
        return {"label": (condition["label"] + 1) % CLASSES}
    return {**condition, "tokens": condition["tokens"] + np.arange(WIDTH, dtype=np.float32)}


def close(a, b):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5), a, b)


def gradients(module, variables):
    def loss(params):
        output = module.apply({**variables, "params": params}, *inputs(module))
        parts = (output.prediction, *output.extra.values(), *output.projections)
        return sum(
            (part * jnp.cos(jnp.arange(part.size)).reshape(part.shape)).sum() for part in parts
        )

    return quick_jit(jax.grad(loss))(variables["params"])


def test_shapes_and_types(made):
    _, module, variables = made
    output = quick_jit(module.apply)(variables, *inputs(module))
    assert output.prediction.shape == (BATCH, SIDE, SIDE, CHANNELS)
    assert output.prediction.dtype == jnp.float32
    assert module.predicts in {path.predicts for path in PATHS.values()}
    tokens = module.grid**2
    assert output.tokens.shape[:2] == (BATCH, tokens)
    assert [p.shape for p in output.projections] == [(BATCH, tokens, dim) for dim in TEACHERS]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_project_and_hidden_are_of_the_full_pass(made):
    _, module, variables = made
    output = quick_jit(module.apply)(variables, *inputs(module))
    close(module.apply(variables, *inputs(module), method="project"), output.projections)
    hidden = module.apply(variables, *inputs(module), method="hidden")
    assert hidden.shape == (module.depth, BATCH, output.tokens.shape[-1])
    assert hidden.dtype == jnp.float32
    close(hidden[module.encoder_depth - 1], output.tokens.astype(jnp.float32).mean(1))


def test_time_and_condition_matter(made):
    _, module, variables = made
    x, t, condition = inputs(module)
    before = module.apply(variables, x, t, condition).prediction
    for changed in ((x, t + 0.05, condition), (x, t, other(condition))):
        after = module.apply(variables, *changed).prediction
        assert (np.abs(after - before).max((1, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize(
    "fields", [{"scan": True}, *({"remat": policy} for policy in POLICIES)], ids=str
)
def test_scan_and_remat_change_nothing(made, fields):
    case, module, variables = made
    changed = make(case, **fields)
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(m.init, jax.random.key(0), *blank_inputs(m)))
        for m in (module, changed)
    ]
    assert shapes[0] == shapes[1]  # so a run may resume with the other
    ours = quick_jit(module.apply)(variables, *inputs(module))
    close(quick_jit(changed.apply)(variables, *inputs(module)), ours)
    close(gradients(changed, variables), gradients(module, variables))


def test_its_sizes_fit_a_line(made):
    case, module, _ = made
    text = BACKBONES[case.removesuffix(" with text")].text(module)
    assert "\n" not in text
    assert 10 < len(text) < 300
