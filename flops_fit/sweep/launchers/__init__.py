"""Ways to start runs. Whatever starts it, a run is one directory, and its state on disk is the truth."""

from flops_fit.sweep.launchers.job import Job, Launcher

__all__ = ["Job", "Launcher"]
