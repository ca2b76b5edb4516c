"""Prompts, where they come from, and the Lightning data module that deals them out to the ranks."""
