"""From a request to a video. `request` and `size` need no torch; `generate` does."""
