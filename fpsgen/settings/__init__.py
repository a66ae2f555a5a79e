"""Settings: what there is (table), how a text becomes a value (parsers), which layer wins (gather). No torch."""
