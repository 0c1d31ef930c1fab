"""Training: backbone and head, the light model, then the encoder of a code, from TOML recipes."""

from codedinv.training.classifier import fit_classifier, fit_head_alone, load_classifier
from codedinv.training.encoder import fit_encoder, load_encoder, recipe_code
from codedinv.training.light import fit_light, load_light
from codedinv.training.recipe import Recipe, load_recipe

__all__ = [
    "Recipe",
    "fit_classifier",
    "fit_encoder",
    "fit_head_alone",
    "fit_light",
    "load_classifier",
    "load_encoder",
    "load_light",
    "load_recipe",
    "recipe_code",
]
