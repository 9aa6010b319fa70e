"""Whether arrays share memory, asked by compiled code. Knows arrays of up to three axes, and nothing of what they hold."""

from __future__ import annotations

from typing import Any

from numba import njit

# All of it is only ever compiled: coverage cannot see it run.


def _places(array: Any) -> Any:  # pragma: no cover
    """Sizes and strides as of three axes."""
    if array.ndim == 1:
        return (1, 1, array.shape[0]), (0, 0, array.strides[0])
    if array.ndim == 2:
        return (1, array.shape[0], array.shape[1]), (0, array.strides[0], array.strides[1])
    return array.shape, array.strides


def _bounds(array: Any) -> Any:  # pragma: no cover
    """Addresses of the first byte and behind the last."""
    begin, end = array.ctypes.data, array.ctypes.data + array.itemsize
    for axis in range(array.ndim):
        reach = array.strides[axis] * (array.shape[axis] - 1)
        begin, end = begin + min(0, reach), end + max(0, reach)
    return begin, end


def _apart(a: Any, b: Any) -> Any:  # pragma: no cover
    """Whether two arrays share no memory.

    Exact for arrays of the same strides. Where their strides differ, two that only lie in the same stretch of memory count
    as sharing it: an overlap is always found, and some that have none are refused.
    """
    (a_begin, a_end), (b_begin, b_end) = bounds(a), bounds(b)
    if a_end <= b_begin or b_end <= a_begin:
        return True
    (sizes, strides), (others, steps) = places(a), places(b)
    for axis in range(3):
        if strides[axis] != steps[axis] and sizes[axis] > 1 and others[axis] > 1:
            return False
    first, second = strides[0] if sizes[0] > 1 else steps[0], strides[1] if sizes[1] > 1 else steps[1]
    third = strides[2] if sizes[2] > 1 else steps[2]
    apart_by = b.ctypes.data - a.ctypes.data
    for i in range(1 - others[0], sizes[0]):
        for j in range(1 - others[1], sizes[1]):
            # An element of b lies `gap` bytes behind one of a, k elements apart. The nearest are before and behind the k
            # for which the gap would be 0, or the last there is on that side.
            rest = apart_by - i * first - j * second
            before = rest // third if third != 0 else 0
            for k in (before, before + 1):
                gap = rest - min(max(k, 1 - others[2]), sizes[2] - 1) * third
                if -b.itemsize < gap < a.itemsize:
                    return False
    return True


places, bounds, apart = (njit(nogil=True)(part) for part in (_places, _bounds, _apart))
