"""What fpsgen.apply puts on a transformer and takes off again."""
