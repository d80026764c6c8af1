"""The prior: its key-value cache against the plain forward pass, and sampling by counter-based noise."""

import pytest
import torch

from cortex_fast.vqgm import GPT, VQModel, taming_model
from cortex_fast.vqgm.decoding import new_cache, prepare_decoder, step
from cortex_fast.vqgm.sampling import _keep_top, decode_tokens
from tests.vqgm.test_autoencoder import SMALL

CONFIG = {"vocab_size": 17, "block_size": 12, "n_layer": 3, "n_head": 2, "n_embd": 16}


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    gpt = GPT(**CONFIG).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # so that attention is not uniform
    return gpt


def test_names_are_tamings():
    names = set(GPT(**CONFIG).state_dict())
    assert {"tok_emb.weight", "pos_emb", "ln_f.weight", "ln_f.bias", "head.weight"} <= names
    block = {name.removeprefix("blocks.2.") for name in names if name.startswith("blocks.2.")}
    layers = ("ln1", "ln2", "attn.key", "attn.query", "attn.value", "attn.proj", "mlp.0", "mlp.2")
    assert block == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_causal(prior):
    ids = torch.randint(17, (2, 12))
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 17
    torch.testing.assert_close(prior(ids)[:, :7], prior(changed)[:, :7])
    assert not torch.allclose(prior(ids)[:, 7], prior(changed)[:, 7])


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_steps_equal_the_whole_pass(prior, fixed_shapes):
    ids = torch.randint(17, (3, 12))
    decoder = prepare_decoder(prior, codebook_size=15)
    cache = new_cache(decoder, 3, 12)
    steps = []
    for position in range(12):
        filled = None if fixed_shapes else position + 1
        steps.append(step(decoder, cache, ids[:, position], torch.tensor([position]), filled))
    whole = prior(ids)[..., :15]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole[:, 3], whole[:, 4], atol=1e-2)


def test_an_image_does_not_depend_on_its_batch(prior):
    labels, items = torch.tensor([1, 2, 3, 1]), torch.arange(4)
    decoder = prepare_decoder(prior)
    whole = decode_tokens(decoder, labels, 12, seed=3, item_ids=items)
    part = decode_tokens(decoder, labels[2:], 12, seed=3, item_ids=items[2:])
    assert torch.equal(whole[2:], part)
    assert not torch.equal(whole[0], whole[3])  # the same class, another item
    assert not torch.equal(whole, decode_tokens(decoder, labels, 12, seed=4, item_ids=items))


def test_the_first_token_has_the_models_distribution(prior):
    count = 4000
    labels, items = torch.full((count,), 5), torch.arange(count)
    tokens = decode_tokens(prepare_decoder(prior), labels, 1, seed=0, item_ids=items, temperature=1.3)
    wanted = (prior(torch.tensor([[5]]))[0, 0] / 1.3).softmax(dim=0) * count
    got = torch.bincount(tokens[:, 0], minlength=17)
    common = wanted > 5
    chi_square = ((got - wanted).square() / wanted)[common].sum()
    assert chi_square < 45  # 16 degrees of freedom: a chance of 1e-4


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    remaining = lambda **limits: (_keep_top(logits, **limits) > -torch.inf)[0].tolist()  # noqa: E731
    assert remaining(top_k=2, top_p=None) == [False, True, True, False]
    assert remaining(top_k=None, top_p=0.5) == [False, True, True, False]
    assert remaining(top_k=None, top_p=0.4) == [False, True, False, False]
    assert remaining(top_k=None, top_p=1e-9) == [False, True, False, False]
    assert remaining(top_k=9, top_p=1.0) == [True] * 4
    torch.testing.assert_close(_keep_top(logits, 2, None)[0, 1:3], logits[0, 1:3])


def test_tokens_stay_below_the_codebook(prior):
    decoder = prepare_decoder(prior, codebook_size=4)
    tokens = decode_tokens(decoder, torch.arange(10), 12, seed=0, item_ids=torch.arange(10), temperature=5.0)
    assert tokens.max() < 4


@pytest.mark.parametrize("scale", [0.1, 5.0])  # the set is larger than the first look, and smaller
@pytest.mark.parametrize("top_k", [None, 300])
def test_top_p_is_the_smallest_set_that_suffices(scale, top_k):
    logits = scale * torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    for row, remaining in zip(logits.double(), _keep_top(logits, top_k, 0.7) > -torch.inf, strict=True):
        order = row.argsort(descending=True)[: top_k or 1000]
        probability = row[order].softmax(dim=0)
        count = 1
        while probability[:count].sum() < 0.7:
            count += 1
        assert set(order[:count].tolist()) == set(remaining.nonzero()[:, 0].tolist())


def test_another_dtype_gives_float32_logits_near_the_priors(prior):
    decoder = prepare_decoder(prior, dtype=torch.bfloat16)
    logits = step(decoder, new_cache(decoder, 2, 12), torch.tensor([3, 4]), torch.tensor([0]), 1)
    assert logits.dtype == torch.float32 and decoder.tokens.dtype == torch.bfloat16
    torch.testing.assert_close(logits, prior(torch.tensor([[3], [4]]))[:, 0], rtol=0.05, atol=0.05)


def test_no_images(prior):
    none = torch.zeros(0).long()
    assert decode_tokens(prepare_decoder(prior), none, 12, seed=0, item_ids=none, top_k=3, top_p=0.5).shape == (0, 12)


@pytest.mark.parametrize(
    "settings", [{"topk": 3}, {"dtype": "float16"}, {"dtype": torch.int32}, {"top_k": 2.0}, {"temperature": -1}]
)
def test_settings_of_a_model_are_checked_when_it_is_built(prior, settings):
    (name,) = settings
    message = "sampling: expected one of .*'top_k'.*got 'topk'" if name == "topk" else f"^{name}: expected"
    with pytest.raises((TypeError, ValueError), match=message):
        taming_model(VQModel(**SMALL), prior, grid=8, fingerprint="x", num_classes=3, sampling=settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"temperature": 0.0}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_p": 0.0}, "top_p"), ({}, "length")],
)
def test_settings_outside_their_range_are_named(prior, settings, named):
    length, decoder = 12 if settings else 13, prepare_decoder(prior)
    with pytest.raises(ValueError, match=rf"^{named}:"):
        decode_tokens(decoder, torch.zeros(1).long(), length, seed=0, item_ids=torch.zeros(1).long(), **settings)
