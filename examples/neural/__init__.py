"""Several banks with the same fields: one shared network."""
