"""Ambient metrics: every form of H(x) agrees with its dense matrix, both methods agree, and what is
not a metric is refused."""

import pytest
import torch
from spaces import rand
from torch.testing import assert_close

from riemae import Manifold
from riemae.ambient import (
    AmbientMetric,
    Constant,
    Custom,
    Diagonal,
    DiagonalMetric,
    Euclidean,
    FactorMetric,
    FeatureMap,
    FeatureMetric,
    InnerMetric,
    LowRank,
    MatrixMetric,
    ProductMetric,
    as_ambient,
)
from riemae.exceptions import AmbientError, SingularMetricError

D = 3
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


WEIGHTS = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
FACTOR = draw(1, 4, D) + torch.eye(4, D)
MATRIX = FACTOR.T @ FACTOR
W1, W2 = draw(2, 4, D), draw(3, 5, 4) + torch.eye(5, 4)


# A feature map, its Jacobian W₂ diag(1 − tanh²) W₁ by hand, and the metric that it induces.


def phi(x):
    return (x.flatten(1) @ W1.T).tanh() @ W2.T


def phi_product(x, v):  # Jφ v
    return ((1 - (x @ W1.T).tanh() ** 2) * (v @ W1.T)) @ W2.T


def phi_matrix(x):
    j = W2 @ ((1 - (x @ W1.T).tanh() ** 2)[:, :, None] * W1)
    return j.mT @ j


def phi_autodiff(x):
    j = torch.vmap(torch.func.jacrev(lambda y: phi(y[None])[0]))(x)
    return j.mT @ j


def phi_operator(x, v):
    return (phi_matrix(x) @ v[..., None])[..., 0]


def phi_inner(x, u, v):
    return (phi_product(x, u) * phi_product(x, v)).sum(-1)


def squares(x):
    return 1 + x**2


def squares_matrix(x):
    return squares(x).diag_embed()


def constantly(matrix):
    return lambda x: matrix.to(x).expand(len(x), *matrix.shape)


BASES = {
    "features": FeatureMetric,
    "factor_product": FactorMetric,
    "diagonal": DiagonalMetric,
    "matrix": MatrixMetric,
    "product": ProductMetric,
    "inner": InnerMetric,
}


def own(base=None, **methods):
    """A metric with a single method, and its base class."""
    ((name, function),) = methods.items()
    return type("Own", (base or BASES[name],), {name: lambda self, *args: function(*args)})()


FORMS = {  # name: (how to make it, its dense matrix)
    "Euclidean": (Euclidean, constantly(torch.eye(D))),
    "Diagonal": (lambda: Diagonal(WEIGHTS), constantly(WEIGHTS.diag())),
    "Constant": (lambda: Constant(MATRIX), constantly(MATRIX)),
    "FeatureMap": (lambda: FeatureMap(phi), phi_matrix),
    "features()": (lambda: own(features=phi), phi_matrix),
    "factor_product()": (lambda: own(factor_product=phi_product), phi_matrix),
    "diagonal()": (lambda: own(diagonal=squares), squares_matrix),
    "matrix()": (lambda: own(matrix=phi_matrix), phi_matrix),
    "product()": (lambda: own(product=phi_operator), phi_matrix),
    "Custom(x -> (k, D, D))": (lambda: Custom(phi_matrix), phi_matrix),
    "Custom(x -> (D, D))": (lambda: Custom(lambda x: MATRIX), constantly(MATRIX)),
    "Custom(x -> (k, D))": (lambda: Custom(squares), squares_matrix),
    "Custom(matrix)": (lambda: Custom(matrix=phi_autodiff), phi_matrix),
    "Custom(one matrix)": (lambda: Custom(matrix=lambda x: MATRIX), constantly(MATRIX)),
    "Custom(diagonal)": (lambda: Custom(diagonal=squares), squares_matrix),
    "Custom(operator)": (lambda: Custom(operator=phi_operator), phi_matrix),
    "Custom(factor)": (lambda: Custom(factor=phi_product), phi_matrix),
    "Custom(inner)": (lambda: Custom(inner=phi_inner), phi_matrix),
    "inner()": (lambda: own(inner=phi_inner), phi_matrix),
    "LowRank": (lambda: LowRank(FACTOR.T, WEIGHTS), constantly(WEIGHTS.diag() + MATRIX)),
}
FACTORED = [*list(FORMS)[:7], "Custom(factor)", "LowRank"]
EMBEDDINGS = {
    "Euclidean": lambda x: x,
    "Diagonal": lambda x: x * WEIGHTS.sqrt(),
    "Constant": lambda x: x @ FACTOR.T,
    "FeatureMap": phi,
    "features()": phi,
    "LowRank": lambda x: torch.cat([x * WEIGHTS.sqrt(), x @ FACTOR.T], -1),
}


