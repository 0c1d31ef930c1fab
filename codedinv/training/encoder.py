"""fit_encoder: an encoder for one code, for a backbone and heads that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.coding import Code
from codedinv.nn import Backbone, Encoder, EncoderConfig
from codedinv.training.descent import Descent
from codedinv.training.discriminator import Critic, lsgan_encoder
from codedinv.training.draws import GroupDraw, classes_of
from codedinv.training.erasures import decoded_error, erasures
from codedinv.training.fixed import FixedClassifier, mirrored_where
from codedinv.training.identity import module_print
from codedinv.training.learnt import LabelledQueries, load_training_queries, recipe_examples
from codedinv.training.loop import Training, autocast, train
from codedinv.training.measures import degraded_accuracy
from codedinv.training.recipe import EncoderRecipe, Recipe
from codedinv.training.tasks import entropy_of, loss_of, scale_of, targets_of

_SCORED = 2000  # test queries for the history; the published number is of all of them


def recipe_code(recipe: Recipe) -> Code:
    """The code of a recipe: uniform for r = 1, else a well-conditioned MDS code."""
    k, r = recipe.encoder.k, recipe.encoder.r
    return Code.uniform(k) if r == 1 else Code.mds(k, r)


def build_recipe_encoder(recipe: Recipe, backbone: Backbone) -> Encoder:
    """Makes the recipe's untrained encoder."""
    settings = recipe.encoder
    rows = tuple(tuple(row) for row in recipe_code(recipe).coefficients.tolist())
    return Encoder(
        EncoderConfig(
            input_shape=backbone.config.input_shape,
            coefficients=rows,
            patch=settings.patch,
            input_channels=settings.input_channels,
            margin=settings.margin,
            width=settings.width,
            blocks=settings.blocks,
            separable=settings.separable,
            activation=settings.activation,
        )
    )


def fit_encoder(
    recipe: Recipe,
    backbone: Backbone,
    head: nn.Module,
    out: Path,
    data: Path | None = None,
    device: str = "cpu",
    resume: bool = True,
    light: nn.Module | None = None,
    cache: Path | None = None,
) -> Encoder:
    """Trains an encoder for the recipe's code; the losses are those of `EncoderLosses`.

    Args:
        recipe: see Recipe.
        backbone, head: trained by fit_classifier; left as they are, so one classifier serves every
            code, and A_n cannot be sold for A_d.
        out: folder for `encoder.pt`, history, plot and checkpoints.
        data: folder of the data set (None: where the system keeps it).
        device: "cpu" or "cuda".
        resume: False starts afresh.
        light: says which queries are alike; None: their labels do.
        cache: file for the embeddings of the training queries, see FixedClassifier.embeddings.

    Returns:
        The encoder, eval mode.

    Source: paper sections 3.2 (semantic loss) and 4.1.
    """
    target = torch.device(device)
    torch.manual_seed(recipe.seed + 1)
    learnt, _ = load_training_queries(recipe, data, target)
    test = recipe_examples(recipe, data, "test").part(slice(_SCORED))
    fixed = FixedClassifier.of(backbone, head, target)
    encoder, code = build_recipe_encoder(recipe, backbone), recipe_code(recipe)
    classes = learnt.labels if light is None else classes_of(light, learnt, target)
    losses = EncoderLosses(fixed, encoder.to(target), code, recipe.encoder, learnt, classes, cache)
    training = encoder_training(
        losses,
        title="encoder",
        seed=recipe.seed,
        evaluate=lambda: degraded_accuracy(fixed.backbone, fixed.head, encoder, code, test),
        about={"light": None if light is None else module_print(light)},
    )
    state = train(training, out, resume)
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "encoder": encoder.state_dict(),
            "metrics": state.history[-1],
            "seconds": state.seconds,
        },
        out / "encoder.pt",
    )
    return encoder.eval()


