"""Videos with captions to shards of latents and text embeddings: sources, frames, filters, encoder, shards."""
