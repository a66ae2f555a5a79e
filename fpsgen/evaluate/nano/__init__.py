"""The world of the embedded nano model: what it was trained on, in pictures and words, and how a clip is read back."""
