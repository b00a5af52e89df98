"""The job file: what it may say, and errors that name file, line and key."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.bounds import bounds_problem
from pipeline.errors import JobError
from pipeline.job_messages import Written, first_error
from pipeline.period import resolve_period
from pipeline.yaml_lines import load_with_lines
from spexmap import SpexmapError

LARGEST = 1_000_000
"""A job file of more bytes is refused."""

FARTHEST = 1e9
"""No place on Earth has coordinates beyond this, whatever the CRS and its units; and no pixel is larger, or smaller than one over it."""

_KEY_OF_ERROR = {
    "UnknownCollection": "source.collection",
    "CatalogError": "source.catalog",
    "ModelNotFound": "model",
    "UnknownClass": "classes",
}
"""Errors of the other rooms by name, so that reading a job loads neither of them."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _error(message: str) -> PydanticCustomError:
    # Without a context pydantic would look for placeholders in the message and fail on a brace in it.
    return PydanticCustomError("job", "{message}", {"message": message})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, hide_input_in_errors=True)


class SourceSpec(_Section):
    """Where scenes are looked for."""

    catalog: str = Field(min_length=1)
    """STAC API URL, static catalog (path or URL), or an item collection (GeoJSON, GeoParquet)."""
    collection: str | None = "sentinel-2-l2a"
    """Id of the collection; null takes every collection of a static catalog or file."""
    max_cloud_cover: Annotated[float, Field(ge=0, le=100)] | None = 80.0
    """Percent; a scene that does not say passes; null lets all pass."""
    exclude: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Ids of scenes to leave out."""
    headers: dict[str, SecretStr] = {}
    """HTTP headers for the catalog; values may be ${ENVIRONMENT_VARIABLE}; never written anywhere."""

    def resolve_headers(self, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the headers with ${VARIABLES} put in from `environment`, for the request alone; raises JobError naming one that is not set."""
        return {name: _expand(name, value.get_secret_value(), environment) for name, value in self.headers.items()}


class MaskSpec(_Section):
    """How the pixels that are not clear are treated."""

    dilate: float = Field(default=60.0, ge=0, le=10_000)
    """Metres around cloud and shadow in which a scene counts as not clear; used only where no scene is clear, and quality is 0 there."""


def _crs_text(value: Any) -> Any:
    return f"EPSG:{value}" if isinstance(value, int) and not isinstance(value, bool) else value


def _origin_value(value: Any) -> Any:
    if value == "auto":
        return value
    numbers = isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(item) and abs(item) <= FARTHEST for item in value)
    if not numbers:
        raise _error("must be auto or two numbers, [x, y] in units of the CRS")
    return float(value[0]), float(value[1])


class GridSpec(_Section):
    """The pixel grid of the map."""

    crs: Annotated[str, BeforeValidator(_crs_text), Field(min_length=1)] = "auto"
    """auto: the UTM zone of the region's centroid, refused with a suggestion where the region leaves it by more than 4 degrees; or any CRS."""
    resolution: float = Field(default=10.0, gt=0, le=FARTHEST)
    """Side of a pixel in units of the CRS."""
    origin: Annotated[Literal["auto"] | tuple[float, float], BeforeValidator(_origin_value)] = "auto"
    """[x, y] or auto: the pixel grid of the first scene by id; frozen in the series."""
    tile: int = Field(default=10240, gt=0, le=1_000_000)
    """Side of a product tile in pixels; one COG of each kind and one STAC item a tile."""

    @field_validator("resolution")
    @classmethod
    def _resolution_is_a_size(cls, resolution: float) -> float:
        if resolution < 1 / FARTHEST:
            raise _error("is too small for a pixel; it is in units of the CRS, 10 for ten metres")
        return resolution


