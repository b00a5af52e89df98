"""If these fail, an explanation may say what is not so and nobody notices."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from engine import ClassQuery, Segmentation, Spex
from engine.checker import Finding, Kind, check_text
from engine.evidence import RULES, SpectralRule, rules_of
from engine.explanation import lower
from engine.recount import EXPECTATIONS, MISSED, Facts, expectations, recount_chip
from engine.training.data import LEAVES, TRAINING_BANDS, load_chips

SEED, MUTATIONS = 7, 500


def facts_of(result: Segmentation, index: int, hidden: Mapping[str, np.ndarray] | None = None) -> Facts:
    return recount_chip(
        result.probabilities[index],
        result.reflectance[index],
        result.bands,
        [each.parts for each in result.classes],
        [each.title for each in result.classes],
        [each.threshold or 0.0 for each in result.classes],
        result.overlaps,
        hidden,
    )


def findings(result: Segmentation, index: int) -> list[Finding]:
    return check_text(result.explain(index), facts_of(result, index))


@pytest.fixture(scope="module")
def val(shared_data: Path) -> Segmentation:
    """All val chips with every class that the weights know, absent ones included, a union of two, and a class of the user's own name."""
    chips = load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")
    spex = Spex.load("models/spex-small", device="cpu", threads=1)
    classes = (*spex.known_classes, "water or bare ground", ClassQuery("salt", "Salt. Flats, 2nd kind", "Segment the building or water."))
    return spex.segment(chips.reflectance, TRAINING_BANDS, classes)


@pytest.fixture(scope="module")
def texts(val: Segmentation) -> list[str]:
    return [val.explain(index) for index in range(len(val.probabilities))]


@pytest.fixture(scope="module")
def facts(val: Segmentation) -> list[Facts]:
    return [facts_of(val, index) for index in range(len(val.probabilities))]


def test_no_explanation_of_a_val_chip_is_contradicted(texts: list[str], facts: list[Facts]) -> None:
    assert len(facts) == 41
    assert [str(finding) for text, each in zip(texts, facts, strict=True) for finding in check_text(text, each)] == []
    assert sum(row.pixels == 0 for each in facts for row in each.classes) > 41  # absent classes are among them


def test_the_mutations_of_an_explanation_are_found(val: Segmentation, texts: list[str], facts: list[Facts]) -> None:
    """Number, unit, direction, class and negation in equal parts, one change a text, seeded."""
    generator, caught = random.Random(SEED), {name: [0, 0] for name in MUTATORS}
    missed = []
    for n in range(MUTATIONS):
        index, name = generator.randrange(len(facts)), list(MUTATORS)[n % len(MUTATORS)]
        text = texts[index]
        mutated = MUTATORS[name](text, [each.title for each in val.classes], generator)
        assert mutated != text
        found = check_text(mutated, facts[index])
        caught[name][0] += bool(found)
        caught[name][1] += 1
        if not found:
            missed.append((name, mutated))
    assert sum(hits for hits, _ in caught.values()) >= 0.99 * MUTATIONS, missed


