"""UCGM in JAX: train, tune and sample continuous generative models of one to sixty steps.

Unified Continuous Generative Models, Sun, Jiang and Lin, arXiv 2505.07447.
"""
