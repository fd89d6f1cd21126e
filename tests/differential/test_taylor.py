"""Taylor mode operation by operation, against torch.autograd.functional."""

import pytest
import torch
from torch.autograd.functional import hessian
from torch.nn import functional as F

from riemae.differential.jets import RULES, Jet
from riemae.differential.modes import MODES, Nested, Taylor, basis
from riemae.differential.tape import Pairs, Tape

K, M = 3, 4
C = torch.linspace(0.3, 1.1, 12, dtype=torch.float64).view(3, 4)
IMAGE = torch.linspace(-1, 1, 18, dtype=torch.float64).view(2, 1, 3, 3)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_place(z):
    y = z * 2
    y += 1
    y.mul_(z).sin_()
    return y


def broadcast(z):
    a, b = torch.broadcast_tensors(z.sin(), C[0])
    return a.mul(b).add_(z).square_()


def halves(z):
    a, b = z.chunk(2, -1)
    return torch.cat([a * b, a / (2 + b.cos()), 1 / (3 + a), 2 - b], -1)


def attention(z):
    t = z.unflatten(1, (2, 2))
    return ((t @ t.mT / 2).softmax(-1) @ t).flatten(1)


# Smooth maps (k, 4) -> (k, D), one for each kind of rule. Not among them: norm, std and
# linalg.solve, whose own derivatives of third and second order are wrong in torch 2.13; such a map
# is refused when it is first looked at.
SMOOTH = {
    **{
        name: getattr(F, name)
        for name in "silu gelu elu softplus mish selu celu logsigmoid softsign tanhshrink".split()
    },
    **{
        name: getattr(torch, name)
        for name in ("tanh", "sigmoid", "sin", "cos", "exp", "square", "erf", "atan", "sinh")
    },
    "special functions of any number": lambda z: (
        torch.special.expit(z) + torch.special.i1(z) * torch.special.ndtr(z)
    ),
    "special functions of shares": lambda z: (
        torch.special.ndtri(z.sigmoid()) + torch.special.logit(z.sigmoid())
    ),
    "special functions of positive numbers": lambda z: (
        torch.special.entr(1 + z.square())
        + torch.special.gammaln(1 + z.square()) * torch.special.xlog1py(z.square(), 2.0)
    ),
    "gelu tanh": lambda z: F.gelu(z, approximate="tanh"),
    "softplus beta": lambda z: F.softplus(z, beta=2.0),
    "powers": lambda z: (
        z**3 + (z**2 + 1) ** 0.5 + 2**z + (z.square() + 1).rsqrt() + z.exp().reciprocal()
    ),
    "logarithms": lambda z: (
        (z.square() + 1).log() + z.square().log1p() + torch.expm1(z) - z.exp().sqrt()
    ),
    "sums": lambda z: 1 + z - (3 - z) + torch.add(z, z.sin(), alpha=2) - z.neg(),
    "broadcast sum": lambda z: (z[:, None] + C).flatten(1).sin(),
    "broadcast product": lambda z: (z.unsqueeze(1) * C * z.sin()[:, None]).flatten(1),
    "outer product": lambda z: (z[:, :, None] * z[:, None]).flatten(1),
    "matrix products": lambda z: (z @ C.T) @ C * z + F.linear(z.sin(), C, C[:, 0]) @ C,
    "constant times point": lambda z: (C @ z[..., None].sin())[..., 0],
    "batched product": lambda z: (z[:, :, None] @ z.cos()[:, None] @ z[:, :, None])[..., 0],
    "einsum": lambda z: torch.einsum("ki,kj,ij->kj", z, z.sin(), C.T @ C),
    "quotients": lambda z: z / 2 + z / (1 + z.square()) + 1 / (2 + z.cos()) + C[0] / (1 + z.exp()),
    "shapes": lambda z: (
        z.sin().view(-1, 2, 2).mT.permute(0, 2, 1).flatten(1).movedim(0, 1).T.reshape(len(z), 4)
    ),
    "pieces": halves,
    "stack": lambda z: torch.stack([z.sin(), z.square(), torch.ones_like(z)], 1).flatten(1),
    "axes": lambda z: torch.cat(
        [
            z.split(3, -1)[1].sin(),
            z.T.unbind()[0][:, None].square(),
            z.unflatten(1, (2, 2)).chunk(2, 1)[1][:, 0].exp(),
            z.narrow(1, 1, 2).cos() * z.select(1, -1)[:, None],
            z.unflatten(1, (2, 2)).square().sum(dim=1, keepdim=True)[:, 0, None, 1],
            z.flip(0, 1).flip(0).sin(),
        ],
        dim=1,
    ),
    "index": lambda z: z.sin()[:, [2, 0, 0]] * z[:, 1:4] + z[..., :1],
    "reductions": lambda z: torch.stack(
        [z.sin().sum(-1), z.square().mean(1), z.exp().sum(-1).sqrt(), z.logsumexp(-1)], -1
    ),
    "cumulative": lambda z: (
        z.sin().cumsum(-1) + z.roll(1, -1).square() + F.pad(z.exp().diff(dim=-1), (0, 1))
    ),
    "softmax": lambda z: z.softmax(-1) * z.log_softmax(-1),
    "attention": attention,
    "layer norm": lambda z: F.layer_norm(z, (4,), C[0], C[1]),
    "instance norm": lambda z: F.instance_norm(
        z.sin().unflatten(1, (2, 2)), weight=C[0, :2], bias=C[1, :2]
    ).flatten(1),
    "instance norm, known statistics": lambda z: F.instance_norm(
        z.sin().unflatten(1, (2, 2)), C[0, :2], C[1, :2], use_input_stats=False
    ).flatten(1),
    "group norm": lambda z: F.group_norm(z, 2),
    "batch norm": lambda z: F.batch_norm(z.sin(), C[0], C[1]).square(),
    "convolution": lambda z: (
        F.conv2d(z.view(-1, 1, 2, 2).sin(), IMAGE, C[0, :2], padding=1).flatten(1).square()
    ),
    "transposed": lambda z: (
        F.conv_transpose1d(z[:, None].sin(), C[:1, None, :2], bias=C[0, :1]).flatten(1).square()
    ),
    "upsampling": lambda z: (
        F.interpolate(z.view(-1, 1, 2, 2).sin(), scale_factor=2, mode="bilinear").flatten(1).exp()
    ),
    "linear algebra": lambda z: torch.linalg.inv(
        torch.eye(4).to(z) * 5 + z[:, :, None] * z[:, None]
    ).flatten(1),
    "where": lambda z: torch.where(z > 0, z.sin(), z.square()),
    "where, broadcast": lambda z: (
        torch.where(C[0] > 0.5, z[:, :1].sin(), 2.0) + torch.where(z > 0, z[:, :1], z) * z
    ),
    "where, method": lambda z: z.sin().where(z > 0, z.square()),
    "where, constants": lambda z: (
        torch.where(z < 0, C[0], z * z) + torch.where(z < 0, z.exp(), 0.0)
    ),
    "broadcast together": lambda z: sum(torch.broadcast_tensors(z[:, :1].sin(), C[0], z.square())),
    "broadcast, written to": broadcast,
    "piecewise linear": lambda z: (
        F.relu(z.sin()) + z.square().clamp(max=1.0) + F.leaky_relu(z.cos(), inplace=True)
    ),
    "in place": in_place,
    "constants of its kind": lambda z: (
        z.sin() + z.new_ones(4) + torch.zeros_like(z) + len(z) + z.size(-1) + z.shape[0]
    ),
    "type": lambda z: z.to(torch.float64).double().sin().type_as(z),
}


