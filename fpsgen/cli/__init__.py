"""The command line. Nothing here imports torch at module level, so that help and usage errors come at once."""
