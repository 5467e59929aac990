"""Planning: which sizes at which budgets, and what they cost."""
