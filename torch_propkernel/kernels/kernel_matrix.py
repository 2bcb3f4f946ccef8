"""The matrix of a network's kernel, from its layers or from a rule, and its gradient: what is done on one tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import Activation
from ..numerics.differentiation import is_recorded, is_transformed
from .recursion import (
    Covariance,
    Inputs,
    Layer,
    first_covariance,
    input_covariance,
    propagate_all,
    scaled,
    with_diagonal,
)
from .tiled_pass import Tile, by_tiles, fits_one_tile, gradients_by_autograd

Rule = Callable[[Covariance, Sequence[Layer], Sequence[Tensor]], Tensor]
"""The way from the first covariance, the layers and the order parameters to the kernel, entry by entry."""


def matrix_of_layers(inputs: Inputs, layers: Sequence[Layer]) -> Tensor:
    """Return K^L of C = factor X1 X2^T + b_0, ``... x n x m``; see :func:`by_tiles` for cost and memory."""
    if not _is_cut(inputs, layers, ()):
        return propagate_all(input_covariance(inputs), layers)
    xx, yy = inputs.squared_norms()
    rows = layer_variances(xx, inputs, layers)
    columns = () if inputs.symmetric else layer_variances(yy, inputs, layers)
    return by_tiles(_OfLayers(_activations(layers)), inputs, rows, columns, matrix_parameters(inputs, layers))


def matrix_of_rule(rule: Rule, inputs: Inputs, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> Tensor:
    """Return rule(C, layers, order_parameters) with C = factor X1 X2^T + b_0; see :func:`by_tiles`."""
    if not _is_cut(inputs, layers, order_parameters):
        return rule(input_covariance(inputs), layers, order_parameters)
    xx, yy = inputs.squared_norms()
    parameters = (*matrix_parameters(inputs, layers), *order_parameters)
    return by_tiles(_OfRule(_activations(layers), rule), inputs, [xx], [yy], parameters)


def _is_cut(inputs: Inputs, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> bool:
    """Not small matrices with gradients, transforms, or activations with moments to be computed once for each row."""
    tensors = inputs.x1, inputs.x2, *matrix_parameters(inputs, layers), *order_parameters
    if is_transformed() or not all(layer.activation._blockwise_partials for layer in layers):
        return False
    return not (fits_one_tile(inputs) and is_recorded(*tensors))


def _activations(layers: Sequence[Layer]) -> tuple[Activation, ...]:
    return tuple(layer.activation for layer in layers)


def matrix_parameters(inputs: Inputs, layers: Sequence[Layer]) -> tuple[Tensor | None, ...]:
    """Return w_0 / N_0 and b_0, then the weight variances of all layers, then their bias variances (None: no bias)."""
    weights, biases = [layer.weight_variance for layer in layers], [layer.bias_variance for layer in layers]
    return inputs.factor, inputs.bias_variance, *weights, *biases


def layer_variances(norms: Tensor, inputs: Inputs, layers: Sequence[Layer]) -> list[Tensor]:
    """Return the variances of one set of points in front of every layer, and of the output."""
    found = [scaled(norms, inputs.factor, inputs.bias_variance)]
    for layer in layers:
        found.append(scaled(layer.activation.dual_diag(found[-1]), layer.weight_variance, layer.bias_variance))
    return found


class _OfLayers(NamedTuple):
    """K^L with a backward pass by ``dual_partials``. Rows and columns are the variances, the output's included."""

    activations: tuple[Activation, ...]

    def value(self, tile: Tile, parameters: Sequence[Any]) -> Tensor:
        depth = len(self.activations)
        c = self._first(tile, parameters)
        for l, activation in enumerate(self.activations):
            row, column = tile.rows[l], tile.columns[l]
            kappa = activation.dual(row, c, column, out=None if is_recorded(row, c, column) else c)
            c = scaled(kappa, parameters[2 + l], parameters[2 + depth + l], in_place=True)
        return with_diagonal(c, tile.rows[depth]) if tile.on_diagonal else c

    def gradients(self, tile: Tile, parameters: Sequence[Any], outer: Tensor) -> list[Tensor | None]:
        depth = len(self.activations)
        factor, first_bias, *others = parameters
        weights, biases = others[:depth], others[depth:]
        states, kappas = [self._first(tile, parameters)], []
        for l, activation in enumerate(self.activations):
            kappas.append(activation.dual(tile.rows[l], states[l], tile.columns[l]))
            states.append(scaled(kappas[l], weights[l], biases[l]) if l + 1 < depth else kappas[l])

        rows: list[Tensor | None] = [None] * (depth + 1)
        columns, d_weights, d_biases = rows.copy(), rows[:depth], rows[:depth]
        g = outer
        if tile.on_diagonal:  # it is the variance of the output
            diagonal = g.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
            rows[depth], g = diagonal, with_diagonal(g.clone(), torch.zeros_like(diagonal))
        for l in range(depth)[::-1]:
            d_weights[l], d_biases[l] = _share(weights[l], g, kappas[l]), _share(biases[l], g)
            below = tile.products, *tile.rows[: l + 1], *tile.columns[: l + 1], *parameters[: 2 + l], *biases[:l]
            if not any(t is not None and t.requires_grad for t in below):
                return [None, *rows, *columns, None, None, *d_weights, *d_biases]
            g = g * weights[l]
            d_row, d_xy, d_column = self.activations[l].dual_partials(tile.rows[l], states[l], tile.columns[l])
            rows[l], columns[l] = _share(tile.rows[l], g, d_row), _share(tile.columns[l], g, d_column)
            g = g * d_xy
        d_products = g * factor if tile.products.requires_grad else None
        return [
            d_products,
            *rows,
            *columns,
            _share(factor, g, tile.products),
            _share(first_bias, g),
            *d_weights,
            *d_biases,
        ]

    def _first(self, tile: Tile, parameters: Sequence[Any]) -> Tensor:
        c = scaled(scaled(tile.products, parameters[0], None), None, parameters[1], in_place=True)
        return with_diagonal(c, tile.rows[0]) if tile.on_diagonal else c


def _share(variable: Any, g: Tensor, derivative: Tensor | None = None) -> Tensor | None:
    """Gradient of a variable that is broadcast along the tile, where it requires one."""
    if variable is None or not variable.requires_grad:
        return None
    return (g if derivative is None else g * derivative).sum_to_size(variable.shape)


class _OfRule(NamedTuple):
    """Any rule, differentiated on the tile by autograd. Rows and columns are the squared norms."""

    activations: tuple[Activation, ...]
    rule: Rule

    def value(self, tile: Tile, parameters: Sequence[Any]) -> Tensor:
        depth = len(self.activations)
        factor, bias, *others = parameters
        layers = [Layer(*each) for each in zip(self.activations, others, others[depth:], strict=False)]
        products = Covariance(tile.rows[0], tile.products, tile.columns[0], tile.on_diagonal)
        return self.rule(first_covariance(products, factor, bias), layers, others[2 * depth :])

    def gradients(self, tile: Tile, parameters: Sequence[Any], outer: Tensor) -> list[Tensor | None]:
        with torch.enable_grad():
            value = self.value(tile, parameters).expand(outer.shape)
        return gradients_by_autograd(value, (tile.products, *tile.rows, *tile.columns, *parameters), outer)