@pytest.mark.parametrize(
    "k", [1, D, 5]
)  # with k == D a diagonal (k, D) and one matrix (D, D) look the same
@pytest.mark.parametrize("name", FORMS)
class TestDenseMatrix:
    def case(self, name, k):
        make, dense = FORMS[name]
        x = draw(4, k, D)
        return make(), x, dense(x), draw(5, k, D)

    def test_matrix_and_diagonal(self, name, k):
        metric, x, h, _ = self.case(name, k)
        assert_close(metric.matrix(x), h, **EXACT)
        assert_close(metric.diagonal(x), h.diagonal(dim1=1, dim2=2), **EXACT)

    def test_product(self, name, k):
        metric, x, h, v = self.case(name, k)
        assert_close(metric.product(x, v), torch.einsum("kij,kj->ki", h, v), **EXACT)

    def test_apply_to(self, name, k):
        metric, x, h, _ = self.case(name, k)
        columns = draw(6, k, D, 2)
        assert_close(metric.apply_to(x, columns), h @ columns, **EXACT)

    def test_squared_norm(self, name, k):
        metric, x, h, v = self.case(name, k)
        assert_close(metric.squared_norm(x, v), torch.einsum("ki,kij,kj->k", v, h, v), **EXACT)

    def test_inner(self, name, k):
        metric, x, h, v = self.case(name, k)
        assert_close(metric.inner(x, x, v), torch.einsum("ki,kij,kj->k", x, h, v), **EXACT)

    def test_factor_product(self, name, k):
        metric, x, h, v = self.case(name, k)
        if name not in FACTORED:
            with pytest.raises(AmbientError, match="a factor S with H = SᵀS"):
                metric.factor_product(x, v)
            return
        s = torch.stack(
            [metric.factor_product(x, e.expand(k, D)) for e in torch.eye(D).double()], -1
        )
        assert_close(s.mT @ s, h, **EXACT)
        assert_close(metric.factor_product(x, v), (s @ v[..., None])[..., 0], **EXACT)

    def test_distance_is_the_chord_in_feature_space_or_unknown(self, name, k):
        metric, x, _, y = self.case(name, k)
        assert metric.has_features == (name in EMBEDDINGS)
        if name in EMBEDDINGS:
            a, b = (EMBEDDINGS[name](w) for w in (x, y))
            assert_close(metric.distance(x, y), (a - b).square().sum(-1).sqrt(), **EXACT)
        else:
            assert metric.distance(x, y) is None
            with pytest.raises(AmbientError, match="a metric with a feature map"):
                metric.features(x)

    def test_check_accepts_it(self, name, k):
        metric, x, _, _ = self.case(name, k)
        metric.check(x)


