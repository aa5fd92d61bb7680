"""L-BFGS is the optimizer on one batch."""

import torch
from tests.study.strategies.twins import assert_same, generator, objective, twins
from tests.study.toy import TOY, load_data

from latephase.strategies.lbfgs import LBFGS
from latephase.tasks import batches


def test_lbfgs_is_the_optimizer_on_one_batch(monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK", 17)
    model, twin = twins()
    data = load_data()
    trainer = LBFGS("lbfgs", 40).start(TOY, model, data, generator())
    batch = next(batches.endless(data, 40, generator()))
    optimizer = torch.optim.LBFGS(twin.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = objective(twin, batch)
        loss.backward()
        return loss

    for _ in range(3):
        calls = 0
        work = trainer.step(0.0).gradients
        optimizer.step(closure)
        assert work == calls * 40 / TOY.batch_size
        assert_same(model, twin, rtol=1e-6, atol=1e-8)
