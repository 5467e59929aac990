"""The example ViT: sees the whole image, knows where what is, and one learning rate is right at every width."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit import coordinate_check
from flops_fit.examples import ImageData, ViT
from flops_fit.examples.glyphs import Glyphs
from flops_fit.report import coordinate_table


def images(batch: int = 4, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_a_model_of_any_shape_of_images_gives_a_logit_for_each_class() -> None:
    assert ViT(16)(images()).shape == (4, 10)
    assert ViT(12, image_size=16, patch_size=8, channels=1, num_classes=7)(images(3, 1, 16)).shape == (3, 7)


def test_an_untrained_model_knows_nothing() -> None:
    torch.manual_seed(0)
    loss = F.cross_entropy(ViT(64)(images(64)), torch.arange(64) % 10)
    assert loss.item() == pytest.approx(math.log(10), rel=0.02)


def test_patches_are_cut_as_they_lie() -> None:
    model = ViT(8, image_size=8, patch_size=4, channels=2)
    x = torch.arange(2 * 2 * 8 * 8).view(2, 2, 8, 8).float()
    patches = model._patches(x)
    assert patches.shape == (2, 4, 2 * 4 * 4)
    for i, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        assert torch.equal(patches[1, i], x[1, :, row : row + 4, column : column + 4].flatten())


def test_every_pixel_and_its_place_matter() -> None:
    torch.manual_seed(0)
    model, x = ViT(32, image_size=8, channels=1).eval(), images(1, 1, 8)
    reference = model(x)
    for row in range(8):
        for column in range(8):
            changed = x.clone()
            changed[0, 0, row, column] += 1
            assert (model(changed) - reference).abs().max() > 1e-6, (row, column)
    swapped = torch.cat((x[..., 4:], x[..., :4]), dim=-1)  # the same patches elsewhere
    assert (model(swapped) - reference).abs().max() > 1e-4


def test_images_of_another_shape_and_patches_that_do_not_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="patches of 5 pixels do not tile images of 32"):
        ViT(16, patch_size=5)
    with pytest.raises(ValueError, match=r"shape \(4, 1, 16, 16\); this model takes .* \(batch, 3, 32, 32\)"):
        ViT(16)(images(4, 1, 16))


@pytest.mark.parametrize(("d_model", "head_dim"), [(8, 8), (16, 16), (48, 16), (40, 20), (96, 16), (7, 7)])
def test_heads_are_near_the_wished_dimension(d_model: int, head_dim: int) -> None:
    model = ViT(d_model)
    assert model.branches[0].head_dim == head_dim
    assert model(images()).isfinite().all()


def test_parameters_that_do_flops_are_counted() -> None:
    model = ViT(32, n_layer=3, num_classes=5)
    assert model.num_params() == 3 * 12 * 32**2 + 48 * 32 + 5 * 32
    assert model.num_params() == sum(p.numel() for p in model.parameters()) - 64 * 32


@pytest.mark.parametrize("d_model", [8, 48])  # at 48 the patches have as many pixels as the model is wide
def test_rates_are_those_of_the_unit_scaled_maximal_update(d_model: int) -> None:
    L, eta = 3, 0.5
    model = ViT(d_model, n_layer=L)
    groups = model.param_groups(eta)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped)))
    assert set(map(id, grouped)) == set(map(id, model.parameters()))
    torch.optim.AdamW(groups)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(model.patch.weight)] == pytest.approx(eta / 48)
    assert rates[id(model.position.weight)] == pytest.approx(eta / math.sqrt(d_model))
    assert rates[id(model.head.weight)] == eta
    for attention, mlp in zip(model.branches[::2], model.branches[1::2], strict=True):
        for layer in (attention.qkv, attention.out, mlp.up):
            assert rates[id(layer.weight)] == pytest.approx(eta / d_model / math.sqrt(L))
        assert rates[id(mlp.down.weight)] == pytest.approx(eta / (4 * d_model) / math.sqrt(L))


def labelled(count: int) -> tuple[Tensor, Tensor]:
    samples, labels = zip(*Glyphs(count).__getitems__(list(range(count))), strict=True)
    return torch.stack(samples), torch.tensor(labels)


class PlainViT(ViT):
    """The same with one rate for all of it."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": lr}]


def glyph_model(d_model: int) -> ViT:
    return ViT(d_model, image_size=16, channels=1, num_classes=36, head_dim=8)


def test_branches_start_with_about_unit_variance_at_every_width() -> None:
    def scales(d_model: int) -> list[float]:
        torch.manual_seed(0)
        model, found = glyph_model(d_model), []
        for branch in model.branches:
            branch.register_forward_hook(lambda m, args, output: found.append(output.square().mean().sqrt().item()))
        model(labelled(64)[0])
        return found

    assert scales(32) == pytest.approx(scales(256), rel=0.3)
    assert scales(256) == pytest.approx([1.0] * 4, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.5, None])
def test_one_rate_moves_every_width_alike_and_a_plain_one_does_not(lr: float | None, corpora: Path) -> None:
    data = ImageData(str(corpora / "cifar10_subset.npz"), batch_size=16)
    model = ViT if lr else PlainViT
    check = coordinate_check(
        model, "d_model", sizes=[32, 64, 128, 256], dataset=data, loss_fn=F.cross_entropy, lr=lr or 0.008
    )
    slopes = {c.name: c.slope for c in check.coordinates}
    assert check.passed == bool(lr), coordinate_table(check)
    if lr:
        assert slopes.pop("position") == pytest.approx(-0.5, abs=0.1)
        assert slopes.pop("head") == pytest.approx(1, abs=0.15), "the logits are divided by the width afterwards"
        assert {f"branches.{i}" for i in range(4)} < set(slopes)
        assert all(abs(slope) < 0.15 for slope in slopes.values()), slopes
    else:
        assert all(slopes[f"branches.{i}"] > 0.5 for i in range(4)), slopes
