"""What `fit` was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codedinv.model.manifest import SCHEMES
from codedinv.model.names import check_name

HELD_OUT = 0.1  # of the training examples: they calibrate what the others have taught
LIGHT_SHARE = 0.5  # of the budget
AT = (0.01, 0.05, 0.10)  # shares of unavailable results at which A_o is reported
GROUPINGS = 3


@dataclass(frozen=True)
class Settings:
    """What `fit` was asked for.

    Attributes:
        ks: sizes of coding groups to try.
        budget: what the front end may spend on a query, as a share of f's multiply-accumulates:
            the encoder that much for a whole group, the light model half of it for a query.
        name: of the model.
        seed: of everything random.
        unavailable: share of results that do not come, for which the best is chosen.
        light_epochs, encoder_steps: None: as many as the data call for.
        scheme: that the best is chosen of; None: of all.
    """

    ks: tuple[int, ...]
    budget: float
    name: str
    seed: int = 0
    unavailable: float = 0.05
    light_epochs: int | None = None
    encoder_steps: int | None = None
    scheme: str | None = None

    @classmethod
    def checked(
        cls,
        k: int | Sequence[int],
        budget: float,
        name: str,
        seed: int,
        unavailable: float,
        light_epochs: int | None,
        encoder_steps: int | None,
        scheme: str | None,
    ) -> Settings:
        """Settings as a user gives them.

        Raises:
            ValueError: names the argument, what was expected and what came.
        """
        check_name(name)
        ks = tuple(k) if isinstance(k, Iterable) else (k,)
        if not ks or any(not isinstance(one, int) or one < 2 for one in ks):
            raise ValueError(f"k: expected group sizes of 2 or more, got {k!r}")
        if not _is_share(budget):
            raise ValueError(
                f"budget: expected a share of the backbone's work between 0 and 1 (10% is 0.1), "
                f"got {budget!r}"
            )
        if not _is_share(unavailable):
            raise ValueError(f"unavailable: expected a share between 0 and 1, got {unavailable!r}")
        for what, value in (("light_epochs", light_epochs), ("encoder_steps", encoder_steps)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{what}: expected an integer of 1 or more, got {value!r}")
        if not (isinstance(seed, int) and seed >= 0):
            raise ValueError(f"seed: expected an integer of 0 or more, got {seed!r}")
        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
        return cls(
            tuple(sorted(set(ks))), budget, name, seed, unavailable, light_epochs, encoder_steps,
            scheme,
        )  # fmt: skip

    def epochs_of_light(self, learnt: int) -> int:
        """Passes over the training examples: more over few than over many."""
        return self.light_epochs or max(12, min(40, round(100_000 / learnt)))

    def steps_of_encoder(self, learnt: int, groups_per_step: int) -> int:
        """Steps of an encoder: enough for the data, never few, never endless."""
        return self.encoder_steps or max(300, min(6000, 10 * learnt // groups_per_step))


def percent(share: float) -> str:
    """A share for people, however small."""
    return f"{100 * share:.3g}%"


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < 1
