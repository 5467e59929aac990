"""What a fork server imports: everything that a run loads or fills a cache with before its first step.

Importing this module does the work once, so that no run does it again (0.2 s of its start). Nothing of the user's is
touched, and nothing is computed: a process that forks others must have neither threads nor a device.
"""

from __future__ import annotations

from flops_fit.train.main import train_directory
from flops_fit.train.recipe import ConfigRecipe

__all__ = ["train_directory"]

# The parser of configs looks every class up once, and remembers it.
_ANY = ConfigRecipe(
    {
        "model": {
            "class_path": "flops_fit.train.module.ScalingModule",
            "init_args": {"net": "torch.nn.Identity", "loss_fn": "torch.nn.functional.mse_loss"},
        },
        "data": {"class_path": "lightning.pytorch.LightningDataModule"},
        "trainer": {},
    }
)
_ANY.module()
_ANY.trainer()
