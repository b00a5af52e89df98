"""Markdown tables of an evaluation: what a model card includes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLUMNS = {
    "iou": "IoU",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "boundary_f1_1px": "boundary F1, 1 px",
    "boundary_f1_2px": "boundary F1, 2 px",
    "iou_1px": "IoU, 1 px tolerated",
    "ece": "calibration error",
}
"""Heading of each score per class."""


def markdown(document: Mapping[str, Any]) -> str:
    """Return the tables of an evaluation: overlap under every view, all scores of the main view, arms, differences."""
    main, data = document["main"], document["data"]
    level = round(100 * document["interval"]["level"])
    parts = [
        f"Split {data['split']}: {data['chips']} chips at {data['places']} places; argmax over {', '.join(data['classes'])}. "
        f"In brackets the {level} % interval over places.",
        overlap_table(document),
        f"All scores on {main['bands']}, {main['view']} labels:",
        score_table(document),
    ]
    if len(document["arms"]) > 1:
        parts += [f"Attributes in the prompt, {main['bands']}, {main['view']} labels:", arm_table(document)]
    if document["differences"]:
        parts += ["Differences of IoU, paired over places:", difference_table(document)]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: Mapping[str, float | None], with_interval: bool = False, signed: bool = False) -> str:
    """Return a score with three decimals, and its interval; a dash where there is none."""
    sign = "+" if signed else ""
    if value["value"] is None:
        return "–"
    text = f"{value['value']:{sign}.3f}"
    if with_interval and value["low"] is not None:
        text += f" ({value['low']:{sign}.3f} to {value['high']:{sign}.3f})"
    return text


def method_name(result: Mapping[str, Any]) -> str:
    """Return what a table calls a method under an arm."""
    return str(result["method"]) if result["arm"] == "none" else f"{result['method']}, attributes {result['arm']}"


def overlap_table(document: Mapping[str, Any]) -> str:
    """Return IoU by method, bands and view, arms left out."""
    classes = document["data"]["classes"]
    rows = [
        [
            f"{result['method']}, {result['bands']}",
            view,
            *(figure(found["classes"][name]["iou"]) for name in classes),
            figure(found["mean"]["iou"], with_interval=True),
            figure(found["overall"]["accuracy"]),
        ]
        for result in document["results"]
        if result["arm"] == "none"
        for view, found in result["views"].items()
    ]
    return table(["method, bands", "labels", *classes, "mean IoU", "accuracy"], rows)


def score_table(document: Mapping[str, Any]) -> str:
    """Return every score by class on the main band set and view, with intervals of the IoU."""
    rows = []
    for result, found in _main(document):
        if result["arm"] == "none":
            lines = {**found["classes"], "mean": found["mean"]}
            rows += [[result["method"], name, *(figure(each[key], key == "iou") for key in COLUMNS)] for name, each in lines.items()]
            overall = found["overall"]
            rows.append(
                [result["method"], f"all together: accuracy {figure(overall['accuracy'])}", *["–"] * (len(COLUMNS) - 1), figure(overall["ece"])]
            )
    return table(["method", "class", *COLUMNS.values()], rows)


def arm_table(document: Mapping[str, Any]) -> str:
    """Return SPEX's scores by arm on the main band set and view."""
    classes = document["data"]["classes"]
    rows = [
        [
            result["arm"],
            result["source"],
            *(figure(found["classes"][name]["iou"]) for name in classes),
            figure(found["mean"]["iou"], with_interval=True),
        ]
        for result, found in _main(document)
        if result["method"] == "spex"
    ]
    return table(["attributes", "source", *classes, "mean IoU"], rows)


def difference_table(document: Mapping[str, Any]) -> str:
    """Return differences of IoU between methods and arms."""
    classes = document["data"]["classes"]
    rows = [
        [
            f"{each['first']} minus {each['second']}, {each['bands']}",
            each["view"],
            *(figure(each["iou"][name], True, True) for name in ("mean", *classes)),
        ]
        for each in document["differences"]
    ]
    return table(["difference", "labels", "mean", *classes], rows)


def _main(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    main = document["main"]
    for result in document["results"]:
        if result["bands"] == main["bands"]:
            yield result, result["views"][main["view"]]
