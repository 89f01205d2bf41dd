"""Stored configurations of earlier versions are today's, without a warning."""

import copy

import pytest
import tiny
from runs import TINY

from repae_jax.cli import main
from repae_jax.config import teacher
from repae_jax.config.storage import absent_keys, from_stored
from repae_jax.config.validate import validate
from repae_jax.config.versions import add_version, current_name
from repae_jax.errors import UserError


def stored():
    """Today's configuration with two teachers, as its file has it."""
    config = tiny.get_config()
    config.teachers.other = teacher("dinov2-b", patch_size=7, weights="x.pth")
    config.teachers.small.stem = (8, 16)
    return config, add_version(config.to_dict())


def without_families(content):
    """What came before families of encoders and projectors had names."""
    content = copy.deepcopy(content)
    content["backbone"]["projector_dim"] = content.pop("projector")["hidden"]
    for entry in content["teachers"].values():
        del entry["family"]
        entry["stem"] = list(entry["stem"]) or None
    return content


def first_version(content):
    """The names and places of version 1."""
    content = without_families(content)
    del content["version"]
    content["sit"] = content.pop("backbone") | {"label_drop": content.pop("condition")["drop"]}
    content["vae"] = content.pop("tokenizer")
    del content["sit"]["family"]
    for section, name in {
        "optimizer": "{}",
        "objective": "{}_alignment",
        "compute": "{}_remat",
    }.items():
        values = content[section]
        for old, new in {"sit": "backbone", "vae": "tokenizer"}.items():
            values[name.format(old)] = values.pop(name.format(new))
    content["train"] = [{"backbone": "sit", "tokenizer": "vae"}.get(n, n) for n in content["train"]]
    return content


@pytest.mark.parametrize("earlier", [without_families, first_version])
def test_earlier_versions_are_read(earlier):
    config, content = stored()
    content = earlier(content)
    before = copy.deepcopy(content)
    read = from_stored(content, source="x")
    assert read.to_dict() == config.to_dict()
    assert absent_keys(content) == []
    assert content == before
    validate(read)


def test_a_moved_key_is_told_where_it_is():
    assert current_name("sit.projector_dim") == "projector.hidden"
    config = tiny.get_config()
    config.backbone.projector_dim = 4
    with pytest.raises(UserError, match=r"backbone.projector_dim is now config.projector.hidden"):
        validate(config)


@pytest.mark.parametrize("key", ["sit.projector_dim", "backbone.projector_dim"])
def test_a_moved_key_is_told_on_the_command_line(key, tmp_path, capsys):
    words = ["train", "--config", TINY, f"--config.{key}=4", "--workdir", str(tmp_path / "run")]
    assert main(words) == 2
    assert f"config.{key} is now config.projector.hidden" in capsys.readouterr().err


def test_an_unknown_family_is_named():
    config, content = stored()
    content["teachers"]["small"]["family"] = "hyena"
    with pytest.raises(UserError, match=r"teachers.small.family is 'hyena': it must be 'vit'"):
        from_stored(content, source="x")
    config.teachers.small.family = "hyena"
    with pytest.raises(UserError, match=r"teachers.small.family is 'hyena': it must be 'vit'"):
        validate(config)
    with pytest.raises(UserError, match="no teacher of the family 'hyena': use vit"):
        teacher(family="hyena")
    with pytest.raises(UserError, match="has no option 'width': it has arch, depth, family"):
        teacher(width=3)
