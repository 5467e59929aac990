"""Sweeps: which runs are still to do, and starting them."""
