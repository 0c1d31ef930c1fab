"""The commands and their options; what they do is imported when they are called.

A caller's mistake ends with one line on stderr and exit code 2, a failure at run time with one line
and exit code 1; `codedinv --traceback COMMAND ...` shows where it came from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from codedinv.errors import CodedInvError
from codedinv.extras import missing

app = typer.Typer(
    name="codedinv",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


train = typer.Typer(
    no_args_is_help=True,
    help="Train a model of your own: its classifier, its light model, then the encoder, "
    "which makes a bundle.",
)
app.add_typer(train, name="train")


class _BundleByDefault(TyperGroup):
    """`codedinv export MODEL OUT` is `codedinv export bundle MODEL OUT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["bundle", *args]
        return super().parse_args(ctx, args)


export = typer.Typer(
    cls=_BundleByDefault,
    no_args_is_help=True,
    help="Write a model for other programs: as a bundle (`codedinv export MODEL OUT`) with ONNX "
    "files that any server can run, or as a folder for Triton.",
)
app.add_typer(export, name="export")


class TritonBackend(StrEnum):
    """What runs the backbone at a Triton."""

    python = "python"
    onnxruntime = "onnxruntime"


class Runtime(StrEnum):
    """What runs the networks."""

    auto = "auto"
    onnx = "onnx"
    torch = "torch"


ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A bundled name (`codedinv info` lists them) or a folder."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="An .npz file, or a folder of .npz files, of images by class or of IDX files "
        "(docs/fit.md). Default: the data that the model has learnt (a recipe's: Fashion-MNIST "
        "where Debian's package dataset-fashion-mnist puts it).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", help="A recipe of the package (docs/training.md) or a TOML file of yours."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder for weights, checkpoints and curves; default: runs/RECIPE'S NAME."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="`cpu` or `cuda`.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="Of torch. Default: as many as there are idle cores, at least one."),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Go on from a checkpoint in the folder, or begin anew."),
]
RuntimeOption = Annotated[
    Runtime,
    typer.Option(help="`auto` is ONNX Runtime where it is installed, else torch."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: None: those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = arguments[:1] == ["--traceback"]
    try:
        app(args=arguments, prog_name="codedinv")
    except (CodedInvError, ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if with_traceback:
            raise
        if isinstance(error, ModuleNotFoundError):
            error = missing(error.name)
        print("codedinv:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1 if isinstance(error, CodedInvError) else 2)


def _version(requested: bool) -> None:
    if requested:
        from codedinv import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the whole traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prediction serving that answers every query on time, by coded computation.

    `codedinv demo` shows all of it in a minute or two.
    """


@app.command()
def demo(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled name or the folder of a bundle.")
    ] = "fashion-mnist",
    out: Annotated[Path, typer.Option(help="Folder for the figures and the summary.")] = Path(
        "demo"
    ),
    data: DataOption = None,
    queries: Annotated[int, typer.Option(min=50, help="How many to send in each run.")] = 1200,
    rate: Annotated[
        float | None,
        typer.Option(help="Queries per second; default: what this machine has room for."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the images' order and the arrivals.")] = 0,
    devices: Annotated[
        str, typer.Option(help="Of the workers: `cpu`, `cuda` (all there are), or `cuda:0,cuda:1`.")
    ] = "cpu",
) -> None:
    """Serve real images while one worker is killed and another slowed: five ways, side by side.

    Test images arrive at random times at a server with k + 1 worker processes. After a quarter of
    them one worker gets SIGKILL while it is at work; after half of them another takes 100 ms longer
    for each query. The same arrivals and the same victims meet, one run after the other: no
    redundancy, two copies of each query, a hedge at p95, guided copies, and Coded-InvNet; a way
    that the model cannot serve is left out with the reason. Prints them side by side; writes
    latency.png, recovery.png, comparison.md and summary.json. About a minute.

    A model of your own is shown on the test images that it has learnt, or on those of `--data`.

    Exit code 0: every query of the guided and coded runs was answered.
    """
    from rich.console import Console

    from codedinv.experiments.demo import run_demo

    if not run_demo(model, out, data, queries, rate, seed, Console(), devices.split(",")):
        raise typer.Exit(1)


@app.command()
def chaos(
    model: ModelOption = "fashion-mnist",
    seconds: Annotated[float, typer.Option(min=5, help="How long queries come.")] = 60.0,
    rate: Annotated[float, typer.Option(min=1, help="Queries per second, besides bursts.")] = 200.0,
    deadline: Annotated[float, typer.Option(help="Of each query, in seconds.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and faults.")] = 0,
    receipt: Annotated[
        Path | None, typer.Option(help="Also write the result, with device and versions, here.")
    ] = None,
) -> None:
    """Let everything go wrong that can, with real processes, and see whether anybody notices.

    Workers are killed, hung, slowed, stopped, made to err and to lie; the front end is stopped; the
    bundle is replaced on disk and redeployed; bursts come at several times what the server can do.

    Exit code 0: every query ended exactly once, none later than its deadline + 5 ms, 99.9 % were
    answered outside the bursts, and memory, descriptors and threads stayed flat. Queries that met a
    stop of the front end are counted apart: while it stands still nobody can answer.
    """
    from rich.console import Console

    from codedinv.experiments.chaos import run_chaos

    if not run_chaos(model, seconds, rate, deadline, seed, receipt, Console()):
        raise typer.Exit(1)


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="A bundled name or a bundle's folder; may be given several times."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Of each model; default: one for each slot of a coding group."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Of REST; 0: a free one.", show_default="8000")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Of gRPC; 0: a free one.", show_default="8001")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file; docs/gateway.md names all its settings.")
    ] = None,
) -> None:
    """Serve models to the clients of any Open Inference Protocol v2 server, over REST and gRPC.

    Prints one line of JSON on stdout when ready: `{"http": "127.0.0.1:8000", "grpc": ...}`; the log
    goes to stderr. The status page is at `/`, metrics for Prometheus are at `/metrics`. SIGTERM:
    answers what is there, then exits with 0. SIGHUP: replaces each model by its bundle as it is
    now, without losing a query.

    Options win over the environment (`CODEDINV_HTTP_PORT=0`), which wins over the file.
    """
    from codedinv.cli.serve import run_serve

    options = {"host": host, "http_port": http_port, "grpc_port": grpc_port}
    run_serve(model or [], workers, options, config)


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="A bundled name or a bundle's folder; without one, lists the bundled."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what a model is: shapes, code, cost in MACs, certificates, metrics, provenance, files.

    `macs.backbone` is the work for one query (F), `macs.encoder` that for one coding group (E_k);
    E_k / F is the encoder's cost, E_k / (k F) its share per query.
    """
    from codedinv.cli.info import show_info

    show_info(model, json)


@app.command()
def evaluate(
    model: ModelOption = "fashion-mnist",
    data: DataOption = None,
    groupings: Annotated[
        int, typer.Option(min=1, help="Random partitions of the test set into coding groups.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of the groupings.")] = 0,
    task: Annotated[str | None, typer.Option(help="Head to evaluate; default: the first.")] = None,
    runtime: RuntimeOption = Runtime.auto,
    json: JsonOption = False,
    receipt: Annotated[
        Path | None, typer.Option(help="Also write the result, with device and versions, here.")
    ] = None,
) -> None:
    """Measure normal and degraded accuracy on the test set, beside what cheaper means reach.

    A_n: exact answers. A_d: degraded answers as the model's own scheme gives them, every data slot
    of a group lost in turn, against the true labels. Agreement: degraded answers equal to the exact
    one. Whole group: all k answers of a group that lost one. Controls: the light model alone, the
    head alone, a plain sum as parity query; a degraded answer that a cheaper control beats is
    marked. With 95 % intervals; docs/numbers.md defines each.

    Without the full test set, the 1,000 bundled test images are used, and said so.
    """
    from codedinv.cli.evaluate import run_evaluation

    run_evaluation(model, data, groupings, seed, task, runtime.value, json, receipt)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A bundled name or a bundle's folder.")],
    data: DataOption = None,
    groups: Annotated[
        int, typer.Option(min=60, help="Clean groups to fit on; a third as many check the fit.")
    ] = 30_000,
    rate: Annotated[float, typer.Option(help="False alarms per clean group to aim at.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Of the groups.")] = 0,
    runtime: RuntimeOption = Runtime.auto,
    json: JsonOption = False,
) -> None:
    """Teach a bundle what its clean coding groups look like, so that wrong results are found.

    Runs the model on random groups of training queries and writes consistency.safetensors into the
    bundle; its networks stay as they are. docs/verification.md says what is found and what is not.

    Exit code 1: on queries kept aside it raised more than ten times the false alarms aimed at, and
    more than 10; nothing is written.
    """
    from codedinv.cli.calibrate import run_calibration

    run_calibration(model, data, groups, rate, seed, runtime.value, json)


@export.command("bundle")
def export_bundle(
    model: Annotated[str, typer.Argument(help="A bundled name or a bundle's folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the bundle to; replaced if one.")],
    shared_weights: Annotated[
        bool,
        typer.Option(help="Let the ONNX files refer to weights.safetensors: half the size."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a model as a bundle, its ONNX files made anew from the weights and checked. Where the
    bundle has ONNX graphs alone, they are written as they are.

    Each ONNX file is self-contained (without `--shared-weights`) and can be served by any ONNX
    server: backbone.onnx takes `query` to `embedding`, encoder.onnx `queries` to `parity_queries`,
    head_TASK.onnx `embedding` to TASK; float32, any batch size. Each is compared with torch to 1e-4
    before it is written.
    """
    from codedinv.extras import require

    require("torch")
    from codedinv.cli.export import run_export

    run_export(model, out, shared_weights, json)


@export.command("triton-repo")
def export_triton_repo(
    model: Annotated[str, typer.Argument(help="A bundled name or a bundle's folder.")],
    out: Annotated[Path, typer.Argument(help="The model repository to add it to.")],
    backend: Annotated[
        TritonBackend,
        typer.Option(
            help="`python`: any Triton with its Python backend; by ONNX Runtime where that Python "
            "has it, else by NumPy. `onnxruntime`: Triton's backend of that name."
        ),
    ] = TritonBackend.python,
    name: Annotated[
        str | None, typer.Option(help="Of the model at the server; default: the bundle's.")
    ] = None,
    number: Annotated[int, typer.Option("--model-version", min=1, help="Its number.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of one worker.")] = 1,
    json: JsonOption = False,
) -> None:
    """Write a model's backbone as a folder that a Triton Inference Server serves as a worker.

    `tritonserver --model-repository OUT`, one for each worker, and
    `CodedServer(MODEL, workers=["grpc://HOST:8001", ...])` in front of them. The configuration
    carries the backbone's SHA-256, which the front end compares with its own.
    """
    from codedinv.cli.export import run_triton_export

    run_triton_export(model, out, backend.value, name, number, threads, json)


@app.command()
def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="`package.module:callable` that returns (backbone, heads), torch modules, or one "
            "module whose outputs are the classes; or an ONNX file."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="An .npz file with x_train, y_train, x_test, y_test; a folder of train.npz and "
            "test.npz; of images `train/CLASS/*.png`, `test/CLASS/*.png`; or of IDX files."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for bundle, report.json, frontier.png and checkpoints.")
    ],
    k: Annotated[str, typer.Option("--k", help="Sizes of coding groups to try.")] = "4",
    budget: Annotated[
        str, typer.Option(help="What the front end may spend, as a share of the backbone's work.")
    ] = "10%",
    weights: Annotated[
        Path | None,
        typer.Option(help="A state_dict of the trained model: .safetensors, or by torch.save."),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="Keep the best of this scheme, whatever others are worth."),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Train the model itself first, for so many epochs.")
    ] = 0,
    name: Annotated[str | None, typer.Option(help="Of the model; default: that of --out.")] = None,
    unavailable: Annotated[
        str, typer.Option(help="Share of results that do not come, at which ways are compared.")
    ] = "5%",
    light_epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the light model; default: by the data's size.")
    ] = None,
    encoder_steps: Annotated[
        int | None, typer.Option(min=1, help="Of each encoder; default: by the data's size.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    resume: ResumeOption = True,
    json: JsonOption = False,
) -> None:
    """Code a trained model of your own: try every scheme, print what each is worth, keep the best.

    Fits a light model and, for each k, an encoder; the model itself stays as it is. Measures on the
    test data what every scheme answers right, with and without failures, and what it costs. Writes
    the bundle of the cheapest that none beats measurably, which `CodedServer` and `codedinv serve`
    take as it is; that may be the advice not to code. docs/fit.md reads the table with you.

    A fit that is killed goes on when the same command is given again, at most a minute back.
    """
    from codedinv.extras import require

    require("torch")
    from codedinv.cli.fit import run_fit

    run_fit(
        model, data, k, budget, out, name=name, weights=weights, unavailable=unavailable,
        as_json=json, scheme=scheme, epochs=epochs, light_epochs=light_epochs,
        encoder_steps=encoder_steps, seed=seed, device=device, threads=threads, resume=resume,
    )  # fmt: skip


@train.command("classifier")
def train_classifier(
    recipe: RecipeOption = "fashion-mnist",
    data: DataOption = None,
    out: OutOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    resume: ResumeOption = True,
) -> None:
    """Train backbone and head, the first step; and the head alone on raw queries, their control.

    Leaves classifier.pt, its history and a plot of its curves in the folder. A run that is killed
    loses less than a minute: the same command goes on from its checkpoint.
    """
    from codedinv.cli.train import run_classifier

    run_classifier(recipe, data, out, device, threads, resume)


@train.command("light")
def train_light(
    recipe: RecipeOption = "fashion-mnist",
    data: DataOption = None,
    out: OutOption = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="Folder of the trained classifier; default: the one of --out."),
    ] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    resume: ResumeOption = True,
) -> None:
    """Distil the light model from a trained classifier, and calibrate it.

    It lies beside the classifier (light.pt). A guided recipe needs no encoder: its model is
    evaluated and its bundle written here. Other recipes go on with `codedinv train encoder`, which
    trains the light model too where it is missing.
    """
    from codedinv.cli.train import run_light

    run_light(recipe, data, out, classifier, device, threads, resume)


@train.command("encoder")
def train_encoder(
    recipe: RecipeOption = "fashion-mnist",
    data: DataOption = None,
    out: OutOption = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the trained classifier, or a bundle that has it; default: --out."
        ),
    ] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    resume: ResumeOption = True,
) -> None:
    """Train the encoder for a trained classifier, evaluate, and write the bundle.

    The bundle is the folder `bundle` in --out: `codedinv evaluate -m`, `codedinv demo -m` and
    `CodedServer` take it as it is. One classifier serves for encoders of several k.
    """
    from codedinv.cli.train import run_encoder

    run_encoder(recipe, data, out, classifier, device, threads, resume)
