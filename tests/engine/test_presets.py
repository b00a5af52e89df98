"""Both presets are one model class: counts and shapes of the published size, and what must hold of a narrow model of the same parts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import adaptive_avg_pool1d

from engine.configuration import InvalidConfiguration, SpexConfig
from engine.errors import UnknownBand
from engine.modeling import ContextCondenser, Prompts, SpexForLandCover
from engine.models import find_model
from engine.spex import Spex

RGB = ("red", "green", "blue")
TINY = {
    "dims": [16, 32, 64, 128],
    "depths": [1, 1, 2, 1],
    "groups": [2, 4, 8, 16],
    "aggregate_dim": 64,
    "decoder_dim": 64,
    "decoder_mlp": 128,
    "condenser_dims": [96, 80],
}
WORDS = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def tiny(**changes) -> SpexForLandCover:
    torch.manual_seed(0)
    config = SpexConfig.preset("spex-1.8b", **{**TINY, "language": {"model_type": "qwen2", **WORDS}, **changes})
    model = SpexForLandCover(config).eval()
    with torch.no_grad():
        # The offsets of deformable convolutions start at zero, where every window would look alike.
        for name, parameter in model.named_parameters():
            if "deform.offset" in name or "deform.mask" in name:
                parameter.normal_(std=0.05)
    return model


def asked(n: int, *lengths: int, answer: int = 6, seed: int = 0) -> Prompts:
    """Random prompts of len(lengths) classes, the answer last, padded to the longest."""
    tokens = torch.randint(300, (1, len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    position, stop = torch.arange(max(lengths)), torch.tensor(lengths)[None, :, None]
    attention = position < stop
    prompts = Prompts(tokens, attention, attention & (position >= stop - answer), stop.squeeze(2) - answer - 1, torch.full_like(tokens, -100))
    return prompts.expand(n)


def images(n: int, height: int = 64, width: int = 96, bands: int = 3) -> torch.Tensor:
    return torch.rand(n, bands, height, width, generator=torch.Generator().manual_seed(1))


def run(model, reflectance, prompts, bands=RGB, **options):
    with torch.inference_mode():
        return model(reflectance, prompts, bands, **options)


@pytest.fixture(scope="module")
def published() -> SpexForLandCover:
    with torch.device("meta"):
        return SpexForLandCover(SpexConfig.preset("spex-1.8b"))


@pytest.fixture(scope="module")
def narrow() -> SpexForLandCover:
    return tiny()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_published_ones(published):
    assert {name: count(part) for name, part in published.named_children()} == {
        "backbone": 218_952_370,
        "aggregator": 2_460_672,
        "projector": 3_935_232,
        "neck": 852_992,
        "language": 1_543_714_304,
        "condenser": 4_328_192,
        # 256 of them are the embedding that stands for "no mask given".
        "decoder": 4_058_340 + 256,
    }
    assert [count(stage) / 1e6 for stage in published.backbone.stages] == pytest.approx([1.52, 6.03, 105.7, 95.9], rel=0.005)
    assert count(published.backbone.stem) / 1e6 == pytest.approx(0.12, abs=0.005)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (384, 384), (640, 640), (416, 608)])
def test_shapes_of_the_vision_path(published, height, width):
    image, valid = torch.empty(2, 3, height, width, device="meta"), torch.ones(2, 1, height, width, device="meta")
    maps = published.backbone(image, valid, RGB)
    assert [tuple(each.shape) for each in maps] == [(2, dim, height // s, width // s) for dim, s in ((160, 4), (320, 8), (640, 16), (1280, 32))]
    aggregated = published.aggregator(maps)
    assert aggregated.shape == (2, 1024, height // 16, width // 16)
    assert published.neck(aggregated).shape == (2, 256, height // 16, width // 16)
    assert published.projector(aggregated.flatten(2).transpose(1, 2)).shape == (2, height * width // 256, 1536)
    sparse = torch.empty(2, 3, 4, 256, device="meta")
    masks, quality = published.decoder.all_masks(published.neck(aggregated), valid[..., ::16, ::16], sparse)
    assert masks.shape == (2, 3, 4, height // 4, width // 4) and quality.shape == (2, 3, 4)
    whole = replace(asked(2, 30, 22, 25))
    output = published(image, whole.to("meta"), RGB, with_text=True)
    assert output.logits.shape == (2, 3, height, width) and output.presence.shape == (2, 3) and output.text.shape == (2, 3, 30, 151936)


def test_the_default_is_the_shipped_model():
    """Its keys and shapes, so that weights trained before keep loading."""
    folder = find_model("spex-small")
    with torch.device("meta"):
        ours = {key: tuple(tensor.shape) for key, tensor in SpexForLandCover(SpexConfig.from_pretrained(folder)).state_dict().items()}
        default = {key: tuple(tensor.shape) for key, tensor in SpexForLandCover(SpexConfig.preset("spex-small")).state_dict().items()}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shipped = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert ours == shipped
    assert set(default) == set(shipped)


@pytest.mark.parametrize(
    ("changes", "bands"),
    [
        ({}, RGB),
        ({"stem": "wavelength", "bands": ["blue", "green", "red", "nir"]}, ("blue", "green", "red", "nir", "swir16")),
        ({"fine_dim": 8}, RGB),
        ({"image_tokens": 4, "presence_head": True, "preamble": [5, 6, 7], "decoder": "positionless"}, RGB),
    ],
    ids=["published", "any bands", "refined to full resolution", "small parts"],
)
def test_a_sample_alone_equals_the_sample_in_a_batch(changes, bands):
    model, x = tiny(**changes), images(3, bands=len(bands))
    x[1, :, :30, :50] = torch.nan
    batch = run(model, x, asked(3, 20, 14), bands, with_text=True)
    assert batch.logits.shape == (3, 2, 64, 96)
    for i in range(3):
        alone = run(model, x[i : i + 1], asked(1, 20, 14), bands, with_text=True)
        for part in ("logits", "presence", "text"):
            torch.testing.assert_close(getattr(batch, part)[i : i + 1], getattr(alone, part), atol=2e-5, rtol=1e-4)
    assert (batch.logits[0] - batch.logits[2]).abs().max() > 1e-3


def test_classes_asked_together_equal_each_asked_alone(narrow):
    together, x = asked(1, 20, 14), images(1)
    logits = run(narrow, x, together).logits
    for k, length in enumerate((20, 14)):
        parts = [each[:, k : k + 1, :length] for each in (together.tokens, together.attention, together.answer)]
        alone = Prompts(*parts, together.presence[:, k : k + 1], together.labels[:, k : k + 1, :length])
        torch.testing.assert_close(run(narrow, x, alone).logits[:, 0], logits[:, k], atol=2e-5, rtol=1e-4)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


def test_the_preamble_comes_before_the_image_and_is_read():
    prompts, x = asked(1, 12), images(1)
    model = tiny(preamble=[5, 6, 7])
    with torch.inference_mode():
        words = model.language.get_input_embeddings()
        maps = model.aggregator(model.backbone(x, torch.ones_like(x[:, :1]), RGB))
        visual = model.projector(maps.flatten(2).transpose(1, 2))
        sequence = torch.cat([words(torch.tensor([[5, 6, 7]])), visual, words(prompts.tokens[:, 0])], 1)
        states = model.language(inputs_embeds=sequence).last_hidden_state[:, -12:]
        expected = run(model, x, prompts, with_text=True).text[:, 0]
        torch.testing.assert_close(states @ words.weight.T, expected, atol=2e-5, rtol=1e-4)


def test_without_a_head_presence_is_the_largest_logit_of_the_mask(narrow):
    x = images(2)
    x[0, :, :, 32:], x[1] = torch.nan, torch.nan
    output = run(narrow, x, asked(2, 10, 10))
    assert torch.equal(output.presence[0], output.logits[0, ..., :32].amax((1, 2)))
    assert not output.presence[1].sigmoid().any()


def test_the_condenser_pools_the_answer_and_projects_it_in_three_layers():
    torch.manual_seed(0)
    condenser = ContextCondenser(SpexConfig.preset("spex-1.8b", **TINY, language=WORDS)).double()
    states, prompts = torch.randn(1, 2, 20, 48, dtype=torch.float64), asked(1, 20, 15, answer=7)
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in condenser.project if hasattr(layer, "weight")]
    assert [weight.shape[0] for weight, _ in weights] == [96, 80, 64]
    for k in range(2):
        answer = states[0, k][prompts.answer[0, k]]
        bins = [answer[math.floor(i * 7 / 4) : math.ceil((i + 1) * 7 / 4)].numpy().mean(0) for i in range(4)]
        np.testing.assert_allclose(bins, adaptive_avg_pool1d(answer.T[None], 4)[0].T, atol=1e-6)
        x = np.array(bins)
        for i, (weight, bias) in enumerate(weights):
            x = x @ weight.T + bias
            x = np.maximum(x, 0) if i < 2 else x
        # The weights of the average are float32 whatever the states are.
        np.testing.assert_allclose(condenser(states, prompts.answer)[0, k].detach().numpy(), x, atol=1e-6)


def test_condensed_tokens_of_a_generated_answer_equal_those_of_one_teacher_forced_pass(narrow):
    """One condensation: growing the prompt word by word, as `generate_text` does, changes nothing of what the mask sees."""
    x, prompts = images(1), asked(1, 12)
    empty = replace(prompts, answer=torch.zeros_like(prompts.answer))
    written = narrow.generate_text(x, empty, RGB, end=-1, longest=5)[0][0]
    assert narrow.generate_text(x, empty, RGB, end=written[2], longest=5)[0][0] == written[: written.index(written[2])]
    tokens = torch.cat([empty.tokens, torch.tensor([[written]])], 2)
    answer = torch.arange(17) >= 12
    whole = Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), answer.expand_as(tokens), empty.presence, torch.full_like(tokens, -100))
    told = torch.cat([tokens, torch.tensor([[[7, 8]]])], 2)
    longer = Prompts(told, torch.ones_like(told, dtype=torch.bool), torch.cat([whole.answer, torch.zeros(1, 1, 2).bool()], 2), empty.presence, told)
    torch.testing.assert_close(run(narrow, x, whole).logits, run(narrow, x, longer).logits, atol=1e-5, rtol=1e-5)
    assert (run(narrow, x, whole).logits - run(narrow, x, prompts).logits).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neox", "gemma2"])
def test_any_causal_language_model_of_transformers_takes_the_middle(kind):
    model = tiny(language={"model_type": kind, **WORDS, "head_dim": 12, "pad_token_id": 0, "tie_word_embeddings": kind != "llama"})
    assert model.language.config.model_type == kind
    output, x = run(model, images(2), asked(2, 12, 9), with_text=True), images(2)
    alone = run(model, x[:1], asked(1, 12, 9), with_text=True)
    torch.testing.assert_close(output.logits[:1], alone.logits, atol=2e-5, rtol=1e-4)
    assert output.text.shape == (2, 2, 12, 300) and torch.isfinite(output.text).all()
    assert (model.text_head is not None) == (kind == "llama")


def test_refined_masks_see_single_pixels():
    """A pixel that changes moves the refinement most within the two pixels around it; without it a mask knows blocks of four only."""
    model = tiny(fine_dim=8)
    x = images(1)
    changed = x.clone()
    changed[:, :, 40, 41] = 0.0
    whole = [run(model, each, asked(1, 10)).logits for each in (x, changed)]
    model.fine_branch = None
    coarse = [run(model, each, asked(1, 10)).logits for each in (x, changed)]
    moved = ((whole[1] - coarse[1]) - (whole[0] - coarse[0]))[0, 0].abs()
    row, column = divmod(int(moved.argmax()), moved.shape[1])
    assert abs(row - 40) <= 2 and abs(column - 41) <= 2
    assert moved.max() > 5 * moved[28:53, 29:54].median()


def test_gradients_reach_every_part():
    model = tiny(fine_dim=8, presence_head=True).train()
    output = model(images(2), asked(2, 12), RGB, with_text=True)
    (output.logits.square().mean() + output.presence.square().mean() + output.text.square().mean()).backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    # The three further masks and their quality serve no answer; the key's bias cancels in a softmax.
    unused = ("decoder.hypernetworks.1", "decoder.hypernetworks.2", "decoder.hypernetworks.3", "decoder.quality")
    assert {name for name in still if not name.startswith(unused) and not name.endswith("key.bias")} == set()


def disks(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Chips with one blue and one red disk each, and their masks (n, 2, 64, 64)."""
    generator = torch.Generator().manual_seed(3)
    x, masks = torch.rand(n, 3, 64, 64, generator=generator) * 0.1 + 0.2, torch.zeros(n, 2, 64, 64)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    for i in range(n):
        for k, color in enumerate(((0.2, 0.3, 0.7), (0.6, 0.2, 0.2))):
            row, column, radius = (int(torch.randint(*each, (1,), generator=generator)) for each in ((12, 52), (12, 52), (7, 13)))
            inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
            x[i][:, inside] = torch.tensor(color)[:, None] + torch.rand(3, int(inside.sum()), generator=generator) * 0.1
            masks[i, 1 - k][inside], masks[i, k][inside] = 0.0, 1.0
    return x, masks


