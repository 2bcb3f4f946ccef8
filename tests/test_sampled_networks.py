"""The package against finite networks that were sampled exactly (THEORY.md section 7).

Two kinds of statement. (1) Formulas: for every case the package's saddle equals the independent value listed as
`theory`, whatever the network did. (2) Physics: where the theory is a theory of the data at hand, the prediction is
close to the measured error; these are medians by regime, because single cases deviate by 1/N_1 corrections and by
features that small networks learn on structured data.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_propkernel import Erf, ReLU, fit_order_parameters, generalization_error, training_error

# random labels and small widths are outside the validated regime on purpose: the package is right to warn
pytestmark = pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")

ACTIVATIONS = {"erf": Erf, "relu": ReLU}
COMPOSITION = {"saddle": "outer", "saddle_nested": "nested", "saddle_outer": "outer", "saddle_lin": "linear_part"}


def predictions(case, make_model) -> dict[str, dict]:
    """{key of `theory`: q and the two parts of the predicted test error} for all saddles of one case."""
    out = {}
    for key, composition in COMPOSITION.items():
        if key not in case["theory"]:
            continue
        model = make_model(
            case["X"],
            case["y"],
            ACTIVATIONS[case["activation"]](),
            case["widths"],
            case["temperature"],
            case["precisions"],
            composition=composition,
        )
        solution = fit_order_parameters(model)
        error = generalization_error(model, torch.as_tensor(case["Xt"]), torch.as_tensor(case["yt"]))
        for label, part in ((key, error), ("inf", error.infinite_width)):
            out[label] = {
                "mse": float(part.mean_total),
                "bias2": float(part.mean_bias),
                "var": float(part.mean_variance),
            }
        out[key]["train"] = float(training_error(model))
        out[key]["q"] = solution.order_parameter.detach().numpy().ravel()
    return out


@pytest.fixture(scope="module")
def cache() -> dict:
    return {}


@pytest.fixture
def predict_all(cache, make_model):
    def run(cases):
        for case in cases:
            if case["id"] not in cache:
                cache[case["id"]] = predictions(case, make_model)
        return [cache[case["id"]] for case in cases]

    return run


def compare(cases, predicted) -> int:
    compared = 0
    for case, values in zip(cases, predicted, strict=True):
        for key, value in values.items():
            listed = case["theory"][key]
            label = f"case {case['id']} ({case['dataset']}, {case['activation']}, {case['widths']}) {key}"
            # 1e-5: the listed optima come from an independent minimization that stopped at 1e-7 in q
            np.testing.assert_allclose(
                [value[name] for name in ("mse", "bias2", "var")],
                [listed[name] for name in ("mse", "bias2", "var")],
                rtol=1e-5,
                err_msg=label,
            )
            if key != "inf":
                q = [listed["q"]] if "q" in listed else [listed[f"q{i + 1}"] for i in range(len(case["widths"]))]
                np.testing.assert_allclose(value["q"], q, rtol=1e-5, err_msg=label)
            compared += 1
    return compared


def test_shipped_cases_reproduce_the_formulas(shipped_cases, predict_all):
    assert compare(shipped_cases, predict_all(shipped_cases)) == 2 + 2 + 4


def test_all_cases_reproduce_the_formulas(reference_cases, predict_all):
    assert compare(reference_cases, predict_all(reference_cases)) >= 2 * len(reference_cases)


def errors(cases, predicted, key) -> np.ndarray:
    measured = np.array([case["measured"]["mse"]["mean"] for case in cases])
    return np.array([value[key]["mse"] for value in predicted]) / measured - 1


def select(cases, condition) -> list[dict]:
    chosen = [case for case in cases if condition(case)]
    assert chosen
    return chosen


def test_one_layer_high_dimensional_inputs(reference_cases, predict_all):
    """Participation ratio above 25: the regime of the theory. 11 cases here; section 7 counts 23 (0.4 %, 17 %)."""
    cases = select(reference_cases, lambda c: len(c["widths"]) == 1 and c["input_participation_ratio"] > 25)
    predicted = predict_all(cases)
    saddle, infinite = errors(cases, predicted, "saddle"), errors(cases, predicted, "inf")
    assert np.median(np.abs(saddle)) < 0.006  # sampling alone contributes 0.15 %
    assert np.median(np.abs(infinite)) > 0.10
    relu = np.array([c["activation"] == "relu" for c in cases])
    assert np.max(np.abs(saddle[relu])) < 0.006
    # erf with N_1 = 10 and alpha = 6 at T = 0.1: the 13 % end of the stated range; everything else within 2 %
    assert np.max(np.abs(saddle)) < 0.14
    assert np.sum(np.abs(saddle) > 0.025) <= 1


def test_one_layer_order_parameter_is_observable(reference_cases, predict_all):
    """q* = E[lambda_1 |v|^2/N_1]: a median within 2 % where inputs are high-dimensional (1/N_1 corrections)."""
    cases = select(reference_cases, lambda c: len(c["widths"]) == 1 and c["input_participation_ratio"] > 25)
    q = np.array([p["saddle"]["q"][0] for p in predict_all(cases)])
    measured = np.array([c["measured"]["qv"]["mean"] for c in cases])
    assert np.median(np.abs(q / measured - 1)) < 0.02


def test_one_layer_real_data_relu(reference_cases, predict_all):
    """Real data, relu: median 5 %, worst 11 % (section 7); infinite width up to 76 %."""
    cases = select(
        reference_cases,
        lambda c: len(c["widths"]) == 1 and c["activation"] == "relu" and c["dataset"] not in ("random", "teacher"),
    )
    predicted = predict_all(cases)
    assert np.median(np.abs(errors(cases, predicted, "saddle"))) < 0.06
    assert np.max(np.abs(errors(cases, predicted, "saddle"))) < 0.12
    assert np.max(np.abs(errors(cases, predicted, "inf"))) > 0.5


def test_one_layer_structured_data_erf_is_a_known_failure(reference_cases, predict_all):
    """Few dominant directions, erf, N_1 <= 50: 12 to 115 % off. Learned features; a rescaled kernel has none."""
    cases = select(
        reference_cases,
        lambda c: (
            len(c["widths"]) == 1
            and c["activation"] == "erf"
            and c["widths"][0] <= 50
            and c["dataset"].startswith(("digits", "breast_cancer"))
        ),
    )
    saddle = np.abs(errors(cases, predict_all(cases), "saddle"))
    assert saddle.min() > 0.10
    assert saddle.max() > 1.0


def test_wide_networks_on_structured_data_recover(reference_cases, predict_all):
    """The same data at N_1 = 300: 3 %, N_1 = 1000: 0.5 % (section 7)."""
    cases = select(
        reference_cases, lambda c: c["activation"] == "erf" and c["widths"][0] >= 300 and c["dataset"].startswith("dig")
    )
    for case, error in zip(cases, errors(cases, predict_all(cases), "saddle"), strict=True):
        assert abs(error) < (0.03 if case["widths"][0] < 1000 else 0.0075)  # the rest is the standard error, 0.13 %


def test_two_layers_erf(reference_cases, predict_all):
    """N_0 >= 200: outer and linear part within 1 %, nested 6 to 9 % low, infinite width 15 to 28 % low."""
    cases = select(
        reference_cases, lambda c: len(c["widths"]) == 2 and c["activation"] == "erf" and c["X"].shape[1] >= 200
    )
    predicted = predict_all(cases)
    assert np.max(np.abs(errors(cases, predicted, "saddle_outer"))) < 0.01
    assert np.max(np.abs(errors(cases, predicted, "saddle_lin"))) < 0.01
    nested = errors(cases, predicted, "saddle_nested")
    assert np.all((nested > -0.09) & (nested < -0.06))
    assert np.all(errors(cases, predicted, "inf") < -0.15)


def test_two_layers_relu(reference_cases, predict_all):
    """relu: nested = outer, 3 to 5.5 % low for N_0 >= 200 (the mean activation acts as a random bias: gated form)."""
    cases = select(reference_cases, lambda c: len(c["widths"]) == 2 and c["activation"] == "relu")
    predicted = predict_all(cases)
    nested, outer = (errors(cases, predicted, f"saddle_{name}") for name in ("nested", "outer"))
    np.testing.assert_allclose(nested, outer, atol=1e-6)  # two routes to one minimum: q to 1e-6
    wide = np.array([c["X"].shape[1] >= 200 for c in cases])
    assert np.all((outer[wide] < -0.025) & (outer[wide] > -0.055))
    assert np.all(errors(cases, predicted, "inf")[wide] < -0.15)


def test_one_layer_training_error(reference_cases, predict_all):
    """High-dimensional inputs: relu within 3 %; erf networks of 10 to 50 units fit up to 19 % better than predicted."""
    cases = select(reference_cases, lambda c: len(c["widths"]) == 1 and c["input_participation_ratio"] > 25)
    predicted = np.array([p["saddle"]["train"] for p in predict_all(cases)])
    gap = np.abs(predicted / np.array([c["measured"]["train"]["mean"] for c in cases]) - 1)
    relu = np.array([c["activation"] == "relu" for c in cases])
    assert np.max(gap[relu]) < 0.035
    assert np.median(gap) < 0.03
    assert np.max(gap) < 0.20
