"""Files that version 0.1.0 wrote: they load and predict what that version predicted (float64, one machine)."""

import json
from pathlib import Path

import pytest
import torch

from torch_propkernel import load
from torch_propkernel.saving import SavedModelError

FOLDER = Path(__file__).parents[1] / "data" / "saved_by_0.1.0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
KEPT = sorted(name for name in EXPECTED["files"] if not name.startswith("deleted"))


@pytest.mark.parametrize("name", KEPT)
def test_loads_and_predicts_the_same(name):
    expected = EXPECTED["files"][name]
    model = load(FOLDER / f"{name}.propkernel").model.eval()
    if "order_parameter" in expected:
        [kernel] = [module for module in model.modules() if hasattr(module, "raw_order_parameter")]
        order_parameter = torch.tensor(expected["order_parameter"], dtype=torch.float64)
        torch.testing.assert_close(kernel.order_parameter.flatten(), order_parameter, rtol=1e-15, atol=0)
    if "mean" in expected:
        predicted = model(torch.tensor(EXPECTED["new"], dtype=torch.float64))
        # Rounding of other BLAS kernels; the posterior variances are differences of numbers a hundred times larger.
        torch.testing.assert_close(predicted.mean.tolist(), expected["mean"], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(predicted.variance.tolist(), expected["variance"], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "removed", "replacement"),
    [
        ("deleted_composition", "torch_propkernel.Linearized", 'composition="nested"'),
        ("deleted_mixing_law", "torch_propkernel.GeneralizedInverseGaussianMixing", "posterior_of_scale"),
    ],
)
def test_a_removed_class_is_refused_with_its_replacement(name, removed, replacement):
    with pytest.raises(SavedModelError) as refusal:
        load(FOLDER / f"{name}.propkernel")
    assert f"got {removed!r}, which was removed in 0.2.0" in str(refusal.value)
    assert replacement in str(refusal.value)
