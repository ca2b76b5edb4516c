"""F1, the only floor that knows transformers: loading, the target's forward, its cache, sparse paths."""
