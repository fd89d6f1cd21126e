"""Block-tridiagonal systems against dense matrices: products, both Cholesky roads, negative
eigenvalues."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemae.solvers import linear
from riemae.solvers.linear import BlockTridiagonal

SHAPES = [(1, 1, 1), (3, 1, 2), (2, 2, 1), (4, 5, 3), (2, 9, 2), (1, 3, 5)]  # (p, n, m)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def indefinite(p, n, m, seed=0, dtype=torch.float64):
    diagonal = randn(p, n, m, m, seed=seed, dtype=dtype)
    return BlockTridiagonal(
        diagonal + diagonal.mT, randn(p, n - 1, m, m, seed=seed + 1, dtype=dtype)
    )


def definite(p, n, m, seed=0, dtype=torch.float64):
    """``LLᵀ + I/10`` for a block-bidiagonal ``L``: block tridiagonal by construction."""
    low, beside = (
        randn(p, n, m, m, seed=seed, dtype=dtype),
        randn(p, n - 1, m, m, seed=seed + 1, dtype=dtype),
    )
    diagonal = low @ low.mT + 0.1 * torch.eye(m, dtype=dtype)
    diagonal[:, 1:] += beside @ beside.mT
    return BlockTridiagonal(diagonal, low[:, :-1] @ beside.mT)


def by_loop(matrix):
    """The dense matrix, written block by block."""
    p, n, m, _ = matrix.diagonal.shape
    full = torch.zeros(p, n * m, n * m, dtype=matrix.diagonal.dtype)
    for i in range(n):
        rows = slice(i * m, (i + 1) * m)
        full[:, rows, rows] = matrix.diagonal[:, i]
        if i + 1 < n:
            after = slice((i + 1) * m, (i + 2) * m)
            full[:, rows, after], full[:, after, rows] = matrix.upper[:, i], matrix.upper[:, i].mT
    return full


def counted(dense, floor=1e-9):
    return (torch.linalg.eigvalsh(dense) < -floor).sum(-1)


@pytest.fixture(params=["dense", "block"])
def road(request, monkeypatch):
    """Both roads of ``cholesky``, whatever the size of the system."""
    monkeypatch.setattr(linear, "_DENSE_WORK", 10**9 if request.param == "dense" else 0)
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
class TestAlgebra:
    def test_dense_places_every_block(self, shape, dtype):
        matrix = indefinite(*shape, dtype=dtype)
        assert torch.equal(matrix.dense(), by_loop(matrix))

    def test_product_is_the_dense_product(self, shape, dtype):
        matrix, x = indefinite(*shape, dtype=dtype), randn(*shape, seed=5, dtype=dtype)
        kept = x.clone()
        expected = (by_loop(matrix) @ x.flatten(1)[..., None]).view(shape)
        tol = TOLERANCE[dtype]
        assert torch.allclose(matrix.product(x), expected, rtol=tol, atol=tol)
        assert torch.equal(x, kept)

    def test_add_block_diagonal(self, shape, dtype):
        p, n, m = shape
        matrix, blocks = indefinite(*shape, dtype=dtype), randn(p, n, m, m, seed=7, dtype=dtype)
        total = matrix.add_block_diagonal(blocks).dense() - by_loop(matrix)
        expected = torch.stack([torch.block_diag(*row) for row in blocks])
        assert torch.allclose(total, expected, atol=TOLERANCE[dtype])

    def test_sums_and_multiples(self, shape, dtype):
        a, b = indefinite(*shape, dtype=dtype), definite(*shape, seed=3, dtype=dtype)
        assert torch.allclose(
            (a + b.scaled(-2.0)).dense(), a.dense() - 2 * b.dense(), atol=TOLERANCE[dtype]
        )

    def test_cholesky_solves(self, shape, dtype, road):
        matrix, b = definite(*shape, dtype=dtype), randn(*shape, seed=9, dtype=dtype)
        kept = b.clone()
        factor = matrix.cholesky()
        x = factor.solve(b)
        assert factor.ok.tolist() == [True] * shape[0]
        assert x.dtype == dtype
        # The residual, not the solution: these systems are ill-conditioned at will.
        scale = by_loop(matrix).abs().amax() * x.abs().amax()
        assert (
            (by_loop(matrix) @ x.flatten(1)[..., None]).view(shape) - b
        ).abs().amax() <= TOLERANCE[dtype] * scale
        assert torch.equal(b, kept)


class TestBatches:
    def test_select_by_mask_and_by_number(self):
        matrix = indefinite(5, 4, 2)
        mask = torch.tensor([True, False, True, False, True])
        for index in (mask, torch.tensor([0, 2, 4])):
            assert torch.equal(matrix.select(index).dense(), matrix.dense()[[0, 2, 4]])
        assert torch.equal(matrix.select(torch.tensor([3, 3])).dense(), matrix.dense()[[3, 3]])
        assert matrix.select(torch.zeros(5, dtype=torch.bool)).dense().shape == (0, 8, 8)

    def test_where_chooses_matrix_by_matrix(self):
        a, b = indefinite(3, 4, 2, seed=0), indefinite(3, 4, 2, seed=10)
        mixed = a.where(torch.tensor([True, False, True]), b).dense()
        assert torch.equal(mixed, torch.stack([a.dense()[0], b.dense()[1], a.dense()[2]]))

    def test_where_does_not_let_nan_through(self):
        a, b = indefinite(2, 3, 2, seed=0), indefinite(2, 3, 2, seed=10)
        a.diagonal[1], a.upper[1] = torch.nan, torch.nan
        assert a.where(torch.tensor([True, False]), b).dense().isfinite().all()

    def test_cat_and_select_are_inverse(self):
        a, b = indefinite(2, 3, 2, seed=0), indefinite(4, 3, 2, seed=10)
        both = BlockTridiagonal.cat([a, b])
        assert torch.equal(both.dense(), torch.cat([a.dense(), b.dense()]))
        assert torch.equal(both.select(torch.arange(2, 6)).dense(), b.dense())


class TestCholesky:
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_both_roads_agree(self, monkeypatch, dtype):
        matrix, b = definite(4, 12, 3, dtype=dtype), randn(4, 12, 3, seed=3, dtype=dtype)
        matrix = matrix.add_block_diagonal(torch.eye(3, dtype=dtype).expand(4, 12, 3, 3))
        solutions = []
        for limit in (10**9, 0):
            monkeypatch.setattr(linear, "_DENSE_WORK", limit)
            solutions.append(matrix.cholesky().solve(b))
        assert torch.allclose(*solutions, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    def test_the_limit_decides_the_road(self, monkeypatch):
        monkeypatch.setattr(BlockTridiagonal, "_dense_cholesky", lambda self: "dense")
        monkeypatch.setattr(BlockTridiagonal, "_block_cholesky", lambda self: "block")
        longest = int((linear._DENSE_WORK / 8) ** 0.5)
        assert definite(1, longest, 2).cholesky() == "dense"
        assert definite(1, longest + 1, 2).cholesky() == "block"

    # A matrix can fail in its first block, in a later one, or only together with its neighbours.
    @pytest.mark.parametrize(
        "spoil", ["first block", "last block", "coupling", "nan", "semidefinite"]
    )
    def test_a_bad_matrix_is_marked_and_its_neighbours_never_notice(self, road, spoil):
        good, b = definite(4, 6, 2), randn(4, 6, 2, seed=3)
        diagonal, upper = good.diagonal.clone(), good.upper.clone()
        if spoil == "first block":
            diagonal[1, 0] *= -1
        elif spoil == "last block":
            diagonal[1, -1] -= 1e3 * torch.eye(2)
        elif spoil == "coupling":
            upper[1, 2] += 1e3
        elif spoil == "nan":
            diagonal[1, 3] = torch.nan
        else:  # ones in every entry of a block of 2 × 2: exactly singular
            diagonal[1], upper[1] = 1.0, 0.0
        factor = BlockTridiagonal(diagonal, upper).cholesky()
        assert factor.ok.tolist() == [True, False, True, True]
        others = [0, 2, 3]
        assert torch.equal(factor.solve(b)[others], good.cholesky().solve(b)[others])

    def test_all_bad(self, road):
        factor = BlockTridiagonal(-definite(3, 4, 2).diagonal, definite(3, 4, 2).upper).cholesky()
        assert factor.ok.dtype == torch.bool
        assert not factor.ok.any()
        assert factor.solve(randn(3, 4, 2)).shape == (3, 4, 2)  # means nothing, but raises nothing

    def test_empty_batch(self, road):
        factor = definite(0, 4, 2).cholesky()
        assert factor.ok.shape == (0,)
        assert factor.solve(randn(0, 4, 2)).shape == (0, 4, 2)


class TestNegativeEigenvalues:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("make", [indefinite, definite])
    def test_as_many_as_the_dense_matrix_has(self, shape, make):
        matrix = make(*shape)
        count = matrix.negative_eigenvalues()
        assert count.dtype == torch.int64
        assert torch.equal(count, counted(by_loop(matrix)))

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        st.integers(1, 8),
        st.integers(1, 4),
        st.integers(0, 2**20),
        st.sampled_from([1e-8, 1.0, 1e8]),
        st.booleans(),
    )
    def test_any_size_and_any_scale(self, n, m, seed, scale, shifted):
        matrix = indefinite(8, n, m, seed=seed)
        if shifted:
            matrix = matrix.add_block_diagonal(
                2.0 * torch.eye(m, dtype=torch.float64).expand(8, n, m, m)
            )
        matrix = BlockTridiagonal(scale * matrix.diagonal, scale * matrix.upper)
        assert torch.equal(matrix.negative_eigenvalues(), counted(by_loop(matrix), floor=0.0))

    def test_negative_definite(self):
        matrix = definite(3, 5, 2)
        assert (
            BlockTridiagonal(-matrix.diagonal, matrix.upper).negative_eigenvalues().tolist()
            == [10] * 3
        )

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_zero_eigenvalues_are_not_negative(self, dtype):
        # The path Laplacian with free ends, eigenvalues 2 − 2 cos(kπ/n), k = 0 … n − 1:
        # semidefinite with one zero.
        n = 7
        diagonal = torch.tensor([1.0, *[2.0] * (n - 2), 1.0], dtype=dtype)[None, :, None, None]
        upper = -torch.ones(1, n - 1, 1, 1, dtype=dtype)
        assert BlockTridiagonal(diagonal, upper).negative_eigenvalues().tolist() == [0]
        # Shifted down to between its k-th and (k+1)-th eigenvalue it has k + 1 negative ones.
        values = [
            2 - 2 * torch.cos(torch.tensor(k * torch.pi / n, dtype=torch.float64)).item()
            for k in range(n)
        ]
        for k in range(n - 1):
            shift = (values[k] + values[k + 1]) / 2
            assert BlockTridiagonal(diagonal - shift, upper).negative_eigenvalues().tolist() == [
                k + 1
            ]

    def test_zero_matrix(self):
        zero = BlockTridiagonal(torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, 3))
        assert zero.negative_eigenvalues().tolist() == [0, 0]

    @pytest.mark.parametrize("n", [2, 3, 4, 5])
    @pytest.mark.parametrize("m", [1, 2])
    @pytest.mark.parametrize("scale", [1.0, 1e6])
    def test_zero_diagonal(self, n, m, scale):
        # Zeros on, the identity beside the diagonal: eigenvalues 2 cos(kπ/(n + 1)), each m times,
        # ⌊n/2⌋ m negative.
        identity = torch.eye(m, dtype=torch.float64).expand(1, n - 1, m, m)
        chain = BlockTridiagonal(torch.zeros(1, n, m, m, dtype=torch.float64), scale * identity)
        assert chain.negative_eigenvalues().tolist() == [n // 2 * m]

    @pytest.mark.parametrize("pivot", [0.0, 1e-14, -1e-14, 1e-12, -1e-12, 1e-10])
    def test_a_nearly_singular_pivot_hides_no_other_eigenvalue(self, pivot):
        # The first block is singular in one direction only, as at a conjugate point: dividing by it
        # must not drown the rest of the matrix in rounding. Judged where eigvalsh sees every
        # eigenvalue clearly.
        matrix = indefinite(4096, 5, 3)
        turn = torch.linalg.qr(randn(4096, 3, 3, seed=50))[0]
        first = (turn * torch.tensor([pivot, 1.0, -2.0], dtype=torch.float64)) @ turn.mT
        diagonal = torch.cat([((first + first.mT) / 2)[:, None], matrix.diagonal[:, 1:]], 1)
        matrix = BlockTridiagonal(diagonal, matrix.upper)
        dense = by_loop(matrix)
        clear = torch.linalg.eigvalsh(dense).abs().amin(-1) > 1e-3
        assert clear.double().mean() > 0.9
        assert torch.equal(matrix.negative_eigenvalues()[clear], counted(dense)[clear])

    def test_float32_counts_like_float64(self):
        single = indefinite(16, 6, 2, dtype=torch.float32)
        double = BlockTridiagonal(single.diagonal.double(), single.upper.double())
        clear = torch.linalg.eigvalsh(double.dense()).abs().amin(-1) > 1e-3
        assert clear.sum() > 8
        assert torch.equal(single.negative_eigenvalues()[clear], counted(double.dense())[clear])

    def test_neighbours_do_not_matter(self):
        small, huge = indefinite(3, 4, 2, seed=0), indefinite(3, 4, 2, seed=10)
        huge = BlockTridiagonal(1e12 * huge.diagonal, 1e12 * huge.upper)
        together = BlockTridiagonal.cat([small, huge]).negative_eigenvalues()
        assert torch.equal(
            together, torch.cat([small.negative_eigenvalues(), huge.negative_eigenvalues()])
        )
        assert torch.equal(together[:3], counted(by_loop(small)))

    def test_empty_batch(self):
        assert indefinite(0, 4, 2).negative_eigenvalues().shape == (0,)
