"""Weights that only drafts use: their files, the modules that they belong to, and paths that run with them."""
