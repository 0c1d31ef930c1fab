"""Times the kernels against torch on a GPU and writes receipts; run by benchmarks/device.sh.

    python benchmarks/kernels.py ceilings|forward|inverse|tune|power|smoke [options]

Every candidate is checked against float64 before it is timed. Times are medians of device events
after warm-up; candidates that are launched from Python are timed so and, as "graphed", replayed
from a CUDA graph. `--rehearse` runs the same code on a CPU with tiny shapes and Triton's
interpreter; its times mean nothing and its receipts say so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import receipt
import torch
import torch.nn.functional as F
from codedinv.kernels import reference, testing, tuning
from codedinv.kernels.reference import Block
from codedinv.kernels.tuning import Stage
from torch import Tensor

from codedinv import kernels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCHES = (1, 8, 64, 256, 1024)
# A piece of device.sh may take 8 minutes; what does not fit is left to the next call.
SECONDS = 420
# Of fixed-point solutions: what the bars are stated for.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Network:
    """Stages with their number of blocks; between stages the image is squeezed by 2."""

    name: str
    stages: tuple[tuple[Stage, int], ...]

    @property
    def macs(self) -> int:
        return sum(stage.branch_macs * count for stage, count in self.stages)


def _paper(name: str, channels: int, height: int, count: int) -> Network:
    sides = (height, height // 2, height // 4)
    return Network(
        name,
        tuple(
            (Stage(channels * 4**i, side, side, 32 * 2**i), count) for i, side in enumerate(sides)
        ),
    )


NETWORKS = {
    network.name: network
    for network in (
        _paper("cifar", 3, 32, 7),
        _paper("mnist-full", 4, 16, 7),
        _paper("fashion-mnist-full", 4, 16, 9),
        Network(
            "fashion-mnist", ((Stage(4, 14, 14, 32), 2), (Stage(16, 7, 7, 96), 8))
        ),
    )
}  # fmt: skip
REHEARSAL = Network("rehearsal", ((Stage(4, 4, 4, 16), 1), (Stage(16, 2, 2, 16), 1)))


class Timer:
    """Median milliseconds of a call: device events on a GPU, the host's clock in a rehearsal."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse

    def __call__(self, function: Callable[[], Any]) -> float:
        if self.rehearse:
            started = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - started)
        function()
        torch.cuda.synchronize()
        once = self._events(function, 3)
        repeats = max(10, min(200, int(600 / max(once, 0.01))))
        return self._events(function, repeats)

    def _events(self, function: Callable[[], Any], repeats: int) -> float:
        pairs = []
        for _ in range(repeats):
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            function()
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize()
        return statistics.median(first.elapsed_time(last) for first, last in pairs)


