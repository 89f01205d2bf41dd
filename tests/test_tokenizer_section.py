"""`config.tokenizer` has the keys of one family: from a preset, the command line, an old run."""

import json

import pytest
import tiny

from repae_jax.config import base, tokenizer
from repae_jax.config.modules import build_tokenizer
from repae_jax.config.overrides import apply_overrides, read_config
from repae_jax.config.schema import check_values
from repae_jax.config.sections import section_of
from repae_jax.config.storage import absent_keys, from_stored, to_json
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
from repae_jax.models.tokenizers.families import TOKENIZERS
from repae_jax.models.tokenizers.qwen_image_vae import QWEN_VAE_CONFIGS, AutoencoderKLQwenImage
from repae_jax.runs import workdir

KL_ONLY = ("attention_levels", "middle_attention", "quant_conv", "groups")
QWEN = AutoencoderKLQwenImage(**QWEN_VAE_CONFIGS["qwenimage"])


def overridden(*overrides, config=None):
    return apply_overrides(config or base(), [f"--config.{override}" for override in overrides])


@pytest.mark.parametrize("family", TOKENIZERS)
def test_options_are_fields_whose_defaults_lie_in_their_ranges(family):
    row, config = TOKENIZERS[family], base()
    for key in row.options:
        default = getattr(row.build, row.fields.get(key, key), None)
        config.tokenizer = tokenizer(family=family, **{key: default})
        check_values(config)
    for name, preset in row.presets.items():
        keys = {ours: preset[row.fields.get(ours, ours)] for ours in row.options
                if row.fields.get(ours, ours) in preset}  # fmt: skip
        assert len(keys) == len(preset)
        config.tokenizer = tokenizer(family=family, **keys)
        check_values(config)
        by_hand = build_tokenizer(config)
        config.tokenizer = tokenizer(name)
        assert config.tokenizer.family == family
        assert build_tokenizer(config) == by_hand == row.build(**preset)


def test_a_family_does_not_show_the_keys_of_another():
    kl, qwen = tokenizer("f8d4"), tokenizer("qwenimage")
    assert "temporal_downsample" not in kl
    assert not set(KL_ONLY) & set(qwen)
    assert set(kl) & set(qwen) >= {"arch", "family", "weights", "statistics", "channels"}
    with pytest.raises(UserError, match="family 'qwenimage' has no option 'groups': it has"):
        tokenizer("qwenimage", groups=2)
    with pytest.raises(UserError, match="family 'x': use kl or qwenimage or dcae"):
        tokenizer(family="x")


def test_a_preset_of_another_family_brings_its_keys(tmp_path):
    config = overridden("tokenizer.arch=qwenimage", "tokenizer.weights=x")
    assert config.tokenizer == tokenizer("qwenimage", weights="x")
    validate(config)
    assert build_tokenizer(config) == QWEN
    # as a configuration file may say it
    (tmp_path / "mine.py").write_text(
        "from repae_jax.config import base\n\n\ndef get_config():\n    config = base()\n"
        "    config.tokenizer.update(arch='qwenimage', weights='x')\n    return config\n"
    )
    assert read_config(str(tmp_path / "mine.py"), []).tokenizer == config.tokenizer


def test_a_family_is_chosen_with_its_sizes():
    sizes = ("channels=8", "multipliers=(1,2)", "latent_channels=3", "temporal_downsample=(True,)")
    config = overridden(
        "tokenizer.family=qwenimage", "tokenizer.arch=", *(f"tokenizer.{size}" for size in sizes)
    )
    expected = AutoencoderKLQwenImage(8, 3, (1, 2), temporal_downsample=(True,))
    assert build_tokenizer(config) == expected
    back = overridden("tokenizer.family=kl", "tokenizer.groups=2", config=tiny_on_qwen())
    assert back.tokenizer.channels == 4
    assert isinstance(build_tokenizer(back), AutoencoderKL)


