"""The shapes of a run's state: traced once, and again where the state differs."""

import jax
import pytest
import tiny

from repae_jax.runs import build
from repae_jax.runs.build import build_models, fresh_state, state_shapes


def shapes_of(config):
    return state_shapes(config, build_models(config))


@pytest.fixture
def traces(monkeypatch):
    """The settings of each trace, from here on."""
    build._traced_shapes.cache_clear()
    made, trace = [], build._fresh_state
    monkeypatch.setattr(
        build,
        "_fresh_state",
        lambda settings, *rest: made.append(settings) or trace(settings, *rest),
    )
    yield made
    build._traced_shapes.cache_clear()


def test_equal_runs_are_traced_once(traces):
    first, config = tiny.get_config(), tiny.get_config()
    config.run.steps = 9
    config.seed = 1
    config.teachers.small.weights = "elsewhere"
    one, other = shapes_of(first), shapes_of(config)
    assert len(traces) == 1
    assert one is not other  # each caller may change its own
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == jax.tree.leaves(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.tokenizer.name": "muon"},
        {"tokenizer_ema_decay": 0.99},
        {"objective.lecam_weight": 0.1},
        {"backbone.hidden_size": 24},
        {"teachers.small.hidden_size": 16},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_state_is_traced_anew(changes, traces):
    plain, config = tiny.get_config(), tiny.get_config()
    config.update_from_flattened_dict(changes)
    models = build_models(config)
    before, actual = shapes_of(plain), state_shapes(config, models)
    assert len(traces) == 2
    expected = jax.eval_shape(lambda key: fresh_state(config, models, key), jax.random.key(0))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert jax.tree.leaves(actual) == jax.tree.leaves(expected)
    assert jax.tree.leaves(actual) != jax.tree.leaves(before)