class TestForms:
    def test_one_matrix_for_all_points_has_a_diagonal_for_each(self):
        metric, x = own(matrix=lambda x: MATRIX), draw(0, 5, D)
        assert_close(metric.product(x, x), x @ MATRIX, **EXACT)
        assert_close(metric.diagonal(x), MATRIX.diagonal().expand(5, D), **EXACT)

    @pytest.mark.parametrize(
        ("function", "dense"),
        [
            (squares, squares_matrix),
            (phi_matrix, phi_matrix),
            (lambda x: MATRIX, constantly(MATRIX)),
        ],
    )
    def test_no_call_decides_the_form_of_a_bare_function_for_later_ones(self, function, dense):
        metric, before = Custom(function), dict(vars(Custom(function)))
        for k in (0, 5, D, 1, D):
            x = draw(k, k, D)
            assert metric.product(x, x).shape == (k, D)
            if k:
                assert_close(metric.matrix(x), dense(x), **EXACT)
        assert vars(metric).keys() == before.keys()
        assert metric.form is before["form"]

    @pytest.mark.parametrize("make", [FeatureMap, lambda f: own(features=f)])
    def test_feature_maps_see_the_shape_of_the_data(self, make):
        # A convolution is linear: the columns of its matrix S are the images of the basis, and f(z)
        # = Aᵀz has J = Aᵀ.
        kernel, a = draw(0, 2, 1, 2, 2), draw(7, 2, 6)
        convolve = lambda x: torch.nn.functional.conv2d(x, kernel)  # noqa: E731
        s = convolve(torch.eye(6).double().view(6, 1, 2, 3)).flatten(1).T
        metric, x, z = make(convolve), draw(8, 4, 1, 2, 3), draw(9, 4, 2)
        assert_close(metric.matrix(x), constantly(s.T @ s)(x), **EXACT)
        M = Manifold(lambda z: (z @ a).view(-1, 1, 2, 3), metric)
        assert_close(M.metric(z), constantly(a @ s.T @ s @ a.T)(z), **EXACT)
        assert_close(M.as_space().ambient_distance(z, -z), (2 * z @ a @ s.T).norm(dim=-1), **EXACT)


# Two ways to one geometry: a feature map, and the metric that it induces.


def decoder(z):
    """A curved surface in R³ whose chart is regular everywhere near the origin."""
    return torch.cat([z.sin(), z[:, :1] * z[:, 1:] + z[:, :1]], 1) + 0.5 * z @ z.new_ones(2, D)


QUANTITIES = {
    "metric": "z",
    "metric_product": "zv",
    "inner": "zuv",
    "norm": "zv",
    "eigenvalues": "z",
    "log_volume": "z",
    "volume_density": "z",
    "christoffel": "z",
    "acceleration": "zv",
    "length": "c",
    "energy": "c",
}
ROADS = {  # both metrics; sinh acts on each coordinate, so that its H is diag(cosh²)
    "diagonal, diagonal": (lambda: Diagonal(WEIGHTS), lambda: Custom(diagonal=constantly(WEIGHTS))),
    "constant, matrix": (lambda: Constant(MATRIX), lambda: Custom(lambda x: MATRIX)),
    "constant, operator": (
        lambda: Constant(MATRIX),
        lambda: Custom(operator=lambda x, v: v @ MATRIX),
    ),
    "varying, matrix": (lambda: FeatureMap(phi), lambda: Custom(phi_matrix)),
    "varying, autodiff": (lambda: FeatureMap(phi), lambda: Custom(matrix=phi_autodiff)),
    "varying, operator": (lambda: FeatureMap(phi), lambda: Custom(operator=phi_operator)),
    "varying, factor": (lambda: FeatureMap(phi), lambda: Custom(factor=phi_product)),
    "varying, inner": (lambda: FeatureMap(phi), lambda: Custom(inner=phi_inner)),
    "varying, factor_product()": (lambda: FeatureMap(phi), lambda: own(factor_product=phi_product)),
    "varying, matrix()": (lambda: FeatureMap(phi), lambda: own(matrix=phi_matrix)),
    "varying, diagonal()": (
        lambda: FeatureMap(torch.sinh),
        lambda: own(diagonal=lambda x: x.cosh() ** 2),
    ),
}


@pytest.mark.parametrize("road", ROADS)
class TestTwoRoads:
    @pytest.mark.parametrize("quantity", QUANTITIES)
    def test_pointwise(self, road, quantity):
        points = {
            "z": draw(10, 6, 2),
            "u": draw(11, 6, 2),
            "v": draw(12, 6, 2),
            "c": draw(13, 6, 4, 2),
        }
        fast, slow = (
            getattr(Manifold(decoder, make()), quantity)(*(points[p] for p in QUANTITIES[quantity]))
            for make in ROADS[road]
        )
        assert_close(slow, fast, rtol=1e-10, atol=1e-10)

    def test_geodesics_and_gradients_of_distances(self, road):
        ends = [0.5 * draw(seed, 3, 2) for seed in (10, 11)]
        results, gradients = [], []
        for make in ROADS[road]:
            M = Manifold(decoder, make())
            results.append(M.geodesic(*ends, rtol=1e-8))
            a, b = (z.clone().requires_grad_() for z in ends)
            d = M.distance(a, b, rtol=1e-8, init=results[-1].curve)
            gradients.append(torch.stack(torch.autograd.grad(d.sum(), (a, b))))
        fast, slow = results
        # Both promise 1e-8 of one length, though their discrete energies differ. Node positions,
        # and with them the end tangents, are of order h² where the length is of order h⁴: they
        # agree to its square root.
        assert_close(slow.length, fast.length, rtol=2e-8, atol=0)
        assert_close(slow.index, fast.index)
        assert_close(slow.curve(0.5), fast.curve(0.5), rtol=0, atol=1e-4)
        assert_close(gradients[1], gradients[0], rtol=0, atol=1e-3)
        assert (fast.lower_bound <= fast.length).all()
        assert slow.lower_bound.isnan().all()


