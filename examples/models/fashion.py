"""A pre-activation ResNet of 9 MMAC for 1x28x28 images, and a linear head."""

from torch import nn

from codedinv.nn import build_backbone, build_head


def build(classes: int = 10) -> tuple[nn.Module, nn.Module]:
    """Backbone and head."""
    stages = [{"blocks": 2, "width": 26, "stride": 2}, {"blocks": 2, "width": 52, "stride": 2}]
    backbone = build_backbone(
        {
            "kind": "resnet",
            "input_shape": [1, 28, 28],
            "mean": [0.286],
            "std": [0.353],
            "stem": 18,
            "stages": stages,
        }
    )
    shape = list(backbone.embedding_shape)
    return backbone, build_head({"kind": "linear", "embedding_shape": shape, "outputs": classes})
