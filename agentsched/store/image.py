"""A scheduler as bytes: exactly as it is, with all that its policies learnt.

Theory. A scheduler is a pure machine of plain records, so Python's own pickle keeps it whole, new
policies included, with no second description of every class that would have to be kept in step. The
two well-known dangers are met so. Foreign bytes: nothing but classes of the pure rooms (model,
policy, kernel, graphs, policies) and the standard library's containers can be named; those rooms
do no I/O, which a contract checks, so making any of their objects does no harm. Other code: an
image counts only for the very code that made it (`code_mark`); after an upgrade the journal is
replayed instead, which every version can read.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import sys
import zlib
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any, Final

from agentsched.kernel import Scheduler
from agentsched.store.database import StoreError

_ROOMS: Final = (
    "agentsched.model",
    "agentsched.policy",
    "agentsched.kernel",
    "agentsched_graphs",
    "agentsched_policies",
)
_CONTAINERS: Final = frozenset(
    {
        ("collections", "OrderedDict"),
        ("collections", "deque"),
        ("collections", "Counter"),
        ("collections", "defaultdict"),
        ("builtins", "set"),
        ("builtins", "frozenset"),
        ("builtins", "bytearray"),
        ("builtins", "dict"),
        ("builtins", "list"),
        ("builtins", "tuple"),
    }
)
#: Functions that records refer to; each makes policies by name and nothing else.
_FUNCTIONS: Final = frozenset({("agentsched.compose", "remake_policies")})
_LEVEL: Final = 1  # of compression: a third of the bytes at a tenth of the time of level 6


@lru_cache(maxsize=1)
def code_mark() -> str:
    """A hash of the code whose objects an image holds, and of the Python that runs it."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for room in (*_ROOMS, "agentsched.compose"):
        origin = importlib.import_module(room).__file__
        assert origin is not None
        path = Path(origin)
        files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        for file in files:
            digest.update(f"{room} {file.name}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def take_image(scheduler: Scheduler) -> bytes:
    """The scheduler as bytes.

    Raises:
        StoreError: it holds what an image cannot, a stranger's policy say.
    """
    try:
        data = zlib.compress(pickle.dumps(scheduler, protocol=5), _LEVEL)
    except Exception as error:
        raise StoreError(f"the scheduler cannot be kept as an image: {error}") from error
    read_image(data)
    return data


def read_image(data: bytes) -> Scheduler:
    """The scheduler that `take_image` took, for the same code.

    Raises:
        StoreError: not such an image, or one that names what none may hold.
    """
    try:
        found = _Reader(io.BytesIO(zlib.decompress(data))).load()
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"not an image of a scheduler: {error}") from error
    if not isinstance(found, Scheduler):
        raise StoreError("not an image of a scheduler")
    return found


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key == ("builtins", "getattr"):
            return _method
        if key in _CONTAINERS or key in _FUNCTIONS:
            return super().find_class(module, name)
        if any(module == room or module.startswith(room + ".") for room in _ROOMS):
            found = super().find_class(module, name)
            # A class that the room defines: not a module or a helper that it happens to import.
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise StoreError(f"an image may not hold {module}.{name}")


def _method(owner: object, name: str) -> object:
    """What `getattr` is for in a pickle: a method of one of our objects, bound to it."""
    is_ours = any(type(owner).__module__.startswith(room) for room in _ROOMS)
    found = getattr(owner, name) if is_ours and not name.startswith("_") else None
    if not isinstance(found, MethodType):
        raise StoreError(f"an image may not hold {name} of {type(owner).__name__}")
    return found
