"""How Snakemake reads the files of `--configfile` and `configfile:` here: as `usbpo plan` does, and never as code.

Snakemake hands a YAML file with the key `__use_yte__` to a template engine, which evaluates the Python in it, in a dry
run too; and a broken file ends in its own words, or in none. It reads the files of `--configfile` before the Snakefile,
but after it has made its loggers. One of them is ours, and puts the reader in its place.
"""

import sys
from pathlib import Path
from typing import Any

from usbpo.errors import UsbpoError
from usbpo.experiment.yaml_files import read_yaml
from usbpo.workspace import snakemake_inside


def read_as_data() -> None:
    """Let Snakemake read the configuration files of this process by `read_yaml`."""
    snakemake_inside.read_configuration_by(_read)


def _read(path: str | Path) -> dict[str, Any]:
    """What a file holds; one sentence and the end of the process where it cannot be used."""
    try:
        content = read_yaml(Path(path))
        if "__use_yte__" in content:
            raise UsbpoError(
                f"{path}: the key '__use_yte__' would have Python in this file evaluated; write the values themselves."
            )
    except UsbpoError as error:
        sys.exit(f"usbpo: {error}")
    return content
