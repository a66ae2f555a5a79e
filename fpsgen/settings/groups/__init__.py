"""The settings, one file for each group of --help. A new option is one entry in one of them, and its use."""
