"""Reports made from files; nothing here runs a model."""
