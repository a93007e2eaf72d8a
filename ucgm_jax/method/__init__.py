"""The mathematics of UCGM: pure functions of arrays and of a network callable.

A network is any callable ``network(x, t, labels) -> F`` with x and F of shape (B, H, W, C), t of shape (B,) and
labels of shape (B,) int. Nothing in this package knows parameters, configs, meshes or files, and everything
random is an argument.
"""
