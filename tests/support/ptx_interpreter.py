"""The PTX interpreter, compiled by Numba: it executes the table of instructions that `ptx_encoder` makes of a kernel.

Execution
    The blocks of a launch run one after the other, the threads of a block in turn. `advance` runs one thread until it reaches a
    barrier, an instruction of its whole warp (`EXCHANGE` and what follows it in the list) or its end. `run_warp` calls
    `together` once all threads of a warp wait at the same such instruction, and `execute` passes a barrier once all threads of
    the block do. A register is an int64, of which an instruction writes at least as many bits as its type has; `number` cuts
    out those that an instruction reads. A float32 is the lower half of a register. A predicate has all its bits equal: 0 is
    false, -1 is true.

Checks
    Asynchronous copies are done as late as possible: when the thread waits for them. Until then, the target contains NaN.
    So do the sums of wgmma until a warp waits for it; it reads its operands all the while, in each interval between barriers.
    `check` checks the alignment and the bounds of each access to global or shared memory, and `watch` detects races. `execute`
    detects barriers that only some threads reach, `run_warp` such instructions of a warp. The first fault ends the launch;
    `ERRORS` names it.

Table
    Each instruction is a row of `WIDTH` numbers: the operation, the register of its guard (or -1), whether the guard is negated,
    the kind of its numbers (an index into `KINDS`), and its operands: numbers of registers, or constants. Constants of the source
    are registers, too.

Adding an instruction
    Add its name to the list below, before `EXCHANGE` if a thread executes it alone; implement it in `advance` or `together`;
    map the PTX to it in ``ptx_encoder.FLOATS`` or ``ptx_encoder.INTEGERS`` or, if its operands are of other forms,
    in ``Encoder._operation``. Test it against NumPy in ``test_ptx_interpreter.py``.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

(
    BRANCH,
    BARRIER,
    END,
    COPY,
    WIDEN,
    ADD,
    SUBTRACT,
    MULTIPLY,
    MULTIPLY_WIDE,
    MULTIPLY_HIGH,
    MULTIPLY_ADD,
    MULTIPLY_ADD_WIDE,
    AND,
    OR,
    XOR,
    NOT,
    NEGATE,
    SHIFT_LEFT,
    SHIFT_RIGHT,
    MINIMUM,
    MAXIMUM,
    DIVIDE,
    REMAINDER,
    INSERT_BITS,
    SELECT,
    COMPARE,
    F_ADD,
    F_SUBTRACT,
    F_MULTIPLY,
    F_DIVIDE,
    FMA,
    FMA_DOWN,
    ADD_TO_ZERO,
    F_NEGATE,
    F_ABS,
    F_MINIMUM,
    F_MAXIMUM,
    COPYSIGN,
    EX2,
    LG2,
    SQRT,
    RSQRT,
    RCP,
    TANH,
    F_COMPARE,
    F_ROUND,
    F_TO_INTEGER,
    F_FROM_INTEGER,
    F_FROM_HALF,
    HALVES,
    TO_TF32,
    SPLIT,
    JOIN,
    LOAD,
    STORE,
    ATOMIC_ADD,
    COPY_ASYNC,
    COMMIT_COPIES,
    WAIT_FOR_COPIES,
    PUBLISH,
    EXCHANGE,
    MMA,
    LDMATRIX,
    MMA_TF32,
    GROUP_FENCE,
    GROUP_MMA,
    GROUP_COMMIT,
    GROUP_WAIT,
) = range(68)
"""Operations of instructions."""

KINDS = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32")
"""Types of numbers; an index is the code of a type."""

U64, S32, S64, F32 = (KINDS.index(kind) for kind in ("u64", "s32", "s64", "f32"))

RELATIONS = ("eq", "ne", "lt", "le", "gt", "ge", "nan", "num")
"""Relations in comparisons; an index is the code of a relation. For floats, ``u`` (true for NaN) adds `UNORDERED`."""

UNORDERED = len(RELATIONS)

ROUNDINGS = ("", "rni", "rzi", "rmi", "rpi")
"""Modes of rounding to integers; an index is the code of a mode."""

WIDTH = 18
"""Number of columns of the table; operands start at the fifth."""

ERRORS = (
    "",
    "misaligned",
    "out of bounds",
    "out of bounds of shared memory",
    "a race in global memory",
    "a race in shared memory",
    "a barrier that only some threads of a block reach",
    "only some threads of a warp",
    "unknown: parts of a warp",
    "an operand that is not rounded to TF32",
    "unknown: a copy of some bytes",
    "unknown: too many copies or products at a time",
    "an unknown descriptor, or one that differs between threads",
    "wgmma without a fence",
    "shared memory without a fence of the asynchronous proxy",
    "a product of wgmma that is not waited for",
)
"""Faults of kernels; an index is the code of a fault, 0 for none."""

(
    NO_ERROR,
    MISALIGNED,
    OUT_OF_BOUNDS,
    OUT_OF_SHARED,
    GLOBAL_RACE,
    SHARED_RACE,
    BARRIER_OF_SOME,
    WARP_OF_SOME,
    PART_OF_WARP,
    NOT_ROUNDED,
    UNKNOWN_COPY,
    TOO_MANY,
    UNKNOWN_DESCRIPTOR,
    NO_FENCE,
    NOT_PUBLISHED,
    NOT_AWAITED,
) = range(len(ERRORS))

WARP = 32
"""Number of threads of a warp."""

BLOCKS = 2**32
"""Limit of the blocks of a launch; the last two numbers stand for several readers of a word, and for any atomic additions."""

SEVERAL, ADDED = BLOCKS - 2, BLOCKS - 1

THREADS = 2**12
"""Limit of the threads of a block; the last number stands for several readers of a word."""

RUNNING, AT_BARRIER, IN_WARP, DONE = range(4)
"""States of a thread: it runs, waits for its block, waits for its warp, or has ended."""

COPIES = 2**7
"""Limit of the asynchronous copies of a thread that are not done."""

WRITTEN, FENCED = 1, 2
"""Flags of a thread: it has written to shared memory since the last fence of the asynchronous proxy; it has executed the fence of
wgmma since it last waited."""

PRODUCTS = 2**5
"""Limit of the products of wgmma that a warp has not waited for."""

READ, WRITE, ATOMIC = range(3)
"""Kinds of access to memory."""

HALVES_OF_BITS = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""The value of the float16 with these bits, by index."""


