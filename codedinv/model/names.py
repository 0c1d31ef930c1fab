"""Names of models and tasks: they become names of folders, files and tensors, and parts of URLs."""

from __future__ import annotations

import re

LONGEST = 100  # of a file's 255 bytes, so that "head_<task>.onnx" and temporary names fit too
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TASK = re.compile(r"[A-Za-z0-9_]+")


def check_name(name: str) -> None:
    """Refuses a model's name that could not be a folder, a URL's segment and a Triton model.

    To be called before anything long is begun under that name.

    Raises:
        ValueError: other characters than ASCII letters, digits, '.', '-' and '_', not a letter or
            digit at the start, or over 100 characters.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise ValueError(
            f"name: expected at most {LONGEST} letters, digits, '.', '-' and '_', "
            f"a letter or digit first, got {name!r}"
        )


def check_task(task: str) -> None:
    """Refuses a task's name that could not be part of a file's name.

    Raises:
        ValueError: other characters than ASCII letters, digits and '_', or over 100 of them.
    """
    if not isinstance(task, str) or not _TASK.fullmatch(task) or len(task) > LONGEST:
        raise ValueError(
            f"heads: task names take at most {LONGEST} letters, digits and '_', got {task!r}"
        )
