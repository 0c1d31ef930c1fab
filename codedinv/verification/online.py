"""OnlineConsistency: a check for a model without calibration, learnt from its own traffic."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.verification.consistency import Consistency, Floats, Verdict
from codedinv.verification.fit import RANK, fit_consistency

_LARGEST_BYTES = 64 * 2**20
# At least half of the groups lie below three times the median norm: enough to fit on.
_FEWEST, _MOST = 120, 3072
_EARLY = 16  # groups, before which nothing is an alarm
_EARLY_TIMES_MEDIAN = 4.0
_OUTLIER_TIMES_MEDIAN = 3.0


class OnlineConsistency:
    """A `Check` that takes the first full groups for clean and fits itself on them.

    What is wrong from the first group on is learnt as clean: a bundle's own calibration
    (`codedinv calibrate`) has no such blind spot and knows rarer groups. Until enough groups have
    come only one whose syndrome is four times the median's norm is an alarm. The fit runs on a
    thread of its own, so no call waits for it. It keeps at most 64 MiB of syndromes, or 120 groups
    where those are more; the fit takes several times that for as long as it runs.

    Args:
        code: of the groups.
        embedding_shape: of one result.
        groups: to learn from; None: 3072, or as many as 64 MiB hold, at least 120.
        rate: false alarms per clean group, once fitted.

    Raises:
        ValueError: fewer than 120 groups.
    """

    def __init__(
        self,
        code: Code,
        embedding_shape: tuple[int, ...],
        groups: int | None = None,
        rate: float = 1e-4,
    ) -> None:
        self.code = code
        self.rate = rate
        size = math.prod(embedding_shape)
        fitting = _LARGEST_BYTES // (4 * code.r * size)
        count = max(_FEWEST, min(_MOST, fitting)) if groups is None else groups
        if count < _FEWEST:
            raise ValueError(f"groups: expected {_FEWEST} or more, got {groups}")
        self._seen = 0
        self._rows: NDArray[np.float32] | None = np.empty((count, code.r, size), np.float32)
        self._norms = np.empty(count)
        self._fit: threading.Thread | None = None
        self._check: Consistency | None = None

    @property
    def fitted(self) -> Consistency | None:
        """The check, once it is fitted."""
        return self._check

    def __call__(self, syndrome: Floats, scale: Any = None, /) -> Verdict:
        """Checks one group, or learns from it; see `Check`. Calls must not overlap."""
        if self._check is not None:
            return self._check(syndrome, scale)
        row = np.asarray(syndrome, np.float32).reshape(self.code.r, -1)
        if not np.isfinite(row).all():
            return Verdict(True, None, math.inf)
        norm = float(np.linalg.norm(row.astype(np.float64)))
        early = self._norms[: self._seen]
        suspicious = self._seen >= _EARLY and norm > _EARLY_TIMES_MEDIAN * np.median(early)
        if self._rows is not None and self._seen < len(self._rows) and not suspicious:
            self._rows[self._seen], self._norms[self._seen] = row, norm
            self._seen += 1
            if self._seen == len(self._rows):
                self._fit = threading.Thread(target=self._run_fit, daemon=True)
                self._fit.start()
        # Of its probability nothing is known yet: the score is the rate's own or none.
        return Verdict(bool(suspicious), None, -math.log10(self.rate) if suspicious else 0.0)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for a fit that is under way; whether there is one to use now."""
        if self._fit is not None:
            self._fit.join(timeout_s)
        return self._check is not None

    def _run_fit(self) -> None:
        rows = self._rows
        if rows is None:
            return
        kept = rows[self._norms <= _OUTLIER_TIMES_MEDIAN * np.median(self._norms)]
        order = np.random.default_rng(0).permutation(len(kept))
        self._check = fit_consistency(self.code, kept[order], rank=RANK, rate=self.rate)
        self._rows = None
