"""From a memory cap to a ratio, and to budgets for it: `baklava plan`."""

from __future__ import annotations

from collections.abc import Sequence

from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.experiment.compose import compose
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import PlanConfig
from baklava.models.memory import Division, Workload, divide_memory
from baklava.models.shape import read_shape
from baklava.models.weights import ITEMSIZE, weight_bytes

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def plan(overrides: Sequence[str]) -> None:
    """Print for each model how the memory divides and which ratio fits; write budgets where asked to.

    Raises `UserError` where a model does not fit, in one line that says what takes the memory.
    """
    config = compose(overrides)
    allocator = config.plan.allocator
    if allocator is not None and allocator not in config.allocators:
        raise UserError(
            f"plan.allocator: {allocator!r} is not among the allocators {', '.join(config.allocators)}; "
            f"add it with allocator={allocator}"
        )
    for name, model in config.models.items():
        ratio = _plan_model(model, config.plan)
        if allocator is not None:
            _write_budgets(config, name, allocator, ratio)


def _plan_model(model: ModelConfig, settings: PlanConfig) -> float:
    """Print how the memory divides for one model, and return the ratio that fits."""
    memory = settings.gpu_memory if settings.gpu_memory is not None else _device_memory(model)
    shape, itemsize, weights = read_shape(model), ITEMSIZE[model.dtype], weight_bytes(model)
    work = Workload(
        context=settings.context,
        new_tokens=settings.new_tokens,
        batch=settings.batch,
        rows=min(settings.prefill_rows, settings.batch),
        chunk=settings.prefill_chunk,
    )
    division = divide_memory(shape, work, available=memory - settings.reserve - weights, itemsize=itemsize)
    per_token = shape.n_layers * shape.kv_bytes_per_token(itemsize)
    if division.ratio > settings.largest_ratio:
        raise UserError(_misfit(model, settings, division, memory=memory, weights=weights))
    way = f"in chunks of {work.chunk}" if division.chunked else "in one pass"
    rows = [
        ("weights", weights, model.dtype),
        ("reserve", settings.reserve, "of the device, and of its allocator"),
        ("reading a context", division.reading, f"estimate; {work.rows} at a time, {way}"),
        ("kept whole", division.unbudgeted, "new tokens and sliding windows"),
        ("KV caches", division.kv_full, f"uncompressed; {_size(per_token)} per token"),
    ]
    print(f"{model.name}: {work.batch} x {work.context} tokens in {_size(memory)}")
    for item, n_bytes, note in rows:
        print(f"  {item:<18}{_size(n_bytes):>11}  {note}")
    if division.ratio == 0:
        print("  fits without compression")
    else:
        kept = (1.0 - division.ratio) * division.kv_full
        entries = f"{1 - division.ratio:.1%} of their entries"
        print(f"  fits at ratio {division.ratio:g}: {_size(kept)} of KV caches, {entries}")
    return division.ratio


def _misfit(model: ModelConfig, settings: PlanConfig, division: Division, *, memory: int, weights: int) -> str:
    least = (1.0 - settings.largest_ratio) * division.kv_full
    left = memory - weights - settings.reserve - division.reading - division.unbudgeted
    remains = f"leave {_size(left)}" if left > 0 else f"are {_size(-left)} too much"
    return (
        f"{model.name} does not fit: of {_size(memory)}, weights ({_size(weights)}), "
        f"reserve ({_size(settings.reserve)}), reading a context ({_size(division.reading)}) and what is kept whole "
        f"({_size(division.unbudgeted)}) {remains}, and "
        f"{settings.batch} x {settings.context} tokens take {_size(least)} at the largest ratio, "
        f"{settings.largest_ratio:g}; lower plan.context or plan.batch, or raise plan.gpu_memory"
    )


def _size(n_bytes: float) -> str:
    """The size in the largest unit of which there is at least a half."""
    unit = next((unit for unit, size in UNITS.items() if n_bytes >= size / 2), "KiB")
    return f"{n_bytes / UNITS[unit]:.2f} {unit}"


def _device_memory(model: ModelConfig) -> int:
    import torch

    if not torch.cuda.is_available():
        raise UserError("plan.gpu_memory: there is no CUDA device here to ask; say how much, as in 24GiB")
    return int(torch.cuda.get_device_properties(model.device if model.device != "auto" else "cuda").total_memory)


def _write_budgets(config: ExperimentConfig, model: str, allocator: str, ratio: float) -> None:
    if ratio == 0:
        return
    layout = ExperimentPaths(config.results, config.name)
    eviction = next(iter(config.evictions))
    job = AllocateJob.of(config, layout, model, allocator, eviction)
    if not job.profile.is_file():
        raise UserError(f"{job.profile}: no profile to make budgets from; make it with `baklava profile`")
    path = layout.plan(model, allocator, eviction, ratio)
    from baklava.search.run import allocate

    allocate(job.model_copy(update={"budgets": {ratio: path}, "trace": path.with_suffix(".parquet")}))
    print(f"  budgets: {path}")
