import pytest
import torch
from torch import nn

from deeplab_lightning.models.aspp import ASPPConcat, ASPPSum, ImagePooling


@pytest.mark.parametrize("rates", [(2,), (6, 12, 18), (1, 2, 3, 4, 5)])
def test_concat_form_takes_any_number_of_rates(rates: tuple[int, ...]) -> None:
    assert ASPPConcat(8, rates, out_channels=4)(torch.randn(2, 8, 7, 5)).shape == (2, 4, 7, 5)


def test_sum_form_is_the_sum_of_its_branches() -> None:
    net = ASPPSum(8, 3, atrous_rates=(1, 2), hidden_channels=6, share_head=False).eval()
    features = torch.randn(1, 8, 9, 9)
    one, two = (head(branch(features)) for branch, head in zip(net.branches, net.heads, strict=True))
    assert torch.allclose(net(features), one + two)


def test_shared_head_is_one_and_has_no_relu_after_fc7() -> None:
    shared = ASPPSum(8, 3, atrous_rates=(1, 2, 3, 4), hidden_channels=6, share_head=True)
    own = ASPPSum(8, 3, atrous_rates=(1, 2, 3, 4), hidden_channels=6, share_head=False)
    assert (len(shared.heads), len(own.heads)) == (1, 4)
    assert [sum(isinstance(m, nn.ReLU) for m in net.heads.modules()) for net in (shared, own)] == [0, 4]


def test_padding_equals_the_rate() -> None:
    net = ASPPSum(8, 3, atrous_rates=(6, 24), hidden_channels=6)
    convs = [branch[0] for branch in net.branches]  # type: ignore[index]
    assert [(c.padding, c.dilation) for c in convs] == [((6, 6), (6, 6)), ((24, 24), (24, 24))]


def test_image_pooling_of_a_batch_of_one_trains_by_running_statistics() -> None:
    net = ImagePooling(4, 4).train()
    nn.init.constant_(net.norm.running_mean, 0.5)  # type: ignore[arg-type]
    features = torch.randn(1, 4, 3, 3)
    trained = net(features)
    assert torch.allclose(trained, net.eval()(features))
    assert trained.shape == (1, 4, 3, 3)


def test_a_shared_head_on_the_sum_gives_the_sum_of_its_logits() -> None:
    head = ASPPSum(6, 3, atrous_rates=(1, 2, 3), hidden_channels=5).eval()
    for layer in (head.heads[0][0], head.heads[0][3]):  # type: ignore[index]
        torch.nn.init.normal_(layer.bias)
        torch.nn.init.normal_(layer.weight)
    features = torch.randn(2, 6, 9, 7)
    expected = sum(head.heads[0](branch(features)) for branch in head.branches)
    torch.testing.assert_close(head(features), expected, rtol=1e-5, atol=1e-4)
