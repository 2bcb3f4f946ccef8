"""Independent pieces of work, one after the other or by an executor of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Return function(task) for every task, in the order of the tasks.

    The executor is the user's, who ends it: ``ThreadPoolExecutor``, ``ProcessPoolExecutor``, joblib's
    ``get_reusable_executor()``, dask's ``client.get_executor()`` or submitit's, for only ``submit`` is called and only
    ``result`` and ``cancel`` of what it returns. For other processes function and tasks must pickle; a task carries
    its random numbers, or their seed, so that results are the same wherever it runs. A function that is mapped maps
    nothing by the same executor, whose workers would wait for each other.

    Args:
        function: Of one task, from the top level of a module.
        tasks: What it is called with.
        executor: Who calls; None for this thread.
        progress: Called with (done, total) in the order of the tasks.

    Raises:
        Exception: What the first task to fail, in their order, has raised; tasks that have not begun are cancelled.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as executor:
        ...     map_tasks(abs, [-1, 2, -3], executor)
        [1, 2, 3]
    """
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(f"executor: expected a concurrent.futures.Executor or None, got {type(executor).__name__}")
    futures = None if executor is None else [executor.submit(function, task) for task in tasks]
    found = []
    try:
        for index, task in enumerate(tasks):
            found.append(function(task) if futures is None else futures[index].result())
            if progress is not None:
                progress(index + 1, len(tasks))
    except BaseException:
        for future in futures or ():
            future.cancel()
        raise
    return found
