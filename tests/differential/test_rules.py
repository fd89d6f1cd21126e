"""The table of rules: each function in it reaches its rule, and no common function lacks one."""

import inspect
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.differential.jets import ANY_OTHER, COMPOSITIONS, RULES, refused, rule_of
from riemae.differential.rules.generic import generic


class Told(Tensor):
    """Notes which function objects ``__torch_function__`` gets, and computes nothing."""

    called: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.called.append(func)
        raise NotImplementedError


X = torch.rand(2, 2).as_subclass(Told)
IMAGE = torch.rand(1, 1, 2, 2).as_subclass(Told)
PLAIN = torch.rand(2, 2)
WHOLE = torch.zeros(2, 2, dtype=torch.int64)
# Arguments after which torch looks at the tensors among them: each function takes some of these.
ARGUMENTS = [
    (X,),
    (X, X),
    ([X, X],),
    (X, X, X),
    (PLAIN, X),
    (1, X),
    (IMAGE, None, 2),
    (PLAIN > 0, X, X),
    (X, 1),
    (X, 2.0),
    (X, 1, 1),
    (X, 1, 1, 1),
    (X, 0, 1.0),
    (X, 0, WHOLE),
    (X, 0, WHOLE, X),
    (X, 0, WHOLE, 1.0),
    (X, X, 1.0),
    (X, WHOLE),
    (X, (2, 2)),
    (X, [1], [1]),
    (X, 1, (2, 1)),
    (X, (2, 2), 1.0),
    (X, (2, 2), (2, 2)),
    (X, (2, 2), 2, 1, 0, 1),
    (X, (2, 2), torch.float32),
    (X, torch.float32),
    (X, 0, 0, 1),
    (X, "name"),
    (X, None, None, None, None, True, 0.1, 1e-5, True),
    (X, 0.5, False),
    (X, X, PLAIN, PLAIN),
    (X, [X, X], PLAIN, PLAIN),
    (X, X, [PLAIN], True, 1, 0.0, False, False, False),
    (X, [X], [PLAIN], True, 1, 0.0, False, False, False),
    (X, X, X, 2, 1, PLAIN, None, None, None, False, 0.0, PLAIN, None),
]


def told(function):
    """All function objects that calls of a function give to ``__torch_function__``."""
    found = []
    for args in ARGUMENTS:
        Told.called.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated names
            try:
                function(*args)
            except Exception:
                found += Told.called[:1]
    return found


def rule_that_runs(function):
    """What Taylor mode does with a function; None where no call reaches it."""
    for called in told(function):
        return "composition" if called in COMPOSITIONS else rule_of(called)
    return None


def named(function):
    return f"{getattr(function, '__qualname__', function)} {type(function).__name__}"


KEYS = [key for key in RULES if key is not ANY_OTHER]


@pytest.mark.parametrize("key", [*KEYS, *COMPOSITIONS], ids=named)
def test_a_call_of_a_function_in_the_table_reaches_its_rule(key):
    reached = told(key)
    if key in COMPOSITIONS:
        assert any(COMPOSITIONS.get(called) is COMPOSITIONS[key] for called in reached)
    else:
        assert any(rule_of(called) is RULES[key] for called in reached)


# Functions for which forward mode through the function itself is the rule, and why.
POLYNOMIALS = """
    chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w
    shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v
    shifted_chebyshev_polynomial_w hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l
    legendre_polynomial_p"""
BESSEL = """
    airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 modified_bessel_i0 modified_bessel_i1
    modified_bessel_k0 modified_bessel_k1 scaled_modified_bessel_k0 scaled_modified_bessel_k1
    spherical_bessel_j0"""
GENERIC = {
    "two arguments that may both be jets": """
        zeta gammainc gammaincc polygamma atan2 hypot""",
    "an argument that is a whole number": "multigammaln",
    "no derivative, or hardly one, in torch": POLYNOMIALS + BESSEL,
    "not of single numbers, and not linear": """
        gumbel_softmax lp_pool1d lp_pool2d lp_pool3d pdist cross
        grid_sample""",
    "products of three tensors": "addr addbmm",
    "linear, with weights or places that may depend on the points": "embedding",
}
ANNOUNCED = {name for names in GENERIC.values() for name in names.split()}
COMMON = {
    torch: """
        tanh sigmoid sin cos tan exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square
        erf erfc erfinv asin acos atan sinh cosh asinh acosh atanh sinc i0 lgamma digamma logit abs
        floor ceil round trunc sign deg2rad rad2deg neg pow float_power xlogy clamp relu
        add sub mul div true_divide subtract multiply divide rsub negative positive
        matmul mm bmm mv dot outer inner kron
        cat concat concatenate stack hstack vstack dstack column_stack
        reshape flatten unflatten squeeze unsqueeze permute transpose t movedim swapaxes select
        narrow chunk split tensor_split unbind index_select gather take roll flip fliplr flipud
        rot90 tile repeat_interleave broadcast_to broadcast_tensors diag diagonal diag_embed tril
        triu trace sum mean nansum cumsum diff clone
        softmax log_softmax logsumexp prod cumprod var std norm amax amin max min median sort topk
        atan2 maximum minimum hypot lerp addcmul addcdiv addmm baddbmm logaddexp cdist layer_norm
        group_norm instance_norm where masked_fill nan_to_num""",
    Tensor: """
        tanh sigmoid sin cos exp log sqrt square abs neg pow clamp relu add sub mul div matmul bmm
        mm __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__
        __rpow__
        __matmul__ __neg__ __pos__ __abs__ __getitem__ __iadd__ __isub__ __imul__ __itruediv__
        add_ sub_ mul_ div_ relu_ tanh_ clamp_ view reshape flatten unflatten squeeze unsqueeze
        permute transpose t expand expand_as view_as reshape_as type_as to double float repeat chunk
        split unbind select narrow gather sum mean cumsum contiguous clone size dim numel
        softmax log_softmax logsumexp prod std var norm masked_fill where amax amin max min""",
    F: """
        linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
        silu gelu softplus elu selu celu mish logsigmoid softsign tanhshrink hardsigmoid hardswish
        hardshrink softshrink relu relu6 leaky_relu hardtanh threshold prelu sigmoid tanh
        interpolate upsample avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d pixel_shuffle pixel_unshuffle channel_shuffle
        unfold fold layer_norm group_norm instance_norm batch_norm normalize softmax log_softmax
        softmin gumbel_softmax glu pad embedding_bag max_pool1d max_pool2d max_pool3d
        scaled_dot_product_attention cosine_similarity pairwise_distance dropout rms_norm
        local_response_norm grid_sample bilinear rrelu""",
    torch.special: " ".join(
        name
        for name in dir(torch.special)
        if name[0] != "_" and inspect.isbuiltin(getattr(torch.special, name))
    ),
}


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in COMMON.items() for name in names.split()]
)
def test_no_common_function_is_left_to_the_generic_rule_unannounced(owner, name):
    if not hasattr(owner, name):
        pytest.skip("this version of torch does not have it")
    function = getattr(owner, name)
    found = "composition" if function in COMPOSITIONS else RULES.get(function)
    found = found or rule_that_runs(function)
    assert found is not None
    assert found is not refused
    assert (found is generic) == (name in ANNOUNCED)


@pytest.mark.parametrize("name", ["fill_", "copy_", "zero_", "remainder_"])
def test_unknown_functions_that_write_in_place_are_refused(name):
    assert rule_of(getattr(Tensor, name)) is refused


def test_a_name_alone_brings_no_rule():
    def tanh(x):
        return x

    assert rule_of(tanh) is generic
