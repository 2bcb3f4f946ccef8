"""The progress bar."""

import pytest

tqdm_auto = pytest.importorskip("tqdm.auto")


def test_bar_follows(monkeypatch, capsys):
    from torch_propkernel.progress import progress_bar

    seen = []

    class Bar(tqdm_auto.tqdm):
        def close(self):
            if not self.disable:  # closed once more when it is deleted
                seen.append((self.n, self.total, self.desc))
            super().close()

    monkeypatch.setattr(tqdm_auto, "tqdm", Bar)
    with progress_bar("sampling") as advance:
        for done in range(1, 11):
            advance(done, 10)
    with progress_bar() as advance:
        advance(5, 5)
        advance(1, 5)  # a second run
        advance(2, 8)  # of another length
    assert seen == [(10, 10, "sampling"), (2, 8, "")]
    assert "sampling" in capsys.readouterr().err
