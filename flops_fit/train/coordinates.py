"""A few steps at several widths, watched: how far each moves what the parts of the network put out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flops_fit.batch import batch_samples, split_batch
from flops_fit.errors import PlanError
from flops_fit.randomness import PrivateRandomness
from flops_fit.train.data import SweepData
from flops_fit.train.module import ScalingModule
from flops_fit.transfer import OUTPUT, Coordinate, Shapes, slope_of, width_ratio

# More than this a step shows no more and takes its time [tokens or samples].
_MOST_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The parts of a network whose outputs are compared over widths.

    Attributes:
        names: Of each module, by its name in the network.
        inputs: Those whose inputs do not grow with the width.
        last: The layer that makes the output.
    """

    names: Mapping[str, str]
    inputs: frozenset[str]
    last: str | None


def measure(
    make_module: Callable[[], ScalingModule],
    data: SweepData,
    sizes: Sequence[dict[str, Any]],
    shapes: Sequence[Shapes],
    *,
    lr: float,
    batch_size: int,
    steps: int,
    seeds: Sequence[int],
    device: torch.device,
) -> list[Coordinate]:
    """Take a few steps of every size from every seed.

    The steps are those of a run but for its warm-up and precision: the module's own parameter groups, optimizer and
    loss, the rate at its peak, on the first batches of the data.

    Args:
        make_module: Builds a fresh module, its network not yet built.
        data: Of the sweep.
        sizes: The network's arguments at each size, of ascending width.
        shapes: Of its parameters at each size.
        lr: Peak learning rate, handed to the module's parameter groups.
        batch_size: Samples a step.
        steps: How many.
        seeds: Of initial weights and data order.
        device: Where to.

    Returns:
        The parts, in the order in which they are called.

    Raises:
        PlanError: A size cannot be trained, or its steps move nothing.
    """
    logs: dict[str, list[list[float]]] = {}
    watched: Watched | None = None
    for seed in seeds:
        batches = _batches(data, batch_size, steps, seed)
        for i, size in enumerate(sizes):
            with PrivateRandomness(seed):
                module = make_module()
                module.lr = lr
                module.begin(size, steps)
                if watched is None:
                    watched = _watched(module, batches[0], device)
                changes = _changes(module, batches, watched, device)
            for name, change in changes.items():
                logs.setdefault(name, [[] for _ in sizes])[i].append(change)
    assert watched is not None
    widths = [width_ratio(shapes[0], shape) for shape in shapes]
    inputs = watched.inputs | _inputs(shapes[0], shapes[-1])
    by_name: dict[str, list[str]] = {}
    for path, name in watched.names.items():
        by_name.setdefault(name, []).append(path)
    found = []
    for name, values in logs.items():
        if not all(math.isfinite(v) and v > 0 for column in values for v in column):
            continue  # a part that nothing trains and nothing before it moves
        rms = tuple(math.exp(sum(map(math.log, column)) / len(column)) for column in values)
        found.append(
            Coordinate(
                name=name,
                rms=rms,
                slope=slope_of(widths, rms),
                is_input=all(path in inputs for path in by_name[name]),
                is_judged=name != watched.last,
            )
        )
    if not found:
        raise PlanError("a few steps change no output of the network", hint="is anything of it trained?")
    return found


