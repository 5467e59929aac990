"""Another process finds the user's objects by name, and only those that are still the same."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toy
from torch import nn

from flops_fit.errors import RunError
from flops_fit.examples import GPT
from flops_fit.train import reference as module
from flops_fit.train.reference import describe, reference, resolve, source_hash


@pytest.mark.parametrize("thing", [toy.Net, toy.squared_error, toy.regression, GPT, nn.Linear, F.cross_entropy])
def test_what_an_import_finds_is_named_and_found_again(thing: Any) -> None:
    name = reference(thing)
    assert name is not None
    assert resolve(name) is thing


class Outer:
    class Inner:
        pass

    @classmethod
    def make(cls) -> None:
        pass


def test_nested_classes_are_found() -> None:
    assert resolve(reference(Outer.Inner) or "") is Outer.Inner


def decorated() -> None:
    pass


original, decorated = decorated, partial(decorated)
named_lambda = lambda: 0  # noqa: E731


def local_things() -> list[Any]:
    class Local(nn.Module):
        pass

    def function() -> None:
        pass

    return [Local, function, lambda: 0]


@pytest.mark.parametrize(
    "thing",
    [
        *local_things(),
        named_lambda,
        original,
        decorated,
        toy.Net(4),
        nn.MSELoss(),
        Outer.make,
        torch.dist,
        3,
        None,
    ],
)
def test_what_an_import_would_not_find_has_no_name(thing: Any) -> None:
    assert reference(thing) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_xyz:Net", "no_such_module_xyz:Net cannot be imported: No module named 'no_such_module_xyz'"),
        ("toy:Nett", "toy:Nett cannot be imported: .*no attribute 'Nett'"),
    ],
)
def test_what_is_not_there_any_more_is_told(name: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        resolve(name)


# Scripts -------------------------------------------------------------------------------------------------------------

SCRIPT = """
from flops_fit.train.reference import is_loading_script, reference

class Net:
    loaded_by_child = is_loading_script()

def data():
    return [1, 2, 3]

if __name__ == "__main__":
    print(reference(Net))
    print(reference(data))
"""


@pytest.fixture
def no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """No script is loaded, before and after."""
    monkeypatch.setitem(sys.modules, module._SCRIPT_MODULE, ModuleType("none"))
    monkeypatch.delitem(sys.modules, module._SCRIPT_MODULE)


@pytest.fixture
def script(tmp_path: Path, no_script: None) -> Path:
    file = tmp_path / "my script.py"
    file.write_text(SCRIPT)
    return file


def names_of(script: Path) -> list[str]:
    """What the script itself prints."""
    digest = module._digest(script)
    return [f"{script}#{digest}:{name}" for name in ("Net", "data")]


def test_a_script_names_its_objects_by_its_path_and_hash(script: Path) -> None:
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == names_of(script)


def test_another_process_loads_the_script_once_without_running_it(script: Path) -> None:
    net, data = (resolve(name) for name in names_of(script))
    assert net.loaded_by_child
    assert data() == [1, 2, 3]
    assert resolve(names_of(script)[0]) is net
    assert not module.is_loading_script()
    # What was loaded there is named as in the script itself, and described alike in both.
    assert reference(net) == names_of(script)[0]
    assert describe(net) == "script:Net"


def test_a_changed_script_is_refused_even_when_it_was_loaded_before(script: Path) -> None:
    name = names_of(script)[0]
    resolve(name)
    script.write_text(SCRIPT + "\n# changed\n")
    with pytest.raises(RunError, match="has changed since the sweep was started") as caught:
        resolve(name)
    assert "run the script again; it resumes" in str(caught.value)


def test_a_script_that_is_gone_is_told(script: Path) -> None:
    name = names_of(script)[0]
    script.unlink()
    with pytest.raises(RunError, match=r"my script\.py, the script that started the sweep, is gone"):
        resolve(name)


def test_two_scripts_are_not_confused(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("class Net:\n    name = 'other'\n")
    resolve(names_of(script)[0])
    assert resolve(names_of(other)[0]).name == "other"


def test_a_script_that_fails_leaves_no_half_loaded_module(tmp_path: Path, no_script: None) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("class Net: pass\nraise ImportError('no such library')\n")
    for _ in range(2):
        with pytest.raises(RunError, match="cannot be imported: no such library"):
            resolve(names_of(broken)[0])
    assert not module.is_loading_script()


# What decides a result -----------------------------------------------------------------------------------------------


def named(source: str, folder: Path) -> Any:
    """A class of a module on disk."""
    file = folder / "some_module.py"
    file.write_text(source)
    namespace = ModuleType("some_module")
    namespace.__file__ = str(file)
    sys.modules["some_module"] = namespace
    module.inspect.linecache.checkcache()
    exec(compile(source, str(file), "exec"), namespace.__dict__)
    return namespace.Net


def test_a_changed_source_is_another_source_and_comments_elsewhere_are_not(tmp_path: Path) -> None:
    try:
        first = source_hash(named("class Net:\n    depth = 1\n", tmp_path))
        moved = source_hash(named("# a comment\n\nclass Net:\n    depth = 1\n", tmp_path))
        changed = source_hash(named("class Net:\n    depth = 22\n", tmp_path))
    finally:
        del sys.modules["some_module"]
    assert first == moved != changed


def test_a_base_class_belongs_to_the_source() -> None:
    def make(depth: int) -> type:
        base = Outer if depth else Outer.Inner
        return type("Net", (base,), {"__module__": __name__})

    assert source_hash(make(0)) != source_hash(make(1))
    assert source_hash(make(1)) == source_hash(make(1))


def test_values_that_an_instance_or_a_partial_holds_belong_to_it() -> None:
    smooth = [nn.CrossEntropyLoss(label_smoothing=s) for s in (0.1, 0.1, 0.2)]
    assert source_hash(smooth[0]) == source_hash(smooth[1]) != source_hash(smooth[2])
    partials = [partial(F.cross_entropy, label_smoothing=s) for s in (0.1, 0.1, 0.2)]
    assert source_hash(partials[0]) == source_hash(partials[1]) != source_hash(partials[2])
    assert source_hash(nn.MSELoss()) != source_hash(nn.L1Loss())
    assert source_hash(nn.MSELoss) != source_hash(nn.L1Loss)


def test_descriptions_are_the_same_in_every_process() -> None:
    assert describe(toy.Net) == "toy:Net"
    assert describe(nn.MSELoss()) == describe(nn.MSELoss()) == "torch.nn.modules.loss:MSELoss"
    assert "0x" not in describe(toy.Net(4)) + describe(partial(toy.Net)) + describe(lambda: 0)
