"""What the processes of the tests of sharded problems do; a module of its own, which a fresh process can import."""

from __future__ import annotations

import os
import pickle
import time
from datetime import timedelta
from pathlib import Path

import gpytorch
import numpy as np
import torch
import torch.distributed as dist

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.exceptions import LostProcessError
from torch_propkernel.inference import StreamedProblem, Streaming
from torch_propkernel.spectra import KernelOperator, ShardedKernelOperator
from torch_propkernel.theories import SaddlePoint, width_sweep

P = 150
OPTIONS = {
    "num_probes": 4,
    "block_steps": 5,
    "rank": 30,
    "tolerance": 1e-7,
    "residual": 1e-9,
    "variance_tolerance": 1e-9,
    "tile_size": 40,
    "num_left_out": 20,
}


def data(number, seed):
    rng = np.random.default_rng(seed)
    x = torch.as_tensor(rng.normal(size=(number, 5)))
    return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * torch.as_tensor(rng.normal(size=number))


def make_model(noise=0.05):
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    model = NetworkGP(*data(P, 0), likelihood, RenormalizedNNGPKernel("relu", width=[30.0, 50.0])).double()
    model.likelihood.noise = noise
    return model


def everything(group=None, checkpoint=None):
    """Return what a user asks of a streamed problem, as tensors."""
    told = []
    options = Streaming(
        process_group=group, checkpoint=checkpoint, progress=lambda done, limit: told.append((done, limit)), **OPTIONS
    )
    problem = StreamedProblem.of_streamed(make_model(), options)
    fitted = SaddlePoint().fit(problem)
    x, y = data(12, 1)
    operator = problem.operator
    own = operator.own_rows
    vectors = torch.randn(P, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sweep = width_sweep(problem, [5.0, 500.0], x, y)
    found = {
        "product": operator.matmul(vectors),
        "cross": operator.cross_matmul(x, vectors),
        "own product": operator.gathered(operator.own_matmul(vectors[own])),
        "columns": operator.columns(x),
        "own columns": operator.gathered(operator.own_columns(x)),
        "some rows": operator.rows_at(vectors[own], torch.tensor([149, 0, 76, 76, 50])),
        "diagonal": operator.diagonal(),
        "preconditioned": operator.gathered(problem.preconditioner.solve(vectors[own], 0.7, 0.05, operator.total)),
        "solved by the run": operator.gathered(problem.lanczos.solve_targets(0.7, 0.05)[0].unsqueeze(-1)),
        "eigenvalues": problem.spectrum().eigenvalues,
        "q": fitted.order_parameters["q"],
        "evidence": torch.as_tensor(fitted.log_evidence),
        "latent": torch.stack(fitted.predict(x)),
        "mean": fitted.conditioned.mean(x),
        "joint": torch.cat([part.flatten() for part in fitted.conditioned.moments(x, joint=True)]),
        "left out": fitted.conditioned.leave_one_out().total,
        "training error": fitted.training_error(),
        "sweep": sweep.test.total,
    }
    return found, told, problem


def share_everything(rank, number, folder):
    join(rank, number, folder)
    found, told, problem = everything("world", folder / "run.pt")
    held = {"basis": problem.lanczos.run.basis, "part": [problem.preconditioner.vectors.T]}
    held = {name: {block.shape[-1] for block in blocks} for name, blocks in held.items()}
    alone = pickle.loads(pickle.dumps(problem)).at(0.3).mean(data(12, 1)[0])
    errors = {"errors": other_vectors(rank), "data": other_data(rank), "late": come_late(rank, number)}
    torch.save({"found": found, "told": told, "held": held, "alone": alone, **errors}, folder / f"{rank}.pt")
    os._exit(0)  # a group that was too late is not left in an orderly way


def other_vectors(rank):
    """Return what is said of processes that do not do the same: other columns, another file, no member."""
    operator, said = ShardedKernelOperator(lambda a, b: a @ b.T, torch.eye(5), tile_size=2), []
    for vectors in (torch.ones(5, 1 + rank), torch.ones(5, 1) + rank):
        try:
            operator.matmul(vectors)
        except ValueError as error:
            said.append(str(error))
    alone = dist.new_group([0])
    if rank > 0:
        try:
            ShardedKernelOperator(lambda a, b: a @ b.T, torch.eye(5), alone)
        except ValueError as error:
            said.append(str(error))
    return said


def other_data(rank):
    """Return what is said where one process has other targets, another kernel, or predicts at other points."""
    said = []
    for change in ("targets", "kernel", "points"):
        model, (x, _) = make_model(), data(12, 1)
        if rank == 1 and change == "targets":
            model.set_train_data(targets=model.train_targets + 0.1, strict=False)
        if rank == 1 and change == "kernel":
            model.covar_module.weight_variance = 1.1 * model.covar_module.weight_variance
        if rank == 1 and change == "points":
            x = x + 0.1
        try:
            StreamedProblem.of_streamed(model, Streaming(process_group="world", **OPTIONS)).at(1.0).predict(x)
        except ValueError as error:
            said.append(str(error))
    return said


def go_on(rank, number, folder):
    """Write what a run tells that goes on from the checkpoint, and its prediction."""
    join(rank, number, folder)
    told = []
    options = Streaming(
        process_group=dist.group.WORLD, checkpoint=folder / "run.pt", progress=lambda *at: told.append(at), **OPTIONS
    )
    problem = StreamedProblem.of_streamed(make_model(), options)
    problem.spectrum()
    mean = problem.at(1.0).mean(data(12, 1)[0])
    torch.save({"told": told, "mean": mean}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def end_early(rank, number, folder):
    """The last process ends in the middle of a product, the others write what they are told."""
    join(rank, number, folder)
    own, done = KernelOperator.matmul, []

    def matmul(self, vectors, progress=None):
        done.append(1)
        if len(done) == 13 and rank == number - 1:
            os._exit(7)
        return own(self, vectors, progress)

    KernelOperator.matmul = matmul
    try:
        everything("world", folder / "run.pt")
    except LostProcessError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    os._exit(0)


def come_late(rank, number):
    """Return what the first process is told when the last one is later than the group waits."""
    group = dist.new_group(timeout=timedelta(seconds=1.0))
    operator = ShardedKernelOperator(lambda a, b: a @ b.T, torch.eye(5), group, tile_size=2)
    if rank == number - 1:
        time.sleep(2.5)
    try:
        operator.matmul(torch.ones(5, 1))
    except LostProcessError as error:
        return str(error)
    return ""


def join(rank, number, folder: Path):
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=number, timeout=timedelta(seconds=60))
