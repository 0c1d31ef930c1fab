"""A recipe: everything that decides a training run, read from one TOML file."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from codedinv.model.names import check_name
from codedinv.training.recipe_checks import check_backbone, check_head, explained


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifierRecipe(_Section):
    """Training of backbone and head.

    Attributes:
        epochs, batch_size, learning_rate, weight_decay: AdamW with a one-cycle schedule.
        mixup_share: share of steps that use Manifold Mixup (the paper: 1).
        mixup_alpha: parameter of its Beta distribution (the paper: 1).
        label_smoothing: of the cross entropy.
        flip: random horizontal flips.
        shift: random shifts by at most this many pixels each way.
        erase: side of a square that is blanked in half of the images (0: none).
        teacher: name or folder of a bundle whose answers are mixed into the labels; none: "".
        distillation: the teacher's share of the targets.
        autocast: bfloat16 autocast.
    """

    epochs: int = Field(20, gt=0)
    batch_size: int = Field(128, gt=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    mixup_share: float = Field(1.0, ge=0, le=1)
    mixup_alpha: float = Field(1.0, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    flip: bool = True
    shift: int = Field(0, ge=0)
    erase: int = Field(0, ge=0)
    teacher: str = ""
    distillation: float = Field(0.5, ge=0, le=1)
    autocast: bool = True


class LightRecipe(_Section):
    """The light model at the front end, distilled from the classifier.

    Attributes:
        budget: its multiply-accumulates over the backbone's, at most.
        epochs, batch_size, learning_rate, weight_decay: AdamW with a one-cycle schedule.
        teacher: name or folder of the bundle that it is distilled from; "": the classifier itself.
        distillation: the teacher's share of the targets; the rest is the label.
        flip, shift, erase: as for the classifier.
        autocast: bfloat16 autocast.
    """

    budget: float = Field(0.05, gt=0, lt=1)
    epochs: int = Field(20, gt=0)
    batch_size: int = Field(128, gt=1)
    learning_rate: float = Field(8e-3, gt=0)
    weight_decay: float = Field(5e-3, ge=0)
    teacher: str = ""
    distillation: float = Field(0.5, ge=0, le=1)
    flip: bool = True
    shift: int = Field(1, ge=0)
    erase: int = Field(0, ge=0)
    autocast: bool = False


class EncoderRecipe(_Section):
    """Architecture and training of the encoder for one code; backbone and head stay as they are.

    Attributes:
        k, r: the code; r = 1 is Code.uniform(k), r > 1 Code.mds(k, r).
        patch, input_channels, margin, width, blocks, separable, activation: see
            nn.encoder.EncoderConfig.
        steps, groups_per_step: each step draws this many fresh groups of k training queries.
        alike: share of the groups whose queries have one class by the light model (by the labels
            where there is none). Train as you group: 0 for queries grouped as they arrive.
        learning_rate: Adam with a one-cycle schedule.
        latent, distillation, label, l1, gan: weights of the losses (see training.encoder).
        flip: random horizontal flips.
        autocast: bfloat16 autocast.
    """

    k: int = Field(4, gt=1)
    r: int = Field(1, gt=0)
    patch: int = Field(4, gt=0)
    input_channels: int = Field(8, gt=0)
    margin: int | None = Field(None, ge=0)
    width: int = Field(32, gt=0)
    blocks: int = Field(2, ge=0)
    separable: bool = False
    activation: Literal["elu", "silu"] = "elu"
    steps: int = Field(4000, gt=0)
    groups_per_step: int = Field(64, gt=0)
    alike: float = Field(0.5, ge=0, le=1)
    learning_rate: float = Field(3e-3, gt=0)
    latent: float = Field(0.3, ge=0)
    distillation: float = Field(1.0, ge=0)
    label: float = Field(0.0, ge=0)
    l1: float = Field(0.0, ge=0)
    gan: float = Field(0.0, ge=0)
    flip: bool = True
    autocast: bool = True


class Recipe(_Section):
    """One model: data, backbone, head, how each is trained.

    Attributes:
        name: name of the bundle: letters, digits, '.', '-' and '_'.
        data: "fashion-mnist" or "mnist", what is learnt where no folder is given.
        seed: of everything random.
        held_out: share of the training images that no network learns from (see training.images).
        backbone: `kind` ("iresnet", the default, or "resnet") and the fields of its config.
        head: arguments of nn.build_head without the shapes.
        scheme: "invertible" (coded, encoded at the front end), "worker-encoded" (coded, encoded at
            the parity worker) or "guided" (duplicates of the least sure queries: needs [light],
            trains no encoder).
        classifier, light, encoder: see their classes; without [light] there is no light model.
        anchors: number of stored queries that may fill the free slots of a partial group.
    """

    name: str
    data: Literal["fashion-mnist", "mnist"] = "fashion-mnist"
    seed: int = 0
    held_out: float = Field(0.05, ge=0, lt=1)
    backbone: dict[str, Any]
    head: dict[str, Any]
    scheme: Literal["invertible", "worker-encoded", "guided"] = "invertible"
    classifier: ClassifierRecipe
    light: LightRecipe | None = None
    encoder: EncoderRecipe
    anchors: int = Field(16, gt=0)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        check_name(name)
        return name


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads a bundled recipe by name, or any recipe by the path of its TOML file.

    Raises:
        ValueError: no such recipe, broken TOML, or a field that is unknown or out of range; the
            message names the field, what was expected and what came.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"recipe: no file {path}")
        text = path.read_text()
    else:
        folder = resources.files("codedinv.training") / "recipes"
        names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
        if str(name_or_path) not in names:
            raise ValueError(
                f"recipe: expected one of {', '.join(names)} or the path of a .toml file, "
                f"got {str(name_or_path)!r}"
            )
        text = (folder / f"{name_or_path}.toml").read_text()
    try:
        recipe = Recipe.model_validate(tomllib.loads(text))
        check_backbone(recipe.backbone)
        check_head(recipe.head)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name_or_path}: not TOML ({error})") from error
    except ValidationError as error:
        raise ValueError(f"recipe {name_or_path}: {explained(error, Recipe)}") from None
    except ValueError as error:
        raise ValueError(f"recipe {name_or_path}: {error}") from None
    return recipe
