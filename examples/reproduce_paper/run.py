"""Computes all points and curves of a plan in worker processes, with a bar; finished parts are kept on disk."""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch

from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import ConvergenceError, SamplingWarning
from torch_propkernel.networks import FiniteNetwork, sample_posterior
from torch_propkernel.progress import progress_bar

from .data import Source, describe, load_task
from .experiments import Curve, Plan, Point, Sampling
from .theory import predict, predict_curve

QUANTITIES = ("test_error", "bias", "variance", "training_error", "order_parameter")
Job = tuple[Point | Curve, Sampling, Source, str]


def compute(job: Job) -> dict:
    """Return the predictions for a curve, or for a point beside the sampled network."""
    what, sampling, source, device = job
    start = time.perf_counter()
    if isinstance(what, Curve):
        found = {"theory": predict_curve(what, sampling.num_test, source)}
    else:
        task = load_task(what.task, what.num_data, sampling.num_test, source)
        found = {"predicted": predict(task, what)} | sample(what, sampling, source, device)
    return found | {"seconds": time.perf_counter() - start}


def sample(point: Point, sampling: Sampling, source: Source, device: str) -> dict:
    """Return measured averages of the finite network with their errors and diagnostics."""
    task = load_task(point.task, point.num_data, sampling.num_test, source)
    network = FiniteNetwork(
        get_activation(point.activation), task.x.shape[-1], point.widths, dtype=torch.float64, device=device
    )
    x, y, test_x, test_y = (tensor.to(device) for tensor in (task.x, task.y, task.test_x, task.test_y))
    data = {"test_x": test_x, "test_y": test_y, "num_chains": sampling.num_chains}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # recorded below
        for factor in sorted({1, sampling.repeat}):
            draws = {"num_samples": factor * sampling.num_samples, "warmup": factor * sampling.warmup}
            try:
                result = sample_posterior(network, x, y, point.temperature, **data, **draws)
            except ConvergenceError as error:
                return {"converged": False, "message": str(error), "measured": {}}
            if result.converged:
                break
    fields = "mean", "standard_error", "effective_sample_size", "r_hat"
    measured = {name: {field: float(getattr(getattr(result, name), field)) for field in fields} for name in QUANTITIES}
    return {
        "measured": measured,
        "converged": result.converged,
        "message": result.message,
        "acceptance": result.acceptance,
        "draws": draws,
        "gradients_per_draw": result.num_gradients / draws["num_samples"],
    }


def run(
    plan: Plan, source: Source, store: Path, workers: int = 2, device: str = "cpu", minutes: float = float("inf")
) -> dict:
    """Return the results of a plan, as plain numbers; what ``store`` (JSON lines) holds is not computed again.

    After ``minutes`` no point is begun: what is missing then is named under "missing", and the same call goes on later.
    """
    jobs = {_key(job): job for job in _jobs(plan, source, device)}
    done = _read(store)
    missing = sorted((key for key in jobs if key not in done), key=lambda key: _cost(jobs[key]))
    store.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar("points and curves") as advance:
        advance(len(jobs) - len(missing), len(jobs))
        for number, (key, found) in enumerate(_compute_all(missing, jobs, workers, minutes), start=1):
            done[key] = found
            with store.open("a") as file:
                file.write(json.dumps({"key": key, "found": found}) + "\n")
            advance(len(jobs) - len(missing) + number, len(jobs))

    def look_up(what: Point | Curve) -> dict | None:
        return done.get(_key((what, plan.sampling, source, device)))

    curves, absent = [], []
    for curve in plan.curves:
        words = dict(zip(("title", "description"), describe(curve.task, source), strict=True))
        points = [
            {"value": v} | asdict(curve.point(v)) | found for v in curve.values if (found := look_up(curve.point(v)))
        ]
        absent += [asdict(curve.point(v)) | words for v in curve.values if look_up(curve.point(v)) is None]
        curves.append(asdict(curve) | words | (look_up(curve) or {"theory": {}}) | {"points": points})
    versions = {name: version(name) for name in ("torch", "gpytorch", "torch_propkernel")}
    about = {"versions": versions, "python": platform.python_version(), "device": device}
    return {"about": about, "sampling": asdict(plan.sampling), "missing": absent, "curves": curves}


def _jobs(plan: Plan, source: Source, device: str) -> Iterator[Job]:
    for curve in plan.curves:
        for what in (curve, *curve.points):
            yield what, plan.sampling, source, device


def _compute_all(keys: list[str], jobs: dict[str, Job], workers: int, minutes: float) -> Iterator[tuple[str, dict]]:
    """Yield results as they come; begin nothing after the time limit."""
    start = time.monotonic()

    def begun(queue: list[str]) -> Iterator[str]:
        yield from (key for key in queue if time.monotonic() - start < 60.0 * minutes)

    if workers == 0:
        yield from ((key, compute(jobs[key])) for key in begun(keys))
        return
    context, waiting = multiprocessing.get_context("spawn"), begun(keys)
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(compute, jobs[key]): key for key in islice(waiting, workers)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
                running |= {pool.submit(compute, jobs[key]): key for key in islice(waiting, 1)}


def _key(job: Job) -> str:
    """What a result depends on; the files behind a task are known by its description."""
    what, sampling, source, device = job
    description = describe(what.task, source)[1]
    options = asdict(sampling) if isinstance(what, Point) else {"num_test": sampling.num_test}
    return json.dumps([type(what).__name__, asdict(what), options, description, device])


def _cost(job: Job) -> float:
    return job[0].cost if isinstance(job[0], Point) else 0.0  # curves come first: they are short, plots need them


def _read(store: Path) -> dict[str, dict]:
    if not store.exists():
        return {}
    records = [json.loads(line) for line in store.read_text().splitlines()]
    return {record["key"]: record["found"] for record in records}
