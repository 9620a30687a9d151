"""The reference models: plain transformers load them, they are small, and they do what their cards say."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import baklava
from baklava.errors import UserError
from baklava.evaluation.engine import Engine
from baklava.evaluation.prompt import Prompts
from baklava.evaluation.samples import CellSpec
from baklava.experiment.components import ModelConfig
from baklava.experiment.compose import compose, compose_task
from baklava.experiment.settings import EvaluateConfig
from baklava.models.encoder import Tokens
from baklava.models.load import load_model

NAMES = ("tiny-llama", "tiny-llama-long", "tiny-qwen2")


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_loads_it(name):
    folder = baklava.reference_model_path(name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == ("Qwen2ForCausalLM" if name == "tiny-qwen2" else "LlamaForCausalLM")
    assert model.config.num_attention_heads == 8
    assert model.config.num_key_value_heads == (2 if name == "tiny-qwen2" else 4)
    assert model.config.max_position_embeddings >= 2048
    assert len(tokenizer) == model.config.vocab_size <= 4096
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (model.config.bos_token_id, model.config.eos_token_id)
    assert tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_half_precision_and_has_a_card(name):
    folder = baklava.reference_model_path(name)
    assert (folder / "model.safetensors").stat().st_size <= 12e6
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype.itemsize == 2
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert "Measured" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_auto_tokenizer_splits_as_in_training(name):
    folder = baklava.reference_model_path(name)
    text = "VAR ABCDE = VAR FGHIJ\n\nThe special magic number is: 123."
    expected = PreTrainedTokenizerFast.from_pretrained(folder).encode(text)
    assert AutoTokenizer.from_pretrained(folder).encode(text) == expected


OWN = ["niah_single_1", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt", "continuation_standin"]


@pytest.mark.parametrize("task", [*OWN, "ruler/cwe", "ruler/niah_multikey_3", "ruler_standin/niah_single_2"])
@pytest.mark.parametrize("protocol", ["question_agnostic", "question_aware"])
def test_its_prompts_are_cut_between_tokens(task, protocol):
    """Each part by itself has the tokens that it has in the whole."""
    tokenizer = AutoTokenizer.from_pretrained(baklava.reference_model_path("tiny-llama"))
    asked = compose_task(task).build()
    made = Prompts("m", tokenizer, asked, EvaluateConfig(n_samples=1, length=1500, protocol=protocol))
    for index in range(2):
        sample = asked.sample(split="evaluation", seed=0, index=index, length=1500, count_tokens=made.encoder.count)
        texts = (sample.context, sample.question + sample.answer_prefix, sample.answers[0] if asked.by_loss else "")
        if protocol == "question_aware":
            texts = (sample.context + sample.question, sample.answer_prefix, texts[2])
        assert made.tokens(sample) == Tokens.of(*(tokenizer.encode(text) for text in texts))


def test_all_share_one_tokenizer():
    assert len({(baklava.reference_model_path(name) / "tokenizer.json").read_bytes() for name in NAMES}) == 1


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="tiny-llama, tiny-llama-long, tiny-qwen2"):
        baklava.reference_model_path("../tiny-llama")


# Below the scores of the model cards by more than twelve samples can scatter.
RULER = {"niah_single_1": 0.9, "niah_multikey_1": 0.7, "vt": 0.7}
LONG = {"json_kv": 0.8, "json_thread_steps": 0.8, "path_traversal": 0.8}


@pytest.mark.parametrize(
    ("name", "task", "least"),
    [(name, *item) for name in NAMES for item in (LONG if name == "tiny-llama-long" else RULER).items()],
)
def test_it_answers_with_the_full_cache(name, task, least):
    loaded = load_model(ModelConfig(name=name, path=f"reference:{name}", dtype="float32"))
    asked = compose([f"task={task}"]).tasks[task].build()
    cell = CellSpec.full(n_layers=loaded.n_layers, n_kv_heads=loaded.n_kv_heads)
    engine = Engine(loaded, asked, EvaluateConfig(n_samples=12, length=1024))
    samples = [
        asked.sample(split="train", seed=7, index=index, length=1024, count_tokens=loaded.count_tokens)
        for index in range(12)
    ]
    answers = engine.answer([engine.encode(sample, [cell]) for sample in samples])
    scores = [record.score for records in answers for record in records]
    assert len(scores) == 12
    assert sum(scores) / len(scores) >= least
