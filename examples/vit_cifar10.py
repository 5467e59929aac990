"""How wide should this ViT be, and on how many images? CIFAR-10, or images of your own, with smoothed labels.

CIFAR10=path/to/cifar-10-binary.tar.gz python examples/vit_cifar10.py      (or an .npz, or a folder of class folders)
"""

import os

import torch
from torch import Tensor

import flops_fit
from flops_fit.examples import ImageData, ViT

PATH = os.environ.get("CIFAR10", "cifar-10-binary.tar.gz")


def images() -> ImageData:
    return ImageData(PATH, batch_size=16, num_classes=10, augment=True)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)


if __name__ == "__main__":
    result = flops_fit.find_optimal(
        model_cls=ViT,
        model_size_param="d_model",
        model_kwargs={"n_layer": 2, "image_size": 32, "patch_size": 4, "head_dim": 8},
        dataset=images,  # a function, so that other processes can read the images too
        loss_fn=smoothed_cross_entropy,
        compute_budgets=[3e10, 1e11, 3e11],
        num_sizes_per_budget=5,
        size_multiple=4,
        lr=0.5,  # u-muP: one rate for all widths
        output_dir="outputs/vit_cifar10_smoothed",
    )
    print(result.chinchilla_table().to_string(index=False))
    print(result.predict(3e12))
