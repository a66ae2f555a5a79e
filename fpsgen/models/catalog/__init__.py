"""Which models there are, where they lie, and whether they are whole. No torch here."""
