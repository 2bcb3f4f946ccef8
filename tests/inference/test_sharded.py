"""A streamed problem whose products several processes share, beside the same problem on one."""

from __future__ import annotations

import pickle

import pytest
import sharded_workers as workers
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from torch_propkernel.inference import StreamedProblem, Streaming
from torch_propkernel.spectra import ShardedKernelOperator

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch was built without gloo", allow_module_level=True)


def launch(work, number, folder):
    """Run a function on so many fresh processes and return them when all have ended."""
    context = mp.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, number, folder)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return processes


@pytest.fixture(scope="module")
def alone():
    return workers.everything()


@pytest.fixture(scope="module", params=[2, 3])
def shared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"of_{request.param}")
    processes = launch(workers.share_everything, request.param, folder)
    assert not any(process.exitcode for process in processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def test_the_numbers_are_those_of_one_process(alone, shared):
    found, _, problem = alone
    away = problem.at(0.3).mean(workers.data(12, 1)[0])
    torch.testing.assert_close(shared[0]["alone"], away, rtol=1e-8, atol=1e-9)  # a copy that left the group
    for name, value in shared[0]["found"].items():
        # Sums in another order differ by 1e-15, which conjugate gradients raise up to what they leave: 1e-9.
        torch.testing.assert_close(value, found[name], rtol=1e-8, atol=1e-9, msg=lambda text, name=name: name + text)
    torch.testing.assert_close(shared[0]["found"]["product"], found["product"], rtol=1e-13, atol=1e-12)


def test_all_processes_have_the_same_bits(shared):
    for name, value in shared[0]["found"].items():
        assert all(torch.equal(other["found"][name], value) for other in shared[1:]), name


def test_each_process_evaluates_its_share_of_the_tiles(alone, shared):
    _, told, _ = alone
    per_product = [each["told"][0][1] for each in shared]  # tiles of one's own times the limit of products
    assert sum(per_product) == told[0][1]
    assert max(per_product) - min(per_product) <= told[0][1] / 10  # ten tiles, dealt in turn


def test_each_process_holds_its_own_rows(shared):
    for name in ("basis", "part"):
        rows = [each["held"][name] for each in shared]
        assert all(len(each) == 1 for each in rows)
        assert sum(each.pop() for each in rows) == workers.P
    number, options = len(shared), Streaming()
    assert options.num_bytes(10**7, number) < 1.02 / number * options.num_bytes(10**7, 1)


def test_other_data_on_one_process_is_told(shared):
    for each in shared:
        assert len(each["data"]) == 3
        assert all("expected the same on all processes" in text for text in each["data"])


def test_processes_that_do_other_things_are_told(shared):
    for rank, each in enumerate(shared):
        columns, size, *member = each["errors"]
        assert f"vectors: expected the same on all processes, got {1 + rank} columns of size" in columns
        assert f"on process {rank} and 1 columns of size" in size
        assert len(member) == (rank > 0)
        assert all("expected one to which this process belongs" in text for text in member)


def test_a_lost_process_is_an_error_and_the_checkpoint_is_continued(tmp_path):
    assert [process.exitcode for process in launch(workers.end_early, 2, tmp_path)] == [0, 7]
    said = (tmp_path / "0.txt").read_text()
    assert "processes: expected an answer of all 2" in said
    assert "a checkpoint is continued" in said
    (tmp_path / "store").unlink()
    assert [process.exitcode for process in launch(workers.go_on, 2, tmp_path)] == [0, 0]
    again, x = torch.load(tmp_path / "0.pt"), workers.data(12, 1)[0]
    own_tiles = 5  # of the ten
    # 13 products began: two blocks of 5 are in the file, so that the first new one is the 11th.
    assert again["told"][0] == (10 * own_tiles + 1, 400 * own_tiles)
    told = []
    for checkpoint in (None, tmp_path / "run.pt"):  # one process reads what two have written
        options = Streaming(checkpoint=checkpoint, progress=lambda *at: told.append(at), **workers.OPTIONS)
        problem = StreamedProblem.of_streamed(workers.make_model(), options)
        problem.spectrum()
        torch.testing.assert_close(again["mean"], problem.at(1.0).mean(x), rtol=1e-8, atol=1e-9)
        if checkpoint is None:
            products = len(told)
    assert len(told) - products < products / 2


def test_a_late_process_is_an_error(shared):
    for each in shared[:-1]:
        assert f"processes: expected an answer of all {len(shared)}" in each["late"]


def test_one_process_is_a_group_too(alone):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        options = Streaming(process_group=dist.group.WORLD, **workers.OPTIONS)
        assert options.process_group == "world"  # the object is not held
        problem = StreamedProblem.of_streamed(workers.make_model(), options)
        assert isinstance(problem.operator, ShardedKernelOperator)
        x, _ = workers.data(12, 1)
        mean = problem.at(1.0).mean(x)
        copy = pickle.loads(pickle.dumps(problem))
        assert copy.streaming.process_group is None
        assert torch.equal(copy.at(1.0).mean(x), mean)
    finally:
        dist.destroy_process_group()


def test_without_a_group():
    with pytest.raises(ValueError, match="process_group: expected one, got none that is initialized"):
        ShardedKernelOperator(lambda a, b: a @ b.T, torch.eye(3))
    with pytest.raises(ValueError, match="process_group: expected a ProcessGroup, 'world' or None, got 'all'"):
        Streaming(process_group="all")
