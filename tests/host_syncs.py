"""Where a computation would wait for an accelerator, counted on the CPU."""

from __future__ import annotations

import traceback
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torch_propkernel

# float(tensor), .item(), bool(tensor) and the like; sizes that depend on values, as those of boolean masks; and the
# checks of a factorization. On CUDA each of them waits until everything before it is computed.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_linalg_check_errors",
    "aten::equal",
}


class HostSyncs(TorchDispatchMode):
    """Counts in ``places``, by file and line of the package, what would wait for an accelerator.

    ``numpy`` of a tensor on a processor passes it by.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.places.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func._schema.name in _WAITING or by_mask:
            self._count()
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        def tolist(tensor):  # reads memory without any operation of torch
            self._count()
            return inherited(tensor)

        inherited, torch.Tensor.tolist = torch.Tensor.tolist, tolist
        return super().__enter__()

    def __exit__(self, *error):
        del torch.Tensor.tolist  # a class below has it
        return super().__exit__(*error)

    def _count(self) -> None:
        folder = torch_propkernel.__path__[0]
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(folder)]
        place = f"{frames[-1].filename[len(folder) + 1 :]}:{frames[-1].lineno}" if frames else "elsewhere"
        self.places[place] += 1
