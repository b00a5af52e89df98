"""What must hold of the architecture, whatever the weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.modeling import Prompts, condensation_weights, packed_mask
from engine.planner import probabilities
from engine.processing import Request
from engine.training.augment import Sample
from engine.training.batches import ask, prior_text

RGBN = ("blue", "green", "red", "nir")
ALL = ("vegetation", "building", "water", "bare")


def chips(n: int = 1, bands: int = 4, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, bands, side, side, generator=torch.Generator().manual_seed(seed)) * 0.4


def run(model, reflectance, prompts, bands=RGBN, **options):
    with torch.inference_mode():
        return model(reflectance, prompts, bands, **options)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), st.integers(1, 6))
def test_condensation_averages_the_answer_like_adaptive_pooling(answer, bins):
    chosen = torch.tensor(answer)
    weights = condensation_weights(chosen, bins)
    values = torch.arange(len(answer)).float()
    expected = torch.nn.functional.adaptive_avg_pool1d(values[chosen][None, None], bins)[0, 0]
    torch.testing.assert_close(weights @ values, expected)
    assert not weights[:, ~chosen].any()


def test_classes_do_not_see_one_another_in_a_packed_pass():
    mask = packed_mask(prefix=3, classes=2, length=2)
    assert mask[5].tolist() == [True, True, True, False, False, True, False]
    assert mask[2].tolist() == [True, True, True, False, False, False, False]


def test_asking_for_all_classes_at_once_equals_asking_for_each_alone(model, processor):
    image = chips()
    together = run(model, image, processor.prompts([[Request(name) for name in ALL]]))
    for k, name in enumerate(ALL):
        alone = run(model, image, processor.prompts([[Request(name)]]))
        torch.testing.assert_close(together.logits[:, k], alone.logits[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.presence[:, k], alone.presence[:, 0], atol=1e-4, rtol=1e-4)


def test_a_chip_alone_equals_the_chip_in_a_batch(model, processor):
    images = chips(3)
    prompts = processor.prompts([[Request("water"), Request("bare", "Where is barren land?")]])
    batch = run(model, images, prompts.expand(3)).logits
    for i in range(3):
        torch.testing.assert_close(batch[i : i + 1], run(model, images[i : i + 1], prompts).logits, atol=1e-4, rtol=1e-4)


def test_the_label_cannot_reach_the_mask(model, processor):
    """Swap the label: the description changes, the logits do not, bit for bit."""
    image, generator = chips()[0].numpy(), np.random.default_rng
    rows = []
    for label in (2, 1):
        sample = Sample(image, np.full((64, 64), label, np.uint8))
        rows.append(processor.prompts([[ask("water", sample, processor, prior_text("water", sample, RGBN), True, generator(1))]]))
    assert not torch.equal(rows[0].labels, rows[1].labels) if rows[0].labels.shape == rows[1].labels.shape else True
    length = min(row.tokens.shape[2] for row in rows)
    told = [int((row.labels >= 0).float().argmax()) for row in rows]
    assert told[0] == told[1] and torch.equal(rows[0].tokens[..., : told[0]], rows[1].tokens[..., : told[1]])
    cut = [Prompts(*(t[..., :length] for t in (r.tokens, r.attention, r.answer)), r.presence, r.labels[..., :length]) for r in rows]
    first, second = (run(model, chips(), prompts).logits for prompts in cut)
    assert torch.equal(first, second)


def test_words_after_the_answer_cannot_reach_the_mask(model, processor):
    prompts = processor.prompts([[Request("water", description=" There is no water.")]])
    changed = replace(prompts, tokens=torch.where(prompts.labels >= 0, 40, prompts.tokens))
    first, second = run(model, chips(), prompts), run(model, chips(), changed)
    assert torch.equal(first.logits, second.logits) and torch.equal(first.presence, second.presence)


def test_another_class_gives_another_mask(model, processor):
    logits = run(model, chips(), processor.prompts([[Request("water"), Request("bare")]])).logits
    assert (logits[:, 0] - logits[:, 1]).abs().mean() > 1e-3


def test_channel_order_does_not_matter(model, processor):
    image, prompts, order = chips(), processor.prompts([[Request("water")]]), [3, 1, 0, 2]
    shuffled = run(model, image[:, order], prompts, tuple(RGBN[i] for i in order))
    torch.testing.assert_close(run(model, image, prompts).logits, shuffled.logits, atol=1e-4, rtol=1e-4)


def test_no_data_in_one_half_leaves_the_other_half_finite_and_numbers_under_it_unread(model, processor):
    image, prompts = chips(), processor.prompts([[Request("water")]])
    image[..., 32:] = torch.nan
    everything_gone = torch.full_like(image, torch.nan)
    assert torch.isfinite(run(model, image, prompts).logits).all()
    assert torch.isfinite(run(model, everything_gone, prompts).logits).all()


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (16, 16), (80, 16)])
def test_any_multiple_of_the_stride_works(model, processor, shape):
    image = torch.rand(1, 4, *shape)
    assert run(model, image, processor.prompts([[Request("water")]])).logits.shape == (1, 1, *shape)


def test_probabilities_leave_room_for_other_and_are_a_sigmoid_for_one_class():
    logits = torch.randn(2, 3, 4, 4)
    shares = probabilities(logits)
    assert (shares > 0).all() and (shares.sum(1) < 1).all()
    torch.testing.assert_close(probabilities(logits[:, :1]), logits[:, :1].sigmoid())


def test_text_is_generated_after_the_same_answer(model, processor):
    prompts = processor.prompts([[Request("water"), Request("bare")]])
    if not prompts.attention.all():
        prompts = processor.prompts([[Request("water")]])
    written = model.generate_text(chips(), prompts, RGBN, processor.end, longest=3)
    assert all(len(line) <= 3 for image in written for line in image)
