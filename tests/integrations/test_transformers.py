"""The Trainer of Hugging Face, in trainings of small networks from scratch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.ranks import together
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainingArguments

from latephase import HessianFree, Outcome
from latephase.integrations.transformers import LatePhaseTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

LATE: dict[str, Any] = {"damping": 0.1, "cg_max_iter": 5}


def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 17, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def texts(count: int = 32) -> list[dict[str, Tensor]]:
    """Of different lengths: labels of −100 do not count."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(count):
        tokens = (torch.randint(17, (1,), generator=generator) + torch.arange(8)) % 17
        labels = tokens.clone()
        labels[8 - number % 4 :] = -100
        examples.append({"input_ids": tokens, "labels": labels})
    return examples


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return BertForSequenceClassification(BertConfig(vocab_size=17, max_position_embeddings=8, **sizes))


def labelled(count: int = 32) -> list[dict[str, Tensor]]:
    return [{**one, "labels": one["input_ids"][0] % 2} for one in texts(count)]


def trainer(model: nn.Module, folder: Path, data: Any = None, **options: Any) -> LatePhaseTrainer:
    chosen = {name: options.pop(name) for name in ("start", "late", "compute_loss_func") if name in options}
    plain: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1.0,
        "learning_rate": 1e-2,
        "logging_steps": 1,
    }
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **{**plain, "save_strategy": "no", **options}
    )
    return LatePhaseTrainer(
        model=model, args=arguments, train_dataset=data or texts(), **{"start": 0.5, "late": LATE, **chosen}
    )


