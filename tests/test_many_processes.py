"""The example of several processes gives the numbers of one."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "many_processes.py"


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_torchrun_prints_what_one_process_finds(tmp_path):
    arguments = ["--rows", "1100", "--test", "20", "--rank", "50"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # Without an accelerator, which two processes would have to share.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    checkpoint = ["--checkpoint", str(tmp_path / "run.pt")]
    run = subprocess.run(
        [*command, str(EXAMPLE), *arguments, *checkpoint], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    spec = importlib.util.spec_from_file_location("many_processes", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main(arguments)
    assert run.stdout.count("2 process(es), 2 of 3 tiles here") == 1  # the first process alone prints
    q, error = map(float, re.search(r"q = (\S+) .* test error (\S+)", run.stdout).groups())
    assert q == pytest.approx(found["q"], abs=1e-8)  # as it is printed
    # The variance's tolerance is 1e-3, at which a step of conjugate gradients more or less may be taken.
    assert error == pytest.approx(found["test_error"], rel=1e-3)
    assert {file.name for file in tmp_path.iterdir()} == {"run.pt.0of2", "run.pt.1of2"}
