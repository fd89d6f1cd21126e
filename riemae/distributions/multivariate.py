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
        alpha, d = p["concentration"], v["concentration"]
        total = torch.polygamma(1, alpha.sum(-1, keepdim=True)) * d.sum(-1, keepdim=True)
        return {"concentration": torch.polygamma(1, alpha) * d - total}


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
        return _solve(p["scale_tril"], p["loc"][..., None])[..., 0]

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        factor = p["scale_tril"]
        out = {}
        if "loc" in v:
            out["loc"] = _solve(factor, _solve(factor, v["loc"][..., None]), transposed=True)[
                ..., 0
            ]
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
        df, factor = p["df"], p["scale_tril"]
        out = {}
        if "df" in v:
            halves = (df[..., None] - torch.arange(factor.shape[-1]).to(factor)) / 2
            out["df"] = torch.polygamma(1, halves).sum(-1) / 4 * v["df"]
        if "scale_tril" in v:
            w = _solve(factor, v["scale_tril"])
            inner = df[..., None, None] * (w + w.mT)
            if "df" in v:
                out["df"] = out["df"] + w.diagonal(dim1=-2, dim2=-1).sum(-1)
                inner = inner + v["df"][..., None, None] * torch.eye(factor.shape[-1]).to(factor)
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
        eta, rest = p["concentration"], int(p["dim"]) - 1
        below = torch.arange(rest, 0, -1).to(eta)
        terms = torch.polygamma(1, eta[..., None] + (rest - below) / 2).sum(-1)
        information = terms - rest * torch.polygamma(1, eta + rest / 2)
        return {"concentration": information * v["concentration"]}


def _solve(factor: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor.mT if transposed else factor, b, upper=transposed)
