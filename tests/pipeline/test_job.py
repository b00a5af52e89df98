"""The job file is all that most users ever write: what it says must be taken exactly, and what it says wrongly must be found before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelNotFound, UnknownClass
from pipeline.errors import GridError, JobError, OutputHeld
from pipeline.job import ClassSpec, GridSpec, JobSpec, SourceSpec, job_schema, load_job, resolve_path
from stac.errors import CatalogError, UnknownCollection

REPOSITORY = Path(__file__).resolve().parents[2]

MINIMAL = """name: styria
region: region.geojson
period: 2023-08-10/2023-08-20
source:
  catalog: catalog.json
output: out/styria
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_job(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_job


def test_a_minimal_job_has_the_documented_defaults(write: Write, tmp_path: Path) -> None:
    job = load_job(write(MINIMAL))
    assert (job.source.collection, job.source.max_cloud_cover, job.source.exclude, job.source.headers) == ("sentinel-2-l2a", 80, (), {})
    assert job.mask.dilate == 60
    assert (job.grid.crs, job.grid.resolution, job.grid.origin, job.grid.tile) == ("auto", 10, "auto", 10240)
    assert (job.composite, job.model, job.explain, job.license) == ("least-cloudy", "models/spex-small", True, "CC-BY-4.0")
    assert [(item.code, item.name) for item in job.classes] == [(1, "vegetation"), (2, "building"), (3, "water"), (4, "bare")]
    assert (job.providers, job.fail_on_empty) == ((), False)


def test_a_full_job_is_taken_as_written(write: Write) -> None:
    text = """
name: danube-2
region: [170, -20, -170, -10]
period: P1M
source:
  catalog: https://example.com/stac
  collection: null
  max_cloud_cover: null
  exclude: [S2A_X, S2B_Y]
  headers: {Authorization: "Bearer ${TOKEN}"}
mask: {dilate: 0}
grid: {crs: 32633, resolution: 20, origin: [5, 15], tile: 2048}
composite: median
model: s3://models/spex
classes:
  - water
  - {name: irrigated-fields, code: 17, title: Irrigated fields, instruction: fields under irrigation, color: "#00AA55"}
explain: false
license: CC0-1.0
providers: [{name: Agency, roles: [producer, licensor], url: https://example.com}]
fail_on_empty: true
output: s3://bucket/maps
"""
    job = load_job(write(text))
    assert job.region == (170.0, -20.0, -170.0, -10.0)
    assert (job.source.collection, job.source.max_cloud_cover, job.source.exclude) == (None, None, ("S2A_X", "S2B_Y"))
    assert (job.grid.crs, job.grid.origin) == ("EPSG:32633", (5.0, 15.0))
    assert job.class_codes == (1, 17)
    assert job.classes[1].title == "Irrigated fields"
    assert (job.source.catalog, job.model, job.output) == ("https://example.com/stac", "s3://models/spex", "s3://bucket/maps")


def test_a_day_that_yaml_reads_as_a_date_is_still_a_period(write: Write) -> None:
    assert load_job(write(MINIMAL.replace("2023-08-10/2023-08-20", "2023-08-10"))).period == "2023-08-10"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("composit: latest", r"line 7: composit: unknown key; did you mean composite\?"),
        ("resolutoin: 10", r"line 7: resolutoin: unknown key; did you mean grid.resolution\?"),
        ("xyz: 1", "line 7: xyz: unknown key; there are name, region"),
        ("grid: {resolution: ten}", "line 7: grid.resolution: must be a number"),
        ("grid: {resolution: 0}", "line 7: grid.resolution: must be greater than 0"),
        ("grid: {resolution: .nan}", "line 7: grid.resolution: must be"),
        ("grid: {resolution: .inf}", "line 7: grid.resolution: must be"),
        ("grid: {tile: -5}", "line 7: grid.tile: must be greater than 0"),
        ("grid: {tile: 10.5}", "line 7: grid.tile: must be"),
        ("grid: {origin: [1, 2, 3]}", "line 7: grid.origin: must be auto or two numbers"),
        ("grid: {origin: automatic}", "line 7: grid.origin: must be auto or two numbers"),
        ("grid: 10", "line 7: grid: must be a mapping of crs, resolution, origin, tile"),
        ("mask:", "line 7: mask: must be a mapping of dilate"),
        ("mask: {dilate: -1}", "line 7: mask.dilate: must be greater than or equal to 0"),
        ("composite: cloudless", "line 7: composite: must be 'least-cloudy', 'latest' or 'median'"),
        ("classes: []", "line 7: classes: the list is empty"),
        ("classes: water", "line 7: classes: must be a list"),
        ("classes: [water, water]", "line 7: classes: the name water is there twice"),
        ("classes: [{name: water, code: 2}, bare]", "line 7: classes: the code 2 is there twice"),
        ("classes: [{name: water, code: 0}]", r"line 7: classes\[0\].code: must be greater than or equal to 1"),
        ("classes: [{name: water, code: 254}]", r"line 7: classes\[0\].code: must be less than or equal to 250"),
        ("classes: [{name: water, code: 255}]", r"line 7: classes\[0\].code: must be less than or equal to 250"),
        ("classes: [{name: open water}]", r"line 7: classes\[0\].name: must be letters, digits and hyphens"),
        ("classes: [other]", r"line 7: classes\[0\].name: other is what pixels without a class are called"),
        ("classes: [{name: water, colour: '#0000ff'}]", r"line 7: classes\[0\].colour: unknown key; did you mean color\?"),
        ("classes: [{name: water, color: blue}]", r'line 7: classes\[0\].color: must be written "#rrggbb"'),
        ("classes: [{code: 3}]", r"line 7: classes\[0\].name: this key is missing"),
        ("explain: 1", "line 7: explain: must be a boolean"),
        ("providers: [{name: A, roles: [owner]}]", r"line 7: providers\[0\].roles\[0\]: must be 'licensor'"),
        ("license: ''", "line 7: license: "),
    ],
)
def test_a_wrong_value_is_named_with_file_line_and_key(write: Write, line: str, message: str) -> None:
    with pytest.raises(JobError, match=f"job.yaml {message}"):
        load_job(write(MINIMAL + line + "\n"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: styria", "name: Styria", "line 1: name: must be letters, digits and hyphens"),
        ("name: styria", "name: a/b", "line 1: name: must be letters, digits and hyphens"),
        ("name: styria", "name: 2023", "line 1: name: must be a string"),
        ("name: styria\n", "", "line 1: name: this key is missing"),
        ("2023-08-10/2023-08-20", "2023-08-20/2023-08-10", "line 3: period: '2023-08-20/2023-08-10' ends before it begins"),
        ("2023-08-10/2023-08-20", "2023-08-10T10:00:00Z", "line 3: period: periods are whole days"),
        ("region.geojson", "[1, 2, 3]", "line 2: region: must be a path, a URL or four numbers"),
        ("region.geojson", "[15, 46, 16, 96]", "line 2: region: .* is not on Earth"),
        ("region.geojson", "[15, 47, 16, 46]", "line 2: region: the box .* is empty"),
        ("  catalog: catalog.json", "  catalog: x\n  max_cloud: 3", r"line 6: source.max_cloud: unknown key; did you mean max_cloud_cover\?"),
        ("  catalog: catalog.json", "  catalog:", "line 5: source.catalog: must be a string"),
        ("  catalog: catalog.json", "  collection: x", "line 4: source.catalog: this key is missing"),
        ("output: out/styria", "output: ", "line 6: output: must be a string"),
    ],
)
def test_a_wrong_required_value_is_named_with_file_line_and_key(write: Write, old: str, new: str, message: str) -> None:
    with pytest.raises(JobError, match=f"job.yaml {message}"):
        load_job(write(MINIMAL.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; `spexmap demo DIR`"),
        ("# nothing\n", "is empty"),
        ("- name: styria\n", "line 1: a job file is a mapping of keys"),
        ("styria\n", "line 1: a job file is a mapping of keys"),
        ("name: [styria\nregion: x\n", "this is not YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "this is not YAML"),
        ("name: a\nregion: b\nname: c\n", "line 3: name: this key is there twice, first on line 1"),
        ("source:\n  catalog: a\n  catalog: b\n", "line 3: source.catalog: this key is there twice, first on line 2"),
        ("name: a\tb\x00\n", "this is not YAML"),
        ("a: &a [*a]\n", "unknown key"),
    ],
)
def test_what_is_no_job_file_is_refused_with_a_sentence(write: Write, text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_job(write(text))


@pytest.mark.parametrize(
    "text",
    ["1: 2\n", "true: x\n", "? [a, b]\n: c\n", "null: 1\n", "<<: {name: x}\n", "source: {1: 2}\n", "source: {headers: {1: 2}}\n", "? {a: b}\n: c\n"],
)
def test_keys_that_are_no_words_are_refused_with_the_line(write: Write, text: str) -> None:
    with pytest.raises(JobError, match=r"job.yaml line \d"):
        load_job(write(text))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_text_makes_anything_else_than_a_job_or_a_job_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    cut, length = data.draw(st.integers(0, len(MINIMAL))), data.draw(st.integers(0, 12))
    inserted = data.draw(st.text("{}[]:-&*!#|>'\"%@, \n\tabc019.~?", max_size=8))
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(MINIMAL[:cut] + inserted + MINIMAL[cut + length :], encoding="utf-8")
    try:
        load_job(path)
    except JobError as error:
        assert "fuzzed.yaml" in str(error)


def test_an_alias_bomb_is_refused_quickly(write: Write) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)) + MINIMAL + "classes: *a59\n"
    with pytest.raises(JobError, match="unknown key"):
        load_job(write(bomb))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no job file"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path)
    (tmp_path / "job.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(JobError, match="not UTF-8"):
        load_job(tmp_path / "job.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_100_000)
    with pytest.raises(JobError, match="larger than a job file"):
        load_job(tmp_path / "big.yaml")


def test_the_first_wrong_line_is_told_with_how_many_more_there_are(write: Write) -> None:
    with pytest.raises(JobError, match=r"line 1: name: .*\(1 more of such\)"):
        load_job(write(MINIMAL.replace("styria", "STYRIA", 1) + "explain: 3\n"))


def test_overrides_win_over_the_file(write: Write) -> None:
    overrides = ("grid.resolution=20", "source.exclude=[a, b]", "classes=[water]", "period=2024-01-01", "fail_on_empty=true", "mask.dilate=0")
    job = load_job(write(MINIMAL), overrides)
    assert (job.grid.resolution, job.source.exclude, job.period, job.fail_on_empty, job.mask.dilate) == (20, ("a", "b"), "2024-01-01", True, 0)
    assert [item.name for item in job.classes] == ["water"]
    assert job.source.catalog.endswith("catalog.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.resolutoin=20", "^--set grid.resolutoin: unknown key; did you mean resolution?"),
        ("grid.resolution", "^--set grid.resolution: write key=value"),
        ("=3", "write key=value"),
        ("grid..tile=3", "write key=value"),
        ("source.exclude=[a", "the value is not YAML"),
        ("period=2021-02-30", "the value is not YAML, or no date that there is"),
        pytest.param("region=" + "[" * 2000, "the value is not YAML", id="deep"),
        (r'output="a\0b"', "^--set output: is blank or has characters that no path has"),
        ("output=' '", "^--set output: is blank"),
        ("output=a::b", "^--set output: is a chain of places"),
        ("output=~/maps", "^--set output: is not the path of a folder; write it in full"),
        ("output=file://tmp/maps", "a file URL has three slashes"),
        ("name=STYRIA", "^--set name: must be letters"),
        ("classes=[water, water]", "^--set classes: the name water is there twice"),
    ],
)
def test_a_wrong_override_is_named_as_one(write: Write, override: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_job(write(MINIMAL), (override,))


def test_paths_are_relative_to_the_job_file_and_urls_stay(write: Write, tmp_path: Path) -> None:
    job = load_job(write(MINIMAL))
    assert (job.region, job.source.catalog, job.output) == (f"{tmp_path}/region.geojson", f"{tmp_path}/catalog.json", f"{tmp_path}/out/styria")
    assert job.model == "models/spex-small"
    (tmp_path / "models" / "spex-small").mkdir(parents=True)
    assert load_job(write(MINIMAL)).model == f"{tmp_path}/models/spex-small"


@pytest.mark.parametrize(
    ("text", "base", "resolved"),
    [
        ("a/b.json", "/jobs", "/jobs/a/b.json"),
        ("../b.json", "/jobs/x", "/jobs/b.json"),
        ("/abs/b.json", "/jobs", "/abs/b.json"),
        ("https://h/c", "/jobs", "https://h/c"),
        ("../b.json", "s3://bucket/jobs", "s3://bucket/b.json"),
        ("b.json", "https://host/jobs", "https://host/jobs/b.json"),
    ],
)
def test_a_path_is_resolved_against_a_folder_or_a_url(text: str, base: str, resolved: str) -> None:
    assert resolve_path(text, base) == resolved


def test_a_job_can_be_read_from_any_file_system() -> None:
    import fsspec

    with fsspec.open("memory://jobs/job.yaml", "wb") as stream:
        stream.write(MINIMAL.encode())
    job = load_job("memory://jobs/job.yaml")
    assert (job.region, job.output) == ("memory://jobs/region.geojson", "memory://jobs/out/styria")


@pytest.mark.parametrize("name", ["X-Clé", "X Key", "X-Key:", ""])
def test_a_name_that_no_header_has_is_refused(write: Write, name: str) -> None:
    job = load_job(write(MINIMAL.replace("  catalog:", f"  headers: {{'{name}': plainsecret}}\n  catalog:")))
    with pytest.raises(JobError, match=r"source\.headers: '.*' is not the name of a header") as refused:
        job.source.resolve_headers({})
    assert "plainsecret" not in str(refused.value)


def test_a_header_is_expanded_only_at_use_and_never_written(write: Write) -> None:
    text = MINIMAL.replace("  catalog:", '  headers: {Authorization: "Bearer ${TOKEN}", X-Literal: plainsecret}\n  catalog:')
    job = load_job(write(text))
    assert job.source.resolve_headers({"TOKEN": "t0psecret"}) == {"Authorization": "Bearer t0psecret", "X-Literal": "plainsecret"}
    for shown in (repr(job), str(job), job.model_dump_json(), json.dumps(job.model_dump(mode="json"))):
        assert "plainsecret" not in shown
        assert "t0psecret" not in shown
    with pytest.raises(JobError, match=r"source.headers.Authorization: the environment variable TOKEN is not set"):
        job.source.resolve_headers({})


def test_a_line_break_around_a_secret_is_left_out_and_one_inside_is_refused_without_showing_it(write: Write) -> None:
    job = load_job(write(MINIMAL.replace("  catalog:", '  headers: {Authorization: "Bearer ${TOKEN}"}\n  catalog:')))
    assert job.source.resolve_headers({"TOKEN": "t0psecret\n"}) == {"Authorization": "Bearer t0psecret"}
    with pytest.raises(JobError, match=r"source\.headers\.Authorization: its value has a line break") as refused:
        job.source.resolve_headers({"TOKEN": "t0p\nsecret"})
    assert "secret" not in str(refused.value).replace("its value", "")


def test_an_error_beside_a_secret_does_not_show_it(write: Write) -> None:
    text = MINIMAL.replace("  catalog:", "  headers: {Authorization: [plainsecret]}\n  catalog:")
    with pytest.raises(JobError) as caught:
        load_job(write(text))
    assert "plainsecret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_error_found_later_still_says_file_and_line(write: Write, tmp_path: Path) -> None:
    job = load_job(write(MINIMAL + "grid:\n  crs: EPSG:1\n"), ("mask.dilate=5",))
    with pytest.raises(GridError, match=r"job.yaml line 8: grid.crs: no such CRS"), job.naming_lines():
        raise GridError("grid.crs: no such CRS")
    assert job.locate("mask.dilate: too wide") == "--set mask.dilate: too wide"
    assert job.locate("source: sensor lacks band nir") == f"{tmp_path}/job.yaml line 4: source: sensor lacks band nir"
    assert job.locate("composite: odd") == f"{tmp_path}/job.yaml: composite: odd"
    assert job.locate("the disk is full: sorry") == "the disk is full: sorry"


def test_what_catalog_and_model_refuse_says_file_and_line(write: Write, tmp_path: Path) -> None:
    job = load_job(write(MINIMAL), ("classes=[unicorn]",))
    for error, words in (
        (CatalogError("there is no catalog"), r"job.yaml line 5: source.catalog: there is no catalog"),
        (UnknownCollection("no such"), r"job.yaml line 4: source.collection: no such"),
        (ModelNotFound("none"), r"job.yaml: model: none"),
        (UnknownClass("unicorn"), r"^--set classes: unicorn"),
    ):
        with pytest.raises(JobError, match=words), job.naming_lines():
            raise error
    with pytest.raises(OutputHeld, match=r"^held$"), job.naming_lines():
        raise OutputHeld("held")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_job(path: Path) -> None:
    assert load_job(path).name == path.stem


def test_the_page_on_the_job_file_shows_every_key_with_its_default(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "job-file.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    job = JobSpec.model_validate(shown)
    assert shown.keys() == JobSpec.model_fields.keys()
    assert shown["source"].keys() == SourceSpec.model_fields.keys()
    assert shown["grid"].keys() == GridSpec.model_fields.keys()
    defaults = JobSpec.model_validate(yaml.safe_load(MINIMAL))
    for key in ("mask", "grid", "composite", "model", "classes", "explain", "license", "providers", "fail_on_empty"):
        assert getattr(job, key) == getattr(defaults, key)
    assert all(f"`{name}`" in page for name in ClassSpec.model_fields)


def test_the_schema_describes_every_key_and_accepts_what_loads() -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    described = [schema, *schema["$defs"].values()]
    assert not [name for section in described for name, entry in section["properties"].items() if not entry.keys() & {"description", "$ref"}]
    assert schema["required"] == ["name", "region", "period", "source", "output"]
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(MINIMAL + "classes: [water, {name: a, code: 9}]\ngrid: {crs: auto, origin: [1, 2]}\n"))
    for wrong in ("explain: 3", "composit: latest", "classes: [{code: 3}]", "grid: {tile: 0}"):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(yaml.safe_load(MINIMAL + wrong + "\n"))


def test_a_job_cannot_be_changed_once_read(write: Write) -> None:
    job = load_job(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"
    assert isinstance(job, JobSpec)
