"""Wrap anything that can be called, so that a scope is open exactly while its own code runs.

For generators that means: not while their caller runs between two items. A context variable set in
a generator would otherwise be seen by its caller, and stay set when the caller stops half-way.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, Protocol

#: Makes the scope of one call from its arguments.
Open = Callable[[tuple[Any, ...], dict[str, Any]], "Scope"]


class Scope(Protocol):
    """What is around one call. `enter` and `leave` come in pairs, once for each time it runs."""

    def start(self) -> None:
        """The call begins."""
        ...

    def enter(self) -> None:
        """Its code runs from here."""
        ...

    def leave(self) -> None:
        """To here."""
        ...

    def end(self, error: BaseException | None) -> None:
        """The call is over."""
        ...


def wrap(target: Any, opens: Open) -> Any:
    """`target` in scopes: a function of any kind, a static or class method, a class.

    A class is wrapped at `__call__`, for instances that are called as functions are.

    Raises:
        TypeError: it cannot be called, or is a class whose instances cannot.
    """
    if isinstance(target, staticmethod | classmethod):
        return type(target)(wrap(target.__func__, opens))
    if isinstance(target, type):
        call = inspect.getattr_static(target, "__call__", None)
        if not inspect.isfunction(call):
            raise TypeError(f"{target.__name__} has no __call__ to be a step or a tool")
        setattr(target, "__call__", wrap(call, opens))  # noqa: B010  # a method of any class
        return target
    if not callable(target):
        raise TypeError(f"not a function: {target!r}")
    if inspect.isasyncgenfunction(target):
        return _async_generator(target, opens)
    if inspect.iscoroutinefunction(target):
        return _coroutine(target, opens)
    if inspect.isgeneratorfunction(target):
        return _generator(target, opens)
    return _function(target, opens)


def _function(target: Callable[..., Any], opens: Open) -> Callable[..., Any]:
    @functools.wraps(target)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = opens(args, kwargs)
        failed: BaseException | None = None
        is_over = True
        scope.start()
        scope.enter()
        try:
            returned = target(*args, **kwargs)
            if isinstance(returned, CoroutineType):
                is_over = False
                return _awaited(returned, scope)
            if hasattr(returned, "add_done_callback") and _is_future(returned):
                is_over = False
                returned.add_done_callback(functools.partial(_end_with, scope))
            return returned
        except BaseException as error:
            failed = error
            raise
        finally:
            scope.leave()
            if is_over:
                scope.end(failed)

    return wrapper


async def _awaited(pending: Coroutine[Any, Any, Any], scope: Scope) -> Any:
    """What a plain function returned for its caller to await: the call ends with it."""
    failed: BaseException | None = None
    scope.enter()
    try:
        return await pending
    except BaseException as error:
        failed = error
        raise
    finally:
        scope.leave()
        scope.end(failed)


def _is_future(value: object) -> bool:
    """Whether it is what an executor or an event loop gives; neither is imported to find out."""
    loops, executors = sys.modules.get("asyncio"), sys.modules.get("concurrent.futures")
    return (loops is not None and bool(loops.isfuture(value))) or (
        executors is not None and isinstance(value, executors.Future)
    )


def _end_with(scope: Scope, future: Any) -> None:
    """A call ends with the future that it returned."""
    # Who asks for its error takes the loop's warning of one that nobody asked for.
    scope.end(RuntimeError("cancelled") if future.cancelled() else None)


def _coroutine(target: Callable[..., Any], opens: Open) -> Callable[..., Any]:
    @functools.wraps(target)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = opens(args, kwargs)
        failed: BaseException | None = None
        scope.start()
        scope.enter()
        try:
            return await target(*args, **kwargs)
        except BaseException as error:
            failed = error
            raise
        finally:
            scope.leave()
            scope.end(failed)

    return wrapper


def _generator(target: Callable[..., Any], opens: Open) -> Callable[..., Any]:
    @functools.wraps(target)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        scope = opens(args, kwargs)
        inner = target(*args, **kwargs)
        failed: BaseException | None = None
        scope.start()
        try:
            resume, value = inner.send, None
            while True:
                scope.enter()
                try:
                    item = resume(value)
                except StopIteration as stop:
                    return stop.value
                finally:
                    scope.leave()
                try:
                    value = yield item
                    resume = inner.send
                except GeneratorExit:
                    scope.enter()
                    try:
                        inner.close()
                    finally:
                        scope.leave()
                    raise
                except BaseException as error:
                    resume, value = inner.throw, error
        except GeneratorExit:
            raise
        except BaseException as error:
            failed = error
            raise
        finally:
            scope.end(failed)

    return wrapper


def _begun(inner: AsyncGenerator[Any, Any], value: Any) -> Awaitable[Any]:
    """Its first step, of which the event loop is not told: what is around it closes it.

    At its end the loop closes all that it knows of at once, and this one would be closed twice.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return inner.asend(value)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _async_generator(target: Callable[..., Any], opens: Open) -> Callable[..., Any]:
    @functools.wraps(target)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        scope = opens(args, kwargs)
        inner = target(*args, **kwargs)
        failed: BaseException | None = None
        scope.start()
        try:
            resume, value = functools.partial(_begun, inner), None
            while True:
                scope.enter()
                try:
                    item = await resume(value)
                except StopAsyncIteration:
                    return
                finally:
                    scope.leave()
                try:
                    value = yield item
                    resume = inner.asend
                except GeneratorExit:
                    scope.enter()
                    try:
                        await inner.aclose()
                    finally:
                        scope.leave()
                    raise
                except BaseException as error:
                    resume, value = inner.athrow, error
        except GeneratorExit:
            raise
        except BaseException as error:
            failed = error
            raise
        finally:
            scope.end(failed)

    return wrapper