def graphed(function: Callable[[], Any]) -> Callable[[], Any]:
    """A replay of `function` from a CUDA graph (static inputs)."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


Blocks = list[list[Block]]
Forward = Callable[[Tensor, list[Block]], Tensor]


def draw(network: Network, dtype: torch.dtype) -> tuple[Blocks, Blocks]:
    """(blocks in dtype, the same values in float64), one list per stage, on the device."""
    drawn = []
    for index, (stage, count) in enumerate(network.stages):
        blocks = testing.draw_blocks(stage, count + (index > 0))
        drawn.append(blocks[index > 0 :])
    low = [testing.cast(blocks, dtype) for blocks in drawn]
    return low, [testing.cast(blocks, torch.float64) for blocks in low]


def forward(x: Tensor, blocks: Blocks, run: Forward) -> Tensor:
    for index, stage in enumerate(blocks):
        x = run(F.pixel_unshuffle(x, 2) if index else x, stage)
    return x


def backward(z: Tensor, blocks: Blocks, run: Forward) -> Tensor:
    for index in reversed(range(len(blocks))):
        z = run(z, blocks[index])
        z = F.pixel_shuffle(z, 2) if index else z
    return z


def fixed_loop(counts: list[list[int]], blocks: Blocks) -> Callable[[Tensor], Tensor]:
    """The inverse with a fixed number of iterations per block, as a graph needs it."""

    def run(z: Tensor) -> Tensor:
        for index in reversed(range(len(blocks))):
            for (weights, flag), count in zip(
                reversed(blocks[index]), reversed(counts[index]), strict=True
            ):
                goal = z
                for _ in range(count):
                    z = goal - reference.residual_branch(z, weights, flag)
            z = F.pixel_shuffle(z, 2) if index else z
        return z

    return run


class Receipt:
    """Results of one command, kept after each, so that a killed run loses one measurement."""

    def __init__(self, what: str, options: argparse.Namespace) -> None:
        self.what, self.options = what, options
        self.device = "rehearsal" if options.rehearse else torch.cuda.get_device_name()
        receipt.FOLDER = options.out
        self.results: list[dict[str, Any]] = []
        path = self._path()
        if path.exists() and not options.again:
            before = json.loads(path.read_text())
            if before.get("commit") == receipt._commit():
                self.results = before["results"]

    def _path(self) -> Path:
        slug = "".join(c if c.isalnum() else "-" for c in self.device.lower()).strip("-")
        return Path(self.options.out) / f"{self.what}-{slug}.json"

    def has(self, **key: Any) -> bool:
        return any(key.items() <= result.items() for result in self.results)

    def add(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        self.write()
        print(json.dumps(result), flush=True)

    def write(self) -> None:
        receipt.write_receipt(self.what, {**self._method(), "results": self.results}, self.device)

    def _method(self) -> dict[str, Any]:
        return {
            "method": "medians of device events after warm-up, ms; checked in float64 first",
            "rehearsal": self.options.rehearse,
            "tf32": {
                "cudnn": torch.backends.cudnn.allow_tf32,
                "matmul": torch.backends.cuda.matmul.allow_tf32,
            },
            "float32_precision": tuning.FLOAT32_PRECISION,
        }


def checked(value: Tensor, expected: Tensor, limit: float) -> float:
    """The relative error; a candidate that is wrong is not timed."""
    error = testing.relative_error(value[: expected.shape[0]], expected)
    if not error < limit:
        raise RuntimeError(f"relative error {error:.2e} is above {limit:.0e}; not timed")
    return error


def attempt(result: dict[str, Any], name: str, function: Callable[[], float]) -> None:
    """Stores a time under `name`, or why there is none; one failure does not end a run."""
    try:
        result[name] = round(function(), 5)
    except Exception as error:  # Whatever a compiler or a card may raise goes into the receipt.
        result[name] = None
        result.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"[:400]


def floor_ms(network: Network, batch: int, dtype: torch.dtype, passes: int, out: Path) -> Any:
    """Roofline floor from the measured ceilings (None before `ceilings` has run)."""
    found = sorted(Path(out).glob("ceilings-*.json"))
    if not found:
        return None
    ceilings = {row["what"]: row["value"] for row in json.loads(found[-1].read_text())["results"]}
    rate = ceilings["tf32_tflops"] / 3 if dtype == torch.float32 else ceilings["bf16_tflops"]
    flops = 2 * network.macs * batch * passes
    first = network.stages[0][0]
    size = torch.finfo(dtype).bits // 8
    moved = 2 * batch * first.channels * first.height * first.width * size
    return round(1e3 * max(flops / (rate * 1e12), moved / (ceilings["copy_gb_s"] * 1e9)), 5)


def measure_ceilings(options: argparse.Namespace) -> None:
    """Copy bandwidth and matrix rates of this card."""
    out, timer = Receipt("ceilings", options), Timer(options.rehearse)
    out.results = []
    side = 64 if options.rehearse else 8192
    words = 1 << (10 if options.rehearse else 30)
    source = torch.randn(words, device=testing.DEVICE)
    target = torch.empty_like(source)
    ms = timer(lambda: target.copy_(source))
    out.add({"what": "copy_gb_s", "value": 8 * words / ms / 1e6})
    for name, dtype, tf32 in (
        ("bf16_tflops", torch.bfloat16, False),
        ("tf32_tflops", torch.float32, True),
        ("fp32_tflops", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=testing.DEVICE, dtype=dtype) for _ in range(2))
        ms = timer(lambda a=a, b=b: a @ b)
        out.add({"what": name, "value": 2 * side**3 / ms / 1e9})
    torch.backends.cuda.matmul.allow_tf32 = False


def measure_forward(options: argparse.Namespace) -> None:
    """A network's forward: kernels against eager, max-autotune and a graph of eager."""
    out = Receipt(f"forward-{options.network}-{options.dtype}", options)
    dtype, deadline = DTYPES[options.dtype], time.monotonic() + SECONDS
    low, exact = draw(options.chosen, dtype)
    for batch in options.batch:
        if not out.has(batch=batch) and time.monotonic() < deadline:
            with torch.no_grad():
                out.add(_forward_at(batch, low, exact, dtype, options))


