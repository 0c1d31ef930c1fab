"""A small vision transformer, served without redundancy; what a dead worker held is sent again."""

import numpy as np
import torch
from models import toy, vit
from torch import nn

from codedinv import CodedModel, CodedServer


def main() -> None:
    torch.manual_seed(0)
    backbone, heads = vit.build(classes=4)
    toy.train(nn.Sequential(backbone, heads["label"]), *toy.corners(400, seed=0), steps=100)
    queries, labels = toy.corners(200, seed=1)
    model = CodedModel.from_modules(
        name="own-vit", backbone=backbone, heads=heads, anchors_queries=queries[:8]
    )

    with CodedServer(model, workers=3) as server:
        futures = [server.submit(query, deadline=30) for query in queries]
        server.pool.kill(0)  # SIGKILL, while it is at work
        answers = [future.result() for future in futures]
    guesses = np.stack([answer.outputs["label"] for answer in answers]).argmax(1)
    right = (guesses == labels.numpy()).mean()
    print(f"{model.scheme}: {len(answers)} of {len(queries)} answered, {100 * right:.0f} % right")


if __name__ == "__main__":
    main()