def truth(f, z):
    """Value, J ``(k, D, m)`` and second derivatives ``(k, D, m, m)``, one point and one output at a
    time."""
    x = f(z)
    single = lambda p, d: f(p[None])[0, d]  # noqa: E731
    j = torch.stack([torch.autograd.functional.jacobian(lambda p: f(p[None])[0], p) for p in z])
    second = [
        torch.stack([hessian(lambda p, d=d: single(p, d), p) for d in range(x.shape[1])]) for p in z
    ]
    return x, j, torch.stack(second)


@pytest.fixture(params=SMOOTH)
def case(request):
    f, z = SMOOTH[request.param], draw(K, M, seed=3)
    return (f, z, *truth(f, z))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


MODE = MODES[0]


class TestRules:
    @pytest.mark.parametrize("again", [False, True], ids=["no_grad", "grad"])
    def test_one_pass_gives_all_derivatives(self, case, again):
        f, z, x, j, h = case
        pairs = Pairs.all(M)
        with MODE.active(True):
            value, first, second = MODE.forward(f, z, basis(z), pairs, again)
        close(value, x)
        close(first.movedim(0, -1), j)
        close(pairs.full(second.movedim(0, -1)), h)

    def test_first_order_alone(self, case):
        f, z, x, j, _ = case
        with MODE.active(False):
            value, first = MODE.forward(f, z, basis(z), None, False)
        close(value, x)
        close(first.movedim(0, -1), j)

    def test_one_tangent_alone(self, case):
        f, z, x, j, _ = case
        u = draw(K, M, seed=4)
        with MODE.active(False):
            value, first = MODE.forward(f, z, u[None], None, False)
        close(value, x)
        close(first[0], (j @ u[..., None])[..., 0])

    @pytest.mark.parametrize(
        "pairs", [Pairs([0], [0]), Pairs([0], [1]), Pairs([1, 0], [1, 2])], ids=["uu", "uv", "two"]
    )
    def test_chosen_pairs_of_any_directions(self, case, pairs):
        f, z, _, _, h = case
        u = draw(3, K, M, seed=5)
        with MODE.active(True):
            second = MODE.forward(f, z, u, pairs, False)[2]
        close(
            second,
            torch.stack(
                [
                    torch.einsum("kdab,ka,kb->kd", h, u[i], u[j])
                    for i, j in zip(pairs.i, pairs.j, strict=True)
                ]
            ),
        )

    @pytest.mark.parametrize("again", [False, True], ids=["no_grad", "grad"])
    def test_the_reverse_pass_gives_the_contraction(self, case, again):
        f, z, x, j, h = case
        a = draw(2, *x.shape, seed=7)
        with MODE.active(True):
            value, first, forms = MODE.expansion(f, z, lambda x, j: a, again)
        close(value, x)
        close(first.movedim(0, -1), j)
        close(forms, torch.einsum("kdij,skd->skij", h, a))

    def test_products_with_the_metric(self, case):
        f, z, x, j, _ = case
        v = draw(K, M, seed=8)
        with MODE.active(True):
            value, tangent, pulled = MODE.gram(f, z, v, lambda x, t: 2 * t, False)
        jv = torch.einsum("kdi,ki->kd", j, v)
        close(value, x)
        close(tangent, jv)
        close(pulled, 2 * torch.einsum("kdi,kd->ki", j, jv))

    def test_second_derivatives_are_differentiable(self, case):
        f, z, x, _, _ = case
        w = draw(*x.shape, seed=9)
        v = draw(1, K, M, seed=10)

        def second(z):
            with MODE.active(True):
                return (w * MODE.forward(f, z, v, Pairs([0], [0]), True)[2][0]).sum()

        point = z.clone().requires_grad_()
        total = second(point)
        slope = torch.autograd.grad(total, point)[0] if total.requires_grad else torch.zeros_like(z)
        e, step = draw(K, M, seed=11), 1e-5
        difference = (second(z + step * e) - second(z - step * e)) / (2 * step)
        assert abs(float((slope * e).sum() - difference)) <= 1e-6 * (1 + abs(float(difference)))


