"""Many videos from one file of prompts: read and checked as a whole (jobs), then made one after the other (run)."""
