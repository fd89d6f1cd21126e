"""BibTeX of what was used."""

import importlib
import re

import pytest
import torch

import riemae
from riemae import Ensemble, Manifold, ambient, citations, solvers, statistics
from riemae.autoencoders import IRAE, VAE
from riemae.exceptions import OptionError


def bowl(z):
    return torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1)


def keys(*things):
    return re.findall(r"^@\w+\{([^,]+),$", riemae.cite(*things), re.MULTILINE)


M = Manifold(bowl)
OWN = ["riemae", "lee2023geometric"]
MANIFOLD = [*OWN, "arvanitidis2018latent", "shao2018riemannian"]


def test_every_place_in_the_table_exists():
    for place in citations._PAPERS:
        module, _, name = place.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        assert (thing.__module__, thing.__qualname__) == (module, name)


def test_entries_and_table_agree():
    used = {key for papers in citations._PAPERS.values() for key in papers}
    assert used | set(citations._ALWAYS) == set(citations._ENTRIES)


@pytest.mark.parametrize("key", sorted(citations._ENTRIES))
def test_entries_are_whole(key):
    text = citations._bibtex(key)
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE))
    assert {"author", "title"} <= set(fields)
    assert text.count("{") == text.count("}")
    assert key == "riemae" or re.fullmatch(r"[a-z]+\d{4}[a-z]+", key)
    assert key == "riemae" or fields["year"] in key or key == "arvanitidis2021geometrically"
    assert fields.get("archiveprefix", "arXiv") == "arXiv"


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (M, MANIFOLD),
        (Manifold, MANIFOLD),
        (solvers.GEORCE(), [*OWN, "rygaard2025georce"]),
        (solvers.GEORCE, [*OWN, "rygaard2025georce"]),
        (ambient.Expected(), [*OWN, "arvanitidis2018latent"]),
        (ambient.Euclidean(), OWN),
        (statistics.frechet_mean, [*OWN, "karcher1977riemannian"]),
        (IRAE(), [*OWN, "lee2022regularized"]),
        (VAE, [*OWN, "kingma2014auto"]),
        (Manifold(Ensemble([bowl, bowl])), [*MANIFOLD, "syrota2024decoder"]),
    ],
)
def test_what_stands_behind_what(thing, found):
    assert keys(thing) == found


def test_a_result_stands_for_its_space():
    z = torch.tensor([[0.1, 0.2]]).double()
    decoder = lambda z: torch.distributions.Normal(bowl(z), 1 + z[:, :1] ** 2)  # noqa: E731
    result = Manifold(decoder).geodesic(z, z + 0.3)
    assert keys(result) == keys(Manifold(decoder, ambient=ambient.FisherRao()))
    assert "amari2016information" in keys(result)


def test_several_things_and_each_paper_once():
    assert keys(M, solvers.Adam(), M, solvers.Adam()) == [*MANIFOLD, "kingma2015adam"]


@pytest.mark.parametrize("thing", [3, "manifold", bowl, torch.ones(2)])
def test_others_things_are_refused(thing):
    with pytest.raises(OptionError, match="something of riemae"):
        riemae.cite(thing)
