"""Heads and blocks are really gone, the ones that matter least, and the artifact is built again without them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanmark.errors import NotApplicable, PreparationError
from leanmark.networks.encoder import build_row_encoder
from leanmark.networks.layers import SelfAttention
from leanmark.networks.resnet import build_resnet_8
from leanmark.stages import Context, Split, TorchModel
from techniques.test_binary import CONTEXT, PICTURES
from techniques.test_pruning import apply, evidence, lenet_5, stored

SMALL = {"width": 16, "heads": 4, "layers": 2}


def encoder() -> TorchModel:
    torch.manual_seed(0)
    return TorchModel(build_row_encoder(**SMALL).eval(), "leanmark.networks.encoder:build_row_encoder", SMALL)


def resnet() -> TorchModel:
    torch.manual_seed(0)
    config = {"widths": [4, 8, 8]}
    return TorchModel(build_resnet_8((4, 8, 8)).eval(), "leanmark.networks.resnet:build_resnet_8", config)


def attentions(model: TorchModel) -> list[SelfAttention]:
    return [part for part in model.module.modules() if isinstance(part, SelfAttention)]


def answers(model: TorchModel) -> torch.Tensor:
    with torch.no_grad():
        return model.module(torch.from_numpy(PICTURES[:64]))


def test_channels_leave_what_heads_divide_and_places_without_a_layer(tmp_path: Path):
    before = encoder().module.state_dict()
    model = apply("prune.channels", encoder(), CONTEXT, ratio=0.5)
    after = model.module.state_dict()
    smaller = {name for name, tensor in after.items() if tensor.shape != before[name].shape}
    assert {name.split(".", 2)[2] for name in smaller} == {"enter.weight", "enter.bias", "leave.weight"}
    again = stored(model, tmp_path / "stored").load()
    assert isinstance(again, TorchModel)
    assert [tensor.shape for tensor in again.module.state_dict().values()] == [
        tensor.shape for tensor in after.values()
    ]


@pytest.mark.parametrize(("ratio", "left"), [(0.25, 6), (0.5, 4), (0.99, 2)])
def test_so_many_heads_are_gone(ratio: float, left: int, tmp_path: Path):
    model = apply("prune.heads", encoder(), CONTEXT, ratio=ratio)
    assert sum(part.heads for part in attentions(model)) == left
    assert all(part.query.out_features == part.heads * 4 for part in attentions(model))
    assert evidence("prune.heads", model, tmp_path, encoder(), ratio=ratio).effective
    again = stored(model, tmp_path / "again").load()
    assert isinstance(again, TorchModel)
    assert torch.equal(answers(again), answers(model))


def test_a_head_that_gives_nothing_goes_first_and_is_not_missed():
    model = encoder()
    part = attentions(model)[1]
    with torch.no_grad():
        part.out.weight[:, 8:12] = 0  # the third head
    before = answers(model)
    apply("prune.heads", model, CONTEXT, ratio=1 / 8)
    assert [item.heads for item in attentions(model)] == [4, 3]
    assert torch.allclose(answers(model), before, atol=1e-6)


def test_attention_is_what_torch_computes():
    torch.manual_seed(0)
    own, other = SelfAttention(16, 4, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        other.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        other.out_proj.weight.copy_(own.out.weight)
        other.out_proj.bias.copy_(own.out.bias)
        x = torch.randn(3, 5, 16)
        assert torch.allclose(own(x), other(x, x, x)[0], atol=1e-6)


@pytest.mark.parametrize(("make", "count"), [(encoder, 1), (encoder, 2), (resnet, 1)])
def test_so_many_blocks_are_gone(make, count: int, tmp_path: Path):
    model = apply("prune.layers", make(), CONTEXT, count=count)
    found = evidence("prune.layers", model, tmp_path, make(), count=count)
    assert found.effective, found.reason
    again = stored(model, tmp_path / "again").load()
    assert isinstance(again, TorchModel)
    assert torch.equal(answers(again), answers(model))


def test_the_block_goes_that_does_least():
    model = encoder()
    layer = model.module.get_submodule("layers.1")
    with torch.no_grad():
        for name in ("attention.out", "leave"):
            for parameter in layer.get_submodule(name).parameters():
                parameter.mul_(1e-3)
    apply("prune.layers", model, CONTEXT, count=1)
    assert isinstance(model.module.get_submodule("layers.1"), nn.Identity)


def test_an_unpruned_model_has_no_evidence(tmp_path: Path):
    for name, params in (("prune.heads", {"ratio": 0.5}), ("prune.layers", {"count": 1})):
        folder = tmp_path / name
        folder.mkdir()
        assert not evidence(name, encoder(), folder, encoder(), **params).effective


def test_models_without_such_parts_say_so():
    with pytest.raises(NotApplicable, match="no attention with heads to spare"):
        apply("prune.heads", lenet_5(), CONTEXT, ratio=0.5)
    with pytest.raises(NotApplicable, match="no blocks"):
        apply("prune.layers", lenet_5(), CONTEXT)
    with pytest.raises(NotApplicable, match="only 1 of 2 blocks"):
        apply("prune.layers", resnet(), CONTEXT, count=2)
    assert np.isfinite(answers(resnet()).numpy()).all()


def test_too_few_to_remove_one_is_told():
    with pytest.raises(PreparationError, match="less than one"):
        apply("prune.heads", encoder(), CONTEXT, ratio=0.01)


def test_without_targets_there_is_no_loss_to_go_by():
    context = Context(lambda _: Split({"image": PICTURES[:8]}), 0)
    with pytest.raises(NotApplicable, match="no targets"):
        apply("prune.heads", encoder(), context, ratio=0.5)


def test_weights_lost_elsewhere_are_no_heads(tmp_path: Path):
    (tmp_path / "torch").mkdir()
    slim = apply("lowrank.svd", encoder(), CONTEXT, ratio=0.25, min_size=500)
    assert not evidence("prune.heads", slim, tmp_path / "torch", encoder(), ratio=0.5).effective


def test_blocks_are_gone_whatever_comes_after(tmp_path: Path):
    model = apply("lowrank.tucker", apply("prune.layers", resnet(), CONTEXT), CONTEXT, ratio=0.5, min_size=100)
    assert evidence("prune.layers", model, tmp_path, resnet(), count=1).effective
