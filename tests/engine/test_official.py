"""Import of the published checkpoint, on checkpoints of its names and shapes."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import erf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder
from typer.testing import CliRunner

from engine.configuration import SpexConfig
from engine.errors import UnknownBand
from engine.modeling import SpexForLandCover
from engine.official import (
    BEFORE_IMAGE,
    CheckpointRefused,
    Stored,
    chat_prompts,
    chat_tokenizer,
    import_official,
    map_checkpoint,
    official_config,
    official_keys,
    unused_keys,
)

VISION = "model.vision_tower.vision_tower.vision_model"
TOWER = "model.vision_tower"
WORDS = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def narrow() -> SpexConfig:
    return SpexConfig.preset(
        "spex-1.8b",
        dims=[16, 32, 64, 128],
        depths=[1, 1, 2, 1],
        groups=[2, 4, 8, 16],
        aggregate_dim=64,
        decoder_dim=64,
        decoder_mlp=128,
        condenser_dims=[96, 80],
        language={"model_type": "qwen2", **WORDS},
    )


def shapes_as_published(
    dims=(160, 320, 640, 1280), depths=(5, 5, 22, 5), f=1024, d=256, mlp=2048, inner=(2048, 512), language=None
) -> dict[str, tuple]:
    """Names and shapes of the published checkpoint, written out apart from the import; the language model's are those of transformers' own Qwen2."""
    shapes: dict[str, tuple] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    layer(f"{VISION}.patch_embed.conv1", dims[0] // 2, 3, 3, 3)
    layer(f"{VISION}.patch_embed.norm1.1", dims[0] // 2)
    layer(f"{VISION}.patch_embed.conv2", dims[0], dims[0] // 2, 3, 3)
    layer(f"{VISION}.patch_embed.norm2.1", dims[0])
    for i, (c, depth) in enumerate(zip(dims, depths, strict=True)):
        for j in range(depth):
            block, g = f"{VISION}.levels.{i}.blocks.{j}", c // 16 if dims[0] == 160 else c // 8
            for norm in ("norm1.0", "norm2.0", "dcn.dw_conv.1.1"):
                layer(f"{block}.{norm}", c)
            layer(f"{block}.dcn.dw_conv.0", c, 1, 3, 3)
            layer(f"{block}.dcn.offset", g * 18, c)
            layer(f"{block}.dcn.mask", g * 9, c)
            layer(f"{block}.dcn.input_proj", c, c)
            layer(f"{block}.dcn.output_proj", c, c)
            layer(f"{block}.mlp.fc1", 4 * c, c)
            layer(f"{block}.mlp.fc2", c, 4 * c)
            shapes |= {f"{block}.weight1": (c,), f"{block}.weight2": (c,)}
        if i < 3:
            layer(f"{VISION}.levels.{i}.downsample.conv", 2 * c, c, 3, 3, bias=False)
            layer(f"{VISION}.levels.{i}.downsample.norm.1", 2 * c)
    layer(f"{VISION}.feat_aggregator.fuse_all.0", f, sum(dims), 1, 1)
    layer(f"{VISION}.feat_aggregator.fuse_all.1", f)
    layer(f"{VISION}.visionneck.conv1", d, f, 1, 1, bias=False)
    layer(f"{VISION}.visionneck.conv2", d, d, 3, 3, bias=False)
    layer(f"{VISION}.visionneck.layer_norm1", d)
    layer(f"{VISION}.visionneck.layer_norm2", d)
    config = Qwen2Config(**(language or official_config(Path("nowhere")).language), tie_word_embeddings=True)
    h = config.hidden_size
    for k, (a, b) in zip((0, 2, 4), ((h, inner[0]), inner, (inner[1], d)), strict=True):
        layer(f"{TOWER}.lan_neck.text_mlp.{k}", b, a)
    layer("model.mm_projector.0", h, f)
    layer("model.mm_projector.2", h, h)
    with torch.device("meta"):
        decoder = SamMaskDecoder(SamMaskDecoderConfig(hidden_size=d, mlp_dim=mlp, iou_head_hidden_dim=d))
        words = Qwen2ForCausalLM(config)
    shapes |= {f"{TOWER}.mask_decoder.{key}": tuple(tensor.shape) for key, tensor in decoder.state_dict().items()}
    shapes |= {key: tuple(tensor.shape) for key, tensor in words.state_dict().items()}
    prompter = f"{TOWER}.sampromptencoder"
    shapes |= {f"{prompter}.shared_embedding.positional_embedding": (2, d // 2), f"{prompter}.not_a_point_embed.weight": (1, d)}
    shapes |= {f"{prompter}.no_mask_embed.weight": (1, d), **{f"{prompter}.point_embed.{k}.weight": (1, d) for k in range(4)}}
    layer(f"{prompter}.mask_embed.conv1", 4, 1, 2, 2)
    layer(f"{prompter}.mask_embed.conv2", 16, 4, 2, 2)
    layer(f"{prompter}.mask_embed.conv3", d, 16, 1, 1)
    layer(f"{prompter}.mask_embed.layer_norm1", 4)
    layer(f"{prompter}.mask_embed.layer_norm2", 16)
    return shapes | {"model.image_newline": (h,)}


def small_shapes() -> dict[str, tuple]:
    return shapes_as_published((16, 32, 64, 128), (1, 1, 2, 1), 64, 64, 128, (96, 80), WORDS)


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in small_shapes().items()}
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def stored(tensors: dict[str, Tensor]) -> dict[str, Stored]:
    return {key: Stored(tuple(tensor.shape), lambda tensor=tensor: tensor) for key, tensor in tensors.items()}


def test_names_and_shapes_at_full_size():
    config = SpexConfig.preset("spex-1.8b")
    expected = {key: shape for key, (_, shape) in official_keys(config).items()}
    assert {**expected, **unused_keys(config), "lm_head.weight": (151936, 1536)} == shapes_as_published()
    assert sum(math.prod(shape) for shape in expected.values()) == 1_778_302_358 + 2 * 128
    assert len({ours for ours, _ in official_keys(config).values()}) == len(expected)


def test_a_full_size_checkpoint_maps_completely():
    """Tensors of the published shapes that share one number each: nothing large is allocated."""
    one = torch.full((), 0.5, dtype=torch.float16)
    tensors = {key: one.expand(shape) for key, shape in shapes_as_published().items() if key != "lm_head.weight"}
    config = SpexConfig.preset("spex-1.8b")
    with torch.device("meta"):
        model = SpexForLandCover(config)
    model.load_state_dict(map_checkpoint(stored(tensors), config), strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_every_number_lands_where_its_name_says():
    tensors, config = checkpoint(), narrow()
    model = SpexForLandCover(config)
    model.load_state_dict(map_checkpoint(stored(tensors), config), strict=True)
    placed = {
        f"{VISION}.levels.2.blocks.1.dcn.input_proj.weight": model.backbone.stages[2][1].deform.project_in.weight,
        f"{VISION}.levels.2.blocks.1.weight2": model.backbone.stages[2][1].layer_scale2,
        f"{VISION}.levels.1.downsample.conv.weight": model.backbone.reduce[1][0].weight,
        f"{VISION}.visionneck.conv2.weight": model.neck[2].weight,
        f"{TOWER}.lan_neck.text_mlp.2.bias": model.condenser.project[2].bias,
        f"{TOWER}.sampromptencoder.no_mask_embed.weight": model.decoder.no_mask,
        f"{TOWER}.sampromptencoder.shared_embedding.positional_embedding": model.decoder.frequencies,
        f"{TOWER}.mask_decoder.output_hypernetworks_mlps.3.layers.0.weight": model.decoder.hypernetworks[3][2].weight,
        "model.mm_projector.2.bias": model.projector[2].bias,
        "model.layers.1.mlp.gate_proj.weight": model.language.layers[1].mlp.gate_proj.weight,
    }
    for key, parameter in placed.items():
        assert torch.equal(tensors[key], parameter), key


def test_the_mask_decoder_with_mapped_weights_equals_that_of_transformers():
    """The published code runs the SAM decoder of transformers; ours gives the same four masks and qualities from the same checkpoint."""
    config, tensors = narrow(), checkpoint()
    theirs = SamMaskDecoder(SamMaskDecoderConfig(hidden_size=64, mlp_dim=128, iou_head_hidden_dim=64, attn_implementation="eager")).double().eval()
    prefix = f"{TOWER}.mask_decoder."
    theirs.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)})
    model = SpexForLandCover(config)
    model.load_state_dict(map_checkpoint(stored(tensors), config))
    ours = model.decoder.double().eval()
    image, sparse = torch.randn(2, 64, 4, 6, dtype=torch.float64), torch.randn(2, 1, 4, 64, dtype=torch.float64)
    positions = ours.positions(4, 6).T.reshape(1, 64, 4, 6).expand(2, -1, -1, -1)
    with torch.no_grad():
        masks, quality = ours.all_masks(image, torch.ones(2, 1, 4, 6, dtype=torch.float64), sparse)
        dense = ours.no_mask.reshape(1, -1, 1, 1).expand_as(image)
        expected, expected_quality = theirs(image, positions, sparse, dense, multimask_output=True)[:2]
        first = theirs(image, positions, sparse, dense, multimask_output=False)[0]
    torch.testing.assert_close(masks[:, :, 1:], expected)
    torch.testing.assert_close(masks[:, :, :1], first)
    torch.testing.assert_close(quality[:, :, 1:], expected_quality)


def test_the_projector_with_mapped_weights_is_two_layers_with_gelu():
    config, tensors = narrow(), {key: tensor.double() for key, tensor in checkpoint().items()}
    model = SpexForLandCover(config).double()
    model.load_state_dict(map_checkpoint(stored(tensors), config))
    x = np.random.default_rng(0).normal(size=(5, 64))
    first = x @ tensors["model.mm_projector.0.weight"].numpy().T + tensors["model.mm_projector.0.bias"].numpy()
    first = 0.5 * first * (1 + erf(first / math.sqrt(2)))
    expected = first @ tensors["model.mm_projector.2.weight"].numpy().T + tensors["model.mm_projector.2.bias"].numpy()
    np.testing.assert_allclose(model.projector(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-12)


def test_the_language_model_with_mapped_weights_equals_that_of_transformers():
    config, tensors = narrow(), checkpoint()
    model = SpexForLandCover(config).eval()
    model.load_state_dict(map_checkpoint(stored(tensors), config))
    theirs = Qwen2ForCausalLM(Qwen2Config(**WORDS, tie_word_embeddings=True)).eval()
    missing = theirs.load_state_dict({key: tensor for key, tensor in tensors.items() if key in theirs.state_dict()}, strict=False).missing_keys
    assert missing == []
    ids = torch.arange(20)[None]
    with torch.no_grad():
        states = model.language(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model._words(states), theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda t: t.pop(f"{VISION}.patch_embed.conv1.weight"), rf"{VISION}.patch_embed.conv1.weight is missing, expected \(8, 3, 3, 3\)"),
        (lambda t: t.update({"model.vision_resampler.x": torch.zeros(2, 3)}), r"model.vision_resampler.x \(2, 3\) is unknown"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(47)}), r"model.norm.weight has shape \(47,\), expected \(48,\)"),
        (lambda t: t.update({f"{TOWER}.sampromptencoder.point_embed.0.weight": torch.zeros(1, 63)}), r"point_embed.0.weight has shape \(1, 63\)"),
        (lambda t: t["model.mm_projector.0.bias"].fill_(math.nan), r"projector.0.bias \(48,\) holds values that are not finite"),
        (lambda t: t["lm_head.weight"].add_(1.0), r"lm_head.weight \(300, 48\) differs from model.embed_tokens.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(change, refusal):
    tensors = checkpoint()
    change(tensors)
    with pytest.raises(CheckpointRefused, match=refusal) as raised:
        map_checkpoint(stored(tensors), narrow())
    assert len(raised.value.refusals) == 1


def test_each_of_many_refusals_is_named():
    tensors = checkpoint()
    gone = [key for key in tensors if ".mask_decoder." in key]
    for key in gone:
        del tensors[key]
    with pytest.raises(CheckpointRefused) as raised:
        map_checkpoint(stored(tensors), narrow())
    assert {each.split(" ")[0] for each in raised.value.refusals} == set(gone)
    assert all(key in str(raised.value) for key in gone)


def test_a_checkpoint_may_lack_what_inference_does_not_read():
    tensors, config = checkpoint(), narrow()
    for key in [*unused_keys(config), "lm_head.weight"]:
        del tensors[key]
    assert set(map_checkpoint(stored(tensors), config)) == set(SpexForLandCover(config).state_dict())


def write(folder: Path, tensors: dict[str, Tensor], kind: str) -> Path:
    """The checkpoint as one file or in two shards, safetensors or pickled."""
    folder.mkdir(parents=True)
    name = "model.safetensors" if kind.startswith("safetensors") else "pytorch_model.bin"
    save = save_file if kind.startswith("safetensors") else torch.save
    if kind.endswith("shards"):
        keys, where = sorted(tensors), {}
        for k in range(2):
            shard = f"{name.split('.')[0]}-0000{k + 1}-of-00002.{name.split('.')[1]}"
            save({key: tensors[key] for key in keys[k::2]}, folder / shard)
            where |= dict.fromkeys(keys[k::2], shard)
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        save(tensors, folder / name)
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_every_kind_of_checkpoint_becomes_the_same_model_folder(tmp_path, kind):
    tensors = checkpoint()
    source = write(tmp_path / "source", tensors, kind)
    out = import_official(source, tmp_path / "model", narrow())
    model = SpexForLandCover.from_pretrained(out)
    expected = map_checkpoint(stored(tensors), narrow())
    assert all(torch.equal(expected[key], tensor) for key, tensor in model.state_dict().items())
    assert {each.name for each in out.iterdir()} == {"config.json", "model.safetensors"}


def test_one_file_is_a_checkpoint_and_half_precision_stays(tmp_path):
    source = write(tmp_path / "source", {key: tensor.half() for key, tensor in checkpoint().items()}, "safetensors")
    out = import_official(source / "model.safetensors", tmp_path / "model", narrow())
    assert SpexConfig.from_pretrained(out).dtype == torch.float16
    assert SpexForLandCover.from_pretrained(out).dtype == torch.float16


def test_an_imported_model_can_be_opened_to_more_bands(tmp_path):
    """Red, green and blue alone give nearly what the published stem gives; the other bands can be trained from there."""
    source, bands = write(tmp_path / "source", checkpoint(), "safetensors"), ("blue", "green", "red", "nir", "swir16")
    closed = SpexForLandCover.from_pretrained(import_official(source, tmp_path / "closed", narrow())).eval()
    opened = SpexForLandCover.from_pretrained(import_official(source, tmp_path / "opened", narrow(), bands)).eval()
    assert opened.config.stem == "wavelength" and tuple(opened.config.bands) == bands
    x, valid = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    with torch.inference_mode():
        expected, found = (model.backbone.stem.convolution1(x, valid, ("red", "green", "blue")) for model in (closed, opened))
        assert opened.backbone(torch.rand(1, 5, 64, 64), valid, bands)[3].isfinite().all()
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-3, rtol=1e-3)
    with pytest.raises(UnknownBand, match="red"):
        import_official(source, tmp_path / "wrong", narrow(), ("nir", "blue", "green"))
    assert not (tmp_path / "wrong").exists()


def test_what_is_no_checkpoint_is_refused_and_nothing_is_written(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "evil2.bin")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.bin")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("evil.bin", "cannot be read"),
        ("evil2.bin", "cannot be read as tensors only"),
        ("nested.bin", "no state dict"),
        ("cut.safetensors", "cannot be read"),
        ("folder", "no checkpoint"),
        ("absent", "no checkpoint"),
    ):
        with pytest.raises(CheckpointRefused, match=message):
            import_official(tmp_path / name, tmp_path / "model", narrow())
    assert not (tmp_path / "touched").exists() and not (tmp_path / "model").exists()


def test_a_missing_shard_and_a_full_folder_are_refused(tmp_path):
    source = write(tmp_path / "source", checkpoint(), "safetensors shards")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointRefused, match=r"model-00002-of-00002.safetensors is missing, although the index"):
        import_official(source, tmp_path / "model", narrow())
    with pytest.raises(CheckpointRefused, match="is there already"):
        import_official(source, source, narrow())


def test_the_checkpoints_own_configuration_sizes_the_language_model(tmp_path):
    stated = {**WORDS, "model_type": "llava_qwen", "rope_theta": 5e5, "rms_norm_eps": 1e-6, "mm_hidden_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    language = official_config(tmp_path).language
    assert language["model_type"] == "qwen2" and language["hidden_size"] == 48 and language["vocab_size"] == 300
    assert language["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5} and "mm_hidden_size" not in language


def chat_files(folder: Path) -> None:
    """A small byte-level tokenizer with the special tokens of Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["system user assistant You are a helpful assistant. water vegetation"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)


