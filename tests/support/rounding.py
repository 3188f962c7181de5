# ruff: noqa: D102 - the protocol describes the operations
"""Mixed precision and TF32 on the CPU, in NumPy: operands of matrix products are rounded, sums are float32.

It computes the same as `CudaBackend` in these precisions but for the order of sums. It serves to check those kernels, and to see
without a GPU how the rounding affects training. It is slow.
"""

from typing import Any

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import ActivationFunction, Array

TILE = 128
"""Number of words whose exponentials share a scale."""

SLOPE = np.float32(2**10)
"""The scale of the gradients of logits, whose unit is 1 / SLOPE."""

LARGEST = 14
"""Other gradients are scaled by a power of two, so that the largest is from 2^LARGEST to twice that."""


def rounded(values: Array) -> Array:
    """Return the values rounded to float16, as float32."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def rounded_to_tf32(values: Array) -> Array:
    """Return finite float32 rounded to 10 bits after the point; of two equally near numbers, to that farther from 0."""
    return ((np.asarray(values, np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_gradients(values: Array) -> Array:
    """Return the values rounded to float16 at a scale of their own, as float32."""
    scale = np.float32(2.0) ** (LARGEST - np.floor(np.log2(max(np.abs(values).max(initial=0), np.float32(1e-30)))))
    return rounded(values * scale) / scale


class RoundingBackend(CpuBackend):
    """The operations of the CPU backend in mixed precision, or in TF32.

    Parameters
    ----------
    tf32
        Whether operands are rounded to TF32; otherwise to float16.
    """

    def __init__(self, tf32: bool = False) -> None:
        super().__init__()
        self.tf32 = tf32

    def _rounded(self, values: Array) -> Array:
        """Return an operand as it is multiplied."""
        return rounded_to_tf32(values) if self.tf32 else rounded(values)

    @property
    def full_precision(self) -> CpuBackend:
        """Return the CPU backend, which does not round to float16."""
        return CpuBackend()

    def affine(self, inputs: Array, weight: Array, bias: Array, activation: ActivationFunction, outputs: Array) -> None:
        super().affine(self._rounded(inputs), self._rounded(weight), bias, activation, outputs)

    def affine_backward(
        self,
        inputs: Array,
        weight: Array,
        outputs: Array,
        activation: ActivationFunction,
        d_outputs: Array,
        beta: float,
        d_weight: Array,
        d_bias: Array,
        d_inputs: Array,
    ) -> None:
        of_weight = d_weight.copy()
        super().affine_backward(inputs, weight, outputs, activation, d_outputs, beta, of_weight, d_bias, d_inputs)
        # d_outputs now has the gradients of the sums before the activation
        self._products_backward(d_outputs, self._rounded(inputs), self._rounded(weight), beta, d_weight, d_inputs)

    def _products_backward(
        self, d_sums: Array, inputs: Array, weight: Array, beta: float, d_weight: Array, d_inputs: Array
    ) -> None:
        slopes = rounded_to_tf32(d_sums) if self.tf32 else rounded_gradients(d_sums)
        d_weight[...] = slopes.T @ inputs + (d_weight if beta else 0)
        d_inputs[...] = slopes @ weight

    def output_gradients(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        targets: Array,
        smoothing: float,
        penalty: float,
        scale: float,
        beta: float,
        losses: Array,
        d_hidden: Array,
        d_weight: Array,
        d_bias: Array,
    ) -> None:
        rows, words, tiles = len(hidden), len(weight), -(-len(weight) // TILE)
        inputs, rounded_weight = self._rounded(hidden), self._rounded(weight)
        logits = np.full((rows, tiles * TILE), -np.inf, np.float32)
        np.add(inputs @ rounded_weight.T, bias, out=logits[:, :words])
        logits = logits.reshape(rows, tiles, TILE)
        tops = logits.max(2, keepdims=True)
        slopes = np.exp(logits - tops)
        sums, top = slopes.sum(2, keepdims=True), tops.max(1, keepdims=True)
        total = (sums * np.exp(tops - top)).sum(1, keepdims=True)
        normalizers = top + np.log(total)
        slope = np.float32(scale) if self.tf32 else SLOPE
        factors = slope * (1 + np.float32(2 * penalty) * normalizers) * np.exp(tops - top) / total
        slopes = ((slopes if self.tf32 else rounded(slopes)) * factors).reshape(rows, -1)[:, :words]
        slopes -= slope * np.float32(smoothing / words)
        slopes[np.arange(rows), targets] -= slope * np.float32(1 - smoothing)
        losses[...] = normalizers[:, 0, 0] - bias[targets] - (hidden * weight[targets]).sum(1)
        unit = np.float32(scale) / slope
        d_bias[...] = unit * slopes.sum(0) + (d_bias if beta else 0)
        slopes = self._rounded(slopes)
        d_weight[...] = unit * (slopes.T @ inputs) + (d_weight if beta else 0)
        d_hidden[...] = unit * (slopes @ rounded_weight)

    def nce_gradients(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        targets: Array,
        noise: Array,
        scale: float,
        beta: float,
        losses: Array,
        d_hidden: Array,
        d_weight: Array,
        d_bias: Array,
    ) -> None:
        inputs, rounded_weight = self._rounded(hidden), self._rounded(weight)
        scores = inputs @ rounded_weight.T + bias
        slopes: Any = noise / (1 + np.exp(-scores))
        at_target = np.arange(len(targets)), targets
        slopes[at_target] -= 1 / (1 + np.exp(scores[at_target]))
        slopes *= np.float32(scale)
        losses[...] = (noise * np.logaddexp(0, scores)).sum(1) + np.logaddexp(0, -scores[at_target])
        d_bias[...] = slopes.sum(0) + (d_bias if beta else 0)
        self._products_backward(slopes.astype(np.float32), inputs, rounded_weight, beta, d_weight, d_hidden)
