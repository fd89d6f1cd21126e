"""Families of counts and classes with a closed-form Fisher information."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemae.distributions.family import Family, Free, OddsFamily, Params
from riemae.distributions.special import arsinh_exp, atanh_root, dispersion_information, root


class Bernoulli(OddsFamily):
    """``φ = 2 √n arcsin √p``; n = 1 unless there is a ``total_count``."""

    support_parameters = frozenset({"total_count"})

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        if "probs" in p:
            probs = p["probs"]
            angle = 2 * torch.atan2(root(probs), root(1 - probs))
        else:
            logits = p["logits"]
            right = logits > 0
            # Of e^{−|l|/2}, which never overflows.
            decay = torch.where(right, -logits, logits).div(2).exp()
            small = 2 * decay.atan()
            angle = torch.where(right, math.pi - small, small)
        if "total_count" not in p:
            return angle
        return angle * root(p["total_count"])


class NegativeBinomial(OddsFamily):
    """``φ = 2 √r arsinh √(μ/r)`` with ``μ/r = p/(1 − p) = e^l``, where r is fixed.

    The dispersion r is ``total_count``. ``∂φ/∂μ = 1/√(μ + μ²/r)`` is the root of the Fisher
    information. In (l, r) it is ``[r p, p; p, I_rr]``, ``I_rr = ψ'(r) − E ψ'(r + Y)``: see
    :mod:`riemae.distributions.dispersion`.
    """

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "total_count" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        r = p["total_count"]
        if "probs" in p:
            arc = atanh_root(p["probs"])
        else:
            arc = arsinh_exp(p["logits"] / 2)
        return 2 * root(r) * arc

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        if self.has_feature_map(frozenset(v)):
            return super().product(p, v)
        r = p["total_count"]
        if "probs" in p:
            form = "probs"
            probs = p["probs"]
            logits = torch.logit(probs)
            scale = probs * (1 - probs)  # dp/dl
        else:
            form = "logits"
            logits = p["logits"]
            probs = logits.sigmoid()
            scale = torch.ones_like(logits)
        if form in v:
            dl = v[form] / scale
        else:
            dl = torch.zeros_like(logits)
        dr = v["total_count"]
        information = dispersion_information(r, logits)
        out = {
            "total_count": probs * dl + information * dr,
            form: probs * (r * dl + dr) / scale,
        }
        return {name: out[name] for name in v}


class Geometric(OddsFamily):
    """``φ = 2 arsinh e^{−l/2}``: a negative binomial with r = 1, successes and failures swapped."""

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        if "probs" in p:
            arc = atanh_root(1 - p["probs"])
        else:
            arc = arsinh_exp(-p["logits"] / 2)
        return 2 * arc


class Categorical(OddsFamily):
    """``φ = 2 √p`` on the sphere of radius 2.

    The distance is ``2 arccos Σ √(p_i q_i)``, along the great circle.
    """

    support_parameters = frozenset({"total_count"})
    event = 1

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        if "probs" in p:
            roots = root(p["probs"])
        else:
            log_probs = torch.log_softmax(p["logits"], -1)
            roots = (log_probs / 2).exp()
        if "total_count" not in p:
            return 2 * roots
        count = root(p["total_count"])
        return 2 * roots * count[..., None]

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        difference = self.features(q, free) - self.features(p, free)
        chord = difference.square().sum(-1)
        count = p.get("total_count", torch.ones_like(chord))
        # Arc over chord on a sphere of radius 2 √n; the chord keeps its digits where the arc's
        # cosine is near 1.
        squared_diameter = 16 * count
        sine = (root(chord / count) / 4).clamp(max=1)
        arc = squared_diameter * sine.asin().square()
        return arc.reshape(len(arc), -1).sum(-1)


class Poisson(Family):
    """``φ = 2 √λ``; fine at λ = 0."""

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return 2 * root(p["rate"])
