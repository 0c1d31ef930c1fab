"""The tables of README.md and docs/results.md, written from receipts:
`python -m codedinv.experiments.tables`.

Receipts are what `codedinv evaluate --model NAME --receipt benchmarks/receipts/accuracy-NAME.json`
writes, the demo's summary.json, kept as benchmarks/receipts/demo.json, and report.json of `codedinv
fit`, kept as benchmarks/receipts/fit-fashion-mnist.json. No number is copied by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codedinv.experiments import comparison

ACCURACY, DEMO, FIT = "accuracy", "demo", "fit"
_ROOT = Path(__file__).resolve().parents[2]
_NAMES = {"light": "light model", "head_alone": "head alone", "plain_sum": "plain sum"}
_WAYS = ("arrival", "choosing", "alike", "arrival + fused", "choosing + fused")


def accuracy_tables(receipts: Sequence[dict[str, Any]]) -> str:
    """Markdown tables of receipts of `codedinv evaluate`: every model with its controls, and every
    way in which the coded ones can group and mix.

    Args:
        receipts: in the order of the rows.
    """
    results = [receipt["result"] for receipt in receipts]
    lines = [
        "| model | scheme | (n, k) | front end | workers | A_n | A_d as served | R "
        "| A_d, code alone | light | head alone | plain sum | affine share |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(_controlled(result)) for result in results),
    ]
    by_way = [result for result in results if len(result["A_d_by_way"]) > 1]
    if by_way:
        lines += [
            "",
            "| A_d (over light) of | by arrival | chosen among 16 k | all alike "
            "| fused, by arrival | fused, chosen | exact, fused |",
            "|---|---|---|---|---|---|---|",
            *(
                _row(
                    [
                        f"`{r['model']}`",
                        *(_way(r, way) for way in _WAYS),
                        _or_dash(r["controls"].get("exact_fused")),
                    ]
                )
                for r in by_way
            ),
        ]
    return "\n".join(lines)


def replace_table(text: str, table: str, name: str) -> str:
    """The text with a table between the two marks of that name.

    Raises:
        ValueError: a mark is missing.
    """
    begin = f"<!-- {name} table: written by python -m codedinv.experiments.tables -->"
    end = f"<!-- end of {name} table -->"
    if begin not in text or end not in text:
        raise ValueError(f"text: expected the lines {begin!r} and {end!r}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"


def demo_table(folder: Path) -> str:
    """The demo's table with its caption, from its receipt."""
    receipt = json.loads((folder / "demo.json").read_text())
    return comparison.markdown(receipt["result"])


def fit_table(report: dict[str, Any]) -> str:
    """Every candidate of a fit with its 95 % intervals, the best A_o first, and the verdict."""
    shares = list(report["candidates"][0]["A_o"])
    lines = [
        f"A_n = {_half(report['candidates'][0]['A_n'])} % on {report['examples']:,} test images; "
        f"the light model, {report['light_over_backbone']:.1%} of F, {_half(report['light'])} %.",
        "",
        "| | A_d | "
        + " | ".join(f"A_o, {float(share):.0%} lost" for share in shares)
        + " | workers | front end | if lost |",
        "|---|" + "---:|" * (len(shares) + 4),
    ]
    for one in report["candidates"]:
        title = f"**{one['title']}**" if one["title"] == report["best"] else one["title"]
        cells = [title, _half(one["A_d"]), *(_half(one["A_o"][share]) for share in shares)]
        costs = [
            f"{one['workers']:+.0%}",
            f"{one['front_end']:.1%}",
            f"{one['front_end_lost']:.1%}",
        ]
        lines.append(_row([*cells, *costs]))
    left = [f"Left out: {what}: {why}." for what, why in report["omitted"].items()]
    return "\n".join([*lines, "", report["why"], *left])


def accuracy_receipts(folder: Path) -> list[dict[str, Any]]:
    """The receipts of `codedinv evaluate` in a folder: guided ones first, then small k first."""
    receipts = [json.loads(path.read_text()) for path in folder.glob("accuracy-*.json")]

    def place(receipt: dict[str, Any]) -> tuple[str, int, int]:
        result = receipt["result"]
        return result["scheme"], result["k"], result["n"]

    return sorted(receipts, key=place)


def _controlled(result: dict[str, Any]) -> list[str]:
    """The cells of a model's row: what it reaches, and what its controls do."""
    controls, gain = result["controls"], result["retained_gain"]
    alone = None if result["scheme"] == "guided" else result["A_d_by_way"]["arrival"]
    return [
        f"`{result['model']}`",
        result["scheme"],
        f"({result['n']}, {result['k']})",
        f"{_front_end(result):.1%}",
        f"+{_at_workers(result):.0%}",
        _with_interval(result, "A_n"),
        _with_interval(result, "A_d") + _beaten(result),
        "-" if gain is None else f"{gain:.2f}",
        "-" if alone is None else f"{alone['mean']:.2f}" + _beaten(alone),
        _or_dash(controls["light"]),
        _or_dash(controls["head_alone"]),
        _or_dash(controls["plain_sum"]),
        f"{controls['affine_share']:.2f}",
    ]


def _beaten(found: dict[str, Any]) -> str:
    beaten = ", ".join(_NAMES[name] for name in found["beaten_by"])
    return f" (beaten: {beaten})" if beaten else ""


def _front_end(result: dict[str, Any]) -> float:
    """What the scheme costs the front end for each query, over one backbone call."""
    if result["scheme"] == "guided":
        return float(result["light_over_backbone"])
    return 0.0 if result["scheme"] == "worker-encoded" else _encoder_share(result)


def _at_workers(result: dict[str, Any]) -> float:
    """What the scheme costs workers for each query beyond its own call, over that."""
    parities = int(result["r"]) / int(result["k"])
    return parities + (_encoder_share(result) if result["scheme"] == "worker-encoded" else 0.0)


def _encoder_share(result: dict[str, Any]) -> float:
    return float(result["encoder_over_backbone"]) / int(result["k"])


def _way(result: dict[str, Any], way: str) -> str:
    found = result["A_d_by_way"].get(way)
    if found is None:
        return "-"
    over = found["over_light"]
    if over is None:
        return f"{found['mean']:.2f}"
    half = (over["high"] - over["low"]) / 2
    return f"{found['mean']:.2f} ({over['mean']:+.2f} ± {half:.2f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _half(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} ± {(found['high'] - found['low']) / 2:.2f}"


def _with_interval(result: dict[str, Any], name: str) -> str:
    low, high = result["interval95"][name]
    return f"{result[name]:.2f} ± {(high - low) / 2:.2f}"


def with_tables(readme: str, folder: Path) -> str:
    """The README with its tables as the receipts in a folder have them."""
    tables = {ACCURACY: accuracy_tables(accuracy_receipts(folder)), DEMO: demo_table(folder)}
    for name, table in tables.items():
        readme = replace_table(readme, table, name)
    return readme


def with_fit_table(page: str, folder: Path) -> str:
    """docs/results.md with its table as the receipt in a folder has it."""
    receipt = json.loads((folder / "fit-fashion-mnist.json").read_text())
    return replace_table(page, fit_table(receipt["result"]), FIT)


def main() -> None:
    """Rewrites the tables."""
    receipts = _ROOT / "benchmarks" / "receipts"
    for page, write in (("README.md", with_tables), ("docs/results.md", with_fit_table)):
        path = _ROOT / page
        path.write_text(write(path.read_text(), receipts))


if __name__ == "__main__":
    main()
