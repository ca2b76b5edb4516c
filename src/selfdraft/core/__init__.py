"""F0, torch only: trees, acceptance, Jacobi updates, n-grams, skip sets, counts, certificates, statistics."""
