"""The one thing that pyproject.toml cannot say: configs/ is a subpackage of the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["repae_jax*"]), "repae_jax.configs"],
    package_dir={"repae_jax.configs": "configs"},
)