class PtxError(Exception):
    """A fault of a kernel, or an instruction that the interpreter does not know."""


class Accesses(NamedTuple):
    """What `check` checks accesses by, and where it records them.

    Attributes
    ----------
    known, notes, launch, shared_bytes
        As `run_blocks` takes them.
    shared_notes
        The accesses to shared memory, as ``notes`` has those to global memory.
    """

    known: Any
    notes: Any
    launch: Any
    shared_bytes: Any
    shared_notes: Any


class State(NamedTuple):
    """What the threads of a block share while they run; an array of integers is int64, unless said otherwise.

    Attributes
    ----------
    code
        The table of instructions, flattened.
    registers
        The registers of all threads, as int64 and as float32 (twice as many, of which each second one is unused).
    memory, shared
        Global and shared memory, as `views` returns it.
    accesses
        The `Accesses`.
    flags
        `WRITTEN` and `FENCED` of each thread.
    copies
        The asynchronous copies of each thread that are not done: target, source (-1 for zeros), and the number of the group.
    copy_counts
        The number of these copies, and the number of groups, of each thread.
    products
        The products of each warp that it has not waited for: the instruction, the descriptors, and the number of the group.
    product_counts
        The number of these products, and the number of groups, of each warp.
    held
        The sums of these products, float32, by register; the registers contain NaN.
    """

    code: Any
    registers: Any
    memory: Any
    shared: Any
    accesses: Accesses
    flags: Any
    copies: Any
    copy_counts: Any
    products: Any
    product_counts: Any
    held: Any


compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def number(kind, bits):
    """Return the integer of a kind in the lower bits of a register."""
    unused = 64 - (8 << (kind & 3))
    if kind >= 4:
        return (bits << unused) >> unused
    return np.int64(np.uint64(bits << unused) >> np.uint64(unused))


@compiled
def is_less(kind, x, y):
    """Return whether an integer is less than another one of the same kind."""
    return np.uint64(x) < np.uint64(y) if kind == U64 else x < y


@compiled
def half_of(bits):
    """Return the bits of a float32 rounded to float16, with ties to even."""
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size > 0x7F800000:
        return sign | 0x7E00
    if size >= 0x477FF000:
        return sign | 0x7C00
    exponent, shift = size >> 23, 13
    if exponent < 113:
        shift, size = 126 - exponent, (size & 0x7FFFFF) | 0x800000
        if shift > 24:
            return sign
    else:
        size -= 112 << 23
    half, rest = size >> shift, size & ((1 << shift) - 1)
    middle = 1 << (shift - 1)
    return sign | (half + (rest > middle or (rest == middle and half & 1 == 1)))


