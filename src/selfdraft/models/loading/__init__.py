"""Models, tokenizers and chat templates from files; nothing that a file holds is run."""
