"""What a run leaves in its folder: each file, written whole or not at all."""
