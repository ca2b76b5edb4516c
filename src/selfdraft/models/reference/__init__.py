"""What outputs are compared with: transformers' own forward and generate, float32, and other engines."""
