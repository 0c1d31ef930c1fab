"""Names of models and tasks, before anything is made under them."""

from __future__ import annotations

from typing import Any

import pytest

from codedinv.model.names import LONGEST, check_name, check_task


@pytest.mark.parametrize("name", ["mine", "resnet-18_v1.2", "0", "a" * LONGEST])
def test_a_name_of_letters_digits_dots_and_dashes_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "my model",
            "",
            ".",
            "..",
            ".hidden",
            "-rf",
            "a/b",
            "../up",
            "a\\b",
            "a\n",
            "a\0",
            "größe",
        ),
        "a" * (LONGEST + 1),
        *(None, 3, b"mine"),
    ],
)
def test_a_name_that_could_not_be_a_folder_or_a_url_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="name: expected at most 100 letters, digits"):
        check_name(name)


@pytest.mark.parametrize("task", ["label", "0", "a_b", "T" * LONGEST])
def test_a_task_of_letters_digits_and_underscores_is_taken(task: str) -> None:
    check_task(task)


@pytest.mark.parametrize(
    "task", ["", "a b", "a.b", "a-b", "../x", "a/b", "t" * (LONGEST + 1), None]
)
def test_a_task_that_could_not_be_part_of_a_file_name_is_refused(task: Any) -> None:
    with pytest.raises(ValueError, match="heads: task names take at most 100 letters"):
        check_task(task)
