"""scikit-learn's wines: a perceptron with two tasks, a class and a number, every query sent twice.

pip install scikit-learn
"""

import numpy as np
import torch
from models import mlp
from sklearn.datasets import load_wine
from torch import nn

from codedinv import CodedModel, CodedServer


def main() -> None:
    torch.manual_seed(0)
    columns, cultivar = load_wine(return_X_y=True)
    alcohol = torch.tensor(columns[:, :1], dtype=torch.float32)
    x = torch.tensor(columns[:, 1:], dtype=torch.float32)  # alcohol is what is to be predicted
    y = torch.tensor(cultivar)
    backbone, heads = mlp.build(columns=12, classes=3)
    backbone.fit_scale(x)
    optimizer = torch.optim.Adam([*backbone.parameters(), *heads["label"].parameters(),
                                  *heads["alcohol"].parameters()], 1e-2)  # fmt: skip
    for _ in range(300):
        z = backbone(x)
        loss = nn.functional.cross_entropy(heads["label"](z), y)
        loss = loss + nn.functional.mse_loss(heads["alcohol"](z), alcohol)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = CodedModel.from_modules(
        name="own-wines", backbone=backbone, heads=heads, anchors_queries=x[:8],
        scheme="replication",
    )  # fmt: skip

    with CodedServer(model, workers=3) as server:
        futures = [server.submit(row, deadline=30) for row in x]
        server.pool.kill(0)  # SIGKILL, while it is at work
        answers = [future.result() for future in futures]
    right = np.mean(
        [a.outputs["label"].argmax() == c for a, c in zip(answers, cultivar, strict=True)]
    )
    off = np.mean(
        [abs(a.outputs["alcohol"][0] - v) for a, v in zip(answers, columns[:, 0], strict=True)]
    )
    print(
        f"{model.scheme}: {len(answers)} of {len(x)} answered, {100 * right:.0f} % right, "
        f"alcohol to {off:.2f} %"
    )


if __name__ == "__main__":
    main()
