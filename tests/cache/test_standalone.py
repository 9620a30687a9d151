"""The cache works without the rest of the package: a process that blocks the other rooms generates with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEEDED = ("errors", "system", "decoder", "eviction", "budgets", "cache")
SCRIPT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        room = name.split(".")[1] if name.startswith("baklava.") else None
        if room not in (None, *sys.argv[2:]):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())

from importlib import import_module
from pathlib import Path

for file in sorted(Path(sys.argv[1]).rglob("*.py")):
    # Kernels need what not every machine has.
    if file.stem not in ("__init__", "triton_decode", "triton_kernels", "varlen"):
        import_module(".".join(("baklava", "cache", *file.relative_to(sys.argv[1]).with_suffix("").parts)))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baklava import BudgetedCache, Budgets

config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=99)
model = LlamaForCausalLM(config).eval()
model.set_attn_implementation("baklava")
cache = BudgetedCache(model.config, Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5), "snapkv", compress_above=0)
model.generate(torch.arange(3, 43)[None], past_key_values=cache, max_new_tokens=3, do_sample=False)
print(cache.kept_entries().flatten().tolist())
print([name for name in ("hydra", "mlflow", "omegaconf", "optuna", "snakemake") if name in sys.modules])
"""


def test_generates_where_the_other_rooms_are_blocked(repository: Path) -> None:
    cache = repository / "baklava" / "cache"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(cache), *NEEDED], capture_output=True, text=True, cwd=repository, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept, loaded = done.stdout.splitlines()[-2:]
    assert kept == str([20] * 4)
    assert loaded == "[]"
