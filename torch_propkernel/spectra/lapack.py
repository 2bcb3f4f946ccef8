"""Rotation of vectors by the left singular vectors of a bidiagonal matrix, which are never formed.

scipy wraps all the LAPACK routines that a tridiagonal reduction needs but ``dbdsqr``, which is reached through the
function pointers that scipy exports for Cython; if those are missing or of another type, eigenvectors of the
tridiagonal matrix take its place.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@cache
def _dbdsqr() -> Any:
    """LAPACK's bidiagonal QR iteration as a ctypes function, or None."""
    try:
        from scipy.linalg import cython_lapack

        capsule = cython_lapack.__pyx_capi__["dbdsqr"]
        get_name = ctypes.pythonapi.PyCapsule_GetName
        get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        name = get_name(capsule)
        arguments = [a.strip() for a in name.decode().partition("(")[2].rstrip(")").split(",")]
        kinds = [
            "char" if a == "char *" else "int" if a == "int *" else "d" if a.endswith("_d *") else a for a in arguments
        ]
        if kinds != ["char", *["int"] * 4, *["d"] * 3, "int", "d", "int", "d", "int", "d", "int"]:
            return None
        return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 15)(get_pointer(capsule, name))
    except (ImportError, AttributeError, KeyError, IndexError):
        return None


def _bidiagonal_singular_values(diagonal: Array, off_diagonal: Array, columns: Array) -> tuple[Array, Array] | None:
    """Singular values of the lower bidiagonal B = U S V^T and U^T columns, or None if the routine is not at hand."""
    routine = _dbdsqr()
    if routine is None:
        return None
    size = len(diagonal)
    values, below, rotated = diagonal.copy(), np.append(off_diagonal, 0.0), np.array(columns, order="F")
    work, unused = np.empty(4 * size), np.zeros(1)
    uplo, info = ctypes.c_char(b"L"), ctypes.c_int(0)
    n, zero, one, number = ctypes.c_int(size), ctypes.c_int(0), ctypes.c_int(1), ctypes.c_int(columns.shape[1])

    def address(value: Any) -> int:
        return value.ctypes.data if isinstance(value, np.ndarray) else ctypes.addressof(value)

    given = (uplo, n, zero, zero, number, values, below, unused, one, unused, one, rotated, n, work, info)
    routine(*map(address, given))
    return (values, rotated) if info.value == 0 else None


def rotated_by_eigenvectors(diagonal: Array, off_diagonal: Array, columns: Array) -> Array:
    """Return U^T C, ``P x D``, with the eigenvectors U of a positive semi-definite tridiagonal matrix, in rising order.

    The matrix is shifted to be positive definite and factored into a bidiagonal B with B B^T = T, whose QR sweeps are
    applied to C: O(P^2) for each column. Signs are arbitrary, as those of eigenvectors are.
    """
    from scipy.linalg import eigh_tridiagonal, lapack  # a tenth of a second of import time, for this alone

    size = len(diagonal)
    if size == 1:
        return columns
    largest = max(np.abs(diagonal).max(), np.abs(off_diagonal).max())
    shift = 4.0 * np.finfo(np.float64).eps * np.sqrt(size) * largest
    pivots, ratios, info = lapack.dpttrf(diagonal + shift, off_diagonal)
    if info == 0:
        roots = np.sqrt(pivots)
        found = _bidiagonal_singular_values(roots, ratios * roots[:-1], columns)
        if found is not None:
            return found[1][np.argsort(found[0])]
    return eigh_tridiagonal(diagonal, off_diagonal)[1].T @ columns