def test_a_narrow_model_learns_which_disk_was_asked_for():
    """Image and instruction both decide: two instructions, two masks, under the published loss."""
    model, (x, masks), prompts = tiny(dropout=0.0, drop_path=0.0).train(), disks(2), asked(2, 12, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 10)
        logits = model(x, prompts, RGB).logits
        shares = logits.sigmoid()
        dice = 1 - 2 * (shares * masks).sum((2, 3)) / (shares.square().sum((2, 3)) + masks.sum((2, 3)) + 2e-3)
        loss = 2 * torch.nn.functional.binary_cross_entropy_with_logits(logits, masks) + dice.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found, true = logits > 0, masks > 0
        overlap = (found & true).sum((0, 2, 3)) / (found | true).sum((0, 2, 3))
        if overlap.min() > 0.95:
            return
    pytest.fail(f"intersection over union {overlap.tolist()} after 250 steps")


def test_the_front_door_takes_any_size_of_chip(processor):
    """`Spex.segment` pads to the stride of the large model, masks what has no data and refuses what the stem cannot read."""
    model = tiny(language={"model_type": "qwen2", **WORDS, "vocab_size": 1024})
    spex = Spex(model, processor)
    chips = images(2, 50, 70).numpy()
    chips[0, :, :8] = np.nan
    both = spex.segment(chips, RGB, ["water", "vegetation"]).probabilities
    assert both.shape == (2, 2, 50, 70) and np.isnan(both[0, :, :8]).all() and np.isfinite(both[1]).all()
    with pytest.raises(UnknownBand, match="red"):
        spex.segment(chips, ("nir", "green", "blue"), ["water"])


