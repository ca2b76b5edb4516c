"""Floor F0, which imports no other floor: trees, acceptance, drafts without a model, counts, costs, certificates."""