class ClassSpec(_Section):
    """One class of the map."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)
    """A name that the model knows, or a new one with an instruction."""
    code: int | None = Field(default=None, ge=1, le=250)
    """Value in the landcover raster; default the place in the list, from 1."""
    title: str | None = Field(default=None, min_length=1)
    """Words for people; default the model's."""
    instruction: str | None = Field(default=None, min_length=1)
    """What the model is asked; default the model's."""
    color: str | None = Field(default=None, pattern=r"^#[0-9A-Fa-f]{6}$")
    """"#rrggbb" in quotes, for a bare # begins a comment; default the model's."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name.lower() in ("other", "nodata"):
            raise _error(f"{name} is what pixels without a class are called; choose another name")
        return name

    @model_validator(mode="before")
    @classmethod
    def _color_is_quoted(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "color" in value and value["color"] is None:
            raise _error('color is empty: write it in quotes, "#2166ac", for a bare # begins a comment')
        return value


class ProviderSpec(_Section):
    """An organisation, as STAC has it."""

    name: str = Field(min_length=1)
    """Name of the organisation."""
    description: str | None = None
    """What it did."""
    roles: Annotated[tuple[Literal["licensor", "producer", "processor", "host"], ...], Field(strict=False)] = ()
    """Any of licensor, producer, processor, host."""
    url: str | None = None
    """Its home page."""


def _class_from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _region_value(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple) and len(value) == 4 and all(_is_number(item) for item in value):
        bounds = tuple(float(item) for item in value)
        problem = bounds_problem(bounds)
        if problem:
            raise _error(problem)
        return bounds
    raise _error("must be a path, a URL or four numbers, [west, south, east, north] in degrees")


def _period_text(value: Any) -> Any:
    if isinstance(value, datetime):
        raise _error("periods are whole days in UTC: write 2023-08-10/2023-08-20")
    return value.isoformat() if isinstance(value, date) else value


def _is_number(value: Any) -> bool:
    # A whole number of hundreds of digits is one that no float can hold.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300)


DEFAULT_CLASSES = tuple(ClassSpec(name=name, code=code) for code, name in enumerate(("vegetation", "building", "water", "bare"), 1))


class JobSpec(_Section):
    """A job: one map of one region and period, with all that it is made from and where it goes."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", max_length=64)
    """The series; lower-case letters, digits and hyphens."""
    region: Annotated[str | tuple[float, float, float, float], BeforeValidator(_region_value)]
    """Any vector file geopandas reads, a URL, or [west, south, east, north] in degrees (west > east crosses the antimeridian)."""
    period: Annotated[str, BeforeValidator(_period_text)]
    """FIRST/LAST in UTC, last day included; or P1M (last complete calendar month), P30D (the 30 days that end yesterday)."""
    source: SourceSpec
    """Where scenes are looked for."""
    mask: MaskSpec = MaskSpec()
    """How the pixels that are not clear are treated."""
    grid: GridSpec = GridSpec()
    """The pixel grid of the map."""
    composite: Literal["least-cloudy", "latest", "median"] = "least-cloudy"
    """Which scene a pixel is taken from."""
    model: str = Field(default="models/spex-small", min_length=1)
    """Path, s3:// prefix, or Hugging Face id."""
    runtime: Literal["auto", "torch", "torch-compile", "openvino", "tensorrt", "tensorrt-rtx"] = "auto"
    """What computes the model; auto takes the fastest that is installed and fits the machine."""
    classes: Annotated[tuple[Annotated[ClassSpec, BeforeValidator(_class_from_name)], ...], Field(strict=False)] = DEFAULT_CLASSES
    """Names the model knows, or {name, code, title, instruction, color}."""
    explain: bool = True
    """Whether each tile gets a text per class with the numbers that back it."""
    license: str = Field(default="CC-BY-4.0", min_length=1)
    """Licence of the map: an SPDX identifier, or other."""
    providers: Annotated[tuple[ProviderSpec, ...], Field(strict=False)] = ()
    """Organisations, as STAC has them."""
    fail_on_empty: bool = False
    """Whether a period without a scene is an error (exit status 2)."""
    output: str = Field(min_length=1)
    """Path or any fsspec URL: s3://bucket/prefix."""

    _where: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("period")
    @classmethod
    def _period_is_understood(cls, period: str) -> str:
        try:
            resolve_period(period, date(2024, 1, 31))
        except JobError as error:
            raise _error(str(error)) from None
        return period

    @field_validator("output")
    @classmethod
    def _output_is_one_place(cls, output: str) -> str:
        if not output.isprintable() or not output.strip():
            raise _error("is blank or has characters that no path has")
        if "::" in output:
            raise _error("is a chain of places (::); name one folder or URL")
        if output.startswith("~") or (output.startswith("file://") and not output.startswith("file:///")):
            raise _error("is not the path of a folder; write it in full, such as /data/maps (~ is the shell's, and a file URL has three slashes)")
        return output

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, classes: tuple[ClassSpec, ...]) -> tuple[ClassSpec, ...]:
        if not classes:
            raise _error("the list is empty; name at least one class")
        coded = tuple(item.model_copy(update={"code": place if item.code is None else item.code}) for place, item in enumerate(classes, 1))
        for what, values in (("name", [item.name for item in coded]), ("code", [item.code for item in coded])):
            twice = [value for place, value in enumerate(values) if value in values[:place]]
            if twice:
                raise _error(
                    f"the {what} {twice[0]} is there twice; each class needs its own (a class without a code has its place in the list as code)"
                )
        return coded

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Let errors that are about a key of the job say in which file and line it stands.

        These are JobErrors whose message begins with the key (``grid.crs: ...``), and what catalog and engine raise where a key names something
        that is not there.
        """
        try:
            yield
        except JobError as error:
            raise type(error)(self.locate(str(error))) from error
        except SpexmapError as error:
            key = next((_KEY_OF_ERROR[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _KEY_OF_ERROR), None)
            if key is None:
                raise
            raise JobError(self.locate(f"{key}: {error}")) from error

    def locate(self, message: str) -> str:
        """Return `message` with file and line before the dotted key that it begins with; as it is where it begins with none."""
        key = message.partition(": ")[0]
        parts = key.split(".")
        if parts[0] not in JobSpec.model_fields or not self._where:
            return message
        known = next((".".join(parts[:end]) for end in range(len(parts), -1, -1) if ".".join(parts[:end]) in self._where), "")
        return f"{self._where[known]}{message}"

    @property
    def class_codes(self) -> tuple[int, ...]:
        """Codes of the classes in the landcover raster, in the job's order."""
        return tuple(item.code if item.code is not None else place for place, item in enumerate(self.classes, 1))


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Return the job that a YAML file describes.

    Parameters
    ----------
    path
        Local path or any fsspec URL.
    overrides
        ``key=value`` with dotted keys (``grid.resolution=20``); values are YAML; they win over the file.

    Returns
    -------
    JobSpec
        With region, catalog, model and output resolved against the file's folder; URLs as they are. A model that does not exist there stays
        as written, so that the names of shipped and of published models work.

    Raises
    ------
    JobError
        The file or an override is wrong; the message names file, line and key.
    """
    name = str(path)
    data, lines = load_with_lines(read_text(name), name)
    if data is None:
        raise JobError(f"{name} is empty; `spexmap demo DIR` writes a job file to begin with")
    if not isinstance(data, dict):
        raise JobError(f"{name} line 1: a job file is a mapping of keys such as `name: styria`, this is a {_kind(data)}")
    overridden = {override(data, text) for text in overrides}
    written = Written(name, lines, frozenset(overridden))
    try:
        job = JobSpec.model_validate(data)
    except ValidationError as error:
        raise JobError(first_error(error, written, JobSpec)) from None
    job._where.update(written.prefixes())
    return _resolve_paths(job, name)


def job_schema() -> dict[str, Any]:
    """Return the JSON schema of the job file."""
    schema = JobSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    items = schema["properties"]["classes"]["items"]
    schema["properties"]["classes"]["items"] = {"anyOf": [{"type": "string"}, items]}
    return schema


def read_text(name: str, kind: str = "job file") -> str:
    """Return the text of a local file or URL; raises JobError where there is none, or it cannot be a file of that kind."""
    try:
        content = _bytes_of(name)
    except FileNotFoundError:
        hint = "; `spexmap demo DIR` writes one to begin with" if kind == "job file" else ""
        raise JobError(f"there is no {kind} {name}{hint}") from None
    except (OSError, ValueError, ImportError) as error:
        raise JobError(f"the {kind} {name} cannot be read: {error}") from None
    except Exception as error:  # clients of object stores raise classes of their own, without a common root
        raise JobError(f"the {kind} {name} cannot be read: {type(error).__name__}: {error}") from error
    if len(content) > LARGEST:
        raise JobError(f"{name} is larger than a {kind} can be ({LARGEST} bytes); is it the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{name} is not UTF-8 text (byte {error.start}); is it the right file?") from None


def _bytes_of(name: str) -> bytes:
    """Return what a path or URL holds, cut a byte beyond what a job can have; servers are asked again, within limits, and each time is logged."""
    if name.startswith(("http://", "https://")):
        from stac.documents import download

        return download(name)[: LARGEST + 1]
    with fsspec.open(name, "rb") as stream:
        content: bytes = stream.read(LARGEST + 1)
    return content


def override(data: dict[str, Any], text: str) -> tuple[str, ...]:
    """Put one ``key=value`` into `data` and return its path; raises JobError where it is not of that form."""
    key, separator, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not separator or not all(path):
        raise JobError(f"--set {text.partition('=')[0]}: write key=value, for example --set grid.resolution=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise JobError(
            f"--set {key}: the value is not YAML, or no date that there is; quote it for the shell, for example --set 'exclude=[a, b]'"
        ) from None
    section = data
    for part in path[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, dict) else {}
        section = section[part]
    section[path[-1]] = parsed
    return path


def _kind(data: Any) -> str:
    if isinstance(data, list):
        return "list"
    return "text" if isinstance(data, str) else "single value"


def _expand(name: str, text: str, environment: Mapping[str, str]) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise JobError(f"source.headers: {name!r} is not the name of a header; names are letters, digits and hyphens, such as X-Api-Key")
    missing = [variable for variable in _VARIABLE.findall(text) if variable not in environment]
    if missing:
        raise JobError(f"source.headers.{name}: the environment variable {missing[0]} is not set; export it before the run")
    # A secret that is mounted as a file often ends with a line break.
    value = _VARIABLE.sub(lambda match: environment[match[1]].strip(), text).strip()
    if re.search(r"[^\x20-\x7e\xa0-\xff]", value):
        raise JobError(f"source.headers.{name}: its value has a line break or another character that no header may have; look at its variables")
    return value


def _resolve_paths(job: JobSpec, name: str) -> JobSpec:
    base = posixpath.dirname(name) if "://" in name else str(Path(name).absolute().parent)
    source = job.source.model_copy(update={"catalog": resolve_path(job.source.catalog, base)})
    model = resolve_path(job.model, base)
    changes = {
        "source": source,
        "region": resolve_path(job.region, base) if isinstance(job.region, str) else job.region,
        "model": model if "://" not in model and Path(model).exists() else job.model,
        "output": resolve_path(job.output, base),
    }
    return job.model_copy(update=changes)


def resolve_path(text: str, base: str) -> str:
    """Return `text` against the folder or URL `base`; an absolute path or a URL as it is."""
    if "://" in text or text.startswith("/"):
        return text
    if "://" in base:
        protocol, _, rest = base.partition("://")
        return f"{protocol}://{posixpath.normpath(posixpath.join(rest, text))}"
    return os.path.normpath(Path(base, text))