def mutate_number(text: str, titles: list[str], generator: random.Random) -> str:
    places = list(re.finditer(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?= )|(?<=mean )-?\d\.\d+", text))
    place = generator.choice(places)
    digits = place[0].replace(",", "")
    decimals = len(digits.partition(".")[2])
    value = float(digits)
    step = 10.0**-decimals * generator.choice([-20, -9, -3, -2, -1, 1, 2, 3, 9, 20])
    return text[: place.start()] + f"{value + step:,.{decimals}f}" + text[place.end() :]


def mutate_word(text: str, swaps: Mapping[str, list[str]], generator: random.Random) -> str:
    places = list(re.finditer("|".join(sorted(map(re.escape, swaps), key=len, reverse=True)), text))
    place = generator.choice(places)
    return text[: place.start()] + generator.choice(swaps[place[0]]) + text[place.end() :]


def mutate_unit(text: str, titles: list[str], generator: random.Random) -> str:
    return mutate_word(text, {" %": [" ha", " points", " km"], " points.": [" %.", " pixels."], " pixels with": [" ha with", " % with"]}, generator)


def mutate_direction(text: str, titles: list[str], generator: random.Random) -> str:
    return mutate_word(text, {" above ": [" below "], " below ": [" above "]}, generator)


def mutate_class(text: str, titles: list[str], generator: random.Random) -> str:
    words = [*titles, *map(lower, titles)]
    return mutate_word(text, {word: [each for each in words if each.lower() != word.lower()] for word in words}, generator)


def mutate_negation(text: str, titles: list[str], generator: random.Random) -> str:
    swaps = {
        " was not found": [" was found"],
        " covers ": [" does not cover "],
        " consistent with": [" not consistent with", " inconsistent with", " unusual for"],
        " unusual for": [" consistent with", " usual for"],
        " is usual for": [" is unusual for", " is not usual for"],
        "Second is ": ["Second is not "],
        " comes within": [" does not come within"],
        " of it has ": [" of it lacks ", " of it does not have "],
        " of its border is ": [" of its border is not "],
        "No spectral": ["A spectral"],
    }
    return mutate_word(text, swaps, generator)


MUTATORS: Mapping[str, Callable[[str, list[str], random.Random], str]] = {
    "number": mutate_number,
    "unit": mutate_unit,
    "direction": mutate_direction,
    "class": mutate_class,
    "negation": mutate_negation,
}


@pytest.mark.parametrize(
    ("change", "into", "kind"),
    [
        ("Water covers 25 %", "Water covers 26 %", Kind.NUMBER),
        ("Water covers 25 %", "Water covers 25 ha", Kind.UNIT),
        ("NDWI above 0 (", "NDWI below 0 (", Kind.DIRECTION),
        ("border is with vegetation", "border is with bare ground", Kind.CLASS),
        ("Bare ground was not found", "Bare ground was found", Kind.NEGATION),
        (" 100 % of its border is with vegetation.", "", Kind.MISSING),
        (" Second is vegetation", " Runner-up is vegetation", Kind.UNREADABLE),
        ("consistent with water", "unusual for water", Kind.NEGATION),
        (", 0 % bare ground", "", Kind.MISSING),
        ("Scene of 399 pixels", "Scene of 400 pixels", Kind.NUMBER),
    ],
)
def test_a_finding_says_what_kind_of_mistake_it_is(change: str, into: str, kind: Kind) -> None:
    result = lake()
    text = result.explain(0)
    assert change in text and findings(result, 0) == []
    assert kind in {each.kind for each in check_text(text.replace(change, into, 1), facts_of(result, 0))}


def lake() -> Segmentation:
    """A 20 x 20 chip: the left quarter is water, the rest plants, one pixel without data."""
    water = np.zeros((20, 20), np.float32)
    water[:, :5] = 0.9
    probabilities = np.stack([water, np.where(water > 0, np.float32(0.05), np.float32(0.8)), np.zeros_like(water)])
    spectra = np.where(water > 0, np.float32([0.05, 0.06, 0.04, 0.02])[:, None, None], np.float32([0.04, 0.08, 0.05, 0.40])[:, None, None])
    probabilities[:, 0, 0] = spectra[:, 0, 0] = np.nan
    classes = tuple(
        ClassQuery(name, title, target=name) for name, title in (("water", "Water"), ("vegetation", "Vegetation"), ("bare", "Bare ground"))
    )
    return Segmentation(probabilities[None], np.ones((1, 3), np.float32), classes, spectra[None], ("blue", "green", "red", "nir"))


def test_a_chip_without_data_is_checked_too() -> None:
    result = lake()
    result.probabilities[:] = np.nan
    assert findings(result, 0) == []
    kinds = {each.kind for each in check_text(result.explain(0).replace("there are no", "there are"), facts_of(result, 0))}
    assert Kind.NEGATION in kinds


def test_writer_and_checker_agree_on_what_is_usual() -> None:
    """They were written down twice; a document in two hands must say the same."""
    plain = {name: tuple((rule.index, "above" if rule.above else "below", rule.limit) for rule in rules) for name, rules in RULES.items()}
    assert plain == dict(EXPECTATIONS)
    assert {(name, rule.index) for name, rules in RULES.items() for rule in rules if rule.specific} == MISSED
    for parts in (("water", "bare"), ("tree_cover", "cropland"), ("building", "bare"), ("vegetation",), ("solar",), ("water", "solar")):
        assert [(rule.index, rule.limit) for rule in rules_of(parts)] == [(index, limit) for index, _, limit in expectations(parts)]


def test_a_union_has_what_its_parts_share_at_the_laxest_limit() -> None:
    assert rules_of(("tree_cover", "cropland"))[0] == SpectralRule("NDVI", True, 0.2)
    assert rules_of(("building", "bare"))[0] == SpectralRule("NDVI", False, 0.5)
    assert [rule.index for rule in rules_of(("vegetation", "water"))] == []


def test_the_checker_imports_nothing_of_the_writer() -> None:
    for name in ("checker", "checker_grammar", "recount"):
        source = (Path(__file__).parents[2] / "engine" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"engine\.(explanation|evidence|statistics|spie)", source)


def test_what_is_called_usual_is_usual_for_the_labels(shared_data: Path) -> None:
    """Each rule holds on three quarters of the trusted labels of its class, over every second training chip; snow is no ground."""
    path = shared_data / "chips" / "hls-worldcover" / "train.npz"
    chips, snow = load_chips(path), (np.load(path)["qa"][::2] & 16) != 0
    spectra = chips.reflectance[::2].transpose(1, 0, 2, 3).reshape(6, -1, 128)
    clean, leaves = (np.where(snow, 255, labels[::2]).reshape(-1, 128) for labels in (chips.clean, chips.leaves))
    truth = np.stack([(clean if LEAVES.index(name) < 4 else leaves) == LEAVES.index(name) for name in RULES]).astype(np.float32)
    everyone = [range(len(RULES))] * len(RULES)
    facts = recount_chip(truth, spectra, TRAINING_BANDS, [(name,) for name in RULES], list(RULES), [0.5] * len(RULES), everyone)
    low = {}
    for each, (name, rules) in zip(facts.classes, RULES.items(), strict=True):
        assert each.pixels > 1000
        shares = {rule.index: each.indices[rule.index].on("above" if rule.above else "below") for rule in rules if rule.index in each.indices}
        low.update({f"{name} {index}": share for index, share in shares.items() if share < 75})
    assert low == {}
