"""Settings: what there is (groups, joined in table), how a text becomes a value (parsers), which layer wins (gather). No torch."""