class TestAsAmbient:
    @pytest.mark.parametrize(
        ("given", "kind", "dense"),
        [
            (None, Euclidean, constantly(torch.eye(D))),
            (WEIGHTS, Diagonal, constantly(WEIGHTS.diag())),
            (MATRIX, Constant, constantly(MATRIX)),
            (phi_matrix, Custom, phi_matrix),
            (squares, Custom, squares_matrix),
        ],
        ids=["None", "(D,)", "(D, D)", "matrices", "diagonals"],
    )
    def test_what_manifold_accepts(self, given, kind, dense):
        x = draw(0, 4, D)
        assert type(as_ambient(given)) is kind
        assert_close(Manifold(lambda z: z, ambient=given).metric(x), dense(x), **EXACT)

    def test_a_metric_stays_itself(self):
        metric = Diagonal(WEIGHTS)
        assert as_ambient(metric) is Manifold(lambda z: z, ambient=metric).ambient is metric

    @pytest.mark.parametrize("wrong", [3.0, "euclidean", [1.0, 2.0], Euclidean, MATRIX.numpy()])
    def test_anything_else_is_refused(self, wrong):
        with pytest.raises(AmbientError, match=r"For instance ambient\.Euclidean\(\)"):
            Manifold(lambda z: z, ambient=wrong)


class TestZeroWeights:
    """Coordinates that do not count: ``H`` is semi-definite, the pull-back need not be."""

    @pytest.mark.parametrize("zeros", [[0], [1], [2]])
    def test_is_the_metric_without_these_coordinates(self, zeros):
        weights = WEIGHTS.clone()
        weights[zeros] = 0
        kept = [i for i in range(D) if i not in zeros]
        A = draw(1, 2, D)
        M = Manifold(lambda z: (z @ A).sin(), ambient=Diagonal(weights))
        other = Manifold(lambda z: (z @ A).sin()[:, kept], ambient=Diagonal(WEIGHTS[kept]))
        z = draw(2, 3, 2)
        assert_close(M.metric(z), other.metric(z), **EXACT)
        assert_close(M.distance(z[0], z[1]), other.distance(z[0], z[1]), rtol=1e-4, atol=0.0)

    def test_a_singular_pull_back_says_so(self):
        M = Manifold(lambda z: z, ambient=Diagonal(torch.tensor([1.0, 0.0], dtype=torch.float64)))
        z = draw(2, 3, 2)
        assert_close(M.metric(z)[:, 1, 1], torch.zeros(3).double())
        with pytest.raises(SingularMetricError):
            M.christoffel(z)


