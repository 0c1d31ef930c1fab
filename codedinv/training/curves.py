"""The curves of a training."""

from __future__ import annotations

from pathlib import Path


def plot_history(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draws one panel per recorded number against the optimizer step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in history[0] if name != "step"] if history else []
    if not names:
        return
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.2 * len(names), 2.8), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([row["step"] for row in history], [row[name] for row in history], color="#0072B2")
        axis.set_xlabel("optimizer step")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
