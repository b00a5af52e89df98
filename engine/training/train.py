"""Train SPEX on labelled chips: ``python -m engine.training.train --data CHIPS --out FOLDER``.

CHIPS is a folder that holds ``hls-worldcover/train.npz`` and ``s2-unlabelled/bigearthnet.npz``; surveyed spectra lie in ``../spectra``.
Every few minutes the state is written to FOLDER/state.pt; the same command goes on from there. Batches are a function of seed and step,
so an interrupted training sees the same batches as one that was not.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from engine.configuration import SpexConfig
from engine.modeling import SpexForLandCover
from engine.processing import DEFAULT_TERMS, Lexicon, SpexProcessor, train_tokenizer
from engine.training.augment import TEN
from engine.training.batches import Batch, BatchMaker, corpus
from engine.training.data import load_chips
from engine.training.losses import spex_loss
from engine.training.rededge import fit_red_edge
from engine.training.schedule import learning_rate, new_optimizer
from engine.training.survey import load_survey


class Training:
    """Model, optimizer and place in the schedule; `run` goes on until the last step."""

    def __init__(self, data: Path, out: Path, steps: int, batch: int, rate: float, seed: int, size: int) -> None:
        torch.manual_seed(seed)
        self.out, self.steps, self.rate = out, steps, rate
        self.config = SpexConfig(bands=list(TEN))
        self.processor = new_processor(self.config) if not (out / "tokenizer.json").is_file() else SpexProcessor.from_pretrained(out)
        self.model = SpexForLandCover(self.config).train()
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = new_optimizer(self.model, rate)
        spectra = data.parent / "spectra" / "lucas-s2-toa.npz"
        red_edge = fit_red_edge(data / "s2-unlabelled" / "bigearthnet.npz", spectra)
        chips = load_chips(data / "hls-worldcover" / "train.npz")
        self.batches = BatchMaker(chips, self.processor, red_edge, load_survey(spectra), batch, size, seed)
        self.step, self.stopping = 0, False

    def run(self, save_seconds: float = 240.0) -> None:
        """Train to the last step, or until `stop`, saving the state every few minutes and at the end."""
        began = saved = time.monotonic()
        seen: dict[str, list[float]] = {}
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.batches, self.step)
            while self.step < self.steps and not self.stopping:
                batch, coming = coming.result(), ahead.submit(self.batches, self.step + 1)
                for name, value in self._update(batch).items():
                    seen.setdefault(name, []).append(value)
                self.step += 1
                if self.step % 50 == 0:
                    means = {name: round(sum(values) / len(values), 4) for name, values in seen.items()}
                    print(json.dumps({"step": self.step, "seconds": round(time.monotonic() - began), **means}), flush=True)
                    seen = {}
                if time.monotonic() - saved > save_seconds:
                    saved = time.monotonic()
                    self.save()
        self.save()

    def stop(self, *_: object) -> None:
        """End `run` after the step in progress; fits a signal handler."""
        self.stopping = True

    def _update(self, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.rate)
        with_text = bool((batch.prompts.labels >= 0).any())
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(batch.reflectance, batch.prompts, batch.bands, with_text=with_text)
        parts = spex_loss(output, batch)
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: value.item() for name, value in parts.items()}

    def save(self) -> None:
        """Write the state for resuming and the model as it stands."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").replace(self.out / "state.pt")
        self.model.save_pretrained(self.out)
        self.processor.save_pretrained(self.out)

    def resume(self) -> None:
        """Go back to the state saved last, if there is one."""
        path = self.out / "state.pt"
        if path.is_file():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])


def new_processor(config: SpexConfig) -> SpexProcessor:
    """Return the processor of a new model: the default lexicon and a tokenizer trained on the grammar."""
    return SpexProcessor(train_tokenizer(corpus(DEFAULT_TERMS), config.language["vocab_size"]), Lexicon(DEFAULT_TERMS))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the chips")
    parser.add_argument("--out", type=Path, required=True, help="folder for state and model")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="side of the training windows in pixels, a multiple of 16")
    parser.add_argument("--rate", type=float, default=7e-4, help="peak learning rate; 1.5e-3 diverges")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training = Training(options.data, options.out, options.steps, options.batch, options.rate, options.seed, options.size)
    training.resume()
    signal.signal(signal.SIGTERM, training.stop)
    training.run()


if __name__ == "__main__":
    main()
