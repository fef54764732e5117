"""Read a pickled tree of arrays without running any of it.

A pickle is a program; Python's reader lets it import and call what it likes. HIL-SERL publishes its encoder as one, so
this file interprets the few instructions that a dict of arrays consists of, and refuses every other. It imports and
calls nothing that the file names: the five names that may occur stand for themselves below.
"""

import math
import pickletools
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.errors import WeightsError


class _Name(Enum):
    """What a file may refer to."""

    NDARRAY = "numpy ndarray"
    DTYPE = "numpy dtype"
    RECONSTRUCT = "numpy.core.multiarray _reconstruct"
    RECONSTRUCT_2 = "numpy._core.multiarray _reconstruct"  # as NumPy 2 writes it
    JAX_ARRAY = "jax._src.array _reconstruct_array"


_MARK = object()
_FLOATS = {"f2", "f4", "f8"}
_IGNORED = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Dtype:
    code: str
    byte_order: str = "<"


@dataclass
class _Array:
    values: NDArray[Any] | None = None


def read_arrays(data: bytes) -> dict[str, Any]:
    """Return the pickled dict of arrays and such dicts (protocols 3 and 4). Raises WeightsError for anything else."""
    try:
        tree = _Machine().run(data)
        if not isinstance(tree, dict):
            raise WeightsError(f"the pickle holds a {type(tree).__name__}, not a dict of arrays")
        return _plain(tree)
    except (ValueError, IndexError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise WeightsError(f"{len(data)} bytes are not a whole pickled dict of arrays: {error}") from error


class _Machine:
    """The stack machine that a pickle is written for, with data instructions only."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: list[Any] = []

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self._stack.append(argument)
            elif name not in _IGNORED:
                self._step(name, argument)
        raise ValueError("it ends early")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            if argument not in (None, len(self._memo)):
                raise ValueError(f"memo entry {argument} is out of order")
            self._memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, callee = stack.pop(), stack.pop()
            stack.append(_reduce(callee, _expect(arguments, tuple)))
        elif name == "BUILD":
            state = _expect(stack.pop(), tuple)
            _build(stack[-1], state)
        else:
            raise WeightsError(f"the pickle uses {name}, which a dict of arrays does not need; refused")

    def _pop_to_mark(self) -> list[Any]:
        start = len(self._stack) - 1 - next(n for n, item in enumerate(reversed(self._stack)) if item is _MARK)
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items


def _name(text: str) -> _Name:
    try:
        return _Name(text)
    except ValueError:
        raise WeightsError(
            f"the pickle refers to {text.replace(' ', '.')}, which is no array; refused, nothing was run. Get the file "
            "from its publisher and compare its SHA-256 (docs/encoder.md)."
        ) from None


def _reduce(callee: Any, arguments: tuple[Any, ...]) -> Any:
    if callee is _Name.DTYPE:
        return _Dtype(code=_expect(arguments[0], str))
    if callee in (_Name.RECONSTRUCT, _Name.RECONSTRUCT_2) and arguments[0] is _Name.NDARRAY:
        return _Array()
    if callee is _Name.JAX_ARRAY:  # a NumPy array inside: how to make it, its arguments, its state, JAX's own state
        array = _reduce(arguments[0], _expect(arguments[1], tuple))
        _build(array, _expect(arguments[2], tuple))
        return array
    raise WeightsError(f"the pickle calls {callee!r}; refused, nothing was run")


def _build(target: Any, state: tuple[Any, ...]) -> None:
    """Give a dtype its byte order, or an array its values, as NumPy writes them."""
    if isinstance(target, _Dtype):
        target.byte_order = _expect(state[1], str)
        return
    _expect(target, _Array)
    _, shape, dtype, is_fortran, data = state
    if not isinstance(dtype, _Dtype) or dtype.code not in _FLOATS or dtype.byte_order not in "<>=":
        raise WeightsError(f"the pickle holds an array of {dtype}, expected floats")
    element = np.dtype(dtype.byte_order + dtype.code)
    if len(_expect(data, bytes)) != math.prod(_expect(shape, tuple)) * element.itemsize:
        raise ValueError(f"{len(data)} bytes for an array of shape {shape}")
    target.values = np.frombuffer(data, element).reshape(shape, order="F" if is_fortran else "C")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
    return value


def _plain(tree: dict[Any, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            plain[_expect(key, str)] = _plain(value)
        elif isinstance(value, _Array) and value.values is not None:
            plain[_expect(key, str)] = value.values
        else:
            raise WeightsError(f"{key!r} in the pickle is neither an array nor a dict")
    return plain