def test_half_precision_runs(narrow):
    half = tiny().to(torch.bfloat16)
    output = run(half, images(1), asked(1, 12))
    assert output.logits.dtype == torch.bfloat16 and torch.isfinite(output.logits).all()
    full = run(narrow, images(1), asked(1, 12)).logits
    assert (output.logits.float() - full).abs().mean() < 0.1 * full.abs().mean() + 0.05


def test_save_and_load_give_the_same_masks(narrow, tmp_path):
    narrow.save_pretrained(tmp_path)
    again = SpexForLandCover.from_pretrained(tmp_path).eval()
    kept = again.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in narrow.state_dict().items())
    torch.testing.assert_close(run(narrow, images(1), asked(1, 12)).logits, run(again, images(1), asked(1, 12)).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet"}, "backbone 'resnet' does not exist; give convolutional or internimage"),
        ({"dims": [8, 16, 32]}, "has 4 stages"),
        ({"groups": [3, 4, 8, 16]}, "do not divide"),
        ({"stride": 16}, "stride 16"),
        ({"backbone": "convolutional", "dims": [8] * 5, "depths": [1] * 5, "stride": 16}, "fixed three-band stem"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InvalidConfiguration, match=message):
        SpexConfig.preset("spex-1.8b", **{**TINY, **changes})


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("spex-1.8b", {"widht": 3}, r"a model has no field 'widht'; there are name, bands"),
        ("spex-small", {"aggregat_dim": 3}, "no field 'aggregat_dim'; did you mean aggregate_dim"),
        ("spex-small", {"architectures": ["x"]}, "no field 'architectures'"),
        ("spex-1.8b", {"stem": "fixd"}, "stem 'fixd' does not exist; give wavelength or fixed"),
        ("spex-1.8b", {"stem": "fixd", "bands": "fixed"}, "stem 'fixd' does not exist"),
        ("spex-1.8b", {"stem": "wavelength", "bands": "fixed"}, "give stem wavelength a list of bands"),
        ("spex-1.8b", {"stem": "fixed", "bands": ["blue", "nir"]}, "stem fixed sees red, green and blue only"),
        ("spex-small", {"bands": ["blue", "foo"]}, "bands: there is no band 'foo'; there are coastal"),
        ("spex-small", {"bands": ["blue", "swir17"]}, r"bands: there is no band 'swir17'; did you mean swir\d\d"),
        ("spex-small", {"required_bands": ["gren"]}, "required_bands: there is no band 'gren'; did you mean green"),
        ("spex-small", {"bands": "blue"}, "bands is 'blue'; give a list of band names, or fixed"),
    ],
)
def test_misspelt_settings_are_refused_with_the_nearest(preset, changes, message):
    """What is not known would otherwise be kept in config.json and change nothing."""
    with pytest.raises(InvalidConfiguration, match=message):
        SpexConfig.preset(preset, **changes)


def test_a_wavelength_stem_needs_no_bands_named():
    config = SpexConfig.preset("spex-1.8b", stem="wavelength")
    assert config.stem == "wavelength" and tuple(config.bands) == tuple(SpexConfig().bands) and config.backbone == "internimage"
    fixed = SpexConfig.preset("spex-1.8b")
    assert fixed.stem == "fixed" and list(fixed.bands) == list(RGB) == list(fixed.required_bands)


def test_what_transformers_writes_beside_is_read_back(tmp_path):
    config = SpexConfig.preset("spex-small", dims=[8, 8, 12, 16, 16])
    config.architectures = ["SpexForLandCover"]
    config.save_pretrained(tmp_path)
    assert "transformers_version" in (tmp_path / "config.json").read_text()
    assert list(SpexConfig.from_pretrained(tmp_path).dims) == [8, 8, 12, 16, 16]


def test_an_unknown_preset_or_language_model_is_named():
    with pytest.raises(InvalidConfiguration, match=r"spex-7b.*spex-small, spex-1\.8b"):
        SpexConfig.preset("spex-7b")
    with pytest.raises(InvalidConfiguration, match="quen2"):
        tiny(language={"model_type": "quen2", **WORDS})
