"""What docs/engines.md says of GPUs: the figures of docs/results/gpu-check.json, or "not run".

Run ``python benchmarks/gpu_check_page.py`` after the file has changed without ``gpu_check.py``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_check_sections import SECTIONS, Found, problems
from page_blocks import head, row, with_block

from steppe._shared.files import write_text

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "gpu-check.json"
PAGE = ROOT / "docs" / "engines.md"

_NOT_RUN = "**Not run**: nothing has been measured on a GPU yet."


def main() -> None:
    """Rewrite the page."""
    write_text(PAGE, rewritten(PAGE.read_text(encoding="utf-8")))


def rewritten(page: str) -> str:
    """Return the page's text with the block as the file has it."""
    content = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else None
    return with_block(page, "gpu_check", block(content))


def block(content: Mapping[str, Any] | None) -> str:
    """Return what a check has found, section by section."""
    if content is None:
        return _NOT_RUN
    sections = content["sections"]
    tables = [_machine(sections.get("machine", {}).get("found", {})), _answers(sections)]
    for name, table in (("bandwidth", _bandwidth), ("host", _host), ("sam", _sam)):
        found = sections.get(name, {}).get("found", {})
        if found:
            tables.append(table(found))
    return "\n\n".join(tables)


def _machine(found: Found) -> str:
    if not found:
        return "On a device that was not named."
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    more = [f"{key} {found[key]}" for key in ("cuda", "driver", "nccl") if found.get(key)]
    return f"{', '.join([found['device'], versions, *more])}; commit {found['commit']}."


def _answers(sections: Mapping[str, Any]) -> str:
    lines = [head("section", "question", "answer")]
    for name, section in SECTIONS.items():
        lines.append(row(name, section.question, _answer(sections.get(name))))
    return "\n".join(lines)


def _answer(section: Mapping[str, Any] | None) -> str:
    if section is None:
        return "**not run**"
    answers = [section["status"], *_counts(section["found"]), *problems(section)]
    said = "; ".join(answers).replace("|", "\\|")
    return f"**{said}**" if section["status"] != "passed" else said


def _counts(found: Found) -> Iterator[str]:
    """Yield how many cases, tests or trials there were."""
    if "planned" in found:
        yield f"{len(found['cases'])} of {found['planned']} cases"
        ended = [each for each in found["cases"].values() if isinstance(each, dict)]
        units = [each["units"] for each in ended if "units" in each]
        # A difference that is not finite is None in JSON.
        finite = [each for each in units if None not in each.values()]
        if finite:
            wide, narrow = (max(each[kind] for each in finite) for kind in ("wide", "narrow"))
            yield f"at most {wide:.2g} units in wide formats, {narrow:.2g} in narrow ones"
    if "passed" in found:
        yield f"{found['passed']} passed, {found['skipped']} skipped"
    if "trials" in found:
        yield ", ".join(f"{name} {count} trials" for name, count in found["trials"].items())


def _bandwidth(found: Found) -> str:
    lines = [
        f"A step over {found['numbers'] / 1e6:,.0f} M parameters; the device copies "
        f"{found['copy_bytes_per_s'] / 1e9:,.0f} GB/s, read and written:\n",
        head("", "ms", "× `AdamW(fused=True)`", "bytes a parameter", "of a copy's speed"),
    ]
    for name, step in found["steps"].items():
        share = f"{100 * step['share_of_copy']:.0f} %"
        cells = [f"{1e3 * step['seconds']:.2f}", _ratio(step), f"{step['bytes_per_number']:.1f}"]
        lines.append(row(name, *cells, share))
    return "\n".join(lines)


def _host(found: Found) -> str:
    counts = list(found["tensors"])
    lines = [
        "The host's time for a step over small tensors, × `AdamW(fused=True)`:\n",
        head("tensors", *counts),
    ]
    for name in found["tensors"][counts[0]]:
        cells = [_ratio(found["tensors"][count][name]) for count in counts]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def _sam(found: Found) -> str:
    lines = [
        "What SAM takes to perturb and restore GPT-2's parameters, beside one copy of them:\n",
        head("direction", "ms", "copies", "from the CPU's, of e"),
    ]
    for name, each in found["directions"].items():
        copies = each["seconds"] / each["copy_seconds"]
        cells = [f"{1e3 * each['seconds']:.2f}", f"{copies:.1f}", f"{each['difference']:.1g}"]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def _ratio(found: Found) -> str:
    value, low, high = found["ratio"]
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    main()