def _forward_at(
    batch: int, low: Blocks, exact: Blocks, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, Any]:
    timer = Timer(options.rehearse)
    x = testing.draw_images(options.chosen.stages[0][0], batch).to(testing.DEVICE, dtype)
    wide = x.contiguous(memory_format=torch.channels_last)

    def eager(x: Tensor = x) -> Tensor:
        return forward(x, low, reference.residual_blocks)

    def ours() -> Tensor:
        return forward(x, low, kernels.residual_blocks)

    expected = forward(x[:8].double(), exact, reference.residual_blocks)
    result: dict[str, Any] = {
        "batch": batch,
        "error": checked(ours(), expected, testing.ERROR_LIMIT[dtype]),
    }
    attempt(result, "kernels", lambda: timer(ours))
    attempt(result, "eager", lambda: timer(eager))
    if dtype == torch.float32:
        attempt(result, "eager_tf32", lambda: _with_tf32(lambda: timer(eager)))
    attempt(result, "eager_channels_last", lambda: timer(lambda: eager(wide)))
    if not options.rehearse:
        attempt(result, "kernels_graphed", lambda: timer(graphed(ours)))
        attempt(result, "eager_graphed", lambda: timer(graphed(eager)))
        compiled = torch.compile(eager, mode="max-autotune", dynamic=False)
        attempt(result, "compiled", lambda: timer(lambda: compiled(x)))
    _compare(result, ("eager", "eager_channels_last", "eager_graphed", "compiled"))
    result["floor"] = floor_ms(options.chosen, batch, dtype, 1, options.out)
    return result


def measure_inverse(options: argparse.Namespace) -> None:
    """A network's inverse to 1e-5 (float32) or 1e-3: kernels against eager and its graph."""
    out = Receipt(f"inverse-{options.network}-{options.dtype}", options)
    dtype, deadline = DTYPES[options.dtype], time.monotonic() + SECONDS
    low, exact = draw(options.chosen, dtype)
    for batch in options.batch:
        if not out.has(batch=batch) and time.monotonic() < deadline:
            with torch.no_grad():
                out.add(_inverse_at(batch, low, exact, dtype, options))


def _inverse_at(
    batch: int, low: Blocks, exact: Blocks, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, Any]:
    timer, tol = Timer(options.rehearse), TOLERANCE[dtype]
    x = testing.draw_images(options.chosen.stages[0][0], batch).to(testing.DEVICE, torch.float64)
    z = forward(x, exact, reference.residual_blocks).to(dtype)
    counts: list[list[int]] = []

    def found(y: Tensor, stage: list[Block]) -> Tensor:
        solution, iterations, residual = kernels.invert_detailed(y, stage, tol)
        if not bool((residual <= tol).all()):
            raise RuntimeError(f"residual {float(residual.max()):.2e} after the cap")
        counts.insert(0, iterations.amax(dim=0).tolist())
        return solution

    def ours(anderson: bool = False) -> Tensor:
        return backward(
            z, low, lambda y, stage: kernels.invert(y, stage, tol, anderson=anderson)[0]
        )

    def eager() -> Tensor:
        return backward(z, low, lambda y, stage: reference.invert(y, stage, tol, 100)[0])

    expected = backward(
        z[:8].double(), exact, lambda y, stage: reference.invert(y, stage, 1e-12, 300)[0]
    )
    limit = max(testing.ERROR_LIMIT[dtype], 30 * tol)
    error = checked(backward(z, low, found), expected, limit)
    loop = fixed_loop(counts, low)
    result: dict[str, Any] = {
        "batch": batch, "tolerance": tol, "error": error, "iterations": counts,
    }  # fmt: skip
    attempt(result, "kernels", lambda: timer(ours))
    attempt(result, "kernels_anderson", lambda: timer(lambda: ours(anderson=True)))
    if dtype == torch.float32:
        # In half precision torch keeps x itself in 16 bits and cannot reach the tolerance.
        attempt(result, "eager", lambda: timer(eager))
    attempt(result, "eager_fixed", lambda: timer(lambda: loop(z)))
    if not options.rehearse:
        attempt(result, "kernels_graphed", lambda: timer(graphed(ours)))
        attempt(result, "eager_graphed", lambda: timer(graphed(lambda: loop(z))))
    _compare(result, ("eager_graphed",), "graph")
    _compare(result, ("eager", "eager_fixed"), "eager")
    passes = round(sum(map(sum, counts)) / sum(map(len, counts)))
    result["floor"] = floor_ms(options.chosen, batch, dtype, passes, options.out)
    return result


