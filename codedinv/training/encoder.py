"""fit_encoder: an encoder for one code, alone or with backbone and head learning along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codedinv.coding import Code
from codedinv.data import load_image_set, to_queries
from codedinv.nn import Encoder, EncoderConfig, IResNet
from codedinv.training.discriminator import Discriminator, lsgan_discriminator, lsgan_encoder
from codedinv.training.erasures import decoded_error, erasures
from codedinv.training.loop import Run, autocast, run_to
from codedinv.training.recipe import EncoderRecipe, Recipe


def recipe_code(recipe: Recipe) -> Code:
    """The code of a recipe: uniform for r = 1, else a well-conditioned MDS code."""
    k, r = recipe.encoder.k, recipe.encoder.r
    return Code.uniform(k) if r == 1 else Code.mds(k, r)


def build_recipe_encoder(recipe: Recipe, backbone: IResNet) -> Encoder:
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
    backbone: IResNet,
    head: nn.Module,
    out: Path,
    data: Path | None = None,
    device: str = "cpu",
    resume: bool = True,
) -> Encoder:
    """Trains an encoder for the recipe's code; backbone and head learn along if it says so.

    Each step draws fresh groups of k training queries. With e = f(parity) - C f(x) and the decoded
    embeddings z_hat = f(x) + decode(e), the loss is the weighted sum of

    - latent: mean |z_hat - z|^2;
    - distillation: KL(g(z_hat) || g(z)), z held fixed;
    - label: cross entropy of g(z_hat) with the label;
    - l1: mean |parity - f^-1(C f(x))|, the target by inversion; gan: least-squares GAN on the
      same target (the paper trains with gan = 1, l1 = 100);
    - with co-training, the cross entropy of g(z) with the label, so that exact answers stay right.

    A co-training label is `teacher` parts the answer of the classifier as it was given and
    1 - `teacher` parts the true one: the former was learnt with Mixup and generalises, while the
    true labels alone would be learnt by heart.

    Args:
        recipe: see Recipe.
        backbone, head: trained by fit_classifier; changed in place where co-trained.
        out: folder for `encoder.pt`, history, plot and checkpoints.
        data: folder of the data set (None: where the system keeps it).
        device: "cpu" or "cuda".
        resume: False starts afresh.

    Returns:
        The encoder, eval mode.

    Source: paper sections 3.2 ("co-train", semantic loss) and 4.1.
    """
    settings = recipe.encoder
    target = torch.device(device)
    torch.manual_seed(recipe.seed + 1)
    code = recipe_code(recipe)
    images, labels = (torch.tensor(a) for a in load_image_set(recipe.data, "train", data))
    images, labels = images.to(target), labels.to(target)
    test_images, test_labels = load_image_set(recipe.data, "test", data)
    encoder = build_recipe_encoder(recipe, backbone)
    backbone.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = settings.teacher if settings.cotrain else 0.0
    answers = _answers(backbone, head.to(target), images, labels, teacher)
    discriminator = Discriminator(backbone.config.input_shape[0])
    for module in (backbone, head, encoder, discriminator):
        module.to(target)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learners: dict[str, nn.Module] = {"backbone": backbone, "head": head}
    cotrained = [learners[name] for name in settings.cotrain]
    for module in learners.values():
        module.requires_grad_(any(module is learner for learner in cotrained))
    moving_backbone = any(module is backbone for module in cotrained)

    optimizer = torch.optim.AdamW(
        [
            {
                "params": list(encoder.parameters()),
                "lr": settings.learning_rate,
                "weight_decay": 0.0,
            },
            *(
                {
                    "params": list(module.parameters()),
                    "lr": settings.cotrain_learning_rate,
                    "weight_decay": settings.cotrain_weight_decay,
                }
                for module in cotrained
            ),
        ],
        betas=(0.9, 0.99),
        fused=True,
    )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, settings.steps, pct_start=0.15, div_factor=10, final_div_factor=100
    )
    critic = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.0, 0.9))
    run = Run(
        {"backbone": backbone, "head": head, "encoder": encoder, "discriminator": discriminator},
        [optimizer, critic],
        [schedule],
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    coefficients = torch.tensor(code.coefficients, dtype=torch.float32, device=target)
    cache = None if moving_backbone else _of_all(backbone.eval(), images)

    def step(number: int) -> Mapping[str, float | Tensor]:
        encoder.train()
        for module in (backbone, head):
            module.train(any(module is learner for learner in cotrained))
        groups = settings.groups_per_step
        picked = torch.randint(len(images), (groups * code.k,)).to(target)
        mirrored = torch.rand(len(picked)) < (0.5 if settings.flip else 0.0)
        view = mirrored.long().to(target)
        x = images[picked].unsqueeze(1).float() / 255
        x = torch.where(view[:, None, None, None] == 1, x.flip(3), x)
        y = answers[view, picked].reshape(groups, code.k, -1)
        queries = x.reshape(groups, code.k, *x.shape[1:])
        with autocast(target, settings.autocast):
            parities = encoder(queries).float()
            flat = parities.flatten(0, 1)
            if cache is None:
                both = backbone(torch.cat([x, flat])).float()
                exact, answered = both[: len(x)], both[len(x) :]
            else:
                exact, answered = cache[view, picked], backbone(flat).float()
        exact = exact.reshape(groups, code.k, *exact.shape[1:])
        wanted = torch.einsum("rk,gk...->gr...", coefficients, exact)
        error = answered.reshape(wanted.shape) - wanted
        losses = _losses(settings, code, head, exact, error, y, number + recipe.seed, cotrained)
        if settings.l1 or settings.gan:
            backbone.eval()
            ideal, _ = backbone.inverse(wanted.detach().flatten(0, 1), tol=1e-4)
            losses["l1"] = settings.l1 * (flat - ideal).abs().mean()
            if settings.gan:
                losses["gan"] = settings.gan * lsgan_encoder(discriminator, flat)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        schedule.step()
        if settings.gan:
            critic.zero_grad()
            lsgan_discriminator(discriminator, ideal, flat.detach()).backward()  # type: ignore[no-untyped-call]
            critic.step()
        return losses

    def evaluate() -> Mapping[str, float]:
        return degraded_accuracy(backbone, head, encoder, code, test_images, test_labels)

    every = max(1, min(250, settings.steps // 4))
    run_to(run, settings.steps, step, evaluate, every, out, "encoder", resume)
    for module in (backbone, head, encoder):
        module.requires_grad_(True).eval()
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "backbone": backbone.state_dict(),
            "head": head.state_dict(),
            "encoder": encoder.state_dict(),
            "metrics": run.history[-1],
            "seconds": run.seconds,
        },
        out / "encoder.pt",
    )
    return encoder


def _losses(
    settings: EncoderRecipe,
    code: Code,
    head: nn.Module,
    exact: Tensor,
    error: Tensor,
    labels: Tensor,
    seed: int,
    cotrained: list[nn.Module],
) -> dict[str, Tensor]:
    """Losses in the embedding and after the head.

    exact: [G, k, *embedding]; error: [G, r, *embedding]; labels: [G, k, classes], probabilities.
    """
    groups = exact.shape[0] * exact.shape[1]
    patterns = erasures(code, np.random.default_rng(seed))
    shifts = [decoded_error(error, erasure) for erasure in patterns]
    decoded = torch.cat(
        [
            (exact[:, list(erasure.missing)] + shift).flatten(0, 1)
            for erasure, shift in zip(patterns, shifts, strict=True)
        ]
    )
    losses = {
        "latent": settings.latent * torch.stack([shift.square().mean() for shift in shifts]).mean()
    }
    # One call for exact and decoded: batch statistics of a co-trained head then cover both.
    logits = head(torch.cat([exact.flatten(0, 1), decoded]))
    exact_logits, decoded_logits = logits[:groups], logits[groups:]
    if cotrained:
        losses["exact"] = F.cross_entropy(exact_logits, labels.flatten(0, 1))
    if settings.label:
        truths = torch.cat([labels[:, list(erasure.missing)].flatten(0, 1) for erasure in patterns])
        losses["label"] = settings.label * F.cross_entropy(decoded_logits, truths)
    if settings.distillation:
        by_slot = F.log_softmax(exact_logits.detach(), 1).reshape(*exact.shape[:2], -1)
        wanted = torch.cat(
            [by_slot[:, list(erasure.missing)].flatten(0, 1) for erasure in patterns]
        )
        losses["distillation"] = settings.distillation * F.kl_div(
            F.log_softmax(decoded_logits, 1), wanted, log_target=True, reduction="batchmean"
        )
    return losses


@torch.no_grad()
def _of_all(module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """[2, N, ...]: what a fixed module makes of all training queries, and of their mirrors."""
    return torch.stack(
        [
            torch.cat([module(part.unsqueeze(1).float() / 255) for part in torch.split(view, 1000)])
            for view in (images, images.flip(2))
        ]
    )


def _answers(
    backbone: nn.Module, head: nn.Module, images: Tensor, labels: Tensor, teacher: float
) -> Tensor:
    """[2, N, classes]: labels of all training queries, and of their mirrors, as probabilities."""
    true = F.one_hot(labels).float().expand(2, -1, -1)
    if teacher == 0:
        return true
    backbone.eval()
    head.eval()
    return torch.lerp(true, _of_all(lambda x: head(backbone(x)).softmax(1), images), teacher)


@torch.no_grad()
def degraded_accuracy(
    backbone: nn.Module,
    head: nn.Module,
    encoder: nn.Module,
    code: Code,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> dict[str, float]:
    """A_n and A_d in percent on one grouping: the number to watch while training.

    The published one, with intervals, is `codedinv evaluate`'s.
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
