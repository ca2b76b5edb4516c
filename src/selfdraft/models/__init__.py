"""Floor F1, the only one that imports transformers: loading, the target's forward, its cache, sparse paths."""
