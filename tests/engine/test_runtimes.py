"""Every runtime gives the reference's map; engines are really built; what is broken or missing is rebuilt or named."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Spex
from engine.blocks import BlockExecutor
from engine.configuration import RGB, SpexConfig
from engine.description import ClassQuery
from engine.errors import EngineBuildFailed, TooLittleMemory
from engine.modeling import Prompts, SpexForLandCover
from engine.planner import Planner
from engine.runtimes import (
    Choice,
    RuntimeUnavailable,
    Windows,
    _open_engine,
    cached_engine,
    cached_graph,
    choose,
    exporting,
    open_planner,
    openvino,
    tensorrt,
)
from engine.runtimes.cache import EngineCache, key_of
from engine.runtimes.calibration import calibrated_batch, largest_batch
from engine.runtimes.convolved import ConvolvedEnlargement, convolved
from engine.runtimes.graph import InPrecision, Precision, export_files, export_graph, of_words_asked
from engine.training.data import Chips, load_chips

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
CLASSES = ("vegetation", "building", "water", "bare")
CPU = torch.device("cpu")
SIDE = 128
CLEAR_MARGIN = 0.05


@pytest.fixture(scope="session")
def small() -> Spex:
    return Spex.load("spex-small", "cpu")


@pytest.fixture(scope="session")
def chips(shared_data: Path) -> Chips:
    return load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")


@pytest.fixture(scope="session")
def reference(small: Spex, chips: Chips) -> np.ndarray:
    return predicted(open_planner(small, BANDS, CLASSES, Windows(SIDE, len(BANDS)), "torch").planner, chips)


@pytest.fixture(scope="session")
def graph(small: Spex) -> bytes:
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    return cached_graph(small, BANDS, CLASSES, Windows(SIDE, len(BANDS)), channels_last=True)


def predicted(planner, chips: Chips) -> np.ndarray:
    """Return probabilities (N, K, H, W)."""
    with torch.inference_mode():
        return np.concatenate([planner(torch.from_numpy(chip[None])).numpy().copy() for chip in chips.reflectance])


def overlaps(probabilities: np.ndarray, chips: Chips) -> list[float]:
    mapped, known = probabilities.argmax(1), chips.clean != 255
    return [float(((mapped == k) & (chips.clean == k)).sum() / (((mapped == k) | (chips.clean == k)) & known).sum()) for k in range(len(CLASSES))]


def assert_same_map(found: np.ndarray, reference: np.ndarray, chips: Chips, name: str) -> None:
    second, first = np.sort(reference, 1)[:, -2:].swapaxes(0, 1)
    same, clear = found.argmax(1) == reference.argmax(1), first - second > CLEAR_MARGIN
    moved = max(abs(a - b) for a, b in zip(overlaps(found, chips), overlaps(reference, chips), strict=True))
    print(f"{name}: the same class at {same[clear].mean():.6f} of the clear pixels, {same.mean():.6f} of all; IoU moved by at most {moved:.5f}")
    assert same[clear].mean() >= 0.9995
    assert same.mean() >= 0.997
    assert moved <= 0.005


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
def test_openvino_gives_the_map_of_the_reference(graph: bytes, reference: np.ndarray, chips: Chips, precision: Precision) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    if precision is Precision.BFLOAT16 and openvino.best_precision() is not precision:
        pytest.skip("this processor does not compute in bfloat16")
    assert_same_map(predicted(openvino.OpenVinoPlanner(graph, precision, 2), chips), reference, chips, f"OpenVINO {precision}")


def test_channels_by_convolutions_give_the_same_numbers(small: Spex, chips: Chips) -> None:
    planner, chip = small.planner(BANDS, CLASSES), torch.from_numpy(chips.reflectance[5:6])
    with torch.inference_mode():
        torch.testing.assert_close(convolved(planner)(chip), planner(chip), atol=1e-5, rtol=0)


def test_pytorchs_compiler_gives_the_map_of_the_reference(small: Spex, reference: np.ndarray, chips: Chips) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    opened = open_planner(small, BANDS, CLASSES, Windows(SIDE, len(BANDS)), "torch-compile")
    assert_same_map(predicted(opened.planner, chips), reference, chips, f"compiled {opened.choice.precision}")


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.BFLOAT16])
def test_half_precision_as_engines_compute_gives_the_map_of_the_reference(
    small: Spex, reference: np.ndarray, chips: Chips, precision: Precision
) -> None:
    """Strongly typed engines compute in the types of this very module."""
    assert_same_map(predicted(InPrecision(small.planner(BANDS, CLASSES), precision).eval(), chips), reference, chips, f"weights in {precision}")


def test_pixels_without_data_do_not_change_the_rest(graph: bytes, small: Spex, chips: Chips) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    chip = chips.reflectance[:1].copy()
    chip[..., :40, :] = np.nan
    chip[..., 100:, 90:] = np.nan
    with torch.inference_mode():
        expected = small.planner(BANDS, CLASSES)(torch.from_numpy(chip)).numpy()
    found = openvino.OpenVinoPlanner(graph, Precision.FLOAT32, 2)(torch.from_numpy(chip)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_pixel_has_the_same_bytes_in_any_block(graph: bytes, chips: Chips) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    planner = openvino.OpenVinoPlanner(graph, openvino.best_precision(), 2)
    executor = BlockExecutor(planner, len(CLASSES), [0.3] * len(CLASSES), SIDE, 96, device=CPU)
    numbers = np.clip(np.round((np.tile(chips.reflectance[3], (1, 3, 3)) + 0.1) * 10000), 1, 65535).astype(np.uint16)
    whole = executor.segment(numbers, -96, -96, (0, 0, 192, 192))
    part = executor.segment(numbers, -96, -96, (17, 101, 60, 160))
    for plane in ("landcover", "confidence", "runner_up", "margin"):
        np.testing.assert_array_equal(getattr(part, plane), getattr(whole, plane)[17:60, 101:160])


RTX = [(sm, Precision.FLOAT16) for sm in ("sm75", "sm89", "sm120")]
RTX += [(sm, Precision.BFLOAT16) for sm in ("sm80", "sm86", "sm89", "sm120", "sm121")]


@pytest.mark.parametrize(("capability", "precision"), RTX)
def test_the_whole_model_builds_as_one_engine(
    small: Spex, tmp_path: Path, capsys: pytest.CaptureFixture[str], capability: str, precision: Precision
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    asked = exporting.Export("spex-small", tmp_path, "tensorrt-rtx", capability, BANDS, CLASSES, SIDE, precision=str(precision))
    written = exporting.export(asked)
    facts = json.loads(written.path.with_suffix(".json").read_text())
    with capsys.disabled():
        print(f"\nspex-small {precision} for {capability}: {written.size / 1e6:.1f} MB in {written.seconds:.1f} s")
    assert written.path.stat().st_size == written.size > 5_000_000
    assert facts["weights"] == small.fingerprint and facts["for"] == capability and facts["input"]["shape"] == [1, 6, SIDE, SIDE]


def test_an_export_for_another_gpu_is_refused_by_the_library_that_builds_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "load_library", lambda name: None)
    for capability, words in (("sm89", "leave out the compute capability"), (None, "there is none")):
        with pytest.raises(RuntimeUnavailable, match=words):
            exporting.export(exporting.Export("spex-small", tmp_path, "tensorrt", capability))


def test_auto_goes_on_without_what_exports_graphs(small: Spex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("SPEXMAP_CACHE", str(tmp_path))

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'")

    monkeypatch.setattr(torch.onnx, "export", missing)
    assert open_planner(small, BANDS, CLASSES, Windows(64, len(BANDS))).choice.name == "torch"
    with pytest.raises(RuntimeUnavailable, match="pip install onnx onnxscript"):
        open_planner(small, BANDS, CLASSES, Windows(64, len(BANDS)), "openvino")


def test_a_graph_that_one_file_cannot_hold_is_refused_before_it_is_made(small: Spex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runtimes.graph.MOST_BYTES", 1000)
    with pytest.raises(EngineBuildFailed, match="2 GiB that one ONNX file holds"):
        export_graph(small.planner(BANDS, CLASSES), Windows(64, len(BANDS)))


class Narrow:
    """The parts of spex-1.8b (deformable convolutions, a prefix of its own, mask decoder with positions), narrow, with random weights."""

    device, folder, fingerprint = "cpu", None, "narrow"

    def __init__(self, **changes) -> None:
        torch.manual_seed(0)
        language = {**SpexConfig.preset("spex-1.8b").language, "num_hidden_layers": 1, "vocab_size": 300, "hidden_size": 48, "intermediate_size": 96}
        language |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        sizes = {"dims": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "groups": [2, 4, 8, 16], "aggregate_dim": 64, "condenser_dims": [80]}
        sizes |= {"decoder_dim": 64, "decoder_mlp": 128, "decoder_layers": 1, "language": language, "preamble": [7, 200]}
        self.model = with_moved_samples(SpexForLandCover(SpexConfig.preset("spex-1.8b", **{**sizes, **changes}))).eval()

    def resolve(self, classes, disjoint: bool = False) -> tuple[ClassQuery, ...]:
        return tuple(ClassQuery(name, target=name, instruction=name) for name in classes)

    def planner(self, bands, classes) -> Planner:
        tokens = torch.randint(300, (1, len(classes), 9), generator=torch.Generator().manual_seed(0))
        everywhere, answer = torch.ones_like(tokens, dtype=torch.bool), (torch.arange(9) >= 5).expand_as(tokens)
        presence, labels = torch.full(tokens.shape[:2], 4), torch.full_like(tokens, -100)
        return Planner(self.model, Prompts(tokens, everywhere, answer, presence, labels), bands).eval()


@pytest.fixture(scope="module")
def narrow() -> Narrow:
    return Narrow()


def test_a_model_that_one_file_cannot_hold_is_built_from_files_that_are_gone_afterwards(
    narrow: Narrow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As spex-1.8b is: the graph computes what the planner does, and the engine is that of the same graph in one piece, to the byte."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    monkeypatch.setenv("SPEXMAP_CACHE", str(tmp_path))
    monkeypatch.setattr("engine.runtimes.graph.MOST_BYTES", 1000)
    chip, build, found = torch.rand(1, 3, 64, 64), tensorrt.build_engine, []
    chip[..., :20, :] = np.nan

    def looked_at(graph: Path, *arguments: object) -> bytes:
        whole = onnx.load(graph).SerializeToString()
        assert graph.stat().st_size < len(whole) / 2
        found.extend([build(whole, "tensorrt-rtx", "sm89"), *onnxruntime.InferenceSession(str(graph)).run(None, {"reflectance": chip.numpy()})])
        return build(graph, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tensorrt, "build_engine", looked_at)
    choice = Choice("tensorrt-rtx", Precision.FLOAT32, "asked for")
    engine, identity = cached_engine(narrow, RGB, CLASSES, Windows(64, 3), choice, "sm89")
    with torch.inference_mode():
        np.testing.assert_allclose(found[1], narrow.planner(RGB, CLASSES)(chip).numpy(), atol=1e-5)
    assert engine == found[0] and identity["engine"] == hashlib.sha256(engine).hexdigest()
    assert [path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".lock"] == [len(engine) + 32]


def test_all_parts_of_the_published_size_build_in_bfloat16(narrow: Narrow) -> None:
    """TensorRT-RTX has no transposed convolution in bfloat16, and the mask decoder has two."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    assert any(isinstance(each, torch.nn.ConvTranspose2d) for each in narrow.model.modules())
    graph = export_graph(narrow.planner(RGB, CLASSES), Windows(64, 3), Precision.BFLOAT16)
    assert len(tensorrt.build_engine(graph, "tensorrt-rtx", "sm89")) > 1_000_000


