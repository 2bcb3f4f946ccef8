"""Files of a Lanczos run that several processes share, beside the run of one."""

from __future__ import annotations

import pytest
import torch

from torch_propkernel.inference.checkpoint import load_checkpoint, save_checkpoint
from torch_propkernel.spectra import LanczosRun

P = 50
IDENTITY = {"targets": torch.arange(P).double()}


@pytest.fixture
def matrix():
    root = torch.randn(P, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return root @ root.T


def run_of(matrix, *blocks):
    run = LanczosRun(torch.randn(P, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    for steps in blocks:
        run.extend(matrix.matmul, steps)
    return run


def save_shared(path, run, number, rank):
    rows = slice(P * rank // number, P * (rank + 1) // number)
    state = run.state()
    state = {**state, "next": state["next"][:, rows], "basis": [block[..., rows] for block in state["basis"]]}
    save_checkpoint(path, state, (rank, number), rows, **IDENTITY)


def same(state, truth, rows):
    for name in ("norms", "alphas", "betas"):
        assert torch.equal(state[name], truth[name])
    assert torch.equal(state["next"], truth["next"][:, rows])
    assert torch.equal(torch.cat(state["basis"], 1), torch.cat(truth["basis"], 1)[..., rows])


@pytest.mark.parametrize("rows", [slice(0, P), slice(7, 31), slice(40, P)])
def test_any_rows_of_a_shared_run(tmp_path, matrix, rows):
    run = run_of(matrix, 4, 3)
    for rank in range(3):
        save_shared(tmp_path / "run.pt", run, 3, rank)
    same(load_checkpoint(tmp_path / "run.pt", rows, **IDENTITY), run.state(), rows)
    assert not (tmp_path / "run.pt").exists() and len(list(tmp_path.iterdir())) == 3


def test_processes_that_were_killed_between_their_files(tmp_path, matrix):
    """The first one has written a block more: all go on from the block that all have, to the same end."""
    short, long = run_of(matrix, 4), run_of(matrix, 4, 3)
    for rank, run in enumerate([long, short]):
        save_shared(tmp_path / "run.pt", run, 2, rank)
    found = load_checkpoint(tmp_path / "run.pt", slice(0, P), **IDENTITY)
    same(found, short.state(), slice(0, P))
    again = LanczosRun.from_state(found)
    again.extend(matrix.matmul, 3)
    for name in ("alphas", "betas"):  # products of other strides are rounded in another order
        torch.testing.assert_close(getattr(again, name), getattr(long, name), rtol=1e-12, atol=0)


def test_the_longest_of_several_runs_is_read(tmp_path, matrix):
    save_checkpoint(tmp_path / "run.pt", run_of(matrix, 2).state(), (0, 1), slice(0, P), **IDENTITY)
    long = run_of(matrix, 4)
    for rank in range(2):
        save_shared(tmp_path / "run.pt", long, 2, rank)
    same(load_checkpoint(tmp_path / "run.pt", slice(0, P), **IDENTITY), long.state(), slice(0, P))


def test_missing_files_are_an_error(tmp_path, matrix):
    assert load_checkpoint(tmp_path / "run.pt", slice(0, P), **IDENTITY) is None
    save_shared(tmp_path / "run.pt", run_of(matrix, 2), 3, 1)
    with pytest.raises(ValueError, match=r"expected the files of all 3 processes.*got those of \[1\]"):
        load_checkpoint(tmp_path / "run.pt", slice(0, P), **IDENTITY)
