"""What a group of benchmarks consists of: contestants and workloads.

A group is a module ``_NAME.py`` with a ``GROUP``. Both the driver and the contestants' processes
import it, the latter on Pythons that may lack everything but the standard library, so a module
imports at its top what the standard library has and nothing else.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from _clock import Clock

GROUPS = ("loops", "bridges", "gevent", "growth")

#: Does so many operations and measures them.
Measure = Callable[[int, Clock], None]


class Missing(Exception):
    """A contestant has no such thing as the workload asks for."""


@dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes:
        python: whose Python runs it: "main", "peer" (asyncio-gevent 0.2.5) or "others".
        needs: a module that this Python has to have.
        environment: variables of its process.

    One whose name ends with " patched" runs after ``gevent.monkey.patch_all()``.
    """

    python: str = "main"
    needs: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        title: its row in a table.
        function: what the group makes of it is the group's business.
        size: operations that it does at once; it always does a multiple of them.
        heavy: it takes long, or measures memory: it always gets fresh processes, and few rounds.
    """

    title: str
    function: Callable[..., Any]
    size: int = 1
    heavy: bool = False


@dataclass(frozen=True)
class Group:
    """Contestants and the workloads that all of them do.

    Attributes:
        title: a heading.
        reading: how to read the figures.
        base: the contestant to which the others are compared.
        longer: a figure says how many times longer than the base a contestant takes. Otherwise
            it says how many times faster it is.
        opened: given the names of a contestant and a workload, a context in which these can be
            measured.
    """

    title: str
    reading: str
    base: str
    contestants: Mapping[str, Contestant]
    workloads: Mapping[str, Workload]
    opened: Callable[[str, str], AbstractContextManager[Measure]]
    longer: bool = False


def register(workloads: dict[str, Workload]) -> Callable[..., Any]:
    """Return a decorator that adds a function: its name, and its docstring as the title."""

    def workload(*, size: int = 1, heavy: bool = False) -> Callable[..., Any]:
        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            title = inspect.getdoc(function)
            assert title is not None
            workloads[function.__name__] = Workload(title, function, size, heavy)
            return function

        return add

    return workload


def load_group(name: str) -> Group:
    """Return the group of that name."""
    group: Group = importlib.import_module(f"_{name}").GROUP
    return group
