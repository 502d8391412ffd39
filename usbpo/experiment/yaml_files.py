"""Reading YAML mappings safely, with every fault a sentence."""

import re
from pathlib import Path
from typing import Any

import yaml

from usbpo.errors import UsbpoError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but 1e-4 is a number, as in YAML 1.2, and a key stands only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping safely.

    Raises:
        UsbpoError: the file is missing, is not YAML, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsbpoError(f"{path}: cannot be read ({error.strerror}); name an existing file.") from error
    except UnicodeDecodeError as error:
        raise UsbpoError(f"{path}: this is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    loader = _Loader(text)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UsbpoError(f"{path}{line}: this is not valid YAML: {problem}; mend the line.") from error
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise UsbpoError(f"{path}: a mapping of keys to values is expected; see config/README.md.")
    return content