def tiny_on_qwen():
    config = tiny.get_config()
    config.tokenizer = tokenizer(
        family="qwenimage", channels=4, multipliers=(1, 1, 1), latent_channels=2
    )
    return config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.family=qwenimage"], "arch is 'f8d4', a preset of the family 'kl'"),
        (
            ["tokenizer.family=x", "tokenizer.arch="],
            "config.tokenizer.family is 'x': it must be 'kl', 'qwen",
        ),
        (
            ["tokenizer.arch=x"],
            "config.tokenizer.arch is 'x': use one of f8d4, .*, qwenimage, .*, or",
        ),
        (["tokenizer.temporal_downsample=(True,)"], "unknown key config.tokenizer.temporal_down"),
        (["tokenizer.arch=f8d4", "tokenizer.groups=0"], "config.tokenizer.groups is 0: give at"),
    ],
)
def test_what_no_family_has_is_said(overrides, message):
    with pytest.raises(UserError, match=message):
        validate(overridden(*overrides))


def test_a_key_that_the_new_family_lacks_is_said():
    config = tiny.get_config()  # with two groups
    with pytest.raises(UserError, match="groups is set to 2, a key of the family 'kl'"):
        overridden("tokenizer.arch=qwenimage", config=config)


def test_a_section_that_mixes_families_is_said():
    config = base()
    config.tokenizer.arch = "qwenimage"
    expected = r"make the section by config.tokenizer = tokenizer\('qwenimage'\)"
    with pytest.raises(UserError, match=expected):
        validate(config)
    config.tokenizer.update(arch="", family="qwenimage")
    with pytest.raises(UserError, match="'attention_levels' is a key of another family"):
        validate(config)


# config.json of the first version: the keys of both families, whatever the arch
FLAT = {
    **dict.fromkeys(("channels", "multipliers", "latent_channels", "num_res_blocks")),
    **dict.fromkeys((*KL_ONLY, "temporal_downsample")),
    "arch": "", "family": "kl", "weights": "", "statistics": "",
}  # fmt: skip
SIZES = {"channels": 4, "multipliers": [1, 2], "latent_channels": 3}
OLD = {
    "a preset": ({"arch": "f16d32"}, AutoencoderKL(**VAE_CONFIGS["f16d32"])),
    "sizes": ({**SIZES, "groups": 2}, AutoencoderKL(4, (1, 2), 3, groups=2)),
    "the other family's preset": ({"arch": "qwenimage"}, QWEN),
    "a key that was not read": (
        {**SIZES, "family": "qwenimage", "groups": 2, "temporal_downsample": [True]},
        AutoencoderKLQwenImage(4, 3, (1, 2), temporal_downsample=(True,)),
    ),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", OLD)
def test_old_runs_have_the_keys_of_their_family(case, version, tmp_path):
    keys, module = OLD[case]
    stored = json.loads(to_json(base()))
    del stored["tokenizer"]
    if version == 1:
        del stored["version"], stored["backbone"], stored["condition"]
        stored["vae"] = {**FLAT, **keys}
    else:
        stored["tokenizer"] = {**FLAT, **keys}
    config = from_stored(stored, source="x")
    validate(config)
    assert build_tokenizer(config) == module
    assert set(config.tokenizer) == set(section_of("tokenizer", config.tokenizer.family))
    added = {f"config.tokenizer.{key}" for key in ("patchify", "decoder_channels")}
    assert {key for key in absent_keys(stored) if "tokenizer" in key} <= added
    # today's configuration resumes the same run
    (tmp_path / "config.json").write_text(json.dumps(stored))
    today = base()
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
    own = section_of("tokenizer", config.tokenizer.family)
    today.tokenizer = tokenizer(**{key: value for key, value in given.items() if key in own})
    assert workdir.check(tmp_path, today) == []
    assert json.loads(to_json(config)) == json.loads(to_json(today))
