"""Settings as plain data: `name.setting=value` from a command line, checked against a schema, all faults at once.

Knows schemas and strings, not what any setting does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from openwork.errors import several, unknown

S = TypeVar("S", bound=BaseModel)


def checked(schema: type[S], values: Mapping[str, Any], what: str) -> S:
    """The schema filled with values. UsageError naming `what` and every fault: unknown names, values out of range."""
    try:
        return schema(**values)
    except ValidationError as e:
        faults = []
        for fault in e.errors():
            name = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                faults.append(str(unknown("setting", name, schema.model_fields)))
            else:
                message = fault["msg"].removeprefix("Value error, ")
                faults.append(f"{name} {fault['input']}: {message}" if name else message)
        raise several(what, faults) from e


def filled(schema: type[BaseModel], values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values as the schema reads them ("1e-3" as a float); those that were not given stay out."""
    read = checked(schema, values, what)
    return {name: getattr(read, name) for name in values}


def assigned(items: Sequence[str], groups: Collection[str] = ()) -> dict[str, Any]:
    """`["a.b=1", "a.c=true"]` as `{"a": {"b": 1, "c": True}}`; values are read as YAML.

    groups  the names that may stand before the dot; without any, settings have no dot
    """
    values: dict[str, Any] = {}
    faults = []
    form = "GROUP.NAME=VALUE" if groups else "NAME=VALUE"
    for item in items:
        key, equals, text = item.partition("=")
        group, dot, name = key.partition(".") if groups else ("", ".", key)
        if not (equals and dot and name):
            faults.append(f'"{item}" is not of the form {form}.')
        elif groups and group not in groups:
            faults.append(str(unknown("group of settings", group, groups)))
        else:
            (values.setdefault(group, {}) if groups else values)[name] = _value(item, text, faults)
    if faults:
        raise several("--set", faults)
    return values


def _value(item: str, text: str, faults: list[str]) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        faults.append(f'"{item}": what follows "=" is not a value that YAML can read.')
        return None


__all__ = ["assigned", "checked", "filled"]