def test_the_imported_model_answers_a_chat_and_condenses_its_own_answer(tmp_path):
    source = write(tmp_path / "source", checkpoint(), "safetensors")
    chat_files(source)
    out = import_official(source, tmp_path / "model", narrow())
    tokenizer, model = chat_tokenizer(out), SpexForLandCover.from_pretrained(out).eval()
    assert tokenizer.decode(model.config.preamble) == BEFORE_IMAGE
    questions = {"describe the vegetation": "trees all over", "describe the water bodies": "one lake"}
    prompts = chat_prompts(tokenizer, questions)
    for k, (question, answer) in enumerate(questions.items()):
        row = prompts.tokens[0, k][prompts.attention[0, k]]
        assert tokenizer.decode(row) == f"\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
        assert tokenizer.decode(prompts.tokens[0, k][prompts.answer[0, k]]) == answer
        assert not prompts.answer[0, k, prompts.presence[0, k]] and prompts.answer[0, k, prompts.presence[0, k] + 1]
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        assert model(image, prompts, ("red", "green", "blue")).logits.shape == (1, 2, 64, 96)
        written = model.generate_text(image, chat_prompts(tokenizer, {"describe it": ""}), ("red", "green", "blue"), tokenizer.eos_token_id, 4)
    assert 0 < len(written[0][0]) <= 4


def test_the_command_imports_and_refuses(tmp_path, monkeypatch):
    import engine.official
    from pipeline.cli import app

    monkeypatch.setattr(engine.official, "official_config", lambda folder: narrow())
    source = write(tmp_path / "source", checkpoint(), "safetensors")
    done = CliRunner().invoke(app, ["import-official", str(source), "--out", str(tmp_path / "model")])
    assert done.exit_code == 0 and f"wrote {tmp_path / 'model'}" in done.output
    broken = write(tmp_path / "broken", {key: tensor for key, tensor in checkpoint().items() if key != "model.norm.weight"}, "safetensors")
    refused = CliRunner().invoke(app, ["import-official", str(broken), "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2 and "model.norm.weight is missing, expected (48,)" in " ".join(refused.output.split())


def test_a_model_of_another_kind_has_no_published_names():
    with pytest.raises(CheckpointRefused, match="the published SPEX has nothing like"):
        official_keys(SpexConfig())
