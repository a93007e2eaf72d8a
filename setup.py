"""Installs ucgm_jax. Lower bounds are the versions that were tried."""

import pathlib

from setuptools import find_packages, setup

REQUIREMENTS = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.0",
    "ml_collections>=1.1.0",
    "clu>=0.0.12",
    "einops>=0.8.0",
    "grain>=0.2.16",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.5",  # tensorflow-datasets needs it and does not say so
    "flatbuffers>=24.3",  # what jax.export writes its programs with
    "numpy>=2.0",
    "pillow>=11.0",
    "safetensors>=0.5",
    "scikit-learn>=1.6",
    "tensorboardX>=2.6",
]

setup(
    name="ucgm_jax",
    version="0.1.0",
    description="Unified Continuous Generative Models (UCGM) in JAX: training, few-step tuning and sampling",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ucgm_jax", "ucgm_jax.*"]),
    install_requires=REQUIREMENTS,
    extras_require={
        "torch": ["torch>=2.11"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tfds": ["tensorflow>=2.18"],  # to prepare those data sets of TFDS whose own code needs it
        "test": ["pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.14"],
    },
)