class TestConstructors:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: AmbientMetric(), "a subclass of one of FeatureMetric, FactorMetric, Diag"),
            (
                lambda: own(AmbientMetric, diagonal=squares),
                "AmbientMetric alone.*overrides diagonal: take DiagonalMetric as its base",
            ),
            (
                lambda: own(AmbientMetric, inner=phi_inner),
                "overrides inner: take InnerMetric as its base",
            ),
            (lambda: DiagonalMetric(), "a metric that overrides diagonal, got one without it"),
            (
                lambda: own(FeatureMetric, product=phi_operator),
                "overrides features, got one that overrides product.*or take another base",
            ),
            (
                lambda: Custom(),
                "exactly one of function, matrix, diagonal, operator, factor, inner, got none",
            ),
            (
                lambda: Custom(matrix=phi_matrix, diagonal=squares),
                "exactly one of .*, got matrix, diagonal",
            ),
            (lambda: Custom(3.0), "a function"),
            (lambda: Custom(matrix=MATRIX), "a function"),
            (lambda: Diagonal(torch.tensor([1.0, -2.0])), r"none negative, got .* minimum -2"),
            (lambda: Diagonal(torch.tensor([0.0, -1e-9])), r"none negative, got .* minimum -1e-09"),
            (lambda: Diagonal(torch.tensor([1.0, torch.inf])), "finite weights"),
            (lambda: Diagonal(torch.tensor([1.0, torch.nan])), "finite weights"),
            (
                lambda: Diagonal(torch.ones(2, 2)),
                r"weights of shape \(D,\), none negative, got \(2, 2\)",
            ),
            (
                lambda: Diagonal(torch.ones(0)),
                r"weights of shape \(D,\), none negative, got \(0,\)",
            ),
            (lambda: Diagonal([1.0, 2.0]), "tensor"),
            (lambda: Diagonal(torch.tensor([1, 2])), "int64"),
            (
                lambda: Constant(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
                "smallest eigenvalue -1.*multiple of the ident",
            ),
            (lambda: Constant(torch.ones(2, 2)), "positive definite"),
            (
                lambda: Constant(torch.tensor([[2.0, 1.0], [0.0, 2.0]])),
                "symmetric matrix.*Symmetrise",
            ),
            (lambda: Constant(torch.full((2, 2), torch.nan)), "finite"),
            (lambda: Constant(torch.ones(2, 3)), r"shape \(D, D\), got \(2, 3\)"),
            (lambda: Constant([[1.0, 0.0], [0.0, 1.0]]), "tensor"),
            (lambda: Constant(torch.eye(2, dtype=torch.int64)), "int64"),
            (lambda: Euclidean()(torch.zeros(1, D)), "a call. It is not a layer"),
        ],
    )
    def test_what_cannot_be_a_metric(self, make, message):
        with pytest.raises(AmbientError, match=message):
            make()

    def test_a_tensor_is_copied(self):
        weights = WEIGHTS.clone()
        metric = Diagonal(weights)
        weights.fill_(7)
        assert_close(metric.weights, WEIGHTS)

    def test_repr_names_the_form(self):
        assert repr(Custom(squares)) == "Custom(function=squares)"
        assert repr(Euclidean()) == "Euclidean()"