def measure_power(options: argparse.Namespace) -> None:
    """One power iteration of every convolution of a network, as a training step takes it."""
    out, timer = Receipt(f"power-{options.network}", options), Timer(options.rehearse)
    weights, vectors = [], []
    for (stage, _), blocks in zip(
        options.chosen.stages, draw(options.chosen, torch.float32)[0], strict=True
    ):
        for (w1, _, w2, _, w3, _), _flag in blocks:
            for weight in (w1, w2, w3):
                size = (stage.height, stage.width) if weight.shape[-1] == 3 else (1, 1)
                vector = torch.randn(1, weight.shape[1], *size, device=weight.device)
                weights.append(weight)
                vectors.append(vector / vector.norm())
    expected, _ = reference.power_iteration(
        [w.double() for w in weights], [v.double() for v in vectors], 1
    )
    sigma, _ = kernels.power_iteration(weights, vectors, 1)
    result: dict[str, Any] = {"convolutions": len(weights), "error": checked(sigma, expected, 1e-5)}
    attempt(result, "kernels", lambda: timer(lambda: kernels.power_iteration(weights, vectors, 1)))
    attempt(result, "eager", lambda: timer(lambda: reference.power_iteration(weights, vectors, 1)))
    out.results = []
    out.add(result)


# What tune tries beside the default: one change at a time, then the best two together.
CHANGES: tuple[dict[str, Any], ...] = (
    {"num_warps": 4}, {"num_warps": 8}, {"num_stages": 1}, {"num_stages": 3},
    {"block_m": 128}, {"block_m": 128, "num_warps": 8}, {"block_m": 32},
    {"block_k1": 16, "block_k3": 16}, {"block_k1": 32, "block_k3": 32}, {"block_k3": 64},
    {"precision": "ieee"}, {"double_images": True}, {"block_n": 32}, {"block_n": 64},
)  # fmt: skip


def candidates(stage: Stage, dtype: torch.dtype) -> list[tuning.StageTuning]:
    """The default and its neighbours that are valid for the stage, without repeats."""
    default = tuning.default_stage_tuning(stage, dtype)
    found = [default]
    for change in CHANGES:
        change = dict(change)
        if change.pop("double_images", False):
            change["images"] = 2 * default.images
        candidate = replace(default, **change)
        whole = candidate.block_n >= stage.hidden
        divides = stage.hidden % candidate.block_n == 0 and stage.hidden % candidate.block_k3 == 0
        if whole:
            candidate = replace(candidate, block_n=tuning.padded_width(stage.hidden))
        exact = candidate.precision != "ieee" or dtype == torch.float32
        if (whole or divides) and exact and candidate not in found:
            found.append(candidate)
    return found


