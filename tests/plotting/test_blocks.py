"""The picture of Q: colors of the matrix, disks and lines where the patches lie, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_propkernel.kernels import Patches
from torch_propkernel.plotting import plot_block_covariance

pytest.importorskip("matplotlib")

PATCHES = Patches.of((1, 4, 6), kernel_size=(2, 3))  # two rows of two patches without overlap


def matrix():
    q = torch.diag(torch.tensor([2.0, 1.0, 1.5, 0.5], dtype=torch.float64))
    for (a, b), value in {(0, 1): 0.3, (0, 2): -0.8, (1, 3): 0.1}.items():
        q[a, b] = q[b, a] = value
    return q


def test_matrix_is_drawn_as_its_departure_from_infinite_width():
    (ax,) = plot_block_covariance(matrix(), names=["a", "b", "c", "long name"])
    (mesh,) = ax.images
    np.testing.assert_array_equal(mesh.get_array(), matrix().numpy() - np.eye(4))
    assert mesh.norm.vmax == -mesh.norm.vmin == 1.0  # white is zero, the deepest red Q_00 - 1
    assert [text.get_text() for text in ax.texts][:3] == ["1.00", "0.30", "-0.80"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "c", "long name"]


def test_patches_have_their_weights_and_partners_at_their_places():
    _, ax = plot_block_covariance(matrix(), PATCHES)
    disks = ax.collections[-1]
    # Pixels are numbered from their middles: patches of 2 x 3 pixels lie around (column, row) = (1, 0.5), (4, 0.5), ...
    assert disks.get_offsets().tolist() == [[1.0, 0.5], [4.0, 0.5], [1.0, 2.5], [4.0, 2.5]]
    np.testing.assert_allclose(disks.get_array(), [1.0, 0.0, 0.5, -0.5], atol=1e-15)
    lines = {
        (line.get_xdata()[0], line.get_xdata()[-1], line.get_ydata()[0], line.get_ydata()[-1]): line
        for line in ax.lines
    }
    # Strongest partners: of 0 it is 2, of 1 it is 0, of 2 it is 0, of 3 it is 1.
    assert set(lines) == {(1.0, 1.0, 0.5, 2.5), (1.0, 4.0, 0.5, 0.5), (4.0, 4.0, 0.5, 2.5)}
    negative, positive, weak = (lines[key] for key in ((1, 1, 0.5, 2.5), (1, 4, 0.5, 0.5), (4, 4, 0.5, 2.5)))
    assert negative.get_linewidth() / positive.get_linewidth() == pytest.approx(0.8 / 0.3)
    assert negative.get_color()[2] > negative.get_color()[0] and positive.get_color()[0] > positive.get_color()[2]
    assert weak.get_linewidth() < positive.get_linewidth()
    assert len(ax.patches) == 4 and not ax.images
    assert not plot_block_covariance(matrix(), PATCHES, partners=0)[1].lines
    assert len(plot_block_covariance(matrix(), PATCHES, partners=9)[1].lines) == 3  # a zero is no partner


def test_padding_and_overlap_move_the_patches():
    patches = Patches.of((1, 3, 3), kernel_size=3, stride=2, padding=1)
    ax = plot_block_covariance(matrix(), patches)[1]
    assert ax.collections[-1].get_offsets().tolist() == [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]]
    assert ax.patches[0].get_xy() == (-1.5, -1.5)


@pytest.mark.parametrize(("channels", "shape"), [(1, (4, 6)), (2, (4, 6)), (3, (4, 6, 3))])
def test_image_lies_behind(channels, shape):
    patches = Patches.of((channels, 4, 6), kernel_size=(2, 3))
    image = torch.arange(24.0 * channels)
    pixels = plot_block_covariance(matrix(), patches, image=image)[1].images[0].get_array()
    assert pixels.shape == shape and (pixels.min() >= 0) and (pixels.max() <= 1)
    if channels == 3:
        np.testing.assert_allclose(pixels[0, 1], [1 / 71, 25 / 71, 49 / 71])  # channels go last


def test_identity_and_one_block_are_drawn_without_lines():
    ax = plot_block_covariance(torch.eye(4), PATCHES)[1]
    assert not ax.lines and set(ax.collections[-1].get_array()) == {0.0}
    assert plot_block_covariance(torch.tensor([[2.0]]), Patches.of((1, 2, 2), 2))[1].collections


def test_given_axes_are_used_and_no_figure_of_pyplot_is_made():
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    given = list(Figure().subplots(1, 2))
    assert plot_block_covariance(matrix(), PATCHES, given) == given
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"covariance": torch.ones(2, 3)}, r"covariance: expected shape \(B, B\), got \(2, 3\)"),
        ({"covariance": torch.full((2, 2), torch.nan)}, "covariance: expected finite values, got 4 NaN"),
        (
            {"covariance": torch.tensor([[1.0, 2.0], [0.0, 1.0]])},
            "expected a symmetric matrix, got one .* off by 2",
        ),
        ({"names": ["a"]}, "names: expected 4, got 1"),
        ({"partners": -1}, "partners: expected a whole number >= 0, got -1"),
        ({"patches": Patches.of((1, 4, 4), 4)}, "patches: expected 4, the rows of Q, got 1"),
        ({"patches": Patches.of((1, 8), 2)}, r"expected those of images with rows and columns, got shape \(1, 8\)"),
        ({"image": torch.ones(24)}, "image: expected None without patches"),
        ({"patches": PATCHES, "image": torch.ones(4, 6)}, r"image: expected shape \(24,\), got \(4, 6\)"),
        ({"axes": []}, "axes: expected 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_block_covariance(**{"covariance": matrix(), **arguments})