SKEWED = torch.eye(D).double() + torch.ones(D, D).double().triu(1)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Custom(lambda x: SKEWED), "a symmetric metric.*Symmetrise"),
        (own(matrix=constantly(SKEWED)), "a symmetric metric.*Symmetrise"),
        (Custom(operator=lambda x, v: v.cumsum(-1)), "a symmetric metric"),
        (Custom(lambda x: -squares(x)), "a positive metric"),
        (Custom(matrix=lambda x: torch.tensor([1.0, 1.0, -3.0]).to(x).diag()), "a positive metric"),
        (own(diagonal=lambda x: -squares(x)), "a positive metric"),
        (Custom(lambda x: (x - 2).log()), "a finite metric.*formula"),
        (Custom(matrix=lambda x: phi_matrix(x) / 0), "a finite metric"),
        (FeatureMap(lambda x: (x - 2).log()), "finite"),
        (
            Custom(lambda x: x[:, :2]),
            r"H of shape \(2, 3, 3\), \(3, 3\) or \(2, 3\) .*got \(2, 2\)",
        ),
        (Custom(lambda x: phi_matrix(x)[:, :2]), r"got \(2, 2, 3\).*flattened data \(k, D\)"),
        (Custom(matrix=lambda x: torch.eye(2).to(x)), r"got \(2, 2\)"),
        (Custom(diagonal=lambda x: x[:, :2]), r"got \(2, 2\)"),
        (
            Custom(operator=lambda x, v: v[:, :2]),
            "dimension 3.*Check its shapes|H.x. v of shape .2, 3., got .2, 2.",
        ),
        (Custom(inner=lambda x, u, v: u[:, 0] * v[:, 1]), "a symmetric metric"),
        (Custom(inner=lambda x, u, v: -(u * v).sum(-1)), "a positive metric"),
        (Custom(inner=lambda x, u, v: u * v), "Check its shapes"),
        (Custom(factor=lambda x, v: v / (x - x)), "a finite metric"),
        (Custom(lambda x: None), "got NoneType"),
        (own(product=lambda x, v: v[:, :2]), r"H\(x\) v of shape \(2, 3\), got \(2, 2\)"),
        (own(matrix=lambda x: torch.eye(2).to(x)), "dimension 3.*Check its shapes"),
        (own(diagonal=lambda x: x[:, :2]), "dimension 3.*Check its shapes"),
        (own(features=lambda x: x.sum()), r"features with 2 rows, got \(\)"),
        (own(features=lambda x: (x, x)), "features with 2 rows, got tuple"),
        (
            FeatureMap(lambda x: x[:1]),
            r"features with 2 rows, got \(1, 3\). Keep the batch axis first",
        ),
        (FeatureMap(torch.nn.Linear(4, 2).double()), "(?i)shape"),
        (
            Diagonal(torch.ones(4).double()),
            "data of dimension 4, got 3. Does the metric belong to this decoder",
        ),
        (
            Constant(torch.eye(2).double()),
            "data of dimension 2, got 3. Does the metric belong to this decoder",
        ),
        (
            Diagonal(torch.ones(3)),
            r"float32 on cpu, got torch.float64.*Move both at once with Manifold\.to",
        ),
        (
            Constant(torch.eye(3)),
            r"float32 on cpu, got torch.float64.*Move both at once with Manifold\.to",
        ),
        (FeatureMap(torch.nn.Linear(3, 2)), "(?i)dtype"),
        (Custom(lambda x: torch.eye(3)), "(?i)float"),
        (
            Custom(lambda x: squares(x).float()),
            "float64.*got torch.float32",
        ),  # would lose half of the digits silently
    ],
)
class TestCheck:
    def test_what_is_no_metric_is_refused(self, metric, message):
        with pytest.raises(AmbientError, match=message):
            metric.check(draw(0, 2, D))

    def test_manifold_refuses_it_at_first_use(self, metric, message):
        with pytest.raises(AmbientError, match=message):
            Manifold(lambda z: z, ambient=metric).metric(draw(0, 2, D))


@pytest.mark.parametrize(
    "make", [Custom, lambda f: Custom(diagonal=f), lambda f: own(diagonal=f), FeatureMap]
)
def test_another_dtype_than_that_of_the_data_is_refused(make):
    with pytest.raises(AmbientError, match="float32.*got torch.float64"):
        make(lambda x: squares(x).double()).check(draw(0, 2, D).float())


def test_a_semidefinite_metric_may_pull_back_to_a_definite_one():
    # diag(1, 1, 0) leaves out the third coordinate of the graph (z, z₀), so the plane below it
    # remains, which is flat.
    flat = torch.tensor([1.0, 1.0, 0.0]).double()
    M = Manifold(lambda z: torch.cat([z, z[:, :1]], 1), ambient=Custom(diagonal=constantly(flat)))
    z = draw(0, 4, 2)
    assert_close(M.metric(z), constantly(torch.eye(2))(z))
    assert_close(M.geodesic(z, -z).length, 2 * z.norm(dim=-1), rtol=1e-6, atol=0)


class Halves(torch.nn.Module):
    """``(1 + x²)/2`` by a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5).double())

    def forward(self, x):
        return self.scale * squares(x)


@pytest.mark.parametrize(
    ("metric", "dense"),
    [
        (Diagonal(WEIGHTS), constantly(WEIGHTS.diag())),
        (Constant(MATRIX), constantly(MATRIX)),
        (Custom(Halves()), lambda x: squares_matrix(x) / 2),
        (Custom(diagonal=Halves()), lambda x: squares_matrix(x) / 2),
        (
            FeatureMap(Halves()),
            lambda x: (x**2).diag_embed(),
        ),  # the Jacobian of (1 + x²)/2 is diag(x)
    ],
)
def test_constants_and_modules_move_with_the_manifold(metric, dense):
    M, x = Manifold(lambda z: z, ambient=metric), draw(0, 4, D)
    there = M.to(dtype=torch.float32)
    assert_close(there.metric(x.float()), dense(x.float()), rtol=1e-5, atol=1e-6)
    assert_close(M.metric(x), dense(x), **EXACT)  # the original stays where it was
    assert there.ambient is not metric