def measure_tune(options: argparse.Namespace) -> None:
    """Finds each stage's best tiles and from which batch the kernels win; see tuning.py."""
    out = Receipt(f"tune-{options.network}-{options.dtype}", options)
    dtype, deadline = DTYPES[options.dtype], time.monotonic() + SECONDS
    for stage, _ in options.chosen.stages:
        for kernel in ("stage", "inversion"):
            if not out.has(kernel=kernel, stage=str(stage)) and time.monotonic() < deadline:
                tried = _try_tiles(kernel, stage, dtype, options)
                timed = [trial for trial in tried if "ms" in trial]
                best = min(timed, key=lambda trial: trial["ms"])["tiles"] if timed else None
                crossover = _crossover(kernel, stage, dtype, options)
                out.add(
                    {"kernel": kernel, "stage": str(stage), "batch": max(options.batch),
                     "best": best, "crossover": crossover, "tried": tried}
                )  # fmt: skip


def _try_tiles(
    kernel: str, stage: Stage, dtype: torch.dtype, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Times every candidate's run of two blocks that is right; says of others why not."""
    from codedinv.kernels.inversion import run_inversion
    from codedinv.kernels.packing import pack
    from codedinv.kernels.residual import run_stage

    timer, tol, batch = Timer(options.rehearse), TOLERANCE[dtype], max(options.batch)
    blocks = testing.cast(testing.draw_blocks(stage, 3)[1:], dtype)
    exact = testing.cast(blocks, torch.float64)
    x = testing.draw_images(stage, batch).to(testing.DEVICE, dtype)
    packed, target = pack(blocks, dtype), torch.empty_like(x)
    iterations = torch.empty(batch, 2, dtype=torch.int32, device=x.device)
    residual = torch.empty(batch, 2, device=x.device)

    def call(tiles: tuning.StageTuning) -> None:
        if kernel == "stage":
            run_stage(x, target, packed, tiles)
        else:
            run_inversion(x, target, iterations, residual, packed, tol, 100, False, tiles)

    if kernel == "stage":
        expected = reference.residual_blocks(x[:8].double(), exact)
    else:
        expected = reference.invert(x[:8].double(), exact, 1e-12, 300)[0]
    tried = []
    for tiles in candidates(stage, dtype)[: 2 if options.rehearse else None]:
        trial: dict[str, Any] = {"tiles": vars(tiles)}
        try:
            target.fill_(float("nan"))
            call(tiles)
            checked(target, expected, max(testing.ERROR_LIMIT[dtype], 30 * tol))
            trial["ms"] = timer(lambda tiles=tiles: call(tiles))
        except Exception as error:  # A tile that does not compile is a finding, not an end.
            trial["failed"] = f"{type(error).__name__}: {error}"[:300]
        tried.append(trial)
    return tried


def _crossover(
    kernel: str, stage: Stage, dtype: torch.dtype, options: argparse.Namespace
) -> list[dict[str, float]]:
    """Kernels and eager torch at every batch, for a run of two blocks of this stage."""
    timer, tol = Timer(options.rehearse), TOLERANCE[dtype]
    blocks = testing.cast(testing.draw_blocks(stage, 3)[1:], dtype)
    ours = {
        "stage": lambda x: kernels.residual_blocks(x, blocks),
        "inversion": lambda x: kernels.invert(x, blocks, tol),
    }[kernel]
    theirs = {
        "stage": lambda x: reference.residual_blocks(x, blocks),
        "inversion": lambda x: reference.invert(x, blocks, tol, 100),
    }[kernel]
    rows = []
    for batch in options.batch:
        x = testing.draw_images(stage, batch).to(testing.DEVICE, dtype)
        rows.append(
            {
                "batch": batch,
                "kernels": timer(lambda x=x: ours(x)),
                "eager": timer(lambda x=x: theirs(x)),
            }
        )
    return rows


def adopt(options: argparse.Namespace) -> None:
    """Merges the tune receipts of --out into kernels/measured.json."""
    path = Path(__file__).resolve().parents[1] / "kernels" / "measured.json"
    measured = json.loads(path.read_text())
    for file in sorted(Path(options.out).glob("tune-*.json")):
        content = json.loads(file.read_text())
        if content["rehearsal"]:
            continue
        dtype = next(name for name in DTYPES if f"-{name}-" in file.name)
        card = measured.setdefault(content["device"], {})
        for row in content["results"]:
            if row["best"]:
                card[f"{row['kernel']} {row['stage']} {dtype}"] = {"tuning": row["best"]}
            name = "forward" if row["kernel"] == "stage" else "inversion"
            entry = card.setdefault(f"{name} {row['stage']} {dtype}", {})
            won = [p["batch"] for p in row.get("crossover", []) if p["kernels"] < p["eager"]]
            entry["faster_at_batch"] = [[batch, batch] for batch in won]
            entry["receipt"] = file.name
    path.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")


def smoke(options: argparse.Namespace) -> None:
    """One small case of each kernel, for compute-sanitizer."""
    stage = Stage(4, 4, 4, 16) if options.rehearse else Stage(16, 7, 7, 96)
    for dtype in (torch.float32, torch.bfloat16):
        blocks = testing.cast(testing.draw_blocks(stage, 2), dtype)
        exact = testing.cast(blocks, torch.float64)
        x = testing.draw_images(stage, 3).to(testing.DEVICE, dtype)
        limit = testing.ERROR_LIMIT[dtype]
        expected = reference.residual_blocks(x.double(), exact)
        checked(kernels.residual_blocks(x, blocks), expected, limit)
        y = expected.to(dtype)
        for anderson in (False, True):
            found = kernels.invert(y, blocks, 1e-3, anderson=anderson)[0]
            checked(found, reference.invert(y.double(), exact, 1e-12, 300)[0], 3e-2)
    _run_stage_once(stage)
    weight, vector = torch.randn(32, 16, 3, 3), torch.randn(1, 16, 7, 7)
    pair = ([weight.to(testing.DEVICE)], [vector.to(testing.DEVICE)])
    checked(kernels.power_iteration(*pair, 1)[0], reference.power_iteration(*pair, 1)[0], 1e-4)
    print("every kernel ran and was right")


def _run_stage_once(stage: Stage) -> None:
    from codedinv.kernels.packing import pack
    from codedinv.kernels.residual import run_stage

    blocks = testing.cast(testing.draw_blocks(stage, 2), torch.float32)
    x = testing.draw_images(stage, 3).to(testing.DEVICE, torch.float32)
    out = torch.empty_like(x)
    tiles = tuning.default_stage_tuning(stage, torch.float32)
    run_stage(x, out, pack(blocks, torch.float32), tiles)
    expected = reference.residual_blocks(x.double(), testing.cast(blocks, torch.float64))
    checked(out, expected, 1e-5)


def _with_tf32(function: Callable[[], float]) -> float:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        return function()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _compare(result: dict[str, Any], others: tuple[str, ...], name: str = "best") -> None:
    """Adds how many times faster the better of our two forms is than the best of `others`."""
    ours = [result[key] for key in ("kernels", "kernels_graphed") if result.get(key)]
    theirs = [result[key] for key in others if result.get(key)]
    if ours and theirs:
        result[f"times_faster_than_{name}"] = round(min(theirs) / min(ours), 3)


COMMANDS = {
    "ceilings": measure_ceilings, "forward": measure_forward, "inverse": measure_inverse,
    "tune": measure_tune, "power": measure_power, "smoke": smoke, "adopt": adopt,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--network", choices=NETWORKS, default="cifar")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--out", type=Path, default=receipt.FOLDER)
    parser.add_argument("--again", action="store_true", help="measure what is already there")
    parser.add_argument("--rehearse", action="store_true", help="CPU, interpreter, tiny shapes")
    options = parser.parse_args()
    options.chosen = NETWORKS[options.network]
    if options.rehearse:
        # A looser tolerance: the interpreter takes half a second for each iteration.
        TOLERANCE.update(dict.fromkeys(TOLERANCE, 3e-3))
        options.chosen, options.batch = REHEARSAL, [2]
    elif not torch.cuda.is_available() and options.command != "adopt":
        parser.error("no CUDA device is here; --rehearse runs the same code on the CPU")
    # Full float32 unless a result says otherwise: what the kernels are compared with.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
