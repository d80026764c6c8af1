"""Token selection's small functions and the two searches against formulas."""

import pytest
import torch
from torch import nn

from cortex_fast.compat.cortex import (
    create_mask,
    decode_input_embedding,
    generate_max_activation_image_embedding,
    generate_max_activation_image_token,
    gumbel_softmax,
    sample_gumbel,
)
from tests.known_extractors import Linear, tiny

K, D, M = 40, 5, 8


class Quantised(nn.Module):
    """A VQGM whose pictures are the first three channels."""

    def __init__(self):
        super().__init__()
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(K, D)
        self.quantize.embedding.weight.data = torch.randn(K, D, generator=torch.Generator().manual_seed(3))

    def decode(self, z):
        return z[:, :3].tanh()


class Judge(nn.Module):
    def forward(self, pixels):
        return pixels.mean(dim=(2, 3)) * torch.tensor([1.0, 2.0, 3.0])


def test_masks_have_both_corners():
    flat, box = create_mask((256, 3), (7, 6), (10, 9)), create_mask((1, 2, 16, 16), (7, 6), (10, 9))
    expected = [[float(7 <= y <= 10 and 6 <= x <= 9) for x in range(16)] for y in range(16)]
    assert flat.view(16, 16, 3)[..., 1].tolist() == expected and box[0, 1].tolist() == expected


def test_gumbel_noise_is_the_published_formula_of_torchs_uniforms():
    torch.manual_seed(0)
    got = sample_gumbel((50, 7))
    torch.manual_seed(0)
    u = torch.rand(50, 7)
    torch.testing.assert_close(got, -torch.log(-torch.log(u + 1e-20) + 1e-20))


def test_gumbel_softmax_is_one_hot_with_the_softmax_gradient():
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(1)).double().requires_grad_(True)
    weights = torch.arange(K).double()
    torch.manual_seed(2)
    y, index = gumbel_softmax(logits, 0.7)
    (gradient,) = torch.autograd.grad((y * weights).sum(), logits)
    torch.manual_seed(2)
    u = torch.rand(6, K)
    soft = torch.softmax((logits + -torch.log(-torch.log(u + 1e-20) + 1e-20)) / 0.7, dim=-1)
    torch.testing.assert_close(y, torch.eye(K).double()[index])
    assert index.equal(soft.argmax(dim=-1))
    torch.testing.assert_close(gradient, torch.autograd.grad((soft * weights).sum(), logits)[0])


def test_decoding_takes_each_positions_nearest_code():
    model = Quantised()
    x = torch.randn(2, D, M, M, generator=torch.Generator().manual_seed(4))
    nearest, index, image = decode_input_embedding(x, model)
    codebook = model.quantize.embedding.weight.detach()
    expected = torch.cdist(x.permute(0, 2, 3, 1).reshape(-1, D).double(), codebook.double()).argmin(dim=1)
    assert index.equal(expected) and image.equal(model.decode(nearest))
    assert nearest.permute(0, 2, 3, 1).reshape(-1, D).equal(codebook[expected])


def start(model):
    """Logits of an image with 4 free positions, its tokens, and the mask."""
    tokens = torch.randint(K, (M * M,), generator=torch.Generator().manual_seed(5))
    P, mask = torch.full((M * M, K), -300.0), torch.zeros(M * M, K)
    P[torch.arange(M * M), tokens] = 300.0
    free = torch.tensor([9, 10, 17, 18])
    P[free], mask[free] = torch.randn(4, K, generator=torch.Generator().manual_seed(6)), 1
    return P, tokens, mask, free


def test_token_search_finds_the_codes_that_a_linear_extractor_likes_best():
    model, quantised = Linear(D, M, 3).eval(), Quantised()
    codebook = quantised.quantize.embedding.weight
    P, tokens, mask, free = start(model)
    torch.manual_seed(0)
    logits, embedding, index, best = generate_max_activation_image_token(
        model, 2, "cpu", P, mask, codebook, quantised, {"judge": Judge()}, 0, tokens.numpy(), num_steps=600, lr=0.3
    )
    weight = model.weight.detach()[2].view(D, -1)[:, free]  # [d, 4]
    expected = (codebook.detach() @ weight).argmax(dim=0)
    assert index[free].equal(expected)
    fixed = mask[:, 0] == 0
    assert index[fixed].equal(tokens[fixed]) and logits[fixed].detach().equal(start(model)[0][fixed])
    assert logits.data_ptr() == P.data_ptr()  # changed in place, as by the published code
    assert embedding.shape == (1, D, M, M)
    torch.testing.assert_close(embedding[0].flatten(1).T, codebook.detach()[index])
    assert best["judge"]["step"] in (0, 500, 599) and 0 < best["judge"]["target_prob"] < 1


def test_a_step_of_token_search_is_adams():
    """The first step of Adam moves each logit by lr against its gradient's sign."""
    model, quantised = tiny("ce", channels=D), Quantised()
    P, tokens, mask, free = start(model)
    before = P.clone()
    logits, *_ = generate_max_activation_image_token(
        model, 1, "cpu", P, mask, quantised.quantize.embedding.weight, quantised, {}, 0, tokens, num_steps=1, lr=0.01
    )
    moved = (logits.detach() - before)[free]
    assert (moved.abs() <= 0.0101).all() and ((moved.abs() - 0.01).abs() < 1e-3).float().mean() > 0.8


@pytest.mark.parametrize("reg", [0.0, 0.5])
def test_embedding_search_is_adam_on_the_masked_gradient(reg):
    model, quantised = tiny("ce", channels=D), Quantised()
    x = torch.randn(1, D, M, M, generator=torch.Generator().manual_seed(7))
    mask = create_mask((1, D, M, M), (2, 3), (4, 5))
    got, best = generate_max_activation_image_embedding(
        model, 1, "cpu", x, mask, quantised, {"judge": Judge()}, 0, num_steps=5, lr=0.02, reg=reg
    )
    expected = x.clone().requires_grad_(True)
    adam = torch.optim.Adam([expected], lr=0.02)
    for _ in range(5):
        (gradient,) = torch.autograd.grad(-model(expected)[0, 1] + reg * expected.square().mean(), expected)
        expected.grad = gradient * mask
        adam.step()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert got.requires_grad and best["judge"]["step"] in (0, 4)


def test_rows_that_are_neither_free_nor_decided_are_refused():
    model, quantised = tiny("ce", channels=D), Quantised()
    P, tokens, mask, _ = start(model)
    rest = (quantised.quantize.embedding.weight, quantised, {}, 0, tokens)
    with pytest.raises(ValueError, match="P: expected a token 64 above others in fixed rows, got 64 rows"):
        generate_max_activation_image_token(model, 1, "cpu", torch.zeros_like(P), 0 * mask, *rest)
    mask[9, 0] = 0
    with pytest.raises(ValueError, match="mask: expected rows of ones"):
        generate_max_activation_image_token(model, 1, "cpu", P, mask, *rest)


def test_a_codebook_of_another_size_than_the_logits_is_refused():
    model, quantised = tiny("ce", channels=D), Quantised()
    P, tokens, mask, _ = start(model)
    codes = quantised.quantize.embedding.weight
    for other in (codes[:-1], torch.cat([codes, codes[:1]])):
        with pytest.raises(
            ValueError, match=rf"^codebook: expected \[{P.shape[1]}, d\] as P has, got \[{len(other)}, "
        ):
            generate_max_activation_image_token(model, 1, "cpu", P, mask, other, quantised, {}, 0, tokens)
