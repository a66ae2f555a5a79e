"""How the embedded models were made, outside of the wheel."""
