"""Prompts and their sources, texts to train on, and the Lightning data modules that share them among the ranks."""
