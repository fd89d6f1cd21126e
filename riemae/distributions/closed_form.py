"""Families of distributions in closed form: parameters, Fisher information, arc-length coordinates.

The Fisher information metric of independent variables is block diagonal, one block per variable.
Some blocks have a feature map φ with ``H = JφᵀJφ``, which maps them isometrically to a line, a
plane or a sphere in a Euclidean space. A block with a feature map need therefore not be flat:

===================== =============================== ==========================================
family                parameters                      φ, or the block of H
===================== =============================== ==========================================
bernoulli             logits or probs                 ``2 arctan e^{l/2} = 2 arcsin √p``
binomial              total_count; logits or probs    ``2 √n arcsin √p``
geometric             logits or probs                 ``2 arsinh e^{−l/2}``
categorical           logits or probs                 ``2 √p``: a sphere of radius 2
one_hot_categorical   logits or probs                 as categorical
multinomial           total_count; logits or probs    ``2 √(n p)``
continuous_bernoulli  logits or probs                 ``1/l² − 1/(4 sinh² l/2)`` in l
poisson               rate                            ``2 √λ``
negative_binomial     total_count; logits or probs    ``2 √r arsinh √(μ/r)``, ``μ = r e^l``,
                                                      where r is fixed; the rest in
                                                      :mod:`riemae.distributions.dispersion`
exponential           rate                            ``log λ``
gamma, inverse_gamma  concentration, rate             ``√a log b`` where a is fixed; else
                                                      ``[ψ'(a), −1/b; ·, a/b²]``
beta                  concentration1, concentration0  ``diag ψ'(α_i) − ψ'(Σα)``
dirichlet             concentration                   ``diag ψ'(α_i) − ψ'(Σα)``
normal, log_normal    loc, scale                      ``μ/σ`` or ``√2 log σ`` where one is
                                                      fixed; else ``diag(1, 2)/σ²``
laplace               loc, scale                      ``μ/b`` or ``log b`` where one is fixed;
                                                      else ``diag(1, 1)/b²``
cauchy                loc, scale                      the same over ``√2``
student_t             df, loc, scale                  ``diag(ν + 1, 2ν)/((ν + 3) σ²)`` in μ, σ;
                                                      all of it in :class:`StudentT`
fisher_snedecor       df1, df2                        trigamma functions: :class:`FisherSnedecor`
half_normal           scale                           ``√2 log σ``
half_cauchy           scale                           ``log γ / √2``
von_mises             loc, concentration              ``√(κA) (cos, sin)`` where κ is fixed; else
                                                      ``diag(κA, A')``
multivariate_normal   loc, scale_tril                 ``L⁻¹μ`` where L is fixed; else
                                                      ``|L⁻¹dμ|² + ½ tr (Σ⁻¹dΣ)²``
wishart               df, scale_tril                  ``½ ν tr (V⁻¹dV)²`` where ν is fixed; all
                                                      of it in :class:`Wishart`
lkj_cholesky          concentration                   trigamma functions: :class:`LKJCholesky`
===================== =============================== ==========================================

Zero-inflated counts and negative binomials by mean and dispersion are in
:mod:`riemae.distributions.counts`, families that a user adds in
:mod:`riemae.distributions.registry`. ψ' is the trigamma function, ``A = I₁/I₀`` the mean resultant
length. Each is compared in the tests with the covariance of the score and with the Hessian of the
Kullback-Leibler divergence.

S. Amari, Information Geometry and Its Applications, 2016; C. Atkinson and A. F. S. Mitchell, Rao's
distance measure, Sankhyā A 43, 1981.
"""

from __future__ import annotations

import torch.distributions as td

from riemae.distributions.continuous import (
    Beta,
    ContinuousBernoulli,
    FisherSnedecor,
    Gamma,
    LocationScale,
    LogScale,
    StudentT,
    VonMises,
)
from riemae.distributions.discrete import (
    Bernoulli,
    Categorical,
    Geometric,
    NegativeBinomial,
    Poisson,
)
from riemae.distributions.family import Family
from riemae.distributions.multivariate import Dirichlet, LKJCholesky, MultivariateNormal, Wishart

KNOWN: dict[type, Family] = {
    family.distribution: family  # type: ignore[misc]
    for family in (
        Bernoulli("bernoulli", td.Bernoulli, ("logits",)),
        Bernoulli("binomial", td.Binomial, ("total_count", "logits")),
        ContinuousBernoulli("continuous_bernoulli", td.ContinuousBernoulli, ("logits",)),
        Geometric("geometric", td.Geometric, ("logits",)),
        Categorical("categorical", td.Categorical, ("logits",)),
        Categorical("one_hot_categorical", td.OneHotCategorical, ("logits",)),
        Categorical("multinomial", td.Multinomial, ("total_count", "logits")),
        Poisson("poisson", td.Poisson, ("rate",)),
        NegativeBinomial("negative_binomial", td.NegativeBinomial, ("total_count", "logits")),
        LogScale("exponential", td.Exponential, "rate", 1.0),
        Gamma("gamma", td.Gamma, ("concentration", "rate")),
        Gamma("inverse_gamma", td.InverseGamma, ("concentration", "rate")),
        Beta("beta", td.Beta, ("concentration1", "concentration0")),
        Dirichlet("dirichlet", td.Dirichlet, ("concentration",)),
        LocationScale("normal", td.Normal, 1.0, 2.0),
        LocationScale("log_normal", td.LogNormal, 1.0, 2.0),
        LocationScale("laplace", td.Laplace, 1.0, 1.0),
        LocationScale("cauchy", td.Cauchy, 0.5, 0.5),
        StudentT("student_t", td.StudentT),
        FisherSnedecor("fisher_snedecor", td.FisherSnedecor, ("df1", "df2")),
        LogScale("half_normal", td.HalfNormal, "scale", 2**0.5),
        LogScale("half_cauchy", td.HalfCauchy, "scale", 0.5**0.5),
        VonMises("von_mises", td.VonMises, ("loc", "concentration")),
        MultivariateNormal("multivariate_normal", td.MultivariateNormal, ("loc", "scale_tril")),
        Wishart("wishart", td.Wishart, ("df", "scale_tril")),
        LKJCholesky("lkj_cholesky", td.LKJCholesky, ("dim", "concentration")),
    )
}
NAMED = {family.name: family for family in KNOWN.values()}
