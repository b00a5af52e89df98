"""TensorRT and TensorRT-RTX: one builder and one way to run an engine for both, for their interfaces are the same.

TensorRT builds for the GPU of this machine. TensorRT-RTX builds for any GPU it knows, also on a machine that has none; what was built is compiled to
the end on the GPU that runs it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineBuildFailed, PlannerFailed, RuntimeUnavailable
from engine.runtimes.cache import EngineCache, key_of
from engine.runtimes.graph import Graph

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_INSTALL = {"tensorrt": "pip install 'spexmap[tensorrt]'", "tensorrt-rtx": "pip install 'spexmap[tensorrt-rtx]'"}
OLDEST = 10
"""Major version of TensorRT from which networks are strongly typed by default tools and `execute_async_v3` is the only way to run them."""


def load_library(name: str) -> ModuleType:
    """Return the Python module of ``tensorrt`` or ``tensorrt-rtx``; raises `RuntimeUnavailable`, saying what to install."""
    try:
        library = import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise RuntimeUnavailable(f"{name} cannot be loaded ({error}): {_INSTALL[name]}, or ask for another runtime") from error
    version = str(library.__version__)
    if name == "tensorrt" and int(version.split(".")[0]) < OLDEST:
        raise RuntimeUnavailable(f"TensorRT {version} is too old: pip install 'tensorrt>={OLDEST}'")
    return library


def is_installed(name: str) -> bool:
    """Return whether the library can be loaded here."""
    try:
        load_library(name)
    except RuntimeUnavailable:
        return False
    return True


def capabilities() -> dict[str, tuple[int, int]]:
    """Return the compute capabilities that TensorRT-RTX builds for, by name (``sm89``)."""
    members = load_library("tensorrt-rtx").ComputeCapability.__members__
    return {name.lower(): (int(name[2:-1]), int(name[-1])) for name in members if name.startswith("SM")}


def build_engine(graph: Graph, name: str, capability: str | None = None, cache: EngineCache | None = None) -> bytes:
    """Return a serialized engine of an ONNX graph; its precision and its shapes are the graph's own (strongly typed, no profile needed).

    Parameters
    ----------
    graph
        What `engine.runtimes.graph.export_graph` or `export_files` gives.
    name
        ``tensorrt`` or ``tensorrt-rtx``.
    capability
        ``sm75`` to ``sm121``, with TensorRT-RTX only; None: the GPU of this machine.
    cache
        Where TensorRT keeps the times of the kernels that it tried, so that another engine for this GPU is built sooner.

    Raises
    ------
    RuntimeUnavailable
        The library is missing, or does not build for that capability.
    EngineBuildFailed
        It refused the graph.
    """
    library = load_library(name)
    messages = _Messages(library)
    builder = library.Builder(messages.logger)
    # From version 11 on there is no other kind of network and no flag for it.
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = library.OnnxParser(network, messages.logger)
    if not (parser.parse_from_file(str(graph)) if isinstance(graph, Path) else parser.parse(graph)):
        raise EngineBuildFailed(f"{name} cannot read the graph: {_first_line(parser.get_error(0) if parser.num_errors else messages.worst)}")
    config = builder.create_builder_config()
    if capability is not None:
        _set_capability(library, config, name, capability)
    timings = _Timings(library, name, cache)
    timings.give(config)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineBuildFailed(f"{name} could not build an engine for {capability or 'this GPU'}: {_first_line(messages.worst)}")
    timings.keep(config)
    return bytes(engine)


class _Timings:
    """TensorRT's timing cache of one GPU model and version; TensorRT-RTX tries no kernels and has none."""

    def __init__(self, library: ModuleType, name: str, cache: EngineCache | None) -> None:
        self._cache = cache if name == "tensorrt" else None
        if self._cache is not None:
            self._key = key_of({"timings": name, "version": library.__version__, "device": torch.cuda.get_device_name()})

    def give(self, config: Any) -> None:
        """Let a build begin with what is known."""
        if self._cache is not None:
            config.set_timing_cache(config.create_timing_cache(self._cache.read(self._key) or b""), ignore_mismatch=False)

    def keep(self, config: Any) -> None:
        """Keep what a build has added."""
        if self._cache is not None:
            self._cache.write(self._key, bytes(config.get_timing_cache().serialize()))


