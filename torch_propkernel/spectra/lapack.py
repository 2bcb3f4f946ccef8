"""Reduction of a symmetric matrix and a vector to eigenvalues and projections without eigenvectors, on the CPU.

K is turned so that y becomes the first axis, reduced to tridiagonal form (which leaves the first axis alone), shifted
to be positive definite and factored into a bidiagonal B with B B^T = T. The singular values of B give the eigenvalues,
and the QR sweeps that find them, applied to the first axis, give y's projections on the eigenvectors: O(P^2) after the
reduction. scipy wraps all the routines but LAPACK's ``dbdsqr``, which is reached through the function pointers that
scipy exports for Cython; if those are missing or of another type, eigenvectors of the tridiagonal matrix take its
place.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[np.float64]]


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


def _bidiagonal_singular_values(diagonal: _Array, off_diagonal: _Array, vector: _Array) -> tuple[_Array, _Array] | None:
    """Singular values of the lower bidiagonal B = U S V^T and U^T vector, or None if the routine is not at hand."""
    routine = _dbdsqr()
    if routine is None:
        return None
    size = len(diagonal)
    values, below, rotated = diagonal.copy(), np.append(off_diagonal, 0.0), vector.copy()
    work, unused = np.empty(4 * size), np.zeros(1)
    uplo, info = ctypes.c_char(b"L"), ctypes.c_int(0)
    n, zero, one = ctypes.c_int(size), ctypes.c_int(0), ctypes.c_int(1)

    def address(value: Any) -> int:
        return value.ctypes.data if isinstance(value, np.ndarray) else ctypes.addressof(value)

    routine(*map(address, (uplo, n, zero, zero, one, values, below, unused, one, unused, one, rotated, n, work, info)))
    return (values, rotated) if info.value == 0 else None


def eigenvalues_and_projections(matrix: _Array, vector: _Array) -> tuple[_Array, _Array]:
    """Return ascending eigenvalues k of a positive semi-definite matrix and z = U^T y for its eigenvectors U.

    Signs of z are arbitrary, as those of eigenvectors are. ``matrix`` (``P x P``, float64) is overwritten.
    Cost: about 4/3 P^3 flops in the tridiagonal reduction, a quarter of a full eigendecomposition's time.
    """
    from scipy.linalg import blas, eigh_tridiagonal, lapack  # a tenth of a second of import time, for this alone

    size = matrix.shape[0]
    norm = float(np.linalg.norm(vector))
    if size == 1 or norm == 0.0:
        return np.sort(np.linalg.eigvalsh(matrix)), np.full(size, norm)
    # Householder reflection that turns y into -sign(y_1) |y| e_1, applied to K from both sides as a rank-two update.
    mirror = vector / norm
    mirror[0] += np.copysign(1.0, mirror[0])
    mirror /= np.linalg.norm(mirror)
    product = blas.dsymv(1.0, matrix.T, mirror, lower=1)
    product -= (mirror @ product) * mirror
    work = blas.dsyr2(-2.0, mirror, product, lower=1, a=matrix.T, overwrite_a=1)
    size_work = int(lapack.dsytrd_lwork(size, lower=1)[0])
    _, diagonal, off_diagonal, _, info = lapack.dsytrd(work, lower=1, lwork=size_work, overwrite_a=1)
    first_axis = np.zeros(size)
    first_axis[0] = norm
    shift = 4.0 * np.finfo(np.float64).eps * np.sqrt(size) * max(np.abs(diagonal).max(), np.abs(off_diagonal).max())
    pivots, ratios, info = lapack.dpttrf(diagonal + shift, off_diagonal)
    if info == 0:
        roots = np.sqrt(pivots)
        found = _bidiagonal_singular_values(roots, ratios * roots[:-1], first_axis)
        if found is not None:
            order = np.argsort(found[0])
            return found[0][order] ** 2 - shift, found[1][order]
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    return values, norm * vectors[0]
