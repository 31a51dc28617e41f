"""Arrays as an address and a shape: what an engine of many arrays hands from part to part.

Numba's own arrays carry five more values and a stride for each axis along, and look at every index
whether it counts from the end: for the batched flows most of the instructions to compile.
"""

from __future__ import annotations

import operator
from typing import Any

from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate, infer_getattr, signature
from numba.extending import lower_builtin, lower_getattr, register_model, type_callable

__all__ = ["rows"]


def rows(array: Any) -> Any:
    """Return the array, C-contiguous, as compiled code reads and writes it fastest.

    Indices count from 0 and are not checked; fewer than there are axes give the rows within.
    `shape`, `size`, `flat` and `len` are NumPy's. The caller keeps the array alive.
    """
    return array


class _Rows(types.Type):
    def __init__(self, dtype: Any, ndim: int) -> None:
        self.dtype, self.ndim = dtype, ndim
        super().__init__(name=f"Rows({dtype}, {ndim})")


@register_model(_Rows)
class _Model(models.StructModel):
    def __init__(self, manager: Any, kind: _Rows) -> None:
        shape = types.UniTuple(types.intp, kind.ndim)
        super().__init__(manager, kind, [("data", types.CPointer(kind.dtype)), ("shape", shape)])


def _made(context: Any, builder: Any, kind: _Rows, data: Any, shape: list[Any]) -> Any:
    """Return rows that begin at `data`."""
    made = cgutils.create_struct_proxy(kind)(context, builder)
    made.data, made.shape = data, cgutils.pack_array(builder, shape)
    return made._getvalue()


def _parts(context: Any, builder: Any, kind: _Rows, value: Any) -> tuple[Any, list[Any]]:
    """Return where rows begin, and their shape."""
    read = cgutils.create_struct_proxy(kind)(context, builder, value)
    return read.data, cgutils.unpack_tuple(builder, read.shape, kind.ndim)


def _product(builder: Any, sizes: list[Any]) -> Any:
    """Return the product of sizes, None of none."""
    product = None
    for size in sizes:
        product = size if product is None else builder.mul(product, size, flags=["nsw"])
    return product


@type_callable(rows)
def _type_of_rows(_context: Any) -> Any:
    def typer(array: Any) -> Any:
        if isinstance(array, types.Array) and array.layout == "C":
            return _Rows(array.dtype, array.ndim)
        return None

    return typer


@lower_builtin(rows, types.Array)
def _rows_of_array(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, args[0])
    shape = cgutils.unpack_tuple(builder, array.shape, sig.args[0].ndim)
    return _made(context, builder, sig.return_type, array.data, shape)


def _kinds(index: Any) -> tuple[Any, ...]:
    """Return the types of all indices."""
    return tuple(index) if isinstance(index, types.UniTuple | types.Tuple) else (index,)


def _item(array: Any, index: Any) -> Any:
    """Return the type of what an index gives, None where it is none."""
    if not isinstance(array, _Rows):
        return None
    kinds = _kinds(index)
    if len(kinds) > array.ndim or not all(isinstance(kind, types.Integer) for kind in kinds):
        return None
    return _Rows(array.dtype, array.ndim - len(kinds)) if len(kinds) < array.ndim else array.dtype


@type_callable(operator.getitem)
def _type_of_item(_context: Any) -> Any:
    return _item


@type_callable(operator.setitem)
def _type_of_change(_context: Any) -> Any:
    def typer(array: Any, index: Any, value: Any) -> Any:
        item = _item(array, index)
        if item is None or isinstance(item, _Rows):
            return None
        return signature(types.none, array, index, item)

    return typer


def _at(
    context: Any, builder: Any, kind: _Rows, value: Any, index_kind: Any, index: Any
) -> tuple[Any, list[Any]]:
    """Return the address of what an index gives, and its shape."""
    data, shape = _parts(context, builder, kind, value)
    kinds = _kinds(index_kind)
    single = not isinstance(index_kind, types.BaseTuple)
    indices = [index] if single else cgutils.unpack_tuple(builder, index, len(kinds))
    place = None
    for axis, i in enumerate(indices):
        step = _product(builder, shape[axis + 1 :])
        i = context.cast(builder, i, kinds[axis], types.intp)
        i = i if step is None else builder.mul(i, step, flags=["nsw"])
        place = i if place is None else builder.add(place, i, flags=["nsw"])
    within = shape[len(kinds) :]
    return builder.gep(data, [place], inbounds=True), within


@lower_builtin(operator.getitem, _Rows, types.Any)
def _get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    at, within = _at(context, builder, sig.args[0], args[0], sig.args[1], args[1])
    return _made(context, builder, sig.return_type, at, within) if within else builder.load(at)


@lower_builtin(operator.setitem, _Rows, types.Any, types.Any)
def _set(context: Any, builder: Any, sig: Any, args: Any) -> None:
    at, _ = _at(context, builder, sig.args[0], args[0], sig.args[1], args[1])
    builder.store(args[2], at)


@type_callable(len)
def _type_of_len(_context: Any) -> Any:
    return lambda array: types.intp if isinstance(array, _Rows) else None


@lower_builtin(len, _Rows)
def _len(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _parts(context, builder, sig.args[0], args[0])[1][0]


@infer_getattr
class _Attributes(AttributeTemplate):
    key = _Rows

    def resolve_shape(self, array: _Rows) -> Any:
        return types.UniTuple(types.intp, array.ndim)

    def resolve_size(self, _array: _Rows) -> Any:
        return types.intp

    def resolve_flat(self, array: _Rows) -> Any:
        return _Rows(array.dtype, 1)


@lower_getattr(_Rows, "shape")
def _shape(context: Any, builder: Any, kind: _Rows, value: Any) -> Any:
    return cgutils.create_struct_proxy(kind)(context, builder, value).shape


@lower_getattr(_Rows, "size")
def _size(context: Any, builder: Any, kind: _Rows, value: Any) -> Any:
    return _product(builder, _parts(context, builder, kind, value)[1])


@lower_getattr(_Rows, "flat")
def _flat(context: Any, builder: Any, kind: _Rows, value: Any) -> Any:
    data, shape = _parts(context, builder, kind, value)
    return _made(context, builder, _Rows(kind.dtype, 1), data, [_product(builder, shape)])
