"""Training: backbone and head, then the encoder of a code, from TOML recipes."""

from codedinv.training.classifier import fit_classifier, load_classifier
from codedinv.training.encoder import fit_encoder, recipe_code
from codedinv.training.recipe import Recipe, load_recipe

__all__ = [
    "Recipe",
    "fit_classifier",
    "fit_encoder",
    "load_classifier",
    "load_recipe",
    "recipe_code",
]
