"""The training loop of the reference models: seeded, resumable, on a CPU or a GPU."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from baklava.errors import UserError
from baklava.models import reference_model_path
from baklava.system.files import atomic
from baklava.tasks.base import random_stream
from baklava.training import attention
from baklava.training.documents import DocumentWriter, Mark
from baklava.training.lookups import LookupWriter
from baklava.training.recipe import Architecture, CurriculumStage, Recipe
from baklava.training.tokenizer import build_tokenizer

ReferenceModel = LlamaForCausalLM | Qwen2ForCausalLM

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # what the optimisers keep per weight


def build_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> ReferenceModel:
    """Build an untrained model of the recipe's shape, in float32."""
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[architecture.family]
    shape = architecture.model_dump(exclude={"family", "rope_theta", "attention_bias"})
    if architecture.family == "llama":
        shape["attention_bias"] = architecture.attention_bias
    config = config_class(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    torch.manual_seed(seed)
    return model_class(config)


@dataclass
class Progress:
    """How far training has come: with weights and moments, all that a resumed run needs."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    accuracy: float = 0.0
    seconds: float = 0.0


def _draw_batch(recipe: Recipe, progress: Progress, writer: DocumentWriter, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids `[B, T]`, loss weights `[B, T]` and whether a token counts for the running accuracy `[B, T]`.

    The batch depends on the recipe, the step and the stage alone.
    """
    stage = recipe.stages[progress.stage]
    rng = random_stream(split="train", name=recipe.name, seed=recipe.seed, index=progress.step)
    length, rows = stage.length, stage.rows
    if stage.doubled and rng.random() < stage.doubled:
        length, rows = 2 * length, max(1, rows // 2)
    kinds = rng.choices(list(stage.mix), weights=list(stage.mix.values()), k=rows)
    documents = [writer.kinds()[kind](length, rng) for kind in kinds]
    longest = max(len(document.ids) for document in documents)
    scored = Mark.ANSWER if set(stage.mix) == {"repetition"} else Mark.CHOICE

    ids = torch.full((rows, longest), pad)
    weights = torch.zeros(rows, longest)
    counts = torch.zeros(rows, longest, dtype=torch.bool)
    for row, document in enumerate(documents):
        n = len(document.ids)
        ids[row, :n] = torch.tensor(document.ids)
        weights[row, :n] = torch.tensor([recipe.draw_weight(mark, rng) for mark in document.marks])
        counts[row, :n] = torch.tensor([mark == scored for mark in document.marks])
    return ids, weights, counts


def _step(
    model: ReferenceModel, optimizers: list[torch.optim.Optimizer], recipe: Recipe, batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[float, float | None]:
    """Make one update; return the loss and the accuracy on the tokens that count (None where no token counts)."""
    device = next(model.parameters()).device
    ids, weights, counts = (tensor.to(device) for tensor in batch)
    has_loss = weights[:, 1:] > 0  # only these positions need logits
    with torch.autocast(device.type, dtype=torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state  # [B, T, hidden]
        logits = model.lm_head(hidden[:, :-1][has_loss])  # [N, vocab]
    targets, weight = ids[:, 1:][has_loss], weights[:, 1:][has_loss]
    losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    loss = (losses * weight).sum() / weight.sum()
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    scored = counts[:, 1:][has_loss]
    if not scored.any():
        return loss.item(), None
    return loss.item(), (logits.argmax(-1) == targets)[scored].float().mean().item()


def _advance(progress: Progress, stage: CurriculumStage, n_stages: int, accuracy: float | None) -> None:
    if accuracy is not None:
        progress.accuracy += 0.05 * (accuracy - progress.accuracy)
    progress.step += 1
    progress.stage_step += 1
    done = progress.accuracy > stage.until or progress.stage_step >= stage.at_most
    if done and progress.stage < n_stages - 1:
        progress.stage += 1
        progress.stage_step = 0
        progress.accuracy = 0.0


def build_optimizers(model: ReferenceModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Build AdamW for all weights, or Muon (arXiv 2502.16982) for matrices in layers and AdamW for the others."""
    rate, decay = recipe.learning_rate_at(0), recipe.weight_decay
    inside: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        muon = recipe.optimizer == "muon" and parameter.ndim == 2 and ".layers." in name
        (inside if muon else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, weight_decay=decay, betas=(0.9, 0.95))
    ]
    if inside:
        optimizers.append(torch.optim.Muon(inside, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _save(path: Path, model: ReferenceModel, optimizers: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Write weights and moments to one safetensors file, atomically."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for moments in (optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state):
            tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments}
    header = {"progress": json.dumps(asdict(progress))}
    with atomic(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, header)


def _resume(path: Path, model: ReferenceModel, optimizers: list[torch.optim.Optimizer]) -> Progress:
    names = {parameter: name for name, parameter in model.named_parameters()}
    with safe_open(path, "pt") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        saved = set(file.keys())
        for parameter, name in names.items():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
        for optimizer in optimizers:
            for parameter in (tensor for group in optimizer.param_groups for tensor in group["params"]):
                keys = {moment: f"{moment}.{names[parameter]}" for moment in MOMENTS}
                optimizer.state[parameter] = {
                    moment: file.get_tensor(key).to(parameter.device) for moment, key in keys.items() if key in saved
                }
                if isinstance(optimizer, torch.optim.AdamW):
                    optimizer.state[parameter]["step"] = torch.tensor(float(progress.step))
    return progress


def _load_beginning(model: ReferenceModel, recipe: Recipe) -> None:
    """Load the weights that training begins with. Raises `UserError` where they are of another shape."""
    try:
        load_model(model, reference_model_path(recipe.begin_with) / "model.safetensors")
    except RuntimeError:
        raise UserError(f"recipe {recipe.name}: begin_with: {recipe.begin_with} has another architecture") from None


def train(recipe: Recipe, folder: Path, *, device: str = "cpu") -> None:
    """Train to `recipe.steps`, resuming from `folder/checkpoint.safetensors` where it exists.

    Writes a loadable bf16 model with its tokenizer to `folder/model`, and one line per 50 steps to `folder/log.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(recipe.architecture, tokenizer, seed=recipe.seed)
    nn.Module.to(model, device)
    if device == "cpu":
        model.set_attn_implementation(attention.NAME)
    optimizers = build_optimizers(model, recipe)
    checkpoint = folder / "checkpoint.safetensors"
    progress = Progress()
    if checkpoint.exists():
        progress = _resume(checkpoint, model, optimizers)
    elif recipe.begin_with:
        _load_beginning(model, recipe)
    writer = LookupWriter(tokenizer)
    started = time.monotonic() - progress.seconds
    with tqdm(total=recipe.steps, initial=progress.step, desc=recipe.name, unit="step", mininterval=5) as bar:
        while progress.step < recipe.steps:
            stage = recipe.stages[progress.stage]
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.learning_rate_at(progress.step)
            batch = _draw_batch(recipe, progress, writer, tokenizer.pad_token_id)
            loss, accuracy = _step(model, optimizers, recipe, batch)
            _advance(progress, stage, len(recipe.stages), accuracy)
            progress.seconds = time.monotonic() - started
            bar.update()
            bar.set_postfix(stage=progress.stage, length=stage.length, accuracy=f"{progress.accuracy:.3f}")
            if progress.step % 50 == 0:
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps({**asdict(progress), "length": stage.length, "loss": loss}) + "\n")
            if progress.step % recipe.save_every == 0 or progress.step == recipe.steps:
                _save(checkpoint, model, optimizers, progress)
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
