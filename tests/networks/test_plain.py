import torch

from leanmark.networks.plain import build_plain_cnn, build_wide_mlp


def test_the_wide_network_has_the_size_that_it_says():
    network = build_wide_mlp().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_916_372
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_longer_plain_network_has_more_layers():
    networks = [build_plain_cnn(depth=depth) for depth in (6, 7)]
    counts = [sum(isinstance(layer, torch.nn.Conv2d) for layer in network.modules()) for network in networks]
    assert counts == [7, 8]
