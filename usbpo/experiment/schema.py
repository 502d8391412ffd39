"""The models of the configuration as JSON schemas, with which Snakemake validates, and as a table for people."""

import json
from typing import Annotated, Any, Literal, get_args, get_origin

from usbpo.experiment.experiment_config import Experiment
from usbpo.experiment.keys import Section
from usbpo.experiment.run_config import RunConfig

SCHEMAS: dict[str, type[Section]] = {"experiment": Experiment, "run": RunConfig}
"""The models whose JSON schema lies in workflow/schemas/NAME.schema.json."""


def json_schema(name: str) -> str:
    """The JSON schema of one of `SCHEMAS`, as text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name].model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def keys_table() -> str:
    """Every key with type, default, unit, source and meaning, as Markdown, from the models."""
    lines = [
        "# Every key of the configuration",
        "",
        "Made from the models in `usbpo/experiment/` by `usbpo schema`; do not edit.",
        "",
    ]
    head = ["| key | type | default | unit | source | meaning |", "|---|---|---|---|---|---|"]
    for name, model in SCHEMAS.items():
        lines += [f"## {(model.__doc__ or name).rstrip('.')}", "", *head, *_key_rows(model, ""), ""]
    return "\n".join(lines).rstrip() + "\n"


def _key_rows(model: type[Section], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        said: Any = field.json_schema_extra
        kind = field.annotation
        sections = [t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, Section)]
        if sections:
            rows += _key_rows(sections[0], f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.default)
        text = _type_name(kind).replace("|", "or")
        rows.append(
            f"| `{prefix}{name}` | {text} | {default} | {said['unit']} | {said['source']} | {field.description} |"
        )
    return rows


def _type_name(kind: Any) -> str:
    """A type in words: numbers, names, and what they are collected in."""
    if kind is type(None):
        return "null"
    if get_origin(kind) is Annotated:
        return _type_name(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {_type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    if get_args(kind):
        return " | ".join(_type_name(part) for part in get_args(kind))
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(kind, str(kind))
