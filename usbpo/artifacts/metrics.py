"""The JSON files of a cycle: metrics and a trigger's state, sealed, and readable by every tool."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usbpo.artifacts import sealing
from usbpo.artifacts.files import parse_json
from usbpo.artifacts.header import SCHEMA_VERSION, Header
from usbpo.errors import UsbpoError

BESIDE = "made_with"
"""The key of the digest of the artifact that the same job wrote, whose header says the rest"""

IDENTITY = ("task", "method", "seed", "cycle", "schema_version", BESIDE)
"""The keys of every file; the others are its content"""


def write(path: Path, header: Header, content: Mapping[str, Any], made_with: str) -> None:
    """Write a cycle's metrics as indented JSON with a fixed order of keys; NaN and infinities are refused.

    Args:
        header: of the artifact of the same job.
        made_with: its digest.
    """
    whole = {**content, **header.identity, "schema_version": SCHEMA_VERSION, BESIDE: made_with}
    text = json.dumps(whole, indent=2, sort_keys=True, allow_nan=False)
    sealed = text.replace("{\n", f'{{\n  "{sealing.KEY}": "{sealing.UNSEALED}",\n', 1) + "\n"
    sealing.write(path, lambda file: file.write(sealed.encode()))


def read(path: Path) -> tuple[dict[str, Any], str]:
    """A cycle's metrics, with the identity that they begin with, and the file's digest.

    Raises:
        UsbpoError: the file is missing, damaged, or of another schema.
    """
    with sealing.opened(path, ".json") as (file, digest):
        content = parse_json(path, file.read())
    texts = ("task", "method", sealing.KEY)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in texts):
        raise UsbpoError(f"{path}: these are no metrics of a stage; {sealing.CURE}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise UsbpoError(
            f"{path}: written with schema {content.get('schema_version')}, but this version reads schema "
            f"{SCHEMA_VERSION}; delete it and run again to make it anew, or read it with the version that wrote it."
        )
    del content[sealing.KEY]
    return content, digest
