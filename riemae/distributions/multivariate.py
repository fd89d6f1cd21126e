"""Families of vectors and matrices with a closed-form Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.distributions.family import Family, Free, Params


class Dirichlet(Family):
    """``diag ψ'(α_i) − ψ'(Σα)``."""

    event = 1
    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        alpha = p["concentration"]
        d = v["concentration"]
        of_sum = torch.polygamma(1, alpha.sum(-1, keepdim=True))
        total = of_sum * d.sum(-1, keepdim=True)
        own = torch.polygamma(1, alpha) * d
        return {"concentration": own - total}


class MultivariateNormal(Family):
    """``|L⁻¹dμ|² + ½ |W + Wᵀ|²`` with ``W = L⁻¹dL`` and covariance ``LLᵀ``.

    ``φ = L⁻¹μ`` where L is fixed.
    """

    event = 1

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "scale_tril" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        column = p["loc"][..., None]
        return _solve(p["scale_tril"], column)[..., 0]

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        factor = p["scale_tril"]
        out = {}
        if "loc" in v:
            white = _solve(factor, v["loc"][..., None])
            out["loc"] = _solve(factor, white, transposed=True)[..., 0]
        if "scale_tril" in v:
            w = _solve(factor, v["scale_tril"])
            out["scale_tril"] = _solve(factor, w + w.mT, transposed=True)
        return out


class Wishart(Family):
    """``½ ν tr (V⁻¹dV)² + tr (V⁻¹dV) dν + ¼ Σ_{i<d} ψ'((ν − i)/2) dν²`` with ``V = LLᵀ``."""

    event = 2
    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        df = p["df"]
        factor = p["scale_tril"]
        d = factor.shape[-1]
        out = {}
        if "df" in v:
            halves = (df[..., None] - torch.arange(d).to(factor)) / 2
            information = torch.polygamma(1, halves).sum(-1) / 4
            out["df"] = information * v["df"]
        if "scale_tril" in v:
            w = _solve(factor, v["scale_tril"])
            inner = df[..., None, None] * (w + w.mT)
            if "df" in v:
                trace = w.diagonal(dim1=-2, dim2=-1).sum(-1)
                out["df"] = out["df"] + trace
                identity = torch.eye(d).to(factor)
                inner = inner + v["df"][..., None, None] * identity
            out["scale_tril"] = _solve(factor, inner, transposed=True)
        return out


class LKJCholesky(Family):
    """``Σ_{j=1}^{d−1} ψ'(η + (d − 1 − j)/2) − (d − 1) ψ'(η + (d − 1)/2)``.

    It is an exponential family in η.
    """

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        eta = p["concentration"]
        rest = int(p["dim"]) - 1
        below = torch.arange(rest, 0, -1).to(eta)
        shifted = eta[..., None] + (rest - below) / 2
        terms = torch.polygamma(1, shifted).sum(-1)
        common = torch.polygamma(1, eta + rest / 2)
        information = terms - rest * common
        return {"concentration": information * v["concentration"]}


def _solve(factor: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
    matrix = factor.mT if transposed else factor
    return torch.linalg.solve_triangular(matrix, b, upper=transposed)