def _set_capability(library: ModuleType, config: Any, name: str, capability: str) -> None:
    if name != "tensorrt-rtx":
        raise RuntimeUnavailable(f"{name} builds for the GPU of this machine only; leave out the compute capability, or ask for tensorrt-rtx")
    known = capabilities()
    if capability not in known:
        raise RuntimeUnavailable(f"tensorrt-rtx {library.__version__} does not build for {capability}; it knows {', '.join(sorted(known))}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(library.ComputeCapability, capability.upper()), 0)


class _Messages:
    """Collects what the library says; its worst message explains a failure."""

    def __init__(self, library: ModuleType) -> None:
        self.worst = ""
        messages = self
        levels = {library.ILogger.Severity.WARNING: logging.DEBUG, library.ILogger.Severity.INFO: logging.DEBUG}

        class Logger(library.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                    messages.worst = messages.worst or text
                log.log(levels.get(severity, logging.DEBUG), "%s", text)

        self.logger = Logger()


def _first_line(text: Any) -> str:
    return str(text).strip().splitlines()[0] if str(text).strip() else "it did not say why"


class _Kernels:
    """TensorRT-RTX's runtime cache: what it compiled for this GPU when an engine first ran. TensorRT compiles when it builds and has none."""

    def __init__(self, engine: Any, key: str, cache: EngineCache | None) -> None:
        self._engine, self._key = engine, key
        self._config = engine.create_runtime_config() if cache is not None and hasattr(engine, "create_runtime_config") else None
        self._cache = cache if self._config is not None and hasattr(self._config, "create_runtime_cache") else None

    def context(self) -> Any:
        """Return an execution context that begins with what is known."""
        if self._cache is None or self._config is None:
            return self._engine.create_execution_context()
        self._compiled = self._config.create_runtime_cache()
        known = self._cache.read(self._key)
        if known is not None:
            self._compiled.deserialize(known)
        self._config.set_runtime_cache(self._compiled)
        return self._engine.create_execution_context(self._config)

    def keep(self) -> None:
        """Keep what the first run has compiled."""
        if self._cache is not None:
            self._cache.write(self._key, bytes(self._compiled.serialize()))


class TensorRTPlanner:
    """An engine on a CUDA device, run as a CUDA graph: torch tensors in and out, nothing by way of the host.

    Parameters
    ----------
    engine
        What `build_engine` gives.
    name
        The library that built it.
    shape
        (n, C, h, w) of the input, float32.
    device
        CUDA device.
    cache
        Where TensorRT-RTX keeps the kernels that it compiled on this GPU, so that the next start finds them.

    Raises
    ------
    RuntimeUnavailable
        The engine is not for this GPU or this version of the library.
    """

    def __init__(self, engine: bytes, name: str, shape: Sequence[int], device: torch.device, cache: EngineCache | None = None) -> None:
        library = load_library(name)
        self.device, self._messages = device, _Messages(library)
        with torch.cuda.device(device):
            self._runtime = library.Runtime(self._messages.logger)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise RuntimeUnavailable(
                    f"the engine does not run on this GPU with {name} {library.__version__}: {_first_line(self._messages.worst)}"
                )
            kernels = _Kernels(self._engine, key_of({"kernels": hashlib.sha256(engine).hexdigest(), "device": torch.cuda.get_device_name()}), cache)
            self._context = kernels.context()
            if self._context is None:
                raise EngineBuildFailed(f"{name} cannot prepare the engine, perhaps for lack of memory: {_first_line(self._messages.worst)}")
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._input = torch.zeros(tuple(shape), dtype=torch.float32, device=device)
            self._context.set_input_shape("reflectance", tuple(shape))
            self._output = torch.empty(tuple(self._context.get_tensor_shape("probabilities")), dtype=torch.float32, device=device)
            self._context.set_tensor_address("reflectance", self._input.data_ptr())
            self._context.set_tensor_address("probabilities", self._output.data_ptr())
            self._graph = self._captured()
            kernels.keep()

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """Return the execution as a CUDA graph; None where the library does something that cannot be captured."""
        try:
            self._execute()  # what is compiled or allocated on first use must not be captured
            self._stream.synchronize()
        except PlannerFailed as error:
            raise RuntimeUnavailable(f"the engine does not run here: {error}") from error
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._execute()
        except RuntimeError as error:
            log.warning("TensorRT runs without a CUDA graph: %s", error)
            return None
        return graph

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise PlannerFailed(f"TensorRT did not run the engine: {_first_line(self._messages.worst)}")

    def __call__(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data; overwritten by the next call."""
        current = torch.cuda.current_stream(self.device)
        self._input.copy_(reflectance, non_blocking=True)
        self._stream.wait_stream(current)
        if self._graph is None:
            self._execute()
        else:
            with torch.cuda.stream(self._stream):
                self._graph.replay()
        current.wait_stream(self._stream)
        return self._output
