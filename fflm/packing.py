"""Named tuples of arrays and numbers, packed into one argument of compiled functions.

Numba takes a named tuple apart at each call, and compiles code for each of its arrays, for the caller and for the function. What
is packed here takes no compilation, and as little time to pass as a number.
"""

import struct
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, lower_getattr, models, register_model, unbox

from fflm.compiling import type_of


class Packed:
    """A named tuple of arrays, Python's numbers, None and such tuples; in compiled functions it is the attribute ``content``.

    Compiled functions read the arrays, but do not keep them.

    Parameters
    ----------
    content
        The named tuple.
    """

    def __init__(self, content: tuple[Any, ...]) -> None:
        self._content = content  # keeps the arrays in memory
        self._numba_type_ = PackedType(type_of(content))
        self._memory = np.frombuffer(b"".join(_parts(content)), np.int64)
        self._address = self._memory.ctypes.data

    def __reduce__(self) -> tuple[Callable[..., "Packed"], tuple[Any, ...]]:
        """Pickle the content, because addresses belong to this process."""
        return type(self), (self._content,)


def _parts(value: Any) -> Iterator[bytes]:
    """Yield a number as 8 bytes, or what describes an array: the address of its elements, its shape, and its strides."""
    if isinstance(value, tuple):
        for each in value:
            yield from _parts(each)
    elif value is None:
        return
    elif isinstance(value, np.ndarray):
        yield struct.pack(f"={1 + 2 * value.ndim}q", value.ctypes.data, *value.shape, *value.strides)
    else:
        yield struct.pack("=d" if isinstance(value, float) else "=q", value)


class PackedType(types.Type):  # type: ignore[misc]
    """Numba's type of `Packed`, given that of its content."""

    def __init__(self, content: Any) -> None:
        self.content = content
        super().__init__(f"Packed({content})")


register_model(PackedType)(models.OpaqueModel)


@unbox(PackedType)
def _unbox(kind, packed, context):  # type: ignore[no-untyped-def]
    """Emit the code that reads the address of the numbers."""
    number = context.pyapi.object_getattr_string(packed, "_address")
    address = context.pyapi.long_as_voidptr(number)
    context.pyapi.decref(number)
    return NativeValue(address)


@infer_getattr
class _Attributes(AttributeTemplate):  # type: ignore[misc]
    key = PackedType

    def resolve_content(self, packed: PackedType) -> Any:
        """Return Numba's type of the attribute ``content``."""
        return packed.content


@lower_getattr(PackedType, "content")
def _content(context, builder, kind, address):  # type: ignore[no-untyped-def]
    """Emit the code that reads the content. LLVM leaves out what is not used."""
    numbers = builder.bitcast(address, ir.IntType(64).as_pointer())
    return _value(context, builder, kind.content, (builder.gep(numbers, [ir.IntType(64)(i)]) for i in count()))


def _value(context: Any, builder: Any, kind: Any, places: Iterator[Any]) -> Any:
    """Emit the code that reads a value from the next places. References to arrays are not counted: they belong to `Packed`."""
    from numba.np.arrayobj import populate_array  # here, because it takes long to import, and is needed to compile only

    if isinstance(kind, types.BaseTuple):
        return context.make_tuple(builder, kind, [_value(context, builder, each, places) for each in kind])
    if kind == types.none:
        return context.get_dummy_value()
    if not isinstance(kind, types.Array):
        model = context.data_model_manager[kind]
        return model.load_from_data_pointer(builder, builder.bitcast(next(places), model.get_data_type().as_pointer()))
    array = context.make_array(kind)(context, builder)
    data, *numbers = (builder.load(place) for place in islice(places, 1 + 2 * kind.ndim))
    populate_array(
        array,
        data=builder.inttoptr(data, array.data.type),
        shape=cgutils.pack_array(builder, numbers[: kind.ndim]),
        strides=cgutils.pack_array(builder, numbers[kind.ndim :]),
        itemsize=context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype))),
        meminfo=None,
    )
    return array._getvalue()
