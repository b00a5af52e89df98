"""The command `spexmap`.

Exit status: 0 done or nothing to do; 1 some tiles failed, or `validate` found something wrong; 2 the job or its inputs are wrong; 3 stopped in the
middle, or an error that nobody foresaw (its traceback is logged), safe to run again; 4 another run holds the output; 130 and 143 after signals. What
a command needs is imported inside it, so that `spexmap --help` is there at once.
"""

from __future__ import annotations

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec

import typer

from pipeline.errors import JobError
from spexmap import SpexmapError, __version__

DONE, FAILED, WRONG, STOPPED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

P = ParamSpec("P")

app = typer.Typer(
    help="Land-cover maps of whole regions from a STAC query, by SPEX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

spie = typer.Typer(help="Data sets of instructions, answers and masks.", no_args_is_help=True)
app.add_typer(spie, name="spie")

Job = Annotated[str, typer.Argument(metavar="JOB", help="Job file: path or URL.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output of a job: path or URL.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Wins over the job file; dotted keys, values in YAML; may be repeated.")
]
NewSeries = Annotated[bool, typer.Option("--new-series", help="Map even if grid, classes, model, composite or mask of the series changed.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Segmenting actors; default one for each GPU, else one for every two cores.")]
Block = Annotated[int | None, typer.Option(min=1, metavar="PIXELS", help="Side of a block; changes memory and speed, no pixel.")]
Batch = Annotated[int | None, typer.Option(min=1, metavar="WINDOWS", help="Windows a call of the model; default what fits the device.")]
WaitGpu = Annotated[float, typer.Option("--wait-gpu", min=0, metavar="SECONDS", help="How long to wait for a GPU where the cluster has none yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


class Terminated(SystemExit):
    """SIGTERM came; leaves with status 143."""

    came = False
    """Set by the handler: an exception that it raises while Ray waits comes out of Ray as SystemExit(1)."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def main() -> None:
    """Run the command line and leave with its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="spexmap")


def _terminate(number: int, frame: FrameType | None) -> None:
    Terminated.came = True
    raise Terminated


def _command(function: Callable[P, int]) -> Callable[P, None]:
    """Return a command that leaves with the exit status `function` returns, and with one sentence on stderr for what goes wrong."""

    @functools.wraps(function)
    def command(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            status = function(*arguments, **options)
        except (KeyboardInterrupt, SystemExit) as stop:
            status = _stopped(stop)
        except SpexmapError as error:
            status = _fail(str(error), getattr(error, "exit_status", WRONG))
        except BrokenPipeError:
            status = DONE
        except Exception as error:
            logging.getLogger(__name__).exception("an error that nobody foresaw")
            status = _fail(f"{type(error).__name__}: {error}; this is a defect of spexmap, please report it with the traceback above", STOPPED)
        # From here on a signal ends the process plainly: an exception in what runs at exit would print a stack.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(status)

    return command


def _stopped(stop: KeyboardInterrupt | SystemExit) -> int:
    """Return the status after a signal."""
    if isinstance(stop, KeyboardInterrupt):
        return _fail("interrupted; the same command goes on from here", INTERRUPTED)
    if Terminated.came or stop.code in (TERMINATED, signal.SIGTERM):
        return _fail("terminated; the same command goes on from here", TERMINATED)
    return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else STOPPED


def _fail(message: str, status: int) -> int:
    from pipeline.faults import without_secrets

    # Names from catalogs and files may hold half a character, which no stream can write.
    sentence = without_secrets(" ".join(message.split())).encode("utf-8", "backslashreplace").decode()
    typer.echo(f"spexmap: {sentence}", err=True)
    return status


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spexmap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    """Land-cover maps of whole regions from a STAC query, by SPEX."""


@app.command()
@_command
def run(
    job: Job,
    overrides: Overrides = None,
    new_series: NewSeries = False,
    workers: Workers = None,
    block: Block = None,
    batch: Batch = None,
    wait_gpu: WaitGpu = 0.0,
    address: Annotated[str | None, typer.Option(metavar="URL", help="Ray cluster; default RAY_ADDRESS, else this machine alone.")] = None,
) -> int:
    """Search, plan, map, publish; go on where an interrupted run stopped."""
    from pipeline.job import load_job

    spec = load_job(job, overrides or ())
    _log_to_stderr()
    from pipeline.run import run_job
    from pipeline.session import Computing

    with spec.naming_lines():
        return run_job(spec, new_series=new_series, block=block, computing=Computing(workers, address, wait_gpu, batch))


@app.command()
@_command
def submit(
    job: Job,
    address: Annotated[str, typer.Option(metavar="URL", help="Of the cluster's dashboard, such as http://127.0.0.1:8265.")],
    overrides: Overrides = None,
    new_series: NewSeries = False,
    workers: Workers = None,
    block: Block = None,
    batch: Batch = None,
    wait_gpu: WaitGpu = 0.0,
) -> int:
    """Run a job on a remote cluster through the Ray Jobs API, and leave with the run's exit status; a signal stops the job there."""
    _log_to_stderr()
    from pipeline.submit import make_package, submit

    given = {"--workers": workers, "--block": block, "--batch": batch, "--wait-gpu": wait_gpu or None}
    options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    return submit(make_package(job, overrides or (), options + ["--new-series"] * new_series), address)


@app.command()
@_command
def plan(job: Job, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Print scenes, tiles, windows, bytes to read and expected hours; writes nothing."""
    from pipeline.job import load_job

    spec = load_job(job, overrides or ())
    from pipeline.reports import plan_document, print_plan
    from pipeline.run import prepare

    with spec.naming_lines():
        made = prepare(spec)
    if as_json:
        _echo_json(plan_document(made))
    else:
        print_plan(made)
    return DONE


@app.command()
@_command
def status(output: Output, as_json: AsJson = False) -> int:
    """Print which tiles of an output's runs are done, failed and left."""
    from pipeline.reports import print_status
    from pipeline.status import read_status, status_document

    runs = read_status(output)
    if as_json:
        _echo_json(status_document(runs))
    else:
        print_status(runs)
    return DONE


@app.command()
@_command
def validate(
    output: Output,
    deep: Annotated[bool, typer.Option("--deep", help="Read every checksum and every overview.")] = False,
    schemas: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of STAC extension schemas, such as DIR/projection/v2.0.0/schema.json.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check headers, sizes and documents of an output."""
    from pipeline.storage import Storage
    from pipeline.validate import validate_output

    storage = Storage(output)
    if not storage.exists("catalog.json"):
        raise JobError(f"{output} holds no catalog.json; is it the output of a job?")
    report = validate_output(storage, deep, schemas)
    if as_json:
        _echo_json(asdict(report))
    else:
        for problem in report.problems:
            typer.echo(f"{problem.path}: {problem.reason}")
        typer.echo(f"{report.files} files checked, {len(report.problems)} problems")
        if report.unchecked:
            typer.echo(f"not checked against schemas that are not at hand (--schemas DIR): {', '.join(report.unchecked)}")
    return FAILED if report.problems else DONE


@app.command("import-official")
@_command
def import_official(
    checkpoint: Annotated[Path, typer.Argument(metavar="PATH", help="The published checkpoint: a folder or one file, safetensors or PyTorch.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the model; must not exist or be empty.")],
    bands: Annotated[str, typer.Option(metavar="NAMES", help="blue,green,red,nir,...: a stem for any bands, to be trained on these.")] = "",
) -> int:
    """Turn the published SPEX checkpoint into a model folder; refuse it unless every key fits."""
    from engine.official import import_official as import_checkpoint

    typer.echo(f"wrote {import_checkpoint(checkpoint, out, bands=[name for name in bands.split(',') if name])}")
    return DONE


@app.command()
@_command
def explain(
    output: Output,
    at: Annotated[str, typer.Option("--at", metavar="LON,LAT", help="The place, in degrees.")],
    as_json: AsJson = False,
) -> int:
    """Print what an output says of a place: class, confidence, scene and date, quality, and the text."""
    from pipeline.explain import explain_place, in_words, parse_place

    places = explain_place(output, *parse_place(at))
    if as_json:
        _echo_json([asdict(place) for place in places])
    else:
        typer.echo("\n\n".join(in_words(place) for place in places))
    return DONE


@app.command()
@_command
def schema() -> int:
    """Print the JSON schema of the job file."""
    from pipeline.job import job_schema

    _echo_json(job_schema())
    return DONE


@app.command()
@_command
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Training file: path or URL; examples/train has some.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for state, logs and model; the same command goes on from it.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Wins over the file; dotted keys, values in YAML; may be repeated.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share each batch, by Ray Train.")] = 1,
    address: Annotated[str | None, typer.Option(metavar="URL", help="Ray cluster; default this machine alone.")] = None,
) -> int:
    """Train a model in stages, or fine-tune one on chips of your own."""
    from pipeline.training_file import load_training

    spec = load_training(config, overrides or ())
    _log_to_stderr()
    if workers == 1 and address is None:
        from engine.training.train import train as train_here

        ended = train_here(spec, out)
    else:
        from pipeline.training import train_on_ray

        ended = train_on_ray(spec, out, workers, address)
    if not ended:
        raise Terminated
    typer.echo(f"trained {out}; map with it: set model: {out} in a job file")
    return DONE


@app.command()
@_command
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, URL, shipped name or Hugging Face id of a SPEX.")],
    data: Annotated[Path, typer.Option("--data", metavar="CHIPS", help="Labelled chips: an .npz, a folder of such, or a folder of GeoTIFF pairs.")],
    split: Annotated[str, typer.Option(help="Which part of the chips.")] = "val",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for evaluation.json, index.html and tables.md.")] = Path("evaluation"),
    bands: Annotated[
        list[str] | None, typer.Option(metavar="SET", help="Band set such as rgb+nir; may be repeated, the first is the main one.")
    ] = None,
    arms: Annotated[
        str, typer.Option(metavar="NAMES", help="Attributes in the prompt: none, index, labels, shuffled.")
    ] = "none,index,labels,shuffled",
    baselines: Annotated[str, typer.Option(metavar="NAMES", help="thresholds, boosting, unet; trained in this run.")] = "",
    unet_steps: Annotated[int | None, typer.Option(min=1, help="Training steps of the U-Net; default those of spex-small.")] = None,
    train: Annotated[Path | None, typer.Option(metavar="CHIPS", help="Where the baselines learn; default the split train of CHIPS.")] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="CHIP", help="Report with and without this chip; may be repeated.")] = None,
    kinds: Annotated[bool, typer.Option("--kinds", help="Score the kinds of vegetation in place of vegetation.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the baselines and the shuffled arm.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch.")] = None,
) -> int:
    """Measure a model on labelled chips, with intervals over places, beside baselines."""
    from engine.evaluation.command import UNET_STEPS, Evaluation, evaluate, named

    _log_to_stderr()
    steps, methods = unet_steps or UNET_STEPS, named(baselines)
    evaluate(Evaluation(model, data, split, out, tuple(bands or ()), named(arms), methods, steps, train, without, seed, device, threads, kinds))
    typer.echo((out / "tables.md").read_text(encoding="utf-8"))
    typer.echo(f"wrote {out / 'index.html'}, {out / 'evaluation.json'} and {out / 'tables.md'}")
    return DONE


@app.command()
@_command
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, URL, shipped name or Hugging Face id of a SPEX.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to; made if it is not there.")],
    runtime: Annotated[str, typer.Option(metavar="NAME", help="onnx (OpenVINO reads it), tensorrt, tensorrt-rtx.")] = "onnx",
    capability: Annotated[
        str | None, typer.Option("--for", metavar="SM", help="Build for another GPU than this machine's, such as sm89; with tensorrt-rtx.")
    ] = None,
    bands: Annotated[str, typer.Option(metavar="NAMES", help="Bands in channel order, such as blue,green,red,nir; default all of the model.")] = "",
    classes: Annotated[str, typer.Option(metavar="NAMES", help="Classes, such as water,building; default all roots that the model knows.")] = "",
    window: Annotated[int, typer.Option(min=16, metavar="PIXELS", help="Side of a window.")] = 320,
    batch: Annotated[int, typer.Option(min=1, help="Windows a call.")] = 1,
    precision: Annotated[str | None, typer.Option(help="float32, float16, bfloat16; default float32 as onnx, float16 as an engine.")] = None,
) -> int:
    """Write a model's graph, or an engine built from it, for one band set and one list of classes."""
    from engine.runtimes.exporting import Export, export

    _log_to_stderr()
    named = {key: tuple(word.strip() for word in text.split(",") if word.strip()) for key, text in (("bands", bands), ("classes", classes))}
    written = export(
        Export(model, out, runtime, capability, bands=named["bands"], classes=named["classes"], window=window, batch=batch, precision=precision)
    )
    typer.echo(f"wrote {written.path} ({written.size / 1e6:.1f} MB) in {written.seconds:.1f} s")
    return DONE


@app.command()
@_command
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to; made if it is not there.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed is another landscape.")] = None,
    size: Annotated[int | None, typer.Option(metavar="PIXELS", help="Side of each of the two tiles in pixels of 10 m, 128 to 10980.")] = None,
) -> int:
    """Write a small simulated Sentinel-2 catalog and a job for it; needs no network."""
    from pipeline.demo import SEED, SIZE, write_demo

    made = write_demo(directory, SEED if seed is None else seed, SIZE if size is None else size)
    typer.echo(f"wrote a simulated catalog to {made.directory}; map it with: spexmap run {made.job}")
    return DONE


@spie.command("build")
@_command
def spie_build(
    imagery: Annotated[list[str], typer.Argument(metavar="IMAGERY...", help="GeoTIFF or .npz files, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; must not hold anything.")],
    bands: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Canonical names in the order of the channels (- for one not used), or KEY=NAME; default: descriptions."),
    ] = None,
    scale: Annotated[str | None, typer.Option(metavar="NUMBER", help="Reflectance = number * scale + offset; such as 0.0001 or 1/255.")] = None,
    offset: Annotated[str | None, typer.Option(metavar="NUMBER", help="See --scale.")] = None,
    nodata: Annotated[float | None, typer.Option(help="Stored number without data; default: what the file says.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="PATH", help="Raster of codes, vector file, folder, or array of the .npz.")] = None,
    label_field: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of a vector file that holds the codes of --classes.")] = None,
    classes: Annotated[list[str] | None, typer.Option(metavar="CLASSES", help="water,vegetation ...; with labels 80=water,50=building ...")] = None,
    source: Annotated[str, typer.Option(metavar="SOURCE", help="What the attributes in instructions come from: index, labels or none.")] = "index",
    chip: Annotated[int, typer.Option(metavar="PIXELS", help="Side of a chip.")] = 512,
    stride: Annotated[int, typer.Option(metavar="PIXELS", help="Step between chips of a block.")] = 384,
    block: Annotated[int, typer.Option(metavar="CHIPS", help="Chips along a block; chips overlap within blocks only.")] = 2,
    resolution: Annotated[float | None, typer.Option(metavar="METRES", help="Side of a pixel, where imagery has no georeference.")] = None,
    reference: Annotated[
        float | None, typer.Option(metavar="METRES", help="Opening, closing, minimum area: 1, 2, 50 pixels of this; default: the coarsest image's.")
    ] = None,
    size_reference: Annotated[
        float | None, typer.Option(metavar="M2", help="Area of which size words are shares; default: the valid area of each chip.")
    ] = None,
    indices: Annotated[list[str] | None, typer.Option(metavar="NAMES", help="Indices of spyndex to average over masks; all needed.")] = None,
    clouds: Annotated[str | None, typer.Option(metavar="PATH", help="Raster of codes, or the end of its name beside the image, such as SCL.")] = None,
    cloud_values: Annotated[list[str] | None, typer.Option(metavar="CODES", help="Codes that mask a pixel, such as 3,8,9,10.")] = None,
    cloud_bits: Annotated[list[str] | None, typer.Option(metavar="BITS", help="Bits, from 0, that mask a pixel, such as 1,3.")] = None,
    minimum_valid: Annotated[float, typer.Option("--min-valid", metavar="SHARE", help="Chips with fewer valid pixels are left out.")] = 0.1,
    val_share: Annotated[float, typer.Option(metavar="SHARE", help="Share of the chips in the split val, whole places at a time.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Another seed is another split.")] = 0,
    reflectance: Annotated[bool, typer.Option(help="Write the chips as multi-band GeoTIFFs too.")] = True,
    title: Annotated[str, typer.Option(help="Heading of the data card.")] = "SPIE data set",
    terms: Annotated[str, typer.Option(help="Licences and attributions of imagery and labels, for the data card.")] = "",
) -> int:
    """Make a data set of instructions, answers and masks from any imagery, with or without labels."""
    from engine.spie import dataset
    from engine.spie.chips import Cutting

    _log_to_stderr()
    options = dataset.BuildOptions(
        imagery=tuple(imagery),
        bands=dataset.words_of(bands),
        calibration=dataset.calibration(scale, offset, nodata),
        labels=labels,
        label_field=label_field,
        classes=dataset.words_of(classes),
        source=source,
        cutting=Cutting(chip, stride, block),
        resolution=resolution,
        reference=reference,
        size_reference_m2=size_reference,
        indices=dataset.words_of(indices),
        clouds=clouds,
        cloud_values=dataset.codes_of(cloud_values),
        cloud_bits=dataset.codes_of(cloud_bits),
        minimum_valid=minimum_valid,
        val_share=val_share,
        seed=seed,
        reflectance=reflectance,
        title=title,
        terms=terms,
    )
    built = dataset.build(options, out)
    typer.echo(f"wrote {built.samples} samples of {built.chips} chips to {built.directory}")
    return DONE


def _echo_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))


def _log_to_stderr() -> None:
    from pipeline.runlog import FORMAT, Discreet

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Discreet(FORMAT, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("aiobotocore.credentials", "botocore", "rasterio.session"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
