"""Reading YAML mappings safely: whatever a file holds, it is a mapping of texts or one sentence says why not."""

import re
from pathlib import Path
from typing import Any

import yaml

from usbpo.errors import UsbpoError
from usbpo.experiment.sentences import shortened

LARGEST = 250_000
"""Bytes of a file; the largest experiment that anybody lists by hand has some hundred."""

DEEPEST = 30
"""Collections within each other; the configuration's keys need four."""

MOST = 20_000
"""Values of a file, with all that aliases repeat."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What no text of a configuration holds: control characters but tabs and ends of lines, and halves of characters."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but 1e-4 is a number, as in YAML 1.2.

    A key is a text and stands only once, nesting and repetition by aliases have bounds, and a tag that does not fit its
    value is an error of YAML's.
    """

    depth = 0

    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: Any) -> Any:
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(problem="a \\U stands for no character", problem_mark=start_mark) from error

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _fault(f"it is nested more than {DEEPEST} deep", self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if found := _CONTROL.search(node.value):
            raise _fault(f"the text holds the control character U+{ord(found[0]):04X}", node)
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _fault("a key is a collection, but must be a text", name)
            if name.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _fault(f"the key {shortened(repr(name.value))} is no text and needs quotes", name)
            if name.value in seen:
                raise _fault(f"the key {shortened(repr(name.value))} stands twice", name)
            seen.add(name.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of Python's own constructors, whichever the tag has called
            kind = node.tag.rpartition(":")[2]
            raise _fault(f"{shortened(repr(node.value))} cannot be read as {shortened(kind)}", node) from error


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping safely.

    Raises:
        UsbpoError: the file is missing, cannot be read, is not YAML, too large, or is no mapping of texts.
    """
    content = _content(path, _text(path))
    if not isinstance(content, dict):
        raise UsbpoError(f"{shortened(path)}: a mapping of keys to values is expected; see config/README.md.")
    return content


def _text(path: Path) -> str:
    """The text of a file, no more than `LARGEST` bytes of which are read."""
    name = shortened(path)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: of a NUL in the name
        why = getattr(error, "strerror", None) or error
        raise UsbpoError(f"{name}: cannot be read ({why}); name an existing file.") from error
    if len(content) > LARGEST:
        raise UsbpoError(f"{name}: it has more than the {LARGEST:,} bytes of a configuration; name another file.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsbpoError(f"{name}: this is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise UsbpoError(
            f"{name}, line {line}: it holds the control character U+{ord(found[0]):04X}; delete it, or save "
            "the file as UTF-8 text."
        )
    return text


def _content(path: Path, text: str) -> Any:
    """What a YAML text says."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UsbpoError(
            f"{shortened(path)}{line}: this is not valid YAML: {shortened(problem)}; mend the line."
        ) from error


def _count(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """How many values a node has, with all that aliases repeat; collections that hold themselves have no end."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node not in known:
        known[node] = None
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[node] = 1 + sum(_count(part, known) for part in parts)
    count = known[node]
    if count is None:
        raise _fault("an alias stands within what it stands for", node)
    if count > MOST:
        raise _fault(f"with what its aliases repeat it has more than {MOST:,} values", node)
    return count


def _fault(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """An error of YAML's at a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