def loss_of(model: nn.Module, batch: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sum over a batch, divided as the Trainer does by all labels, the first of each text included."""
    tokens, labels = (torch.stack([one[name] for one in batch]) for name in ("input_ids", "labels"))
    logits = model(input_ids=tokens).logits
    summed = F.cross_entropy(logits[:, :-1].reshape(-1, 17), labels[:, 1:].reshape(-1), reduction="sum")
    return summed / (labels != -100).sum(), logits


@pytest.mark.parametrize("accumulation", [1, 3])
def test_it_steps_as_the_optimizer_does_by_hand(accumulation: int, tmp_path: Path) -> None:
    """One step on the very tokens of the batches, whatever the parts they come in."""
    data = texts(12)
    model = language_model().eval()
    model.train = lambda mode=True: model  # no dropout
    twin = copy.deepcopy(model)
    sizes: dict[str, Any] = {
        "per_device_train_batch_size": 12 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    fit = trainer(model, tmp_path, data, start=0.0, **sizes, max_steps=1, train_sampling_strategy="sequential")
    fit.train()
    B = data if accumulation == 1 else data[:8]
    judged = data if accumulation == 1 else data[8:]
    opt = HessianFree(twin.parameters(), **LATE)
    opt.step(lambda: loss_of(twin, B), evaluate=lambda: loss_of(twin, judged)[0])
    assert fit.switch is not None
    ours, theirs = fit.switch.second.last_step, opt.last_step  # type: ignore[attr-defined]
    assert theirs is not None
    assert theirs.outcome is ours.outcome is Outcome.ACCEPTED
    assert ours.loss_model == pytest.approx(theirs.loss_model, rel=1e-5)
    assert ours.loss_before == pytest.approx(theirs.loss_before, rel=1e-5)
    assert ours.loss_after == pytest.approx(theirs.loss_after, rel=1e-4)
    assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)


def test_the_loss_falls_and_records_are_logged(tmp_path: Path) -> None:
    fit = trainer(language_model(), tmp_path, num_train_epochs=4.0, gradient_accumulation_steps=2)
    fit.train()
    assert fit.switch is not None
    assert fit.switch.steps == 16
    logs = [entry for entry in fit.state.log_history if "loss" in entry]
    assert len(logs) == 16
    assert ["hf/loss_model" in entry for entry in logs] == [False] * 8 + [True] * 8
    late = [entry for entry in logs if entry.get("hf/products")]
    assert all(entry["loss"] == pytest.approx(entry["hf/loss_model"], rel=1e-3) for entry in late)
    assert late[-1]["loss"] < logs[0]["loss"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_resumes_to_the_bit_in_either_phase(accumulation: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_train_epochs": 2.0, "gradient_accumulation_steps": accumulation, "late": LATE}
    whole = trainer(language_model(), tmp_path / "whole", **options, save_strategy="steps", save_steps=2)
    whole.train()
    total = whole.state.global_step
    for step in 2, total - 2:
        resumed = trainer(language_model(), tmp_path / "again", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == total
        assert resumed.switch is not None
        assert resumed.switch.phase == "second"
        for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_only_an_adapter_is_trained(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(language_model(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit = trainer(model, tmp_path, start=2)
    fit.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora" in name for name in moved)
    assert fit.switch is not None
    assert fit.switch.phase == "second"


def test_bfloat16(tmp_path: Path) -> None:
    fit = trainer(classifier(), tmp_path, labelled(), start=2, bf16=True)
    fit.train()
    assert fit.switch is not None
    assert fit.switch.second.last_step.counts.products > 0  # type: ignore[attr-defined]


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    def smoothed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs.logits[:, :-1].reshape(-1, 17)
        summed = F.cross_entropy(logits, labels[:, 1:].reshape(-1), label_smoothing=0.1, reduction="sum")
        return summed / num_items_in_batch

    fit = trainer(language_model(), tmp_path, start=2, compute_loss_func=smoothed, gradient_accumulation_steps=2)
    fit.train()
    assert fit.switch is not None
    assert fit.switch.second.last_step.counts.products > 0  # type: ignore[attr-defined]


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start"):
        trainer(language_model(), tmp_path, start=-1.0)
    with pytest.raises(TypeError, match="dampin"):
        trainer(language_model(), tmp_path, late={"dampin": 1.0})
    with pytest.raises(ValueError, match="bf16=True instead of fp16=True"):
        trainer(language_model(), tmp_path, fp16=True)


def one_step(rank: int, folder: Path, by_tokens: bool) -> Any:
    """Of four batches of three, this process has the ones of its own number and two further on."""
    model = (language_model() if by_tokens else classifier()).eval()
    model.train = lambda mode=True: model  # no dropout
    sizes: dict[str, Any] = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    data = texts(12) if by_tokens else labelled(12)
    sizes["average_tokens_across_devices"] = by_tokens
    fit = trainer(model, folder, data, start=0.0, **sizes, max_steps=1, train_sampling_strategy="sequential")
    fit.train()
    assert fit.switch is not None
    return fit.switch.second.last_step  # type: ignore[attr-defined]


@pytest.mark.parametrize("by_tokens", [True, False])
def test_two_processes_take_a_step_together(by_tokens: bool, tmp_path: Path) -> None:
    """By tokens: their number in all processes divides the loss. Else the means of batches are averaged."""
    records = together(2, tmp_path, one_step, tmp_path / "training", by_tokens)
    model = (language_model() if by_tokens else classifier()).eval()
    data = texts(12) if by_tokens else labelled(12)

    def loss(batch: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        if by_tokens:
            return loss_of(model, batch)
        logits = model(input_ids=torch.stack([one["input_ids"] for one in batch])).logits
        return F.cross_entropy(logits, torch.stack([one["labels"] for one in batch])), logits

    opt = HessianFree(model.parameters(), **LATE)
    opt.step(lambda: loss(data[:6]), evaluate=lambda: loss(data[6:])[0])
    theirs = opt.last_step
    assert theirs is not None
    for ours in records:
        assert theirs.outcome is ours.outcome is Outcome.ACCEPTED
        assert ours.loss_model == pytest.approx(theirs.loss_model, rel=1e-5)
        assert ours.loss_before == pytest.approx(theirs.loss_before, rel=1e-5)
        assert ours.loss_after == pytest.approx(theirs.loss_after, rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)


def two_phases(rank: int, folder: Path, resume: bool) -> list[Tensor]:
    options: dict[str, Any] = {"num_train_epochs": 2.0, "gradient_accumulation_steps": 2}
    saving: dict[str, Any] = {} if resume else {"save_strategy": "steps", "save_steps": 3}
    fit = trainer(language_model(), folder, **options, **saving)
    fit.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    assert fit.switch is not None
    assert fit.switch.phase == "second"
    return [p.detach() for p in fit.model.parameters()]


def test_two_processes_resume_to_the_bit(tmp_path: Path) -> None:
    found = []
    for resume in (False, True):
        (tmp_path / str(resume)).mkdir()
        found += together(2, tmp_path / str(resume), two_phases, tmp_path / "training", resume)
    for parameters in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(parameters, found[0], strict=True))
