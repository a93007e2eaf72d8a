"""Networks: Flax NNX modules with one interface, F(x, t, labels), and the names by which configs call them."""
