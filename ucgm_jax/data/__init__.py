"""Data: random-access sources, and the pipeline that shuffles, splits and prefetches them."""
