"""Wan pipelines: loading them, and random ones of the same shape."""
