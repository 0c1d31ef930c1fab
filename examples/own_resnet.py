"""A ResNet of one's own with a light model: trained, saved, served through a dead worker.

The scheme is "guided": copies of those queries that the light model is least sure of.
"""

import tempfile

import numpy as np
import torch
from models import resnet, toy
from torch import nn

from codedinv import CodedModel, CodedServer


def main() -> None:
    torch.manual_seed(0)
    x, y = toy.corners(400, seed=0)
    backbone, heads = resnet.build(classes=4)
    toy.train(nn.Sequential(backbone, heads["label"]), x, y)
    light = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 4))
    toy.train(light, x, y, steps=200)

    model = CodedModel.from_modules(
        name="own-resnet", backbone=backbone, heads=heads, light=light, anchors_queries=x[:8],
        input_range=(0.0, 1.0), metadata={"provenance": {"data_set": "corners"}},
        architecture={"backbone": "models.resnet:Backbone"},
    )  # fmt: skip
    folder = model.save(tempfile.mkdtemp(prefix="own-resnet-") + "/bundle")

    queries, labels = (array.numpy() for array in toy.corners(200, seed=1))
    with CodedServer(folder) as server:
        futures = [server.submit(query, deadline=30) for query in queries]
        server.pool.kill(0)  # SIGKILL, while it is at work
        answers = [future.result() for future in futures]
    right = np.mean(
        [a.outputs["label"].argmax() == y for a, y in zip(answers, labels, strict=True)]
    )
    print(f"{model.scheme}: {len(answers)} of {len(queries)} answered, {100 * right:.0f} % right")


if __name__ == "__main__":
    main()
