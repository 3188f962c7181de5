"""How the kernels of the CPU backend are launched: in several threads, or in the calling thread.

A kernel divides its work into shares, and no two shares write to the same number. Therefore a result depends on the number of
shares, but never on which thread computes a share, or when. A kernel in Python computes one share: its last two parameters are
the number of shares and the number of this share, from 0.

A kernel is compiled once, for any number of threads. Numba's `prange` would be compiled to four copies of a loop, each of which
LLVM optimizes, and to one more for the calling thread. So `run_shares` calls Numba's threads itself.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import get_num_threads, set_num_threads, types
from numba.core import cgutils
from numba.extending import intrinsic

from fflm.backend.cpu.blas import ONE_THREAD
from fflm.compiling import compiled, inner
from fflm.errors import FflmError
from fflm.processors import usable_processors

WORTH_WAKING = 2_000_000
"""Smallest work that is divided into shares, in numbers to process. Waking threads takes as long as processing some 200,000."""

_launching = threading.Lock()
"""Held while threads work. Not all of Numba's threading layers allow two launches at a time, and one launch uses all cores."""

_threads_unusable = False
"""Whether this process must not use Numba's threads, for example because it was forked from one that had started them."""


class Kernel:
    """A kernel, which is compiled when it is first called, and releases the global interpreter lock (GIL).

    All shares are computed by the calling thread if there is only one, so that no thread is woken, and in a forked process, which
    cannot use the threads of its parent.

    Parameters
    ----------
    function
        The kernel in Python; it computes one share.
    blas
        Whether the kernel calls BLAS, which then must not start threads of its own.
    options
        Options of `numba.njit`.

    Attributes
    ----------
    share
        The compiled function, for other compiled functions.
    run
        Computes all shares; its arguments are the address and the number of threads of `run_shares`, and those of the kernel.
    """

    def __init__(self, function: Callable[..., None], blas: bool, options: dict[str, Any]) -> None:
        compiled_share = self.share = inner(error_model="numpy", **options)(function)

        def run(address, threads, *arguments):  # type: ignore[no-untyped-def]
            run_shares(compiled_share, address, threads, arguments)

        run.__module__, run.__qualname__ = function.__module__, function.__qualname__
        run.__name__ = function.__name__
        self.run = compiled()(run)
        self._blas = blas

    def __call__(self, *arguments: Any) -> None:
        """Run the kernel; the last argument is the number of shares."""
        if self._blas:
            with ONE_THREAD:
                self._launch(arguments)
        else:
            self._launch(arguments)

    def _launch(self, arguments: tuple[Any, ...]) -> None:
        """Compute the shares where their number allows it."""
        shares = arguments[-1]
        if shares == 1 or _threads_unusable:
            self.run(0, 1, *arguments)
            return
        with _launching:
            threads = min(_usable_threads(), shares)
            self.run(_address(), threads, *arguments)


@intrinsic
def run_shares(context, share, address, threads, arguments):  # type: ignore[no-untyped-def]
    """Compute all shares of a kernel.

    Parameters
    ----------
    share
        The compiled function that computes one share.
    address
        The address of the function by which Numba's threads call a function for parts of a range; 0 for the calling thread.
    threads
        The number of threads.
    arguments
        The arguments of the kernel, a tuple; the last one is the number of shares.

    Raises
    ------
    MemoryError
        If a share fails in another thread. Too little memory is all that can be wrong in a kernel.
    """
    call = share.get_call_type(context, (*arguments.types, types.intp), {})
    return types.void(share, address, threads, arguments), partial(_emit_shares, call)


