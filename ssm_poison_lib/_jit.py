"""How the library compiles: Numba's machine code, kept between runs where a folder can be written.

Numba keeps machine code beside the module or in the reader's cache folder (NUMBA_CACHE_DIR names
another). Where neither can be written, Numba itself refuses to import; where a kept file is
damaged, it refuses to compile. Here both cost time only: the functions are compiled anew. The
logger "ssm_poison_lib" says so at level INFO.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags

__all__ = ["compiled"]

_LOG = logging.getLogger("ssm_poison_lib")


# Numba compiles a function anew when its own file has changed, but not when that of a function it
# calls has: all files of the engines together are the stamp of each.
_ENGINES = Path(__file__).parent / "_engines"
_STAMP = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(_ENGINES.glob("*.py")))).hexdigest()


class _FixedFlags(Flags):
    """The flags of a compilation under way: Numba compares them 20,000 times for one engine."""

    __slots__ = ("_fixed", "_hash")

    def __init__(self, copy_from: Flags) -> None:
        super().__init__(copy_from)
        self._fixed = super().values()
        self._hash = super().__hash__()

    def values(self) -> dict[str, Any]:
        return self._fixed

    def __hash__(self) -> int:
        return self._hash

    def copy(self) -> Flags:
        return Flags(self)


class _Flags(Flags):
    """Flags that may still change, until the compiler puts a copy of them aside."""

    __slots__ = ()

    def copy(self) -> _FixedFlags:
        return _FixedFlags(self)


class _Quick(Compiler):
    """Numba's compiler, which looks for garbage only when it is done."""

    def _compile_core(self) -> Any:
        self.state.flags = _Flags(self.state.flags)
        collects = gc.isenabled()
        gc.disable()
        try:
            return super()._compile_core()
        finally:
            if collects:
                gc.enable()


class _Apart(_Quick):
    """Told that no two array arguments overlap, as C's `restrict` does."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


class _PartLibrary(JITCodeLibrary):
    """Code that other code takes in: optimized with its caller, never made machine code alone."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """Leave that too to the library that takes all parts in."""
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Leave it to the library that takes all parts in: each would be optimized up to thrice."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # Numba's null: there is nothing to call

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """Leave out the globals of the function as Python objects: only wrappers read them."""


class _Part(_Apart):
    """The compiler of parts: a tenth of the time goes into machine code that nothing calls."""

    def define_pipelines(self) -> Any:
        name = self.state.func_id.func_qualname
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), name)
        return super().define_pipelines()


class _CheckedFile(IndexDataCacheFile):
    """Numba's cache file with a checksum: a flipped bit in machine code must not run."""

    def _load_data(self, name: str) -> Any:
        stored = Path(self._data_path(name)).read_bytes()
        digest, data = stored[:32], stored[32:]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError(f"{self._data_path(name)} is damaged")
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(dumped).digest() + dumped)


class _Cache(FunctionCache):
    """Numba's cache, whose files may be damaged or refuse to be written: the function is then
    compiled anew.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        file = self._cache_file
        self._cache_file = _CheckedFile(
            self.cache_path, self._impl.filename_base, (file._source_stamp, _STAMP)
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever a file of arbitrary bytes makes pickle and LLVM say
            _LOG.info(
                "compiled code in %s cannot be read and is built again: %r", self.cache_path, error
            )
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            try:
                super().save_overload(sig, data)
            except OSError:
                raise
            except Exception:  # a damaged index: begin a new one
                self.flush()
                super().save_overload(sig, data)
        except Exception as error:  # disk full, read-only since the import
            _LOG.info("compiled code cannot be kept in %s: %r", self.cache_path, error)


def compiled(
    *, apart: bool = False, part: bool = False, **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function to machine code without the interpreter's lock.

    Args:
        apart: its array arguments do not overlap.
        part: compiled functions alone call it, it allocates nothing, and its array arguments do not
            overlap: what Python would need to call it, the counting of references and a kept file
            of its own are left out. It has no array expressions, and no branches on types.
        options: further ones of `numba.njit`, such as fastmath. Division by zero gives inf or NaN,
            as in NumPy.
    """

    options["no_cfunc_wrapper"] = True  # none is handed to C code
    if part:
        options |= {"pipeline_class": _Part, "no_cpython_wrapper": True, "_nrt": False}
        options["no_rewrites"] = True  # no array expressions to join, no branches to prune
    else:
        options["pipeline_class"] = _Apart if apart else _Quick

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        if hasattr(dispatcher, "py_func") and not part:
            try:
                dispatcher._cache = _Cache(function)
            except (OSError, RuntimeError) as error:  # Numba found no folder that can be written
                _LOG.info("compiled code is not kept: %s; NUMBA_CACHE_DIR can name a folder", error)
        return dispatcher

    return decorate
