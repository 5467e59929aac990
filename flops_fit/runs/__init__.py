"""Run directories and runs tables: what training leaves on disk, and what a fit reads."""
