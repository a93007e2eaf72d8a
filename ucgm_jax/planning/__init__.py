"""Planning: the real programs compiled for accelerators that are not there, and what their compiler says."""
