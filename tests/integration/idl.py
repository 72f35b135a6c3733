"""Judges what an instance answers by the interface's own description, parsed by the package `varlink`."""

from __future__ import annotations

from typing import Any

from varlink.scanner import (
    Interface,
    _Alias,
    _Array,
    _CustomType,
    _Dict,
    _Error,
    _Maybe,
    _Method,
    _Object,
    _Struct,
)

SIMPLE: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
WORDS = {bool: "bool", int: "int", float: "float", str: "string"}


def methods(interface: Interface) -> dict[str, _Method]:
    """Return the methods by name."""
    return {name: it for name, it in interface.members.items() if isinstance(it, _Method)}


def errors(interface: Interface) -> dict[str, _Error]:
    """Return the errors by name."""
    return {name: it for name, it in interface.members.items() if isinstance(it, _Error)}


def word(type_: Any) -> str:
    """Return a simple *type_* as the description has it."""
    if isinstance(type_, _Maybe):
        return f"?{word(type_.element_type)}"
    if isinstance(type_, _Array):
        return f"[]{word(type_.element_type)}"
    if isinstance(type_, _Dict):
        return f"[string]{word(type_.element_type)}"
    return "object" if isinstance(type_, _Object) else WORDS[type(type_)]


def wrong(interface: Interface, type_: Any, value: Any, where: str = "") -> list[str]:
    """Return where *value* is not what *type_* says; a field that may be null may be missing."""
    match type_:
        case _Maybe():
            return [] if value is None else wrong(interface, type_.element_type, value, where)
        case _CustomType():
            return wrong(interface, interface.members[type_.name], value, where)
        case _Alias():
            return wrong(interface, type_.type, value, where)
        case _Object():
            return [] if isinstance(value, dict) else [f"{where}: {value!r} is no object"]
        case _Array() if isinstance(value, list):
            return [
                it
                for n, item in enumerate(value)
                for it in wrong(interface, type_.element_type, item, f"{where}[{n}]")
            ]
        case _Dict() if isinstance(value, dict):
            return [
                it
                for key, item in value.items()
                for it in wrong(interface, type_.element_type, item, f"{where}.{key}")
            ]
        case _Struct() if isinstance(value, dict):
            found = [f"{where}.{name} is not described" for name in value if name not in type_.fields]
            for name, field in type_.fields.items():
                found += wrong(interface, field, value.get(name), f"{where}.{name}")
            return found
        case bool() | int() | float() | str() if type(value) in SIMPLE[type(type_)]:
            return []
    return [f"{where}: {value!r} is not of {type(type_).__name__}"]
