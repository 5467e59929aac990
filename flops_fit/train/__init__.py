"""Training: one run in one directory, to exactly its budget."""
