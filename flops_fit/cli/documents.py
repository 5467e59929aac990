"""Configs and options as their author wrote them: every key with its place, for messages that say where.

Values are read by jsonargparse, which knows their types; here only keys, places and the form of a file matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from flops_fit.cli.words import nearest
from flops_fit.errors import PlanError

_FORM = "a config has the keys model, data, trainer and sweep; the README shows a whole one"


class ConfigError(PlanError):
    """The config or the command line cannot be used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key, or one item of a list.

    Attributes:
        parts: The keys that lead to it; an item of a list by its number.
        place: Where it stands: file and line, or the option.
        kind: What follows it.
        value: Its text, where it is a scalar.
        is_option: Whether it comes from the command line.
    """

    parts: tuple[str, ...]
    place: str
    kind: Literal["mapping", "list", "scalar"]
    value: str = ""
    is_option: bool = False

    @property
    def name(self) -> str:
        """As people write it."""
        return written(self.parts)


def written(parts: Sequence[str]) -> str:
    """A key as people write it: sweep.sizes[1]."""
    return "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in parts).lstrip(".")


def read_config(path: Path) -> list[Entry]:
    """The keys of one file, in order.

    Raises:
        ConfigError: It is no file that can be read, no YAML, or not a mapping with each key once.
    """
    text = _text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(path, text, error) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}", hint=_FORM) from None
    if root is None:
        raise ConfigError(f"{path} holds no keys", hint=_FORM)
    if not isinstance(root, yaml.MappingNode):
        what = "a list" if isinstance(root, yaml.SequenceNode) else "text without keys"
        raise ConfigError(f"{path} holds {what}", hint=_FORM)
    return list(_entries(root, (), path, set()))


def read_options(words: Sequence[str]) -> list[Entry]:
    """The keys that are set on the command line."""
    entries = []
    for i, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else ""
            name = name.rstrip("+")
            parts = tuple(name.removeprefix("--").split("."))
            entries.append(Entry(parts, name, "scalar", value if equals else following, is_option=True))
    return entries


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--config {path} is not text in UTF-8 (byte {error.start})", hint="give a YAML file"
        ) from None
    except IsADirectoryError:
        files = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        hint = "give a YAML file" + (f"; it holds {', '.join(files[:5])}" if files else "")
        raise ConfigError(f"--config {path} is a folder, not a file", hint=hint) from None
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        hint = f"did you mean {path.with_name(near)}?" if near else "the path starts at the working directory"
        raise ConfigError(f"--config {path}: there is no such file", hint=hint) from None
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from None


def _not_yaml(path: Path, text: str, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else str(path)
    hint = f"the line is: {line.strip()[:100]}" if line.strip() else None
    problem = (error.problem or str(error)).strip()
    if problem.startswith("but "):  # the two halves of one sentence
        problem = f"{error.context}, {problem}"
    if "stream end" in problem and error.context_mark is not None:
        where, problem = f"{path}, line {error.context_mark.line + 1}", "a bracket or a quote is left open"
    if "\t" in line[: len(line) - len(line.lstrip())] or "\\t" in problem:
        return ConfigError(f"{where}: a tab, and YAML is indented by spaces", hint="replace the tabs by spaces")
    return ConfigError(f"{where}: not YAML: {problem}", hint=hint)


def _entries(node: yaml.Node, parts: tuple[str, ...], path: Path, above: set[int]) -> Iterator[Entry]:
    """Depth first; an alias to a node above itself, which YAML allows, ends there."""
    _refuse_tag(node, path)
    if id(node) in above:
        raise ConfigError(f"{path}, line {_line(node)}: {'.'.join(parts)} holds itself", hint="write it out")
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in lines:
                full = ".".join((*parts, name))
                raise ConfigError(
                    f"{path}, line {_line(key)}: {full} is given twice, first in line {lines[name]}",
                    hint="keep one of them",
                )
            lines[name] = _line(key)
            if name == "<<":  # YAML's merge of another mapping
                yield from _entries(value, parts, path, above)
                continue
            yield _entry((*parts, name), path, key, value)
            yield from _entries(value, (*parts, name), path, above)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield _entry((*parts, str(i)), path, item, item)
            yield from _entries(item, (*parts, str(i)), path, above)


def _entry(parts: tuple[str, ...], path: Path, key: yaml.Node, value: yaml.Node) -> Entry:
    place = f"{path}, line {_line(key)}"
    if isinstance(value, yaml.MappingNode):
        return Entry(parts, place, "mapping")
    if isinstance(value, yaml.SequenceNode):
        return Entry(parts, place, "list")
    return Entry(parts, place, "scalar", str(value.value))


def _refuse_tag(node: yaml.Node, path: Path) -> None:
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise ConfigError(
            f"{path}, line {_line(node)}: the tag {tag} has no meaning in a config",
            hint="objects are written as class_path and init_args",
        )


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
