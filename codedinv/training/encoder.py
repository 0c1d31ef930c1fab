"""fit_encoder: an encoder for one code, for a backbone and head that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codedinv.coding import Code
from codedinv.data import load_image_set, to_queries
from codedinv.nn import Backbone, Encoder, EncoderConfig
from codedinv.training.descent import Descent
from codedinv.training.discriminator import Discriminator, lsgan_discriminator, lsgan_encoder
from codedinv.training.draws import GroupDraw, classes_of
from codedinv.training.erasures import decoded_error, erasures
from codedinv.training.fixed import FixedClassifier, mirrored_where
from codedinv.training.images import load_training_images
from codedinv.training.loop import Run, autocast, run_to
from codedinv.training.recipe import Recipe

_SCORED = 2000  # test images for the history; the published number is of all of them


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
            width=settings.width,
            blocks=settings.blocks,
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
    """Trains an encoder for the recipe's code.

    Each step draws fresh groups of k training queries, a share of them alike. With
    e = f(parity) - C f(x) and the decoded embeddings z_hat = f(x) + decode(e), the loss is the
    weighted sum of

    - latent: mean |z_hat - z|^2 over the variance of z;
    - distillation: KL(g(z_hat) || g(z));
    - label: cross entropy of g(z_hat) with the label;
    - l1: mean |parity - f^-1(C f(x))|, the target by inversion; gan: least-squares GAN on the
      same target (the paper trains with gan = 1, l1 = 100).

    Args:
        recipe: see Recipe.
        backbone, head: trained by fit_classifier; left as they are, so one classifier serves every
            code, and A_n cannot be sold for A_d.
        out: folder for `encoder.pt`, history, plot and checkpoints.
        data: folder of the data set (None: where the system keeps it).
        device: "cpu" or "cuda".
        resume: False starts afresh.
        light: says which queries are alike; None: their labels do.
        cache: file for the embeddings of the training images, see FixedClassifier.embeddings.

    Returns:
        The encoder, eval mode.

    Source: paper sections 3.2 (semantic loss) and 4.1.
    """
    settings = recipe.encoder
    target = torch.device(device)
    torch.manual_seed(recipe.seed + 1)
    training = _EncoderTraining(recipe, backbone, head, data, target, light, cache)
    images, labels = load_image_set(recipe.data, "test", data)
    fixed, code = training.fixed, training.code

    def evaluate() -> Mapping[str, float]:
        scored = images[:_SCORED], labels[:_SCORED]
        return degraded_accuracy(fixed.backbone, fixed.head, training.encoder, code, *scored)

    every = max(1, settings.steps // 4)
    run_to(training.run, settings.steps, training.step, evaluate, every, out, "encoder", resume)
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "encoder": training.encoder.state_dict(),
            "metrics": training.run.history[-1],
            "seconds": training.run.seconds,
        },
        out / "encoder.pt",
    )
    return training.encoder.eval()


class _EncoderTraining:
    """What one training of an encoder holds, and its step."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        head: nn.Module,
        data: Path | None,
        device: torch.device,
        light: nn.Module | None,
        cache: Path | None,
    ) -> None:
        self.settings = recipe.encoder
        self.seed = recipe.seed
        self.device = device
        self.code = recipe_code(recipe)
        self.learnt, _ = load_training_images(recipe, data, device)
        self.fixed = FixedClassifier.of(backbone, head, device)
        self.encoder = build_recipe_encoder(recipe, backbone).to(device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.critic = _Critic(backbone.config.input_shape[0], device)
        self.descent = Descent.one_cycle(
            self.encoder.parameters(), self.settings.steps, self.settings.learning_rate
        )
        self.run = Run(
            {"encoder": self.encoder, "discriminator": self.critic.discriminator},
            [self.descent.optimizer, self.critic.optimizer],
            [self.descent.schedule],
        )
        self.embeddings = self.fixed.embeddings(self.learnt, cache)
        self.variance = self.embeddings[0].var()
        self.log_answers = F.log_softmax(self.fixed.logits(self.embeddings), 2)
        classes = self.learnt.labels if light is None else classes_of(light, self.learnt, device)
        self.draw = GroupDraw(classes, self.code.k, self.settings.alike)
        self.coefficients = torch.tensor(self.code.coefficients, dtype=torch.float32, device=device)

    def step(self, number: int) -> Mapping[str, Tensor]:
        """One optimizer step on fresh groups; returns the losses by name."""
        self.encoder.train()
        picked = self.draw(self.settings.groups_per_step)
        views = 2 if self.settings.flip else 1
        view = torch.randint(views, picked.shape, device=self.device)
        x = mirrored_where(self.learnt.queries(picked.flatten()), view.flatten())
        exact = self.embeddings[view, picked]
        with autocast(self.device, self.settings.autocast):
            parities = self.encoder(x.reshape(*picked.shape, *x.shape[1:])).float()
            answered = self.fixed.backbone(parities.flatten(0, 1)).float()
        wanted = torch.einsum("rk,gk...->gr...", self.coefficients, exact)
        error = answered.reshape(wanted.shape) - wanted
        losses = self._decoded_losses(
            exact, error, self.log_answers[view, picked], self.learnt.labels[picked], number
        )
        flat = parities.flatten(0, 1)
        if self.settings.l1 or self.settings.gan:
            ideal = self._ideal_parities(wanted.flatten(0, 1))
            losses |= self._pixel_losses(ideal, flat)
        self.descent.step(torch.stack(list(losses.values())).sum())
        if self.settings.gan:
            self.critic.step(ideal, flat.detach())
        return losses

    def _decoded_losses(
        self, exact: Tensor, error: Tensor, log_answers: Tensor, labels: Tensor, number: int
    ) -> dict[str, Tensor]:
        """Losses in the embedding and after the head.

        exact: [G, k, *embedding]; error: [G, r, *embedding]; log_answers: [G, k, outputs];
        labels: [G, k].
        """
        patterns = erasures(self.code, np.random.default_rng(number + self.seed))
        shifts = [decoded_error(error, erasure) for erasure in patterns]
        lost = [list(erasure.missing) for erasure in patterns]
        pairs = list(zip(lost, shifts, strict=True))
        decoded = torch.cat([(exact[:, slots] + shift).flatten(0, 1) for slots, shift in pairs])
        squares = torch.stack([shift.square().mean() for shift in shifts])
        losses = {"latent": self.settings.latent * squares.mean() / self.variance}
        logits = self.fixed.head(decoded)
        if self.settings.distillation:
            answers = torch.cat([log_answers[:, slots].flatten(0, 1) for slots in lost])
            losses["distillation"] = self.settings.distillation * F.kl_div(
                F.log_softmax(logits, 1), answers, log_target=True, reduction="batchmean"
            )
        if self.settings.label:
            truths = torch.cat([labels[:, slots].flatten() for slots in lost])
            losses["label"] = self.settings.label * F.cross_entropy(logits, truths)
        return losses

    def _ideal_parities(self, wanted: Tensor) -> Tensor:
        """The parity queries [G r, C, H, W] whose embeddings are the wanted ones, by inversion."""
        invert = getattr(self.fixed.backbone, "inverse", None)
        if invert is None:
            raise ValueError("l1, gan: the backbone has no inverse, so there is no target for them")
        ideal: Tensor = invert(wanted, tol=1e-4)[0]
        return ideal

    def _pixel_losses(self, ideal: Tensor, parities: Tensor) -> dict[str, Tensor]:
        """Distance of parity queries [G r, C, H, W] from the ideal ones."""
        losses = {"l1": self.settings.l1 * (parities - ideal).abs().mean()}
        if self.settings.gan:
            judged = lsgan_encoder(self.critic.discriminator, parities)
            losses["gan"] = self.settings.gan * judged
        return losses


class _Critic:
    """The discriminator of the GAN loss and its optimizer."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.discriminator = Discriminator(channels).to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=2e-4, betas=(0.0, 0.9)
        )

    def step(self, ideal: Tensor, parities: Tensor) -> None:
        self.optimizer.zero_grad()
        lsgan_discriminator(self.discriminator, ideal, parities).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def load_encoder(recipe: Recipe, backbone: Backbone, path: Path) -> Encoder:
    """Reads what fit_encoder left."""
    encoder = build_recipe_encoder(recipe, backbone)
    encoder.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["encoder"])
    return encoder.eval()


@torch.no_grad()
def degraded_accuracy(
    backbone: nn.Module,
    head: nn.Module,
    encoder: nn.Module,
    code: Code,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> dict[str, float]:
    """A_n and A_d (percent) over one random grouping, for the training history.

    With r = 1 every slot is lost in turn; with r > 1 a fixed sample of patterns. The published
    number, over several groupings and with intervals, is `codedinv evaluate`'s.
    """
    for module in (backbone, head, encoder):
        module.eval()
    device = next(backbone.parameters()).device
    groups = len(images) // code.k
    order = np.random.default_rng(0).permutation(len(images))[: groups * code.k]
    coefficients = torch.tensor(code.coefficients, dtype=torch.float32, device=device)
    right = decoded_right = decoded_count = 0
    patterns = erasures(code, np.random.default_rng(0))
    for part in np.array_split(order.reshape(groups, code.k), max(1, groups * code.k // 1000)):
        x = torch.from_numpy(to_queries(images[part.ravel()])).to(device)
        y = torch.from_numpy(labels[part]).to(device)
        exact = backbone(x)
        right += int((head(exact).argmax(1) == y.flatten()).sum())
        exact = exact.reshape(len(part), code.k, *exact.shape[1:])
        parities = encoder(x.reshape(len(part), code.k, *x.shape[1:]))
        wanted = torch.einsum("rk,gk...->gr...", coefficients, exact)
        error = backbone(parities.flatten(0, 1)).reshape(wanted.shape) - wanted
        for erasure in patterns:
            missing = list(erasure.missing)
            decoded = exact[:, missing] + decoded_error(error, erasure)
            answers = head(decoded.flatten(0, 1)).argmax(1)
            decoded_right += int((answers == y[:, missing].flatten()).sum())
            decoded_count += answers.numel()
    return {
        "normal_accuracy": 100.0 * right / order.size,
        "degraded_accuracy": 100.0 * decoded_right / decoded_count,
    }
