"""Parts of the model that draft without training: fewer layers, neurons or keys, and states predicted ahead."""