def parameter_shapes(module: ScalingModule, size: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters by name."""
    return {name: tuple(p.shape) for name, p in _hollow(module, size).named_parameters()}


def sets_own_rates(module: ScalingModule, small: dict[str, Any], large: dict[str, Any]) -> bool:
    """Whether the parameter groups, the network's or the module's, have rates that depend on the size.

    Args:
        module: Not used for anything else; its rate and network are overwritten.
        small: Arguments of a small network.
        large: Of a large one.
    """
    module.lr = 1.0
    rates = []
    for size in (small, large):
        module.net = _hollow(module, size)
        rates.append(sorted({float(group.get("lr", 1.0)) for group in module.param_groups()}))
    return rates[0] != rates[1]


def _hollow(module: ScalingModule, size: dict[str, Any]) -> nn.Module:
    """A network without its weights, where it can be built so."""
    with PrivateRandomness(0):
        try:
            with torch.device("meta"):
                return module.build_network(**size)
        except Exception:  # a constructor that reads values
            return module.build_network(**size)


def _batches(data: SweepData, batch_size: int, steps: int, seed: int) -> list[Any]:
    """The first batches of a run, cut down to what shows enough."""
    loader = data.batches(batch_size, steps + 1, seed, start=0, rank=0, world=1, accumulate=1)
    found: list[Any] = []
    with PrivateRandomness(seed):
        for batch in loader:
            found.append(_cut(batch))
            if len(found) == steps + 1:
                return found
    return found * math.ceil((steps + 1) / len(found))


def _cut(batch: Any) -> Any:
    samples = batch_samples(batch)
    largest = max((leaf.numel() // samples for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)), default=1)
    wanted = max(8, _MOST_TOKENS // max(1, largest))
    pieces = 1
    while samples % (2 * pieces) == 0 and samples // (2 * pieces) >= wanted:
        pieces *= 2
    return split_batch(batch, pieces)[0]


def _changes(module: ScalingModule, batches: list[Any], watched: Watched, device: torch.device) -> dict[str, float]:
    """RMS of the change of every part's output on a batch that the steps have not seen."""
    module.to(device)
    batches = [move_data_to_device(batch, device) for batch in batches]
    before = _outputs(module, batches[0], watched)
    optimizer = module.build_optimizer(module.param_groups())
    for batch in batches[1:]:
        module.net.train()
        optimizer.zero_grad()
        module.compute_loss(module.net, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = _outputs(module, batches[0], watched)
    squares: dict[str, list[Tensor]] = {}
    for path, outputs in before.items():
        moved = [(b - a).square().mean() for a, b in zip(outputs, after[path], strict=True)]
        squares.setdefault(watched.names[path], []).extend(moved)
    return {name: math.sqrt(float(torch.stack(terms).mean())) for name, terms in squares.items()}


def _outputs(module: ScalingModule, batch: Any, watched: Watched) -> dict[str, list[Tensor]]:
    """What every part puts out, once for each call of it; without dropout, which would be taken for a change."""
    seen: dict[str, list[Tensor]] = {}
    with _hooked(module.net, list(watched.names), seen):
        module.net.eval()
        module.compute_loss(module.net, batch)
    return seen


@contextmanager
def _hooked(net: nn.Module, paths: Sequence[str], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            tensor = _main_tensor(output)
            if tensor is not None:
                seen.setdefault(path, []).append(tensor.detach().float().clone())

        return hook

    handles = [net.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _main_tensor(output: Any) -> Tensor | None:
    """The output itself, or of several the logits or the first that is a table of numbers."""
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        logits: Tensor = output["logits"]
        return logits
    for leaf in tree_leaves(dict(output) if isinstance(output, Mapping) else output):
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.is_floating_point():
            return leaf
    return None


def _watched(module: ScalingModule, batch: Any, device: torch.device) -> Watched:
    """What to look at: blocks, layers with weights of their own, and the network's output."""
    net = module.net
    names = {path: _name(net, path) for path, part in net.named_modules() if path and _is_of_interest(net, path, part)}
    order: dict[str, list[Tensor]] = {}
    module.to(device)
    with _hooked(net, ["", *names], order):
        net.eval()
        module.compute_loss(net, move_data_to_device(batch, device))
    called = [path for path in order if path]
    leaves = [path for path in called if not list(net.get_submodule(path).children())]
    last = leaves[-1] if leaves else None
    inputs = {path for path in leaves if isinstance(net.get_submodule(path), nn.Embedding)}
    kept = {path: path if path == last else names[path] for path in called} | {"": OUTPUT}
    return Watched(names=kept, inputs=frozenset(inputs), last=last)


def _is_of_interest(net: nn.Module, path: str, part: nn.Module) -> bool:
    if not list(part.children()):
        return any(True for _ in part.parameters(recurse=False))
    parent = net.get_submodule(path.rpartition(".")[0])
    return isinstance(parent, (nn.ModuleList, nn.Sequential))


def _name(net: nn.Module, path: str) -> str:
    """The path, with a star for the number of each block among its like."""
    shown, parent = [], net
    for part in path.split("."):
        is_list = isinstance(parent, (nn.ModuleList, nn.Sequential))
        is_one_of_many = is_list and len({type(child) for child in parent.children()}) == 1
        shown.append("*" if is_one_of_many else part)
        parent = parent.get_submodule(part)
    return ".".join(shown)


def _inputs(small: Shapes, large: Shapes) -> frozenset[str]:
    """Modules with weights whose rows grow in number and not in length."""
    matrices = {name for name, shape in small.items() if len(shape) > 1}
    fixed = {n for n in matrices if small[n][0] != large[n][0] and small[n][1:] == large[n][1:]}
    owners = {name.rpartition(".")[0] for name in fixed}
    return frozenset(owners - {name.rpartition(".")[0] for name in matrices - fixed})
