"""The published vision path against the same formulas written out in float64 numpy, one pixel at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import nn

from engine.configuration import SpexConfig
from engine.errors import UnknownBand
from engine.modeling_internimage import (
    DeformableBlock,
    DeformableConvolution,
    DisplayConvolution,
    GroupAggregator,
    InternImage,
    PatchStem,
    SpectralConvolution,
)
from engine.modeling_sam import SamMaskDecoder, mask_neck
from engine.modeling_vision import normalised

RGB = ("red", "green", "blue")
NARROW = {"dims": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "groups": [2, 4, 8, 16], "aggregate_dim": 32, "decoder_dim": 32, "decoder_mlp": 64}


def narrow(**changes) -> SpexConfig:
    return SpexConfig.preset("spex-1.8b", **NARROW, **changes)


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with every parameter random: zero-initialised offsets would test nothing."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return module


def numpy_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """Over the last axis."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | float = 0.0, stride: int = 1, pad: int = 0) -> np.ndarray:
    """(h, w, c) by (o, c, k, k)."""
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[-1]
    rows, columns = ((side + 2 * pad - size) // stride + 1 for side in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[0]))
    for i in range(rows):
        for j in range(columns):
            patch = padded[i * stride : i * stride + size, j * stride : j * stride + size]
            out[i, j] = np.einsum("yxc,ocyx->o", patch, kernel)
    return out + bias


def value_at(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear value of (h, w, c) at a place in pixels, zero beyond the edge."""
    left, top = math.floor(x), math.floor(y)
    total = np.zeros(image.shape[2])
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column]
    return total


def deformable(x: np.ndarray, w: dict[str, np.ndarray], groups: int, scale: float) -> np.ndarray:
    """DCNv3 of one image (h, w, c)."""
    height, width, channels = x.shape
    values = linear(x, w, "project_in")
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    seen = np.zeros_like(x)
    for dy in range(3):
        for dx in range(3):
            seen += padded[dy : dy + height, dx : dx + width] * w["depthwise.weight"][:, 0, dy, dx]
    seen = gelu(layer_norm(seen + w["depthwise.bias"], w["norm.weight"], w["norm.bias"]))
    offset = linear(seen, w, "offset").reshape(height, width, groups, 9, 2)
    share = softmax(linear(seen, w, "mask").reshape(height, width, groups, 9), axis=-1)
    mixed, each = np.zeros_like(x), channels // groups
    for i in range(height):
        for j in range(width):
            for g in range(groups):
                part = slice(g * each, (g + 1) * each)
                for k in range(9):
                    dx, dy = k // 3 - 1 + offset[i, j, g, k, 0], k % 3 - 1 + offset[i, j, g, k, 1]
                    mixed[i, j, part] += share[i, j, g, k] * value_at(values[:, :, part], j + scale * dx, i + scale * dy)
    return linear(mixed, w, "project_out")


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_dcnv3_is_its_formula():
    module = scrambled(DeformableConvolution(8, 2, 2.0))
    x = random(2, 6, 9, 8)
    for found, image in zip(module(x), x.numpy(), strict=True):
        close(found, deformable(image, numpy_of(module), 2, 2.0))


def test_dcnv3_starts_as_an_even_average_of_the_doubled_neighbourhood():
    module = DeformableConvolution(16, 4, 2.0).double()
    x = random(1, 12, 12, 16)
    assert not module.offset.weight.any() and not module.mask.weight.any() and not module.project_in.bias.any()
    bound = math.sqrt(6 / 32)
    assert bound * 0.9 < module.project_in.weight.abs().max() <= bound
    values = module.project_in(x)[0]
    expected = sum(values[5 + 2 * dy, 6 + 2 * dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    torch.testing.assert_close(module(x)[0, 5, 6], module.project_out(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dcnv3_in_half_precision_keeps_its_coordinates(dtype):
    """What is lost is rounding of values, not of places: a ramp sampled far from the origin stays the ramp."""
    module = DeformableConvolution(4, 1, 1.0)
    with torch.no_grad():
        module.project_in.weight.copy_(torch.eye(4))
        module.project_out.weight.copy_(torch.eye(4))
        module.offset.bias.copy_(torch.full((18,), 0.3))
    ramp = torch.arange(300.0)[None, None, :, None].expand(1, 5, 300, 4) / 300
    exact, half = module(ramp), module.to(dtype)(ramp.to(dtype))
    assert half.dtype == dtype
    # One unit in the last place of values near one; a place off by a tenth of a pixel would be seen nowhere else in so flat a ramp.
    assert (half.float() - exact).abs().max() < 2 * torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()(ramp).isfinite().all()


def test_places_are_computed_in_float32_for_a_half_module(monkeypatch):
    seen = []
    sample = torch.nn.functional.grid_sample

    def spy(values, grid, **options):
        seen.append((values.dtype, grid.dtype))
        return sample(values, grid, **options)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", spy)
    module = DeformableConvolution(16, 4, 2.0)
    module.half()(torch.zeros(1, 4, 4, 16, dtype=torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        module.float()(torch.zeros(1, 4, 4, 16))
    assert seen == [(torch.float32, torch.float32)] * 2


def test_a_block_normalises_behind_and_scales():
    module = scrambled(DeformableBlock(8, 2, narrow()))
    w, x = numpy_of(module), random(1, 5, 4, 8)
    deform = {key.removeprefix("deform."): value for key, value in w.items() if key.startswith("deform.")}
    first = x.numpy()[0]
    first = first + w["layer_scale1"] * layer_norm(deformable(first, deform, 2, 2.0), w["norm1.weight"], w["norm1.bias"])
    mlp = linear(gelu(linear(first, w, "expand")), w, "project")
    close(module(x)[0], first + w["layer_scale2"] * layer_norm(mlp, w["norm2.weight"], w["norm2.bias"]))


def test_stochastic_depth_drops_samples_in_training_only_and_keeps_the_mean():
    torch.manual_seed(0)
    block = DeformableBlock(8, 2, narrow(), drop=0.4)
    x = torch.randn(1, 3, 3, 8).expand(400, -1, -1, -1)
    changed = block._dropped(x)
    dropped = (changed == 0).flatten(1).all(1)
    assert 0.3 < dropped.float().mean() < 0.5
    torch.testing.assert_close(changed[~dropped][0], x[0] / 0.6)
    assert torch.equal(block.eval()._dropped(x), x)
    drops = [each.drop for stage in InternImage(narrow()).stages for each in stage]
    assert drops == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_the_fixed_stem_is_two_convolutions_of_normalised_display_values():
    module = scrambled(PatchStem(narrow()))
    w, image = numpy_of(module), random(1, 3, 8, 12).sigmoid()
    shown = (image.numpy()[0].transpose(1, 2, 0) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = convolve(shown, w["convolution1.weight"], w["convolution1.bias"], 2, 1)
    x = convolve(gelu(layer_norm(x, w["norm1.weight"], w["norm1.bias"])), w["convolution2.weight"], w["convolution2.bias"], 2, 1)
    expected = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
    valid = torch.ones(1, 1, 8, 12, dtype=torch.float64)
    close(module(image, valid, RGB)[0].permute(1, 2, 0), expected)
    shuffled = torch.cat([image[:, [2, 1]], torch.rand(1, 1, 8, 12), image[:, :1]], 1)
    close(module(shuffled, valid, ("blue", "green", "nir", "red"))[0].permute(1, 2, 0), expected)
    with pytest.raises(UnknownBand, match="red"):
        module(image, valid, ("blue", "green", "nir"))


def test_the_wavelength_stem_is_one_convolution_for_a_band_set():
    torch.manual_seed(0)
    bands = ("blue", "green", "red", "nir", "swir16")
    module = SpectralConvolution(narrow(stem="wavelength", bands=bands), 8)
    x, valid = torch.rand(2, 5, 16, 12) * 0.5, torch.ones(2, 1, 16, 12)
    valid[:, :, :3] = 0
    baked = module.baked(bands)
    torch.testing.assert_close(module(x, valid, bands), baked(normalised(x) * valid))
    order = [4, 2, 0, 1, 3]
    torch.testing.assert_close(module(x[:, order], valid, [bands[i] for i in order]), module(x, valid, bands))
    assert not torch.allclose(module.kernel(bands)[0][:, 3], module.kernel(bands)[0][:, 4])
    with pytest.raises(UnknownBand):
        module(x, valid, ("blue", "green", "red", "nir", "infrared"))


def test_the_wavelength_stem_can_start_from_the_fixed_one():
    torch.manual_seed(0)
    fixed = DisplayConvolution(narrow(display_white=0.4), 8)
    opened = SpectralConvolution(narrow(stem="wavelength", bands=RGB), 8)
    opened.adopt(fixed)
    x, valid = torch.rand(1, 3, 16, 16) * 0.4, torch.ones(1, 1, 16, 16)
    expected = fixed(x, valid, RGB)[..., 1:-1, 1:-1]
    torch.testing.assert_close(opened(x, valid, RGB)[..., 1:-1, 1:-1], expected, atol=1e-4, rtol=1e-4)
    wide = torch.cat([x, torch.rand(1, 2, 16, 16)], 1)
    change = (opened(wide, valid, (*RGB, "nir", "swir16"))[..., 1:-1, 1:-1] - expected).abs().mean()
    assert change < 0.05 * expected.std()


def resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with the corners' centres kept, of (h, w, c)."""
    rows, columns = np.linspace(0, x.shape[0] - 1, height), np.linspace(0, x.shape[1] - 1, width)
    return np.array([[value_at(x, column, row) for column in columns] for row in rows])


def test_the_aggregator_resizes_concatenates_mixes_and_normalises_in_groups():
    config = narrow()
    module = scrambled(GroupAggregator(config))
    w = numpy_of(module)
    maps = [random(1, dim, 16 // 2**k, 24 // 2**k, seed=k) for k, dim in enumerate(config.dims)]
    planes = [each.numpy()[0].transpose(1, 2, 0) for each in maps]
    joined = np.concatenate([planes[2], *(resized(planes[k], 4, 6) for k in (0, 1, 3))], -1)
    mixed = joined @ w["mix.weight"][:, :, 0, 0].T + w["mix.bias"]
    grouped = mixed.reshape(24, 16, 2)
    grouped = (grouped - grouped.mean((0, 2), keepdims=True)) / np.sqrt(grouped.var((0, 2), keepdims=True) + 1e-5)
    close(module(maps)[0].permute(1, 2, 0), gelu(grouped.reshape(4, 6, 32) * w["norm.weight"] + w["norm.bias"]))
    assert module.dropout.p == 0.5


def test_the_neck_is_two_normalised_convolutions():
    module = scrambled(mask_neck(narrow()))
    w, x = numpy_of(module), random(1, 32, 3, 5)
    y = layer_norm(convolve(x.numpy()[0].transpose(1, 2, 0), w["0.weight"]), w["1.weight"], w["1.bias"])
    y = layer_norm(convolve(y, w["2.weight"], pad=1), w["3.weight"], w["3.bias"])
    close(module(x)[0].permute(1, 2, 0), y)


def attend(w: dict[str, np.ndarray], name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int = 8) -> np.ndarray:
    q, k, v = (linear(x, w, f"{name}.{part}") for x, part in ((q, "query"), (k, "key"), (v, "value")))
    size = q.shape[1] // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    mixed = [softmax(q[:, p] @ k[:, p].T / math.sqrt(size), axis=-1) @ v[:, p] for p in parts]
    return linear(np.concatenate(mixed, 1), w, f"{name}.out")


def perceptron(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    for layer in ("0", "2"):
        x = np.maximum(linear(x, w, f"{name}.{layer}"), 0)
    return linear(x, w, f"{name}.4")


def doubled(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Transposed convolution of (h, w, c) by (c, o, 2, 2) at stride 2."""
    spread = np.einsum("hwc,coyx->hywxo", x, kernel)
    return spread.reshape(2 * x.shape[0], 2 * x.shape[1], -1) + bias


def sam(image: np.ndarray, sparse: np.ndarray, w: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Four masks (4, 4 h, 4 w) and their quality (4,) of one image (h, w, d) and its sparse prompts (t, d)."""
    height, width, dim = image.shape
    places = [(2 * (j + 0.5) / width - 1, 2 * (i + 0.5) / height - 1) for i in range(height) for j in range(width)]
    angles = 2 * np.pi * np.array(places) @ w["frequencies"]
    positions = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    keys = image.reshape(-1, dim) + w["no_mask"]
    names = tokens = np.concatenate([w["iou_token"], w["mask_tokens"], sparse])
    for k in range(2):
        block = f"blocks.{k}"
        norms = [(w[f"{block}.norms.{i}.weight"], w[f"{block}.norms.{i}.bias"]) for i in range(4)]
        own = tokens if k == 0 else tokens + names
        mixed = attend(w, f"{block}.self_attention", own, own, tokens)
        tokens = layer_norm(mixed if k == 0 else tokens + mixed, *norms[0])
        tokens = layer_norm(tokens + attend(w, f"{block}.to_image", tokens + names, keys + positions, keys), *norms[1])
        tokens = layer_norm(tokens + linear(np.maximum(linear(tokens, w, f"{block}.mlp.0"), 0), w, f"{block}.mlp.2"), *norms[2])
        keys = layer_norm(keys + attend(w, f"{block}.to_tokens", keys + positions, tokens + names, tokens), *norms[3])
    tokens = tokens + attend(w, "last_attention", tokens + names, keys + positions, keys)
    tokens = layer_norm(tokens, w["last_norm.weight"], w["last_norm.bias"], 1e-5)
    large = doubled(keys.reshape(height, width, dim), w["enlarge1.weight"], w["enlarge1.bias"])
    large = gelu(layer_norm(large, w["enlarge_norm.weight"], w["enlarge_norm.bias"]))
    large = gelu(doubled(large, w["enlarge2.weight"], w["enlarge2.bias"]))
    masks = np.stack([large @ perceptron(tokens[1 + k], w, f"hypernetworks.{k}") for k in range(4)])
    return masks, perceptron(tokens[0], w, "quality")


def test_the_sam_decoder_is_its_formula_for_every_class_and_image():
    module = scrambled(SamMaskDecoder(narrow()))
    w, image, sparse = numpy_of(module), random(2, 32, 3, 5), random(2, 3, 4, 32, seed=2)
    valid = torch.ones(2, 1, 3, 5, dtype=torch.float64)
    masks, quality = module.all_masks(image, valid, sparse)
    logits = module(image, valid, sparse)
    assert logits.shape == (2, 3, 48, 80)
    for n in range(2):
        for k in range(3):
            expected, expected_quality = sam(image.numpy()[n].transpose(1, 2, 0), sparse.numpy()[n, k], w)
            close(masks[n, k], expected, 1e-8)
            close(quality[n, k], expected_quality, 1e-8)
            whole = torch.nn.functional.interpolate(torch.from_numpy(expected[None, :1]), scale_factor=4, mode="bilinear", align_corners=False)
            close(logits[n, k], whole[0, 0].numpy(), 1e-8)


def test_the_sam_decoder_does_not_look_where_there_is_no_data():
    module = scrambled(SamMaskDecoder(narrow()))
    image, sparse, valid = random(1, 32, 4, 4), random(1, 1, 4, 32, seed=2), torch.ones(1, 1, 4, 4, dtype=torch.float64)
    valid[..., 2:] = 0
    changed = image.clone()
    changed[..., 2:] = 5.0
    (first, _), (second, _) = module.all_masks(image, valid, sparse), module.all_masks(changed, valid, sparse)
    torch.testing.assert_close(first[..., :8], second[..., :8])
    assert not torch.allclose(first[..., 8:], second[..., 8:])


class Seeing(nn.Module):
    """The vision path and the mask decoder as one graph."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        self.backbone, self.aggregator = InternImage(config), GroupAggregator(config)
        self.neck, self.decoder = mask_neck(config), SamMaskDecoder(config)

    def forward(self, x: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Return mask logits."""
        valid = torch.ones_like(x[:, :1])
        return self.decoder(self.neck(self.aggregator(self.backbone(x, valid, RGB))), torch.ones_like(x[:, :1, ::16, ::16]), sparse)


def exported(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, **options):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import onnxruntime

    torch.onnx.export(module, inputs, path, dynamo=True, opset_version=20, verbose=False, **options)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def same_in_onnx(session, module: nn.Module, *inputs: torch.Tensor) -> None:
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (each.numpy() for each in inputs), strict=True)))
    np.testing.assert_allclose(found, module(*inputs).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_dcnv3_exports_to_onnx(tmp_path: Path, dynamic: bool):
    module, x = scrambled(DeformableBlock(8, 2, narrow())).float(), torch.randn(2, 7, 9, 8)
    session = exported(module, (x,), tmp_path / "block.onnx", dynamic_shapes=({0: torch.export.Dim("n", min=1, max=8)},) if dynamic else None)
    for n in (2, 3) if dynamic else (2,):
        same_in_onnx(session, module, torch.randn(n, 7, 9, 8))


def test_the_vision_path_and_the_mask_decoder_export_to_onnx(tmp_path: Path):
    torch.manual_seed(0)
    module = Seeing(narrow()).eval()
    with torch.no_grad():
        for block in (each for stage in module.backbone.stages for each in stage):
            block.deform.offset.weight.normal_(std=0.1)
    inputs = torch.rand(1, 3, 64, 96), torch.randn(1, 2, 4, 32)
    same_in_onnx(exported(module, inputs, tmp_path / "seeing.onnx"), module, *inputs)


def test_a_half_precision_export_samples_in_float32(tmp_path: Path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    module = scrambled(DeformableConvolution(8, 2, 2.0)).half()
    exported(module, (torch.randn(1, 6, 6, 8).half(),), tmp_path / "half.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx")).graph
    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    sampled = [node for node in graph.node if node.op_type == "GridSample"]
    assert sampled and all(types[name] == onnx.TensorProto.FLOAT for node in sampled for name in node.input)
