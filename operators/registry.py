"""The list of operators, from which `invsolve list operators` and the conformance tests are made."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from invsolve.operators.base import Operator

T = TypeVar("T", bound=type[Operator])


@dataclass(frozen=True)
class Entry:
    """One registered operator.

    Args:
        name: lower-case name.
        cls: the class.
        examples: makes small instances to test, with odd, unequal sizes and asymmetric contents, in float64.
    """

    name: str
    cls: type[Operator]
    examples: Callable[[], list[Operator]]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.cls.__doc__ or "").strip().splitlines()[0]


_entries: dict[str, Entry] = {}


def register(name: str, examples: Callable[[], list[Operator]]) -> Callable[[T], T]:
    """Class decorator: list the operator under `name`; `examples` feeds the conformance tests."""

    def decorate(cls: T) -> T:
        if name in _entries:
            raise ValueError(f"an operator named {name!r} is registered already ({_entries[name].cls.__name__}).")
        _entries[name] = Entry(name, cls, examples)
        return cls

    return decorate


def entries() -> list[Entry]:
    """All registered operators by name."""
    return [_entries[name] for name in sorted(_entries)]


def get(name: str) -> Entry:
    """The entry called `name`; KeyError with the nearest names otherwise."""
    if name not in _entries:
        close = difflib.get_close_matches(name, _entries, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(_entries))}."
        raise KeyError(f"unknown operator {name!r}; {hint}")
    return _entries[name]
