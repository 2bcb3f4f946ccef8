"""The choice of a predictor: its parts against what they promise, and whole fits on small data."""

import math

import pytest
import torch

from torch_propkernel.networks.annealing import Population
from torch_propkernel.theories import InfiniteWidth, SaddlePoint, Sampled
from torch_propkernel.tuning import fit_network, fit_predictor, predictor
from torch_propkernel.tuning.predictor import _Folds, _Search


def table(rows=60, noise=0.1, seed=0):
    """A function of one direction of three inputs, which a narrow network learns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    direction = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    y = torch.tanh(3.0 * x @ direction) + noise * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, y


@pytest.fixture(scope="module")
def chosen():
    x, y = table()
    patch = pytest.MonkeyPatch()
    patch.setattr(predictor, "_FOLDS", 2)  # half the time
    seen = []
    found = fit_predictor(x, y, "erf", ard_weights=1.0, seed=1, progress=lambda done, total: seen.append((done, total)))
    patch.undo()
    return found, seen


class TestTheBestPredictor:
    def test_a_network_that_learns_a_direction(self, chosen):
        found, _ = chosen
        assert isinstance(found.fitted.theory, Sampled) and found.message.startswith("sampled, width 50")
        x, y = table(500, seed=5)
        wide = InfiniteWidth().fit(found.prior.model(*table(), math.inf)).error(x, y)
        own = found.fitted.error(x, y)
        assert own.log_density.mean() > wide.log_density.mean() and own.mean_bias < wide.mean_bias

    def test_candidates_tell_the_whole(self, chosen):
        found, _ = chosen
        first, *others = found.candidates
        exact = InfiniteWidth().fit(found.prior.model(*table(), math.inf)).log_evidence
        assert (first.theory, first.width, first.error) == ("infinite_width", math.inf, 0.0)
        assert first.log_evidence == pytest.approx(float(exact), abs=1e-9)
        assert [c.chosen for c in found.candidates].count(True) == 1
        winner = next(c for c in found.candidates if c.chosen)
        assert winner.fold_log_density > first.fold_log_density
        assert all(
            c.temperature <= b.temperature for b, c in zip(others, others[1:], strict=False) if c.readout_factor == 1
        )
        assert "log p(y)" in str(found) and str(found).endswith(found.message)

    def test_the_model_is_the_predictor_s(self, chosen):
        found, _ = chosen
        winner = next(c for c in found.candidates if c.chosen)
        assert found.model.likelihood.noise.item() == pytest.approx(winner.temperature)
        variance = found.model.covar_module.weight_variance.flatten()[-1].item()
        assert variance == pytest.approx(found.prior.weight_variance[-1] * winner.readout_factor)
        assert found.model.covar_module.width.item() == 50.0

    def test_progress(self, chosen):
        done, total = zip(*chosen[1], strict=True)
        assert list(done) == list(range(1, total[0] + 1)) and set(total) == {5}


class TestTheRules:
    def search(self):
        x, y = table(20)
        prior = fit_network(x, y, "erf", temperature=0.1, weight_variance=1.0, bias_variance=1.0, ard_weights=1.0)
        return _Search(x, y, prior, 5.0, 0.0, None, Sampled(), None), InfiniteWidth().fit(prior.model(x, y, math.inf))

    def population(self, evidence, temperature=0.1, variance=1.0):
        weights = torch.full((4,), -math.log(4), dtype=torch.float64)
        return Population(torch.zeros(4, 1), weights, temperature, 1.0, evidence, variance, 0.1)

    @pytest.mark.parametrize(
        ("gain", "shift", "scatter", "wins"),
        [
            (0.0, 0.1, 1.0, True),  # folds agree a little, evidence has no say
            (30.0, -0.01, 1.0, False),  # folds are against
            (-5.0, 0.1, 1.0, False),  # evidence is against by more than twice its error
            (-5.0, 1.0, 0.1, True),  # but folds are clear: sampled evidence is too low on average
        ],
    )
    def test_evidence_and_folds(self, gain, shift, scatter, wins):
        search, wide = self.search()
        noise = scatter * torch.linspace(-1, 1, 20, dtype=torch.float64)
        folds = _Folds(torch.zeros(20, dtype=torch.float64), {0.1: shift + noise})
        population = self.population(float(wide.log_evidence) + gain)
        assert search._judge(wide, population, folds, None)[0] is wins

    def test_folds_decide_the_rung_and_evidence_a_tie(self):
        search, _ = self.search()
        rungs = [self.population(e, t) for e, t in ((0.0, 0.3), (5.0, 0.1), (50.0, 0.03))]
        spread = torch.linspace(-1, 1, 20, dtype=torch.float64)
        folds = _Folds(spread, {0.3: spread, 0.1: spread.flip(0) - 0.01, 0.03: spread.flip(0) - 0.1})
        assert search._best_rung(rungs, folds) == 1  # 0.3 and 0.1 are not told apart, 0.03 is worse by 0.1
        assert search._best_rung(rungs, None) == 2


class TestWhatIsGiven:
    def test_any_other_theory_is_fitted_at_these_hyperparameters(self):
        x, y = table()
        found = fit_predictor(x, y, "erf", width=20, theory="saddle", ard_weights=1.0, temperature=0.05)
        assert isinstance(found.fitted.theory, SaddlePoint) and found.candidates[0].temperature == 0.05
        same = SaddlePoint().fit(found.prior.model(x, y, 20.0))
        torch.testing.assert_close(found.fitted.order_parameters["q"], same.order_parameters["q"], rtol=0, atol=0)

    def test_sampled_at_a_given_temperature(self):
        x, y = table(30)
        theory = Sampled(num_chains=4, num_draws=4)
        given = {"weight_variance": 1.0, "bias_variance": 1.0, "ard_weights": 1.0}
        found = fit_predictor(x, y, "relu", width=8, temperature=0.1, theory=theory, **given)
        assert found.fitted.theory == theory and found.prior.temperature == 0.1
        assert [c.temperature for c in found.candidates if c.theory == "sampled"] == [0.1]

    def test_infinite_width(self):
        x, y = table(30)
        found = fit_predictor(x, y, "relu", width=math.inf, ard_weights=1.0)
        assert isinstance(found.fitted.theory, InfiniteWidth)

    def test_no_time(self):
        x, y = table(40)
        found = fit_predictor(x, y, "erf", time_limit=1e-3, ard_weights=1.0)
        assert isinstance(found.fitted.theory, InfiniteWidth) and "the chains did not arrive" in found.message

    def test_refusals_come_before_the_search(self, monkeypatch):
        x, y = table(20)
        monkeypatch.setattr("torch_propkernel.tuning.auto._search", lambda *a: pytest.fail("a search was started"))
        with pytest.raises(ValueError, match="expected 2 hidden layer"):
            fit_predictor(x, y, "relu", theory="gated")
        with pytest.raises(ValueError, match="width: expected a number > 0 or None"):
            fit_predictor(x, y, width=-1)
        with pytest.raises(ValueError, match="time_limit: expected"):
            fit_predictor(x, y, time_limit=0)
