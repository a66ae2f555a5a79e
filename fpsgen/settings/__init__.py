"""Settings: what there is (groups/, table), how text becomes a value (parsers), which layer wins (gather). No torch."""
