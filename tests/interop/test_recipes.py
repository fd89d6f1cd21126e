"""The recipes of docs/recipes.md find what was planted."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8")
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)
RECIPES = {section.partition("\n")[0]: section for section in SECTIONS}
NEEDED = {
    "UMAP": "umap",
    "Persistent homology": "ripser",
    "Leiden communities": "leidenalg",
}


def code(section):
    (found,) = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
    return compile(found, "docs/recipes.md", "exec")


@pytest.fixture(scope="module")
def start():
    names = {"__name__": "__main__"}
    exec(code(FIRST), names)
    return names


@pytest.fixture
def run(start):
    def run(title):
        package = NEEDED.get(title)
        if package and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
        names = dict(start)
        exec(code(RECIPES[title]), names)
        return names

    return run


def test_every_recipe_has_its_test():
    text = Path(__file__).read_text("utf-8")
    assert [title for title in RECIPES if f'"{title}"' not in text] == []


def test_in_the_data_space_the_groups_are_neighbours(start):
    assert bool(start["n"].certified.all())
    data = start["M"].decode(start["z"])
    chord = squareform(pdist(data))
    apart = start["group"][:, None] != start["group"]
    # Between the groups it is no farther than across one of them, but far along the sheet.
    assert chord[apart].min() < 0.5 * chord[~apart].max()
    assert start["D"][apart].min() > start["D"][~apart].max()


@pytest.mark.parametrize(
    "title",
    [
        "DBSCAN",
        "HDBSCAN",
        "Hierarchical clustering",
        "Spectral clustering",
        "Votes and regressions of neighbours",
    ],
)
def test_the_two_groups_are_found(run, title):
    names = run(title)
    labels, group = names["labels"], names["group"]
    assert len(set(labels)) == 2
    assert all(len(set(labels[group == g])) == 1 for g in (0, 1))


@pytest.mark.parametrize("title", ["Louvain communities", "Leiden communities"])
def test_communities_lie_within_groups(run, title):
    names = run(title)
    labels, group = names["labels"], names["group"]
    assert labels.shape == group.shape
    assert 2 <= len(set(labels)) < 12
    assert not set(labels[group == 0]) & set(labels[group == 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", ["t-SNE", "UMAP"])
def test_the_nearest_in_the_picture_is_of_the_same_group(run, title):
    names = run(title)
    distance = squareform(pdist(names["places"]))
    np.fill_diagonal(distance, np.inf)
    group = names["group"]
    assert (group[distance.argmin(1)] == group).mean() > 0.95


def test_scaling_unrolls_the_sheet(run):
    names = run("Multidimensional scaling")
    np.testing.assert_allclose(squareform(pdist(names["places"])), names["D"], rtol=2e-2, atol=0.1)
    assert names["values"][-3] < 1e-2 * names["values"][-2]


def test_isomap_of_one_group(run):
    names = run("Isomap")
    inside = names["group"] == 0
    exact = names["D"][np.ix_(inside, inside)]
    found = squareform(pdist(names["places"]))
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.97


@pytest.mark.filterwarnings("ignore")
def test_two_components_persist(run):
    names = run("Persistent homology")
    assert names["components"] == 2
    graph = names["graph"]
    sparse = names["ripser"](graph.maximum(graph.T), distance_matrix=True, maxdim=0)["dgms"][0]
    assert int((sparse[:, 1] > 20.0).sum()) == 2


def test_what_is_within_a_distance(run):
    names = run("Everything within a distance")
    assert np.array_equal(
        np.sort(names["indices"]), np.flatnonzero((names["D"][0] <= 6.0) & (np.arange(50) > 0))
    )
    assert names["density"].shape == (50,)