def test_a_graph_holds_the_words_of_its_prompts_only_and_computes_the_same(narrow: Narrow) -> None:
    planner, chip = narrow.planner(RGB, CLASSES), torch.rand(2, 3, 64, 64)
    few = of_words_asked(planner)
    with torch.inference_mode():
        assert torch.equal(few(chip), planner(chip))
    words = {7, 200, *planner.tokens.flatten().tolist()}
    assert few.model.language.get_input_embeddings().weight.shape == (len(words), 48)
    assert planner.model.language.get_input_embeddings().weight.shape == (300, 48) and planner.model.config.preamble == [7, 200]
    assert few.model.projector[0].weight.data_ptr() == planner.model.projector[0].weight.data_ptr()


def test_a_transposed_convolution_as_wide_as_its_stride_is_a_convolution_and_a_shuffle() -> None:
    torch.manual_seed(0)
    enlarge, x = torch.nn.ConvTranspose2d(6, 5, 2, stride=2), torch.randn(2, 6, 7, 9)
    torch.testing.assert_close(ConvolvedEnlargement(enlarge)(x), enlarge(x), atol=1e-6, rtol=1e-6)


class Projector(torch.nn.Module):
    """As little of a planner as can be exported."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self.model = planner.model
        self.register_buffer("tokens", planner.tokens)

    def forward(self, reflectance: torch.Tensor) -> torch.Tensor:
        return self.model.projector(reflectance)


def test_a_graph_that_finds_no_room_is_refused_with_its_size(narrow: Narrow, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    projector, told = Projector(narrow.planner(RGB, CLASSES)), r"\d GiB of weights cannot be written in "
    with files_of_at_most(10_000), pytest.raises(EngineBuildFailed, match=told):
        export_files(projector, Windows(64, 3), Precision.FLOAT32, tmp_path)  # type: ignore[arg-type]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse what is written beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_that_cannot_be_written_leaves_nothing_half(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with files_of_at_most(1000):
        EngineCache(tmp_path).write("key", b"engine" * 1000)
    assert list(tmp_path.iterdir()) == [] and "could not be kept" in caplog.text


def test_a_graph_in_bfloat16_is_refused_by_a_gpu_that_has_none(small: Spex) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    graph = cached_graph(small, BANDS, CLASSES, Windows(SIDE, len(BANDS)), Precision.BFLOAT16)
    with pytest.raises(EngineBuildFailed, match="sm75"):
        tensorrt.build_engine(graph, "tensorrt-rtx", "sm75")


def test_a_file_that_is_no_graph_is_refused_with_the_librarys_own_words() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    with pytest.raises(EngineBuildFailed, match=r"cannot read the graph: .+"):
        tensorrt.build_engine(b"no graph", "tensorrt-rtx", "sm89")
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(EngineBuildFailed, match="OpenVINO refused the graph"):
        openvino.OpenVinoPlanner(b"no graph", Precision.FLOAT32, 1)


@pytest.mark.parametrize(
    ("runtime", "capability", "message"),
    [
        ("tensorrt-rtx", None, "no GPU here to build for; name one, such as sm"),
        ("tensorrt-rtx", "sm90", "does not build for sm90; it knows .*sm89"),
        ("onnx", "sm89", "leave out the compute capability"),
        ("openvino", None, "OpenVINO reads onnx"),
    ],
)
def test_an_export_that_cannot_be_says_what_to_ask_for(tmp_path: Path, runtime: str, capability: str | None, message: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    if torch.cuda.is_available() and capability is None:
        pytest.skip("there is a GPU to build for")
    with pytest.raises(RuntimeUnavailable, match=message):
        exporting.export(exporting.Export("spex-small", tmp_path / "out", runtime, capability, BANDS, CLASSES, SIDE))
    assert not (tmp_path / "out").exists()


def test_auto_takes_openvino_on_a_processor_and_says_why() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    choice = choose("auto", CPU)
    assert choice.name == "openvino" and "OpenVINO is installed" in choice.reason


def test_without_openvino_auto_warns_of_the_slow_way(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino._core.cache_clear()
    with caplog.at_level(logging.WARNING):
        choice = choose("auto", CPU)
    assert choice.name == "torch" and "pip install 'spexmap[openvino]'" in caplog.text
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'spexmap\[openvino\]'"):
        choose("openvino", CPU)
    openvino._core.cache_clear()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("tensorrt", "needs an NVIDIA GPU"),
        ("tensorrt-rtx", "ask for openvino or torch"),
        ("tensorflow", "give one of auto, torch, torch-compile, openvino"),
    ],
)
def test_a_runtime_that_cannot_run_here_is_refused(asked: str, message: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=message):
        choose(asked, CPU)


def test_a_runtime_that_fails_under_auto_gives_way_to_pytorch_with_a_warning(
    small: Spex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")

    def refuse(*arguments: object) -> None:
        raise EngineBuildFailed("refused")

    monkeypatch.setattr(openvino, "OpenVinoPlanner", refuse)
    windows = Windows(SIDE, len(BANDS))
    with caplog.at_level(logging.WARNING):
        opened = open_planner(small, BANDS, CLASSES, windows, "auto")
    assert opened.choice.name == "torch" and "more slowly" in caplog.text
    with pytest.raises(EngineBuildFailed):
        open_planner(small, BANDS, CLASSES, windows, "openvino")


def test_an_engine_is_built_once_and_a_damaged_file_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, built = EngineCache(tmp_path / "engines"), []

    def build() -> bytes:
        built.append(1)
        return b"engine"

    key = key_of({"weights": "a"})
    assert cache.get(key, build) == cache.get(key, build) == b"engine" and len(built) == 1
    content = (cache.folder / key).read_bytes()
    assert content[:32] == hashlib.sha256(b"engine").digest()
    for damaged in (content[:-1], content[:32] + b"enginE", b""):
        (cache.folder / key).write_bytes(damaged)
        assert cache.get(key, build) == b"engine"
    assert len(built) == 4 and "is damaged" in caplog.text
    assert cache.get(key, build) == b"engine" and len(built) == 4
    assert key_of({"weights": "b"}) != key


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert EngineCache(tmp_path / "file" / "engines").get("key", lambda: b"engine") == b"engine"
    assert "set SPEXMAP_CACHE" in caplog.text


def with_moved_samples(model: SpexForLandCover) -> SpexForLandCover:
    """Give deformable convolutions weights; at first they are zero, where every pixel is sampled at its own place."""
    for name, parameter in model.named_parameters():
        if "deform.offset" in name or "deform.mask" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


class Vision(torch.nn.Module):
    """The vision path of the published design: deformable convolutions, aggregation, visual tokens."""

    def __init__(self, **sizes) -> None:
        super().__init__()
        torch.manual_seed(0)
        language = {**SpexConfig.preset("spex-1.8b").language, "num_hidden_layers": 0, "vocab_size": 8}
        self.model = with_moved_samples(SpexForLandCover(SpexConfig.preset("spex-1.8b", language=language, **sizes)))
        self.register_buffer("tokens", torch.zeros(1, 1, 1, dtype=torch.long))

    def forward(self, reflectance: torch.Tensor) -> torch.Tensor:
        return self.model.see(reflectance, ("red", "green", "blue")).tokens


def test_the_vision_tower_of_the_published_size_builds_as_one_engine_and_samples_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Coordinates in half precision would be wrong by a tenth of a pixel."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    graph = export_files(Vision(), Windows(512, 3), Precision.FLOAT16, tmp_path)  # type: ignore[arg-type]
    inferred = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.input]}
    samplers = [node for node in inferred.node if node.op_type == "GridSample"]
    assert len(samplers) >= 37 and all(types[name] == onnx.TensorProto.FLOAT for node in samplers for name in node.input)
    started = time.monotonic()
    engine = tensorrt.build_engine(graph, "tensorrt-rtx", "sm89")
    with capsys.disabled():
        print(f"spex-1.8b, vision at 512, float16 for sm89: {len(engine) / 1e6:.0f} MB in {time.monotonic() - started:.1f} s")
    assert len(engine) > 2 * 219e6


def test_a_batch_is_what_the_memory_holds_beside_a_block() -> None:
    fits = {"block": 2880, "bands": 10, "classes": 4, "window": 320, "stride": 256, "activations": 200_000_000}
    assert largest_batch(64 * 2**30, **fits) == 32
    assert largest_batch(3 * 2**30, **fits) == 8
    with pytest.raises(TooLittleMemory, match="lower --block"):
        largest_batch(2**29, **fits)


@pytest.mark.parametrize(("has", "precision"), [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("bf16", "bfloat16"), ("avx512_f", "float32")])
def test_pytorchs_compiler_takes_bfloat16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, has: str, precision: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    assert choose("torch-compile", CPU).precision == precision


def test_a_processor_computes_one_window_a_call(small: Spex) -> None:
    assert calibrated_batch(small, BANDS, CLASSES, 320, 256, 2880) == 1


def test_an_engine_that_does_not_run_here_is_built_anew_once(
    narrow: Narrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a driver was changed under a cache; there is no GPU here, so what refuses the engine is put in the place of its planner."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
    monkeypatch.setenv("SPEXMAP_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    kept: list[bytes] = []

    def refuse(engine: bytes, *_: object) -> None:
        kept.append(engine)
        raise RuntimeUnavailable("the engine does not run on this GPU")

    monkeypatch.setattr(tensorrt, "TensorRTPlanner", refuse)
    choice = Choice("tensorrt-rtx", Precision.FLOAT16, "asked for")
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeUnavailable, match="does not run on this GPU"):
        _open_engine(narrow, RGB, CLASSES, Windows(64, len(RGB)), choice, {})
    assert len(kept) == 2 and "it is built anew" in caplog.text