def _emit_shares(call, context, builder, signature, values):  # type: ignore[no-untyped-def]
    """Emit the code of `run_shares`; ``call`` is the signature of the function that computes one share."""
    _, address, threads, packed = values
    result = signature.args[0].dispatcher.get_compile_result(call)
    context.active_code_library.add_linking_library(result.library)
    share = context.declare_function(builder.module, result.fndesc)
    arguments = cgutils.unpack_tuple(builder, _uncounted(context, builder, signature.args[3], packed))
    size, byte = arguments[-1].type, cgutils.voidptr_t

    def compute(builder, arguments, number):  # type: ignore[no-untyped-def]
        """Emit the computation of a share, and return its status. The share is not inlined, because it is called twice."""
        every = [*arguments, number]
        return context.call_conv.call_function(builder, share, call.return_type, call.args, every, attrs=("noinline",))[0]

    with builder.if_else(builder.icmp_signed("==", address, address.type(0))) as (alone, together):
        with alone, cgutils.for_range(builder, arguments[-1]) as loop:
            status = compute(builder, arguments, loop.index)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
        with together:
            # Numba's threads call a function with pointers to: where its part of the range begins, encoded as an address; the
            # number of shares in this part; the step from one share to the next; and the data of all.
            kinds = [ir.PointerType(byte), ir.PointerType(size), ir.PointerType(size), byte]
            worker = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), f"{builder.function.name}.worker")
            worker.linkage = "internal"
            failed = cgutils.alloca_once_value(builder, cgutils.false_bit)
            data = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [*arguments, failed]))
            inside = ir.IRBuilder(worker.append_basic_block())
            *own, own_failed = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(worker.args[3], data.type)))
            first = inside.ptrtoint(inside.load(worker.args[0]), size)
            with cgutils.for_range(inside, inside.load(worker.args[1])) as loop:
                status = compute(inside, own, inside.add(first, loop.index))
                with cgutils.if_unlikely(inside, status.is_error):
                    inside.store(cgutils.true_bit, own_failed)
            inside.ret_void()
            start, count, step = (
                cgutils.alloca_once_value(builder, value) for value in (ir.Constant(byte, None), arguments[-1], size(1))
            )
            loop_type = ir.FunctionType(ir.VoidType(), [byte] * 5 + [size] * 3)
            run_loop = builder.inttoptr(address, ir.PointerType(loop_type))
            pointers = [builder.bitcast(value, byte) for value in (worker, start, count, step, data)]
            builder.call(run_loop, [*pointers, size(0), size(1), threads])
            with cgutils.if_unlikely(builder, builder.load(failed)):
                context.call_conv.return_user_exc(builder, MemoryError, ("a thread has too little memory for a kernel",))
    return context.get_dummy_value()


def _uncounted(context, builder, type_, value):  # type: ignore[no-untyped-def]
    """Emit a copy of a value whose arrays have no reference counts; the value itself keeps them in memory.

    Otherwise all threads would change the count of an array for each row that they take of it, and wait for each other.
    """
    if isinstance(type_, types.Array):
        array = context.make_array(type_)(context, builder, value)
        array.meminfo = array.meminfo.type(None)
        return array._getvalue()
    for place, item in enumerate(type_ if isinstance(type_, types.BaseTuple) else ()):
        own = _uncounted(context, builder, item, builder.extract_value(value, place))
        value = builder.insert_value(value, own, place)
    return value


@cache
def _address() -> int:
    """Return the address for `run_shares`, after `_usable_threads` has started the threads."""
    return int(llvmlite.binding.address_of_symbol("numba_parallel_for"))


def _usable_threads() -> int:
    """Return how many of Numba's threads the calling thread may use (`numba.set_num_threads`), after starting them if need be.

    Raises
    ------
    FflmError
        If Numba cannot start its threads.
    """
    try:
        return int(get_num_threads())
    except ValueError as error:  # the threading layer that the user has chosen does not exist or is not installed
        raise FflmError(f"Numba cannot start its threads: {error} (see the variable NUMBA_THREADING_LAYER)") from error


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Let the calling thread use at most ``count`` of Numba's threads in this context. Entering it starts the threads.

    Raises
    ------
    FflmError
        If Numba cannot start its threads.
    """
    before = _usable_threads()
    set_num_threads(min(count, before))
    try:
        yield
    finally:
        set_num_threads(before)


def kernel(*, blas: bool = False, **options: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Return a decorator that makes a `Kernel` of a function; the parameters are those of the class."""
    return lambda function: Kernel(function, blas, options)


def shares_of(work: float, threads: int | None = None) -> int:
    """Return the number of shares to divide work into: one for each thread, or only one if threads are not worth waking.

    Parameters
    ----------
    work
        Number of numbers that a kernel processes.
    threads
        Number of threads. By default `default_threads`, which ignores `numba.set_num_threads`, so that results do not depend on
        that function.
    """
    return 1 if work < WORTH_WAKING else threads or default_threads()


@cache
def default_threads() -> int:
    """Return how many threads kernels use by default: the number of processors that this process may use.

    The environment variable NUMBA_NUM_THREADS overrides this number.
    """
    threads = int(numba.config.NUMBA_NUM_THREADS)
    return threads if "NUMBA_NUM_THREADS" in os.environ else min(threads, usable_processors())


@inner()
def share(count, parts, part):
    """Return the bounds (first, last + 1) of share number ``part`` (from 0) if ``count`` items are divided into ``parts``."""
    return part * count // parts, (part + 1) * count // parts


def compute_on_calling_thread() -> None:
    """From now on, compute all shares of kernels on the calling thread: for processes that share the cores with other processes.

    The number of shares does not change, and so the results do not change either.
    """
    global _threads_unusable
    _threads_unusable = True


def _after_fork() -> None:
    """Stop the use of Numba's threads in a forked process if the parent had started them."""
    global _launching, _threads_unusable
    _launching = threading.Lock()  # another thread of the parent may have held the old lock
    try:
        numba.threading_layer()
    except ValueError:  # the threads were never started
        return
    _threads_unusable = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
