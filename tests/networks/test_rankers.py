"""Rankers: a candidate's score depends on it and its query alone, and two towers can be asked apart."""

import pytest
import torch

from leanmark.networks.rankers import Ranker, Towers, build_cross, build_towers

SHAPE = {"users": 7, "items": 11, "user_features": 3, "item_features": 2, "width": 8}
USER, ITEM = torch.tensor([0, 6, 2]), torch.tensor([[1, 2, 3, 10], [5, 5, 0, 1], [9, 8, 7, 6]])


def ranker(kind: str) -> Ranker:
    torch.manual_seed(0)
    made = build_cross(**SHAPE, hidden=(16, 8)) if kind == "cross" else build_towers(**SHAPE, hidden=16)
    made.query.known.copy_(torch.rand(7, 3))
    made.item.known.copy_(torch.rand(11, 2))
    return made.eval()


@pytest.mark.parametrize("kind", ["cross", "towers"])
def test_candidates_do_not_depend_on_each_other(kind: str):
    model = ranker(kind)
    with torch.inference_mode():
        together = model(USER, ITEM)
        alone = torch.cat([model(USER, ITEM[:, [place]]) for place in range(4)], dim=1)
    torch.testing.assert_close(together, alone)
    assert together[1, 0] == together[1, 1]  # the same item twice


@pytest.mark.parametrize("kind", ["cross", "towers"])
def test_what_is_known_matters(kind: str):
    model = ranker(kind)
    with torch.inference_mode():
        before = model(USER, ITEM)
        model.item.known[10] += 1
        changed = (model(USER, ITEM) - before).abs() > 1e-6
    assert changed.nonzero().tolist() == [[0, 3]]


def test_towers_meet_in_a_product_only():
    model = ranker("towers")
    assert isinstance(model.network, Towers)
    with torch.inference_mode():
        queries = model.network.query(model.query(torch.arange(7)))
        items = model.network.item(model.item(torch.arange(11)))
        product = queries @ items.T + model.network.bias
        torch.testing.assert_close(model(USER, ITEM), product[USER[:, None], ITEM])