class TestRefusals:
    MAPS = {
        "writing into a slice": lambda z: (y := z.clone(), y.__setitem__((slice(None), 0), 0.0), y)[
            -1
        ],
        "leaving the graph": lambda z: z.detach().sin(),
        "leaving torch": lambda z: torch.from_numpy(z.numpy()),
    }

    @pytest.mark.parametrize("name", MAPS)
    def test_says_so(self, name):
        z = draw(K, M)
        with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
            MODE.forward(self.MAPS[name], z, basis(z), None, False)

    def test_a_jet_has_no_storage_to_compute_on(self):
        z = draw(K, M)
        jet = Jet(z, basis(z), None, Tape(False, K))
        with (
            pytest.raises(NotImplementedError, match="Taylor"),
            torch._C.DisableTorchFunctionSubclass(),
        ):
            jet.sin()

    def test_a_jet_looks_like_its_value(self):
        z = draw(K, M)
        jet = Jet(z, basis(z), None, Tape(False, K))
        assert (jet.shape, jet.dtype, jet.device, jet.ndim, len(jet)) == (
            z.shape,
            z.dtype,
            z.device,
            2,
            K,
        )
        assert (jet.size(1), jet.numel(), jet.is_floating_point(), jet.argmax().item()) == (
            M,
            K * M,
            True,
            z.argmax(),
        )


class TestPairs:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_all_pairs_fill_a_symmetric_form(self, k):
        form = draw(k, k)
        form = form + form.T
        pairs = Pairs.all(k)
        assert len(pairs) == k * (k + 1) // 2
        close(pairs.full(form[pairs.i, pairs.j]), form)

    def test_runs_cover_the_pairs(self):
        pairs = Pairs([0, 0, 2, 2, 1], [1, 2, 0, 3, 4])
        covered = [(i, j) for i, js, _ in pairs.runs for j in range(js.start, js.stop)]
        assert covered == list(zip(pairs.i, pairs.j, strict=True))


class Told(torch.Tensor):
    """Keeps the names that functions are known by."""

    names: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.names.append(func)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


COMMON = {
    F: "silu gelu softplus elu selu celu mish logsigmoid softsign tanhshrink hardsigmoid hardswish hardshrink "
    "softshrink relu relu6 leaky_relu hardtanh",
    torch: "tanh sigmoid sin cos tan exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square erf erfc erfinv "
    "asin acos atan sinh cosh asinh sinc i0 lgamma digamma logit abs floor ceil round trunc sign deg2rad rad2deg",
    torch.special: "digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr logit "
    "ndtr ndtri psi round sinc",
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in COMMON for name in COMMON[module].split()]
)
def test_common_functions_of_single_numbers_have_rules(module, name):
    Told.names.clear()
    getattr(module, name)(torch.rand(3).as_subclass(Told))
    assert all(called in RULES for called in Told.names)


def test_taylor_mode_comes_first():
    assert isinstance(MODES[0], Taylor)
    assert all(isinstance(mode, Nested) for mode in MODES[2:])
