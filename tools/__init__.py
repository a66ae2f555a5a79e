"""Developers' tools, outside of the wheel: run them from a checkout, as python -m tools.NAME."""
