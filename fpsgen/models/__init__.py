"""Wan models: which there are (registry), whether a folder holds one (folder), loading and patching from outside."""
