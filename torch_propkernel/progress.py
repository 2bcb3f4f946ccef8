"""Progress bars for long computations; needs tqdm, which the rest of the package does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(description: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar while the block runs, moved by a callable ``(done, total)``.

    The callable goes into the ``progress`` argument of :func:`torch_propkernel.networks.sample_posterior`, of
    :class:`torch_propkernel.inference.Streaming` and others; it may be used for several runs in turn, each of which
    starts the bar anew. The time that is left is that until ``total``, which an iteration that is accurate earlier
    does not need.

    Args:
        description: Text before the bar.

    Raises:
        ModuleNotFoundError: tqdm is not installed: ``pip install tqdm``.

    Example:
        >>> from torch_propkernel.progress import progress_bar
        >>> with progress_bar("sampling") as advance:
        ...     for done in range(1, 4):
        ...         advance(done, 3)
    """
    from tqdm.auto import tqdm

    with tqdm(desc=description or None, leave=True) as bar:

        def advance(done: int, total: int) -> None:
            if done < bar.n or bar.total != total:
                bar.reset(total)
            bar.update(done - bar.n)

        yield advance


__all__ = ["progress_bar"]
