"""README.md's accuracy table, written from receipts: `python -m codedinv.experiments.tables`.

Receipts are what `codedinv evaluate --model NAME --receipt benchmarks/receipts/accuracy-NAME.json`
and `python benchmarks/controls.py` write. No number is copied by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- accuracy table: written by python -m codedinv.experiments.tables -->"
END = "<!-- end of accuracy table -->"
_ROOT = Path(__file__).resolve().parents[2]


def accuracy_table(receipts: Sequence[dict[str, Any]], controls: dict[str, Any]) -> str:
    """A Markdown table with a row for each receipt of `codedinv evaluate`, and its controls.

    Args:
        receipts: of `codedinv evaluate`.
        controls: the receipt of benchmarks/controls.py.
    """
    lines = [
        "| model | (n, k) | E_k / F | A_n | A_d | plain sum | agreement | whole group |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for receipt in receipts:
        result = receipt["result"]
        control = controls["result"]["models"][result["model"]]
        cells = [
            f"`{result['model']}`",
            f"({result['n']}, {result['k']})",
            f"{result['encoder_over_backbone']:.1%}",
            _with_interval(result, "A_n"),
            _with_interval(result, "A_d"),
            f"{control['A_d_plain_sum']:.2f}",
            _with_interval(result, "agreement"),
            _with_interval(result, "whole_group"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    alone = controls["result"]["head_alone_A_n"]
    lines += [
        "",
        f"The head alone, trained alike on raw queries without a backbone: A_n {alone:.2f}.",
    ]
    return "\n".join(lines)


def replace_table(text: str, table: str) -> str:
    """The text with the table between its two marks.

    Raises:
        ValueError: a mark is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"text: expected the lines {BEGIN!r} and {END!r}")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def accuracy_receipts(folder: Path) -> list[dict[str, Any]]:
    """The receipts of `codedinv evaluate` in a folder, small k first."""
    receipts = [json.loads(path.read_text()) for path in folder.glob("accuracy-*.json")]
    return sorted(receipts, key=lambda receipt: (receipt["result"]["k"], receipt["result"]["n"]))


def _with_interval(result: dict[str, Any], name: str) -> str:
    low, high = result["interval95"][name]
    return f"{result[name]:.2f} ± {(high - low) / 2:.2f}"


def main() -> None:
    """Rewrites the table in README.md."""
    receipts = accuracy_receipts(_ROOT / "benchmarks" / "receipts")
    if not receipts:
        sys.exit("no accuracy-*.json in benchmarks/receipts: run codedinv evaluate --receipt first")
    controls = json.loads((_ROOT / "benchmarks" / "receipts" / "controls.json").read_text())
    readme = _ROOT / "README.md"
    readme.write_text(replace_table(readme.read_text(), accuracy_table(receipts, controls)))


if __name__ == "__main__":
    main()
