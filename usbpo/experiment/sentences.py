"""What is wrong with a configuration, in one sentence: the key, the fault, the cure."""

import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

LONGEST = 300
"""Characters of a name or a value that a sentence repeats."""


def shortened(value: Any) -> str:
    """A name or a value as a sentence repeats it: of a very long one its beginning and its end."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


def first_fault(error: ValidationError) -> ErrorDetails:
    """The first key at fault; where several types are allowed, pydantic's complaint about the one that came closest."""
    first = error.errors()[0]
    of_key = [detail for detail in error.errors() if detail["loc"][:1] == first["loc"][:1]]
    return max(of_key, key=lambda detail: (len(detail["loc"]), detail["type"] == "finite_number"))


_TYPE_IN_PATH = re.compile(r"bool|int|float|str|constrained-\w+|(dict|list)\[.*\]")
"""How pydantic writes the branch of a union into the path of a key."""


def sentence(detail: ErrorDetails) -> str:
    """One sentence for one pydantic error: the key, what is wrong, what to do."""
    name = shortened(".".join(str(part) for part in detail["loc"] if not _TYPE_IN_PATH.fullmatch(str(part))))
    kind, context, value = detail["type"], detail.get("ctx", {}), shortened(repr(detail["input"]))
    if kind == "extra_forbidden":
        return f"unknown key {name!r}; see config/README.md for the keys, or remove it."
    if kind == "missing":
        return f"the key {name!r} is missing; add it."
    if kind == "value_error":
        place = f"{name}: " if name else ""
        return f"{place}{shortened(context['error'])}."
    if kind == "too_short":
        least = context["min_length"]
        entries = "entry" if least == 1 else "entries"
        return f"{name!r} needs at least {least} {entries}, but has {context['actual_length']}; add more."
    if kind in ("too_long", "string_too_long"):
        things = "entries" if kind == "too_long" else "characters"
        return (
            f"{name!r} may have {context['max_length']} {things} at most, but has {len(detail['input'])}; shorten it."
        )
    if kind == "literal_error":
        return f"{name!r} must be {context['expected']}, but is {value}; mend the value."
    if kind == "string_pattern_mismatch":
        return (
            f"{name!r} may hold letters, digits, dots, dashes and underscores only, the first a letter or digit, "
            f"but is {value}; choose another name."
        )
    if kind in ("model_type", "dict_type"):
        return f"{name!r} must be a mapping of keys to values, but is {value}; mend the value."
    if detail["loc"][-1:] == ("bool",):  # the first branch of a union of all scalars
        or_list = "" if any(str(part).startswith("list[") for part in detail["loc"]) else ", or a list of these"
        return f"{name!r} must be a number, a text, true or false{or_list}, but is {value}; mend the value."
    message = detail["msg"].removeprefix("Input should be ")
    return f"{name!r} must be {message}, but is {value}; mend the value."
