"""What the README shows must run."""

import re
from pathlib import Path

import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"


def test_the_code_in_the_readme_trains():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def batches():
        while True:
            x = torch.randn(200, 5)
            yield x, x[:, :3].argmax(dim=1)

    names = {"model": model, "loss_func": nn.CrossEntropyLoss(), "batches": batches()}
    exec(code, names)

    x, y = next(batches())
    assert (model(x).argmax(dim=1) == y).float().mean() > 0.8
    assert isinstance(names["loss"], float)


def test_the_files_that_the_readme_links_exist():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]