@compiled
def quotient(kind, x, y):
    """Return the quotient of two integers, rounded towards zero; a divisor of 0 counts as 1."""
    if y == 0:
        return x
    if kind == U64:
        return np.int64(np.uint64(x) // np.uint64(y))
    if y == -1:
        return -x
    result = abs(x) // abs(y)
    return -result if (x < 0) != (y < 0) else result


@compiled
def compared(relation, less, equal):
    """Return the result of a comparison of two numbers that are not NaN."""
    if relation == 0:
        return equal
    if relation == 1:
        return not equal
    if relation == 2:
        return less
    if relation == 3:
        return less or equal
    if relation == 4:
        return not (less or equal)
    if relation == 5:
        return not less
    return relation == 7


@compiled
def to_integer(x, rounding):
    """Return a float rounded in one of the `ROUNDINGS`."""
    if rounding == 1:
        return np.rint(x)
    if rounding == 2:
        return np.trunc(x)
    if rounding == 3:
        return np.floor(x)
    if rounding == 4:
        return np.ceil(x)
    return x


@compiled
def bounded(kind, x):
    """Return a float as an integer of a kind, limited to its range; NaN is 0."""
    if x != x:
        return np.int64(0)
    bits = 8 << (kind & 3)
    if kind >= 4:
        limit = 2.0 ** (bits - 1)
        if x >= limit:
            return np.int64((1 << (bits - 1)) - 1)
        return np.int64(-1) << (bits - 1) if x < -limit else np.int64(x)
    if x < 0:
        return np.int64(0)
    if x >= 2.0**bits:
        return np.int64(-1)
    return np.int64(np.uint64(x))


@compiled
def meets(user, turn, word, own, own_turn, launch):
    """Return whether other blocks of the launch, or other threads since the last barrier, have accessed a word."""
    used, before = user[word], turn[word]
    others = before != own_turn and before // THREADS == own_turn // THREADS and own != launch + ADDED
    return used >= launch and (used != own or others)


@compiled
def watch(word, access, own, own_turn, launch, notes):
    """Record an access to a word of global or shared memory; return whether it is a race."""
    writer, reader, writer_turn, reader_turn = notes
    if access == ATOMIC:
        own = launch + ADDED
    race = meets(writer, writer_turn, word, own, own_turn, launch)
    met = meets(reader, reader_turn, word, own, own_turn, launch)
    if access == READ:
        reader[word] = launch + SEVERAL if reader[word] >= launch and reader[word] != own else own
        reader_turn[word] = own_turn // THREADS * THREADS + THREADS - 1 if met else own_turn
        return race
    writer[word], writer_turn[word] = own, own_turn
    return race or met


@compiled
def check(address, size, access, in_shared, own, turn, accesses):
    """Check and record an access to ``size`` bytes; return the code of the fault."""
    if address % size:
        return MISALIGNED
    known = accesses.known
    if in_shared and (address < 0 or address + size > accesses.shared_bytes):
        return OUT_OF_SHARED
    if not in_shared and (address < 0 or address + size > len(known) or not (known[address] and known[address + size - 1])):
        return OUT_OF_BOUNDS
    for word in range(address // 4, (address + size + 3) // 4):
        if watch(word, access, own, turn, accesses.launch, accesses.shared_notes if in_shared else accesses.notes):
            return SHARED_RACE if in_shared else GLOBAL_RACE
    return NO_ERROR


@compiled
def load(views, size, address):
    """Return the number in ``size`` bytes at an address, in the lower bits of a register."""
    if size == 4:
        return np.int64(views[2][address // 4])
    if size == 8:
        return views[3][address // 8]
    return np.int64(views[1][address // 2] if size == 2 else views[0][address])


@compiled
def store(views, size, address, bits):
    """Write the lower ``size`` bytes of a register to an address."""
    if size == 4:
        views[2][address // 4] = np.uint32(bits & 0xFFFFFFFF)
    elif size == 8:
        views[3][address // 8] = bits
    elif size == 2:
        views[1][address // 2] = np.uint16(bits & 0xFFFF)
    else:
        views[0][address] = np.uint8(bits & 0xFF)


@compiled
def add(views, kind, address, integer, real):
    """Add to the number at an address: ``real`` if the kind is `F32`, else ``integer``."""
    if kind == F32:
        views[4][address // 4] += real
    elif kind & 3 == 2:
        views[2][address // 4] += np.uint32(integer & 0xFFFFFFFF)
    else:
        views[3][address // 8] += integer


@compiled
def begin_copy(target, source, given, own, turn, state):
    """Begin to copy 16 bytes to shared memory, zeros if ``given`` is 0 and not 16; return the code of a fault."""
    queue, counts = state.copies, state.copy_counts
    first, thread = turn % THREADS * COPIES, turn % THREADS
    if given not in (0, 16):
        return UNKNOWN_COPY
    if counts[2 * thread] == COPIES:
        return TOO_MANY
    error = check(target, 16, WRITE, True, own, turn, state.accesses)
    if not error and given:
        error = check(source, 16, READ, False, own, turn, state.accesses)
    if not error:
        for k in range(8):
            state.shared[1][target // 2 + k] = 0x7FFF  # NaN
        at = 3 * (first + counts[2 * thread])
        queue[at], queue[at + 1], queue[at + 2] = target, source if given else -1, counts[2 * thread + 1]
        counts[2 * thread] += 1
    return error


@compiled
def finish_copies(pending, own, turn, state):
    """Do the copies of a thread's groups except the latest ``pending`` ones; return the code of a fault."""
    queue, counts, memory, shared = state.copies, state.copy_counts, state.memory, state.shared
    first, thread = turn % THREADS * COPIES, turn % THREADS
    done, count = 0, counts[2 * thread]
    state.flags[thread] |= WRITTEN
    while done < count and queue[3 * (first + done) + 2] < counts[2 * thread + 1] - pending:
        target, source = queue[3 * (first + done)], queue[3 * (first + done) + 1]
        error = check(target, 16, WRITE, True, own, turn, state.accesses)
        if error:
            return error
        for k in range(4):
            shared[2][target // 4 + k] = memory[2][source // 4 + k] if source >= 0 else 0
        done += 1
    for k in range(3 * (count - done)):
        queue[3 * first + k] = queue[3 * (first + done) + k]
    counts[2 * thread] -= done
    return NO_ERROR


@compiled
def advance(place, base, own, turn, state):
    """Run a thread until it stops; return the place, the new state, and the code of a fault."""
    code, (r, f), memory, shared = state.code, state.registers, state.memory, state.shared
    while True:
        at = place * WIDTH
        op, guard = code[at], code[at + 1]
        if guard >= 0 and (r[base + guard] != 0) == (code[at + 2] != 0):
            place += 1
            continue
        if op == BRANCH:
            place = code[at + 4]
            continue
        if op in (BARRIER, END):
            in_progress = op == END and state.product_counts[2 * (turn % THREADS // WARP)] > 0
            return place, AT_BARRIER if op == BARRIER else DONE, NOT_AWAITED if in_progress else NO_ERROR
        if op >= EXCHANGE:
            return place, IN_WARP, NO_ERROR
        kind = code[at + 3]
        d, a, b, c = base + code[at + 4], base + code[at + 5], base + code[at + 6], base + code[at + 7]
        if op in (LOAD, STORE, ATOMIC_ADD):
            count, size = code[at + 6], np.int64(4) if kind == F32 else np.int64(1) << (kind & 3)
            address, in_shared = r[base + code[at + 4]] + code[at + 5], code[at + 7] != 0
            access = READ if op == LOAD else (WRITE if op == STORE else ATOMIC)
            error = check(address, count * size, access, in_shared, own, turn, state.accesses)
            if error:
                return place, RUNNING, error
            if op == ATOMIC_ADD:
                i = base + code[at + 8]
                add(shared if in_shared else memory, kind, address, r[i], f[2 * i])
                if code[at + 9] >= 0:  # the previous value must not be used, because the order is unknown
                    r[base + code[at + 9]] = -1
            else:
                for k in range(count):
                    i = base + code[at + 8 + k]
                    if op == LOAD:
                        bits = load(shared if in_shared else memory, size, address + k * size)
                        r[i] = bits if kind == F32 else number(kind, bits)
                    else:
                        store(shared if in_shared else memory, size, address + k * size, r[i])
                if op == STORE and in_shared:
                    state.flags[turn % THREADS] |= WRITTEN
        elif op == COPY_ASYNC:
            target, source = r[d] + code[at + 5], r[b] + code[at + 7]
            given = r[base + code[at + 8]] & 0xFFFFFFFF
            error = begin_copy(target, source, given, own, turn, state)
            if error:
                return place, RUNNING, error
        elif op == COMMIT_COPIES:
            state.copy_counts[2 * (turn % THREADS) + 1] += 1
        elif op == PUBLISH:
            state.flags[turn % THREADS] &= ~WRITTEN
        elif op == WAIT_FOR_COPIES:
            error = finish_copies(code[at + 4], own, turn, state)
            if error:
                return place, RUNNING, error
        elif op in (FMA, FMA_DOWN):  # double precision rounds once, except in rare ties
            exact = np.float64(f[2 * a]) * np.float64(f[2 * b]) + np.float64(f[2 * c])
            f[2 * d] = np.float32(exact)
            if op == FMA_DOWN and np.float64(f[2 * d]) > exact:
                bits = r[d] & 0xFFFFFFFF
                r[d] = 0x80000001 if f[2 * d] == 0 else (bits - 1 if f[2 * d] > 0 else bits + 1)
        elif op == COPY:
            r[d] = r[a]
        elif op == WIDEN:
            r[d] = number(kind, r[a])
        elif op == ADD:
            r[d] = r[a] + r[b]
        elif op == SUBTRACT:
            r[d] = r[a] - r[b]
        elif op == MULTIPLY:
            r[d] = r[a] * r[b]
        elif op == MULTIPLY_WIDE:
            r[d] = number(kind, r[a]) * number(kind, r[b])
        elif op == MULTIPLY_HIGH:  # of 32-bit factors
            r[d] = (number(kind, r[a]) * number(kind, r[b])) >> 32
        elif op == MULTIPLY_ADD:
            r[d] = r[a] * r[b] + r[c]
        elif op == MULTIPLY_ADD_WIDE:
            r[d] = number(kind, r[a]) * number(kind, r[b]) + r[c]
        elif op == AND:
            r[d] = r[a] & r[b]
        elif op == OR:
            r[d] = r[a] | r[b]
        elif op == XOR:
            r[d] = r[a] ^ r[b]
        elif op == NOT:
            r[d] = ~r[a]
        elif op == NEGATE:
            r[d] = -r[a]
        elif op == SHIFT_LEFT:
            by = r[b] & 0xFFFFFFFF
            r[d] = r[a] << by if by < np.int64(8) << (kind & 3) else np.int64(0)
        elif op == SHIFT_RIGHT:
            by, bits = r[b] & 0xFFFFFFFF, np.int64(8) << (kind & 3)
            if kind >= 4:
                r[d] = number(kind, r[a]) >> min(by, bits - 1)
            else:
                r[d] = np.int64(np.uint64(number(kind, r[a])) >> np.uint64(by)) if by < bits else np.int64(0)
        elif op in (MINIMUM, MAXIMUM):
            x, y = number(kind, r[a]), number(kind, r[b])
            r[d] = x if is_less(kind, x, y) == (op == MINIMUM) else y
        elif op == DIVIDE:
            r[d] = quotient(kind, number(kind, r[a]), number(kind, r[b]))
        elif op == REMAINDER:
            x, y = number(kind, r[a]), number(kind, r[b])
            r[d] = x - quotient(kind, x, y) * y if y != 0 else np.int64(0)
        elif op == INSERT_BITS:
            first, count = code[at + 7], code[at + 8]
            mask = ((np.int64(1) << count) - 1) << first
            r[d] = ((r[a] << first) & mask) | (r[b] & ~mask)
        elif op == SELECT:
            r[d] = r[a] if r[c] != 0 else r[b]
        elif op == COMPARE:
            x, y = number(kind, r[a]), number(kind, r[b])
            r[d] = -np.int64(compared(code[at + 7], is_less(kind, x, y), x == y))
        elif op == F_COMPARE:
            p, q, relation = f[2 * a], f[2 * b], code[at + 7]
            if p != p or q != q:
                r[d] = -np.int64(relation >= UNORDERED or relation == 6)
            else:
                r[d] = -np.int64(compared(relation % UNORDERED, p < q, p == q))
        elif op == F_ADD:
            f[2 * d] = f[2 * a] + f[2 * b]
        elif op == F_SUBTRACT:
            f[2 * d] = f[2 * a] - f[2 * b]
        elif op == F_MULTIPLY:
            f[2 * d] = f[2 * a] * f[2 * b]
        elif op == F_DIVIDE:
            f[2 * d] = f[2 * a] / f[2 * b]
        elif op == ADD_TO_ZERO:
            exact = np.float64(f[2 * a]) + np.float64(f[2 * b])
            f[2 * d] = np.float32(exact)
            if abs(np.float64(f[2 * d])) > abs(exact):
                r[d] = (r[d] & 0xFFFFFFFF) - 1
        elif op == F_NEGATE:
            r[d] = r[a] ^ 0x80000000
        elif op == F_ABS:
            r[d] = r[a] & 0x7FFFFFFF
        elif op in (F_MINIMUM, F_MAXIMUM):
            p, q = f[2 * a], f[2 * b]
            f[2 * d] = p if q != q or (p < q if op == F_MINIMUM else p > q) else q
        elif op == COPYSIGN:
            r[d] = (r[b] & 0x7FFFFFFF) | (r[a] & 0x80000000)
        elif op == EX2:
            f[2 * d] = np.float32(2.0 ** np.float64(f[2 * a]))
        elif op == LG2:
            f[2 * d] = np.float32(np.log2(np.float64(f[2 * a])))
        elif op == SQRT:
            f[2 * d] = np.sqrt(f[2 * a])
        elif op == RSQRT:
            f[2 * d] = np.float32(1) / np.sqrt(f[2 * a])
        elif op == RCP:
            f[2 * d] = np.float32(1) / f[2 * a]
        elif op == TANH:
            f[2 * d] = np.float32(math.tanh(np.float64(f[2 * a])))
        elif op == F_ROUND:
            f[2 * d] = np.float32(to_integer(np.float64(f[2 * a]), code[at + 6]))
            if code[at + 7]:  # saturate to [0, 1]
                f[2 * d] = min(max(f[2 * d], np.float32(0)), np.float32(1)) if f[2 * d] == f[2 * d] else np.float32(0)
        elif op == F_TO_INTEGER:
            r[d] = bounded(kind, to_integer(np.float64(f[2 * a]), code[at + 6]))
        elif op == F_FROM_INTEGER:
            x = number(kind, r[a])
            f[2 * d] = np.float32(np.uint64(x)) if kind == U64 else np.float32(x)
        elif op == F_FROM_HALF:
            f[2 * d] = HALVES_OF_BITS[r[a] & 0xFFFF]
        elif op == HALVES:  # the first operand goes into the upper bits
            r[d] = (half_of(r[a] & 0xFFFFFFFF) << 16) | half_of(r[b] & 0xFFFFFFFF)
        elif op == TO_TF32:  # to nearest; of two equally near numbers, to that with the larger magnitude
            bits = r[a] & 0xFFFFFFFF
            r[d] = (
                (bits + 0x1000) & 0xFFFFE000 if bits & 0x7F800000 != 0x7F800000 else bits if bits & 0x7FFFFF == 0 else 0x7FFFFFFF
            )
        elif op == SPLIT:  # the kind is that of a part; an unused part has the register "_"
            whole = r[base + code[at + 6]]
            r[d] = number(kind, whole)
            r[a] = number(kind, whole >> (np.int64(8) << (kind & 3)))
        elif op == JOIN:
            r[d] = number(kind, r[a]) | (number(kind, r[b]) << (np.int64(8) << (kind & 3)))
        place += 1


@compiled
def multiply_tf32(code, at, r, f, bases):
    """Execute the product of fragments in TF32 by a warp, whose registers begin at bases (WARP,); return the code of a fault."""
    left, right, place = np.empty((16, 8), np.float32), np.empty((8, 8), np.float32), 0
    for lane in range(WARP):
        group, member = lane // 4, lane % 4
        for k in range(6):
            place = bases[lane] + code[at + 8 + k]
            if r[place] & 0x1FFF and f[2 * place] == f[2 * place]:
                return NOT_ROUNDED
            if k < 4:
                left[8 * (k % 2) + group, 4 * (k // 2) + member] = f[2 * place]
            else:
                right[4 * (k - 4) + member, group] = f[2 * place]
    for lane in range(WARP):
        group, member = lane // 4, lane % 4 * 2
        for k in range(4):
            total = np.float32(0)
            for inner in range(8):
                total += left[8 * (k // 2) + group, inner] * right[inner, member + k % 2]
            f[2 * (bases[lane] + code[at + 4 + k])] = f[2 * (bases[lane] + code[at + 14 + k])] + total
    return NO_ERROR


@compiled
def swizzled(descriptor, transposed, line, inner):
    """Return the address in shared memory of a half of an operand of wgmma, in the layouts with the swizzle of 128 bytes.

    ``line`` is its row of A or column of B, and ``inner`` its place along the inner dimension.
    """
    start, leading, stride = (
        (descriptor & 0x3FFF) << 4,
        (descriptor >> 16 & 0x3FFF) << 4,
        (descriptor >> 32 & 0x3FFF) << 4,
    )
    if transposed:
        address = start + line // 64 * leading + inner // 8 * stride + inner % 8 * 128 + line % 64 * 2
    else:
        address = start + line // 8 * stride + line % 8 * 128 + inner * 2
    return address ^ ((address >> 7 & 7) << 4)


@compiled
def read_operands(at, left, right, first, own, turn, state):
    """Record that a warp reads its operands of a product of wgmma with these descriptors; return the code of a fault."""
    code = state.code
    columns, left_transposed, right_transposed = code[at + 5], code[at + 8] != 0, code[at + 9] != 0
    for inner in range(16):
        for line in range(16 + columns):
            if line < 16:
                address = swizzled(left, left_transposed, first // WARP % 4 * 16 + line, inner)
            else:
                address = swizzled(right, right_transposed, line - 16, inner)
            error = check(address, 2, READ, True, own, turn, state.accesses)
            if error:
                return error
    return NO_ERROR


@compiled
def multiply_group(at, bases, first, own, turn, state):
    """Begin a warp's part of a product of wgmma, the 16 rows of its place in the group of four; return the code of a fault."""
    code, (r, f), shared, flags = state.code, state.registers, state.shared, state.flags
    queue, counts, held = state.products, state.product_counts, state.held
    columns, sums = code[at + 5], code[code[at + 4] : code[at + 4] + code[at + 5] // 2]
    a, b, left_transposed, right_transposed = code[at + 6], code[at + 7], code[at + 8] != 0, code[at + 9] != 0
    left, right = r[bases[0] + a], r[bases[0] + b]
    for lane in range(WARP):
        if r[bases[lane] + a] != left or r[bases[lane] + b] != right or r[bases[lane] + code[at + 10]] == 0:
            return UNKNOWN_DESCRIPTOR
        if not flags[first + lane] & FENCED:
            return NO_FENCE
    for thread in range(len(flags)):
        if flags[thread] & WRITTEN:
            return NOT_PUBLISHED
    for descriptor in (left, right):  # the swizzle of 128 bytes, and no base offset
        if (descriptor >> 62) & 3 != 1 or (descriptor >> 46) & 0xFFFF != 0:
            return UNKNOWN_DESCRIPTOR
    warp = first // WARP
    begun, committed = counts[2 * warp], counts[2 * warp + 1]
    if begun == PRODUCTS:
        return TOO_MANY
    error = read_operands(at, left, right, first, own, turn, state)
    if error:
        return error
    for lane in range(WARP):  # what another product is being added to is held already
        for register in sums:
            i = bases[lane] + register
            if f[2 * i] == f[2 * i] or not is_held(warp, begun, register, state):
                held[i] = f[2 * i]
            f[2 * i] = np.nan
    entry = 4 * (warp * PRODUCTS + begun)
    queue[entry], queue[entry + 1], queue[entry + 2], queue[entry + 3] = at, left, right, committed
    counts[2 * warp] += 1
    others, total = np.empty((16, columns), np.float32), np.empty(columns, np.float32)
    for inner in range(16):
        for column in range(columns):
            others[inner, column] = HALVES_OF_BITS[shared[1][swizzled(right, right_transposed, column, inner) // 2]]
    for row in range(16):
        total[:] = 0
        for inner in range(16):
            factor = HALVES_OF_BITS[shared[1][swizzled(left, left_transposed, warp % 4 * 16 + row, inner) // 2]]
            for column in range(columns):
                total[column] += factor * others[inner, column]
        for column in range(columns):
            lane, k = row % 8 * 4 + column % 8 // 2, column // 8 * 4 + row // 8 * 2 + column % 2
            held[bases[lane] + sums[k]] += total[column]
    return NO_ERROR


@compiled
def is_held(warp, count, register, state):
    """Return whether one of the first ``count`` products of a warp adds to a register."""
    code, queue = state.code, state.products
    for number in range(count):
        at = queue[4 * (warp * PRODUCTS + number)]
        for k in range(code[at + 5] // 2):
            if code[code[at + 4] + k] == register:
                return True
    return False


@compiled
def finish_products(pending, bases, first, state):
    """Finish the products of a warp's groups except the latest ``pending`` ones."""
    code, (_, f) = state.code, state.registers
    queue, counts, held = state.products, state.product_counts, state.held
    warp = first // WARP
    done, count = 0, counts[2 * warp]
    while done < count and queue[4 * (warp * PRODUCTS + done) + 3] < counts[2 * warp + 1] - pending:
        done += 1
    finished = queue[4 * warp * PRODUCTS : 4 * (warp * PRODUCTS + done)].copy()
    for k in range(4 * (count - done)):
        queue[4 * warp * PRODUCTS + k] = queue[4 * (warp * PRODUCTS + done) + k]
    counts[2 * warp] -= done
    for number in range(done):
        at = finished[4 * number]
        for register in code[code[at + 4] : code[at + 4] + code[at + 5] // 2]:
            if not is_held(warp, count - done, register, state):
                for lane in range(WARP):
                    f[2 * (bases[lane] + register)] = held[bases[lane] + register]


@compiled
def together(place, size, first, own, barriers, state):
    """Execute an instruction of the warp that starts at thread ``first``; return the code of a fault."""
    code, (r, f), flags = state.code, state.registers, state.flags
    at = place * WIDTH
    op = code[at]
    bases = np.empty(WARP, np.int64)
    for lane in range(WARP):
        bases[lane] = (first + lane) * size
    if op == EXCHANGE:
        values = np.empty(WARP, np.int64)
        for lane in range(WARP):
            base = bases[lane]
            values[lane] = r[base + code[at + 6]]
            clamp, lanes = r[base + code[at + 8]] & 0xFFFFFFFF, r[base + code[at + 9]] & 0xFFFFFFFF
            if clamp != WARP - 1 or lanes != 2**WARP - 1:
                return PART_OF_WARP
        for lane in range(WARP):
            base = bases[lane]
            bits = r[base + code[at + 7]] & (WARP - 1)
            r[base + code[at + 4]] = values[lane ^ bits]
            r[base + code[at + 5]] = -1
        return NO_ERROR
    if op == LDMATRIX:  # lane l has the address of row l % 8 of matrix l // 8
        halves, rows = state.shared[1], np.empty(WARP, np.int64)
        for lane in range(WARP):
            rows[lane] = r[bases[lane] + code[at + 8]] + code[at + 9]
            error = check(rows[lane], 16, READ, True, own, barriers * THREADS + first + lane, state.accesses)
            if error:
                return error
        for lane in range(WARP):
            for matrix in range(4):
                bits = np.int64(0)
                for q in range(2):
                    row, column = lane // 4, lane % 4 * 2 + q
                    if code[at + 10]:
                        row, column = column, row
                    bits |= np.int64(halves[rows[8 * matrix + row] // 2 + column]) << (16 * q)
                r[bases[lane] + code[at + 4 + matrix]] = bits
        return NO_ERROR
    if op == MMA_TF32:
        return multiply_tf32(code, at, r, f, bases)
    if op == GROUP_MMA:
        return multiply_group(at, bases, first, own, barriers * THREADS + first, state)
    if op == GROUP_COMMIT:
        state.product_counts[2 * (first // WARP) + 1] += 1
        return NO_ERROR
    if op in (GROUP_FENCE, GROUP_WAIT):
        for thread in range(first, first + WARP):
            flags[thread] = flags[thread] & WRITTEN | (FENCED if op == GROUP_FENCE else 0)
        if op == GROUP_WAIT:
            finish_products(code[at + 4], bases, first, state)
        return NO_ERROR
    left, right = np.empty((16, 16), np.float32), np.empty((16, 8), np.float32)
    for lane in range(WARP):
        group, member = lane // 4, lane % 4 * 2
        for q in range(2):
            for k in range(4):  # each part of a fragment has 8 x 8 elements
                bits = r[bases[lane] + code[at + 8 + k]] >> (16 * q)
                left[8 * (k % 2) + group, 8 * (k // 2) + member + q] = HALVES_OF_BITS[bits & 0xFFFF]
            for k in range(2):
                bits = r[bases[lane] + code[at + 12 + k]] >> (16 * q)
                right[8 * k + member + q, group] = HALVES_OF_BITS[bits & 0xFFFF]
    for lane in range(WARP):
        group, member = lane // 4, lane % 4 * 2
        for k in range(4):
            total = np.float32(0)
            for inner in range(16):
                total += left[8 * (k // 2) + group, inner] * right[inner, member + k % 2]
            f[2 * (bases[lane] + code[at + 4 + k])] = f[2 * (bases[lane] + code[at + 14 + k])] + total
    return NO_ERROR


@compiled
def run_warp(places, states, size, first, own, barriers, state):
    """Run the warp that starts at thread ``first`` to a barrier or its end; return the code of a fault, and its instruction."""
    last = min(first + WARP, len(places))
    while True:
        waiting, waiting_elsewhere, place = 0, False, places[first]
        for thread in range(first, last):
            if states[thread] == RUNNING:
                turn = barriers * THREADS + thread
                places[thread], states[thread], error = advance(places[thread], thread * size, own, turn, state)
                if error:
                    return error, places[thread]
            if states[thread] == IN_WARP:
                waiting += 1
                place = places[thread]
        if not waiting:
            return NO_ERROR, 0
        for thread in range(first, last):
            waiting_elsewhere |= places[thread] != place
        if waiting < WARP or waiting_elsewhere:
            return WARP_OF_SOME, place
        error = together(place, size, first, own, barriers, state)
        if error:
            return error, place
        for thread in range(first, last):
            places[thread], states[thread] = place + 1, RUNNING


@compiled
def execute(template, special, grid, places, state):
    """Run all blocks of a launch, as `run_blocks` does; return the code of a fault, and the number of its instruction."""
    size, threads, states, r = len(template), len(places), np.empty_like(places), state.registers[0]
    for block in range(grid[0] * grid[1] * grid[2]):
        for thread in range(threads):
            base = thread * size
            for number_of_register in range(size):
                r[base + number_of_register] = template[number_of_register]
            r[base + special[0]], r[base + special[1]] = thread, thread % WARP
            r[base + special[2]] = block % grid[0]
            r[base + special[3]] = block // grid[0] % grid[1]
            r[base + special[4]] = block // grid[0] // grid[1]
            places[thread], states[thread] = 0, RUNNING
        state.shared[1].fill(0x7FFF)  # NaN
        state.copy_counts.fill(0)
        state.flags.fill(0)
        state.product_counts.fill(0)
        for array in state.accesses.shared_notes:  # each block has shared memory of its own
            array.fill(0)
        barriers, own = (
            np.int64(0),
            state.accesses.launch + block,
        )  # Numba would compile what is called with a literal 0 once more
        while True:
            for first in range(0, threads, WARP):
                error, place = run_warp(places, states, size, first, own, barriers, state)
                if error:
                    return error, place
            done, waiting, elsewhere = 0, places[0], False
            for thread in range(threads - 1, -1, -1):
                if states[thread] == DONE:
                    done += 1
                else:
                    waiting = places[thread]
                elsewhere |= places[thread] != places[0]
            if done == threads:
                break
            if done or elsewhere:
                return BARRIER_OF_SOME, waiting
            for thread in range(threads):
                places[thread], states[thread] = waiting + 1, RUNNING
            barriers += 1
            for warp in range(threads // WARP):
                for number in range(state.product_counts[2 * warp]):
                    at, left, right = state.products[4 * (warp * PRODUCTS + number) :][:3]
                    turn, first = barriers * THREADS + warp * WARP, warp * WARP
                    error = read_operands(at, left, right, first, own, turn, state)
                    if error:
                        return error, waiting
    return NO_ERROR, 0


def views(memory):
    """Return memory as integers of 1, 2, 4 and 8 bytes, and as floats.

    Views are made here because Numba takes seconds to compile the making of one.
    """
    return tuple(memory.view(kind) for kind in (np.uint8, np.uint16, np.uint32, np.int64, np.float32))


def run_blocks(code, template, special, grid, threads, memory, known, notes, launch, shared_bytes):
    """Run all blocks of a launch, one after the other.

    Parameters
    ----------
    code
        The table of instructions, flattened.
    template
        The initial registers of a thread.
    special
        The registers of the number of a thread in its block and in its warp, and of a block along three axes.
    grid
        The numbers of blocks along three axes.
    threads
        The number of threads of a block.
    memory, known, notes
        The attributes of `ptx_memory.Memory`.
    launch
        The number of the launch, a multiple of `BLOCKS`.
    shared_bytes
        The size of the shared memory of a block in bytes.

    Returns
    -------
    error, place
        The code of a fault in `ERRORS`, and the number of its instruction.
    """
    registers, shared = np.empty(threads * len(template), np.int64), np.empty((shared_bytes + 15) // 8, np.int64)
    shared_notes, warps = tuple(np.zeros(2 * len(shared), np.int64) for _ in notes), -(-threads // WARP)
    state = State(
        code=code,
        registers=(registers, registers.view(np.float32)),
        memory=views(memory),
        shared=views(shared),
        accesses=Accesses(known, notes, launch, shared_bytes, shared_notes),
        flags=np.zeros(threads, np.int64),
        copies=np.empty(threads * COPIES * 3, np.int64),
        copy_counts=np.zeros(2 * threads, np.int64),
        products=np.empty(warps * PRODUCTS * 4, np.int64),
        product_counts=np.zeros(2 * warps, np.int64),
        held=np.empty(len(registers), np.float32),
    )
    return execute(template, special, grid, np.empty(threads, np.int64), state)
