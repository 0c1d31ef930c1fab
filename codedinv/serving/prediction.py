"""Prediction: the answer to one query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.schemes.scheme import Source


@dataclass(frozen=True, eq=False, init=False)
class Prediction:
    """The answer to one query.

    Attributes:
        outputs: float32 (outputs,) per task, in the order of the model's heads.
        source: "exact": the backbone's own result for this query; "hedged": that of a second
            worker, the same backbone's; "reconstructed": recovered from the rest of its coding
            group; "fallback": the front end's own substitute.
        latency: seconds from `submit` to the answer.
        query_id: the server's number of this query, counting from 0.
        version: of the model that answered, see `codedinv.serving.versions.version_of`; while a
            reload is under way that may be the old or the new one.
    """

    outputs: Mapping[str, NDArray[np.float32]]
    source: Source
    latency: float
    query_id: int
    version: str = ""

    def __init__(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        source: Source,
        latency: float,
        query_id: int,
        version: str = "",
    ) -> None:
        # All at once: what a frozen dataclass generates takes a microsecond longer.
        self.__dict__.update(
            outputs=outputs, source=source, latency=latency, query_id=query_id, version=version
        )

    @property
    def degraded(self) -> bool:
        """True if it is not what the backbone says of this query."""
        return self.source not in ("exact", "hedged")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, as for JSON."""
        return {
            "outputs": {task: values.tolist() for task, values in self.outputs.items()},
            "source": self.source,
            "degraded": self.degraded,
            "latency": self.latency,
            "query_id": self.query_id,
            "version": self.version,
        }
