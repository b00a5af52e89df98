"""How long a window takes in each runtime of this machine, against PyTorch in eager float32, and where the time goes.

    python benchmarks/runtimes.py [--model models/spex-small] [--threads 2] [--repeat 15]

Each runtime is timed in turn with the others, round after round, so that a machine that slows down slows all of them. Stages are those of the model:
of PyTorch they are timed apart, of OpenVINO its own counters are added up by the module that a node of the graph comes from. On a CPU the claim is
that the default runtime takes at most a third of eager float32; the exit status is 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from engine import Spex
from engine.runtimes import Precision, Windows, cached_graph, choose, openvino
from engine.runtimes.openvino import OpenVinoPlanner

BANDS = ("blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir", "nir08", "swir16", "swir22")
CLASSES = ("vegetation", "building", "water", "bare")
WINDOW, LEAST = 320, 3.0
STAGES = ("backbone", "aggregator", "fine_branch", "projector", "neck", "language", "condenser", "decoder")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spex-small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spex = Spex.load(arguments.model, "cpu", arguments.threads)
    graph = cached_graph(spex, BANDS, CLASSES, Windows(WINDOW, len(BANDS)), channels_last=True)
    chips = torch.from_numpy(np.random.default_rng(0).uniform(0.02, 0.4, (1, len(BANDS), WINDOW, WINDOW)).astype(np.float32))
    planners: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"torch float32": spex.planner(BANDS, CLASSES)}
    for precision in dict.fromkeys((Precision.FLOAT32, openvino.best_precision())):
        planners[f"openvino {precision}"] = OpenVinoPlanner(graph, precision, arguments.threads)
    times = rounds(planners, chips, arguments.repeat)
    eager = statistics.median(times["torch float32"])
    print(f"window of {WINDOW} px, {len(BANDS)} bands, {len(CLASSES)} classes, {arguments.threads} threads; median of {arguments.repeat}")
    for name, each in times.items():
        print(f"  {name:18s} {1000 * statistics.median(each):7.1f} ms, {eager / statistics.median(each):5.2f} times as fast as eager float32")
    print("stages of torch float32, ms:", told(torch_stages(spex, chips)))
    print(f"stages of openvino {openvino.best_precision()}, ms:", told(openvino_stages(graph, arguments.threads, chips)))
    choice = choose("auto", torch.device("cpu"))
    faster = eager / statistics.median(times[f"{choice.name} {choice.precision}"])
    verdict = "ok" if faster >= LEAST else "FAILED"
    print(f"default runtime: {choice.name} {choice.precision}, {faster:.2f} times as fast; claim, at least {LEAST:g}: {verdict}")
    return 0 if faster >= LEAST else 1


@torch.inference_mode()
def rounds(planners: dict[str, Callable[[torch.Tensor], torch.Tensor]], chips: torch.Tensor, repeat: int) -> dict[str, list[float]]:
    """Return seconds by runtime, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in planners}
    for _ in range(repeat + 2):
        for name, planner in planners.items():
            started = time.perf_counter()
            planner(chips)
            times[name].append(time.perf_counter() - started)
    return {name: each[2:] for name, each in times.items()}


@torch.inference_mode()
def torch_stages(spex: Spex, chips: torch.Tensor) -> dict[str, float]:
    """Return milliseconds by stage of one call of the planner."""
    spent: dict[str, float] = {}
    hooks = []
    for name, module in spex.model.named_children():
        started: list[float] = []
        hooks.append(module.register_forward_pre_hook(lambda *_, at=started: at.append(time.perf_counter())))
        hooks.append(
            module.register_forward_hook(
                lambda *_, at=started, of=name: spent.__setitem__(of, spent.get(of, 0.0) + 1000 * (time.perf_counter() - at.pop()))
            )
        )
    planner = spex.planner(BANDS, CLASSES)
    for _ in range(2):
        spent.clear()
        planner(chips)
    for hook in hooks:
        hook.remove()
    return spent


def openvino_stages(graph: bytes, threads: int, chips: torch.Tensor) -> dict[str, float]:
    """Return milliseconds by stage of one call; ``fused`` is what OpenVINO merged over the borders of modules."""
    import onnx
    import openvino as library

    stage_of = {}
    for node in onnx.load_from_string(graph).graph.node:
        path = next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")
        found = re.search(rf"model\.({'|'.join(STAGES)})\b", path)
        stage_of |= dict.fromkeys([node.name, *node.output], found.group(1) if found else "rest")
    core = library.Core()
    hint = "bf16" if openvino.best_precision() is Precision.BFLOAT16 else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERF_COUNT": True}
    request = core.compile_model(core.read_model(graph, b""), "CPU", options).create_infer_request()
    for _ in range(3):
        request.infer({0: chips.numpy()})
    spent: dict[str, float] = defaultdict(float)
    for each in request.get_profiling_info():
        spent[stage_of.get(each.node_name, "fused")] += each.real_time.total_seconds() * 1000
    return spent


def told(stages: dict[str, float]) -> str:
    """Return stages in words, the longest first."""
    return ", ".join(f"{name} {spent:.1f}" for name, spent in sorted(stages.items(), key=lambda item: -item[1]) if spent >= 0.05)


if __name__ == "__main__":
    sys.exit(main())
