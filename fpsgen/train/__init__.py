"""Train a model to expect FPSAttention: pairs of a dense teacher, a sparse student, a folder with its schedule."""
