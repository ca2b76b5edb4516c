"""The same for W&B, TensorBoard and MLflow, while a run goes on and at its end."""
