"""Everything that touches a model: loading, forwards, the cache, paths. The only package that imports transformers."""