def encoder_training(
    losses: EncoderLosses,
    *,
    title: str,
    seed: int,
    evaluate: Any,
    about: Mapping[str, Any],
) -> Training:
    """The training of an encoder, for the loop.

    Args:
        losses: made for the encoder; torch's generator must have been seeded before.
        title: of its progress.
        seed: of the erasure patterns.
        evaluate: returns named numbers for the history.
        about: whatever else a resumed training must agree in.
    """
    settings, encoder = losses.settings, losses.encoder
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = Critic(losses.learnt.inputs.shape[1], losses.device) if settings.gan else None
    descent = Descent.one_cycle(encoder.parameters(), settings.steps, settings.learning_rate)

    def step(number: int) -> Mapping[str, Tensor]:
        encoder.train()
        named, ideal, parities = losses(np.random.default_rng(number + seed))
        if critic is not None:
            named["gan"] = settings.gan * lsgan_encoder(critic.discriminator, parities)
        descent.step(torch.stack(list(named.values())).sum())
        if critic is not None and ideal is not None:
            critic.step(ideal, parities.detach())
        return named

    return Training(
        name="encoder",
        title=title,
        steps=settings.steps,
        step=step,
        evaluate=evaluate,
        evaluate_every=max(1, settings.steps // 4),
        modules={
            "encoder": encoder,
            **({} if critic is None else {"discriminator": critic.discriminator}),
        },
        optimizers=[descent.optimizer, *([] if critic is None else [critic.optimizer])],
        schedulers=[descent.schedule],
        identity={
            "encoder": settings.model_dump(mode="json"),
            "code": losses.code.coefficients.tolist(),
            "seed": seed,
            "data": losses.learnt.print(),
            "classifier": module_print(losses.fixed.backbone) + module_print(losses.fixed.head),
            **about,
        },
    )


class EncoderLosses:
    """Losses of an encoder on groups that are drawn afresh at each step, a share of them alike.

    With e = f(parity) - C f(x) and the decoded embeddings z_hat = f(x) + decode(e), the losses are

    - latent: mean |z_hat - z|^2 over the variance of z;
    - distillation: KL(g(z_hat) || g(z)), and for a task of one number the squared error over its
      variance, summed over the tasks;
    - label: cross entropy of g(z_hat) with the label;
    - l1: mean |parity - f^-1(C f(x))|, the target by inversion; gan: least-squares GAN on the
      same target (the paper trains with gan = 1, l1 = 100).

    Args:
        fixed: f and g.
        encoder: on their device.
        code: it is for.
        settings: draws and weights of the losses.
        learnt: queries to draw from.
        classes: int64 [N], which decide which of them are alike.
        cache: file for their embeddings.
        tasks: outputs of each task; None: there is one.
    """

    def __init__(
        self,
        fixed: FixedClassifier,
        encoder: nn.Module,
        code: Code,
        settings: EncoderRecipe,
        learnt: LabelledQueries,
        classes: Tensor,
        cache: Path | None = None,
        tasks: list[int] | None = None,
    ) -> None:
        self.fixed = fixed
        self.encoder = encoder
        self.code = code
        self.settings = settings
        self.learnt = learnt
        self.device = learnt.inputs.device
        self._views = 2 if settings.flip and learnt.inputs.ndim == 4 else 1
        self._embeddings = fixed.embeddings(learnt, cache, self._views)
        self._variance = self._embeddings[0].var()
        answers = fixed.logits(self._embeddings)
        self._tasks = [answers.shape[2]] if tasks is None else tasks
        self._answers = targets_of(answers, self._tasks)
        self._scale = scale_of(self._answers)
        self._draw = GroupDraw(classes, code.k, settings.alike)
        self._coefficients = torch.tensor(
            code.coefficients, dtype=torch.float32, device=self.device
        )

    def __call__(
        self, generator: np.random.Generator
    ) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
        """Losses by name, ideal parity queries [G r, *input] if they were asked for, and ours."""
        picked = self._draw(self.settings.groups_per_step)
        view = torch.randint(self._views, picked.shape, device=self.device)
        x = mirrored_where(self.learnt.queries(picked.flatten()), view.flatten())
        exact = self._embeddings[view, picked]
        with autocast(self.device, self.settings.autocast):
            parities = self.encoder(x.reshape(*picked.shape, *x.shape[1:])).float()
            answered = self.fixed.backbone(parities.flatten(0, 1)).float()
        wanted = torch.einsum("rk,gk...->gr...", self._coefficients, exact)
        error = answered.reshape(wanted.shape) - wanted
        losses = self._decoded_losses(
            exact,
            error,
            self._answers[view, picked],
            self.learnt.labels[picked],
            generator,
        )
        flat, ideal = parities.flatten(0, 1), None
        if self.settings.l1 or self.settings.gan:
            ideal = self._ideal_parities(wanted.flatten(0, 1))
            losses["l1"] = self.settings.l1 * (flat - ideal).abs().mean()
        return losses, ideal, flat

    def _decoded_losses(
        self,
        exact: Tensor,
        error: Tensor,
        answers: Tensor,
        labels: Tensor,
        generator: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Losses in the embedding and after the head.

        exact: [G, k, *embedding]; error: [G, r, *embedding]; answers: [G, k, outputs];
        labels: [G, k].
        """
        patterns = erasures(self.code, generator)
        shifts = [decoded_error(error, erasure) for erasure in patterns]
        lost = [list(erasure.missing) for erasure in patterns]
        pairs = list(zip(lost, shifts, strict=True))
        decoded = torch.cat([(exact[:, slots] + shift).flatten(0, 1) for slots, shift in pairs])
        squares = torch.stack([shift.square().mean() for shift in shifts])
        losses = {"latent": self.settings.latent * squares.mean() / self._variance}
        logits = self.fixed.head(decoded)
        if self.settings.distillation:
            wanted = torch.cat([answers[:, slots].flatten(0, 1) for slots in lost])
            losses["distillation"] = self.settings.distillation * (
                loss_of(logits, wanted, self._tasks, self._scale) - entropy_of(wanted, self._tasks)
            )
        if self.settings.label:
            truths = torch.cat([labels[:, slots].flatten() for slots in lost])
            own = logits[:, : self._tasks[0]]
            losses["label"] = self.settings.label * F.cross_entropy(own, truths)
        return losses

    def _ideal_parities(self, wanted: Tensor) -> Tensor:
        """The parity queries [G r, C, H, W] whose embeddings are the wanted ones, by inversion."""
        invert = getattr(self.fixed.backbone, "inverse", None)
        if invert is None:
            raise ValueError("l1, gan: the backbone has no inverse, so there is no target for them")
        ideal: Tensor = invert(wanted, tol=1e-4)[0]
        return ideal


def load_encoder(recipe: Recipe, backbone: Backbone, path: Path) -> Encoder:
    """Reads what fit_encoder left."""
    encoder = build_recipe_encoder(recipe, backbone)
    encoder.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["encoder"])
    return encoder.eval()
