"""The table of all conversions in docs/adapters.md: each of its cells is a test."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import pathlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from support import until, until_in_greenlet

import asyncio_gevent
from asyncio_gevent import (
    CancelledExit,
    async_context,
    async_iter,
    async_to_sync,
    await_,
    future_to_greenlet,
    greenlet_to_future,
    spawn,
    sync_context,
    sync_iter,
    sync_to_async,
)

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "adapters.md"
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
run = asyncio_gevent.run


def read_table() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(r"## All conversions\n\n(.*?)\n\n", text, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    return rows[2:]


# --- what is converted --------------------------------------------------------------------------


def set_variable() -> str:
    """Set the variable and return what it was."""
    before = variable.get()
    gevent.sleep(0)
    variable.set("set")
    return before


async def set_variable_async() -> str:
    before = variable.get()
    await asyncio.sleep(0)
    variable.set("set")
    return before


class Long:
    """Waits until it is ended, and takes its time to clean up."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def block(self) -> None:
        self.log.append("begun")
        try:
            gevent.event.Event().wait()
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            gevent.sleep(0)
            self.log.append("cleaned up")

    async def wait(self) -> None:
        self.log.append("begun")
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            await asyncio.sleep(0)
            self.log.append("cleaned up")


def in_task(function: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return function()

    return run(main())


# Each of them calls by the adapter what sets the variable, in a greenlet or a task in which it is
# "outside", and returns what it saw, and what the variable is afterwards.


def seen_by_call(call: Callable[[], str]) -> tuple[str, str]:
    variable.set("outside")
    return call(), variable.get()


async def seen_by_await(call: Callable[[], Any]) -> tuple[str, str]:
    variable.set("outside")
    return await call(), variable.get()


def generate() -> Iterator[str]:
    yield set_variable()


async def generate_async() -> AsyncIterator[str]:
    yield await set_variable_async()


@contextlib.contextmanager
def manage() -> Iterator[str]:
    yield set_variable()


@contextlib.asynccontextmanager
async def manage_async() -> AsyncIterator[str]:
    yield await set_variable_async()


async def item_of_async_iter() -> str:
    async for item in async_iter(generate()):
        return item
    raise AssertionError


async def value_of_async_context() -> str:
    async with async_context(manage()) as value:
        return value


def value_of_sync_context() -> str:
    with sync_context(manage_async()) as value:
        return value


def result_of_future_to_greenlet() -> Any:
    greenlet = future_to_greenlet(set_variable_async())
    greenlet.start()
    return greenlet.get()


def in_greenlet(call: Callable[[], str]) -> tuple[str, str]:
    return gevent.spawn(seen_by_call, call).get()  # type: ignore[no-any-return]


CONTEXT: dict[tuple[str, str], Callable[[], tuple[str, str]]] = {
    ("`await_(f())`", "the caller's own"): lambda: in_greenlet(
        lambda: await_(set_variable_async())
    ),
    ("`await_(f())`", "the task's own"): lambda: in_task(
        lambda: seen_by_call(lambda: await_(set_variable_async()))
    ),
    ("`async_to_sync(f)`", "as `await_`"): lambda: in_greenlet(async_to_sync(set_variable_async)),
    ("`future_to_greenlet(future)`", "a copy"): lambda: in_greenlet(result_of_future_to_greenlet),
    (
        "`greenlet_to_future(greenlet)`",
        "the greenlet's own; a copy if it is started here",
    ): lambda: run(seen_by_await(lambda: greenlet_to_future(gevent.Greenlet(set_variable)))),
    ("`spawn(f)`", "a copy"): lambda: run(seen_by_await(lambda: spawn(set_variable))),
    ("`sync_to_async(f)`", "the task's own"): lambda: run(
        seen_by_await(sync_to_async(set_variable))
    ),
    ("`async_iter(iterable)`", "the task's own"): lambda: run(seen_by_await(item_of_async_iter)),
    ("`sync_iter(iterable)`", "the caller's own"): lambda: in_greenlet(
        lambda: next(iter(sync_iter(generate_async())))
    ),
    ("`async_context(manager)`", "the task's own"): lambda: run(
        seen_by_await(value_of_async_context)
    ),
    ("`sync_context(manager)`", "the caller's own"): lambda: in_greenlet(value_of_sync_context),
}


def row_ids() -> list[str]:
    return [f"{row[2].strip('`')} ({row[1]})" for row in read_table()]


@pytest.mark.parametrize("row", read_table(), ids=row_ids())
def test_call_and_context(row: list[str]) -> None:
    """The call gives what it is to give, and treats context variables as the table says."""
    _, _, call, _, context = row
    seen, afterwards = CONTEXT[call, context]()
    assert seen == "outside"
    assert afterwards == ("outside" if "copy" in context else "set")


def test_the_greenlets_own_context() -> None:
    """The first half of that cell: one that was started elsewhere."""

    async def main() -> None:
        variable.set("outside")
        greenlet = gevent.spawn(set_variable)
        assert await greenlet_to_future(greenlet) == "unset"
        assert variable.get() == "outside"

    run(main())


# --- cancel and kill ----------------------------------------------------------------------------


def kill_waits(start: Callable[[Long], Any]) -> None:
    """To kill the greenlet cancels what it waits for, whose end it waits for."""
    long = Long()
    greenlet = start(long)
    until_in_greenlet(lambda: long.log)
    greenlet.kill()
    assert long.log == ["begun", "CancelledError", "cleaned up"]
    assert isinstance(greenlet.value, gevent.GreenletExit)


def cancel_waits(start: Callable[[Long], Any], ended_by: str) -> None:
    """To cancel the task ends the function, whose end it waits for."""
    long = Long()

    async def main() -> None:
        task = asyncio.ensure_future(start(long))
        await until(lambda: long.log)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert long.log == ["begun", ended_by, "cleaned up"]

    run(main())


def check_await_in_a_greenlet() -> None:
    kill_waits(lambda long: gevent.spawn(lambda: await_(long.wait())))
    with pytest.raises(CancelledExit):
        await_(cancel_itself())


async def cancel_itself() -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def check_await_below_a_task() -> None:
    async def body(long: Long) -> None:
        await_(long.wait())

    cancel_waits(body, "CancelledError")

    def below() -> None:
        with pytest.raises(asyncio.CancelledError) as caught:
            await_(cancel_itself())
        assert type(caught.value) is asyncio.CancelledError

    in_task(below)


def check_async_to_sync() -> None:
    kill_waits(lambda long: gevent.spawn(async_to_sync(long.wait)))
    with pytest.raises(CancelledExit):
        async_to_sync(cancel_itself)()


def check_future_to_greenlet() -> None:
    def start(long: Long) -> Any:
        greenlet = future_to_greenlet(long.wait())
        greenlet.start()
        return greenlet

    kill_waits(start)
    greenlet = future_to_greenlet(cancel_itself())
    greenlet.start()
    assert isinstance(greenlet.get(), gevent.GreenletExit)


def check_greenlet_to_future(make: Callable[[Any], Any] = gevent.spawn) -> None:
    async def body(long: Long) -> None:
        await greenlet_to_future(make(long.block))

    async def body_of_await(long: Long) -> None:
        await make(long.block)

    cancel_waits(body if make is gevent.spawn else body_of_await, "GreenletExit")

    async def main() -> None:
        greenlet = make(gevent.event.Event().wait)
        future = greenlet_to_future(greenlet)
        await asyncio.sleep(0)
        greenlet.kill()
        with pytest.raises(asyncio.CancelledError):
            await future
        assert future.cancelled()

    run(main())


def check_sync_to_async() -> None:
    cancel_waits(lambda long: sync_to_async(long.block)(), "CancelledExit")


def check_async_iter() -> None:
    async def body(long: Long) -> None:
        async for _ in async_iter(long.block() for _ in range(1)):
            pass

    cancel_waits(body, "CancelledExit")


def check_sync_iter() -> None:
    async def items(long: Long) -> AsyncIterator[None]:
        await long.wait()
        yield

    kill_waits(lambda long: gevent.spawn(lambda: list(sync_iter(items(long)))))


def check_async_context() -> None:
    async def main() -> None:
        log = []
        with pytest.raises(gevent.Timeout):
            async with async_context(gevent.Timeout(0.01)):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    log.append("cancelled")
                    raise
        assert log == ["cancelled"]

    run(main())


def check_sync_context() -> None:
    tasks = []

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield

    def body() -> None:
        with sync_context(manager()):
            gevent.event.Event().wait()

    greenlet = gevent.spawn(body)
    until_in_greenlet(lambda: tasks)
    tasks[0].cancel()  # type: ignore[union-attr]
    assert isinstance(greenlet.get(), CancelledExit)


CANCEL: dict[tuple[str, str], Callable[[], None]] = {
    (
        "`await_(f())`",
        "a kill cancels it and waits for its end; if it is cancelled the call raises "
        "`CancelledExit`",
    ): check_await_in_a_greenlet,
    ("`await_(f())`", "the task's own: it is `await`"): check_await_below_a_task,
    ("`async_to_sync(f)`", "as `await_`"): check_async_to_sync,
    (
        "`future_to_greenlet(future)`",
        "a kill cancels it and waits for its end; if it is cancelled the greenlet ends with "
        "`GreenletExit`",
    ): check_future_to_greenlet,
    (
        "`greenlet_to_future(greenlet)`",
        "to cancel it kills the greenlet and waits for its end; if that is killed the future is "
        "cancelled",
    ): check_greenlet_to_future,
    ("`spawn(f)`", "as `greenlet_to_future`"): lambda: check_greenlet_to_future(spawn),
    (
        "`sync_to_async(f)`",
        "to cancel the task raises `CancelledExit` in the function and waits for its end",
    ): check_sync_to_async,
    ("`async_iter(iterable)`", "as `sync_to_async`"): check_async_iter,
    ("`sync_iter(iterable)`", "as `await_`"): check_sync_iter,
    (
        "`async_context(manager)`",
        "what is thrown into its greenlet cancels the block, and is raised by it",
    ): check_async_context,
    (
        "`sync_context(manager)`",
        "a cancel of its task raises `CancelledExit` in the block",
    ): check_sync_context,
}


@pytest.mark.parametrize("row", read_table(), ids=row_ids())
def test_cancel(row: list[str]) -> None:
    CANCEL[row[2], row[3]]()


def test_every_check_has_a_row() -> None:
    table = read_table()
    assert {(row[2], row[4]) for row in table} == set(CONTEXT)
    assert {(row[2], row[3]) for row in table} == set(CANCEL)
    assert len(table) == len(CONTEXT) == len(CANCEL)
