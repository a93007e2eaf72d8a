"""Which folders are packages. Everything else about this project stands in pyproject.toml."""

from setuptools import find_packages, setup

# The folder configs/ stays beside the package in a checkout and is ucgm_jax/configs once installed, where --config=NAME
# finds it from any folder.
CONFIGS = ["ucgm_jax.configs", *(f"ucgm_jax.configs.{name}" for name in find_packages("configs"))]

setup(
    packages=find_packages(include=["ucgm_jax", "ucgm_jax.*"]) + CONFIGS,
    package_dir={"ucgm_jax.configs": "configs"},
)
