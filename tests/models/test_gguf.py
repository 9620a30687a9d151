"""A GGUF file is the model it was made from, and a file that would be read as another model is refused."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_files import Changed, write_gguf
from small_experiment import write_model
from tiny_models import CLASSES, build_random_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.models import local_model, reference_model_path, resolve
from baklava.models.files import check_model, model_fingerprint, model_identity
from baklava.models.gguf_file import ARCHITECTURES, SPLITS
from baklava.models.gguf_header import BLOCK_TYPES
from baklava.models.load import load_model, load_tokenizer
from baklava.models.weights import weight_bytes

TEXT = "def f(x):\n    return x + 12\n\n\n  The keys are 1234567 and  89,\t isn't it?\n\n1. Ça va.<|endoftext|>user"
DIGITS = "a\n\n1 b  2"


def config(path: Path | str, dtype: Any = "float32") -> ModelConfig:
    return ModelConfig(name="m", path=str(path), dtype=dtype, device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of every architecture, with the tokenizer of a reference model; the embedding of one is tied."""
    root = tmp_path_factory.mktemp("folders")
    written = {"llama": write_model(root / "llama", tie_word_embeddings=True, rope_theta=20000.0)}
    for family in ("qwen2", "qwen3"):
        written[family] = root / family
        config_class, model_class, _ = CLASSES[family]
        sizes = {"vocab_size": 4096, "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 512}
        model = build_random_model(config_class, model_class, attention="eager", dtype=torch.float32, **sizes)
        model.save_pretrained(written[family])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(written["llama"] / file, written[family])
    return written


@pytest.fixture(scope="module")
def file(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(folders["llama"], tmp_path_factory.mktemp("files") / "model.gguf")


class TestTheModel:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
    def test_is_the_one_that_was_written(
        self, architecture: str, kind: str, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        stored = GGMLQuantizationType[kind]
        file = write_gguf(folders[architecture], tmp_path / "model.gguf", kind=stored)
        check_model(config(file), {})
        expected = load_model(config(folders[architecture])).model
        for weight in expected.parameters():
            if weight.ndim == 2:
                rounded = gguf.dequantize(gguf.quantize(weight.detach().numpy(), stored), stored)
                weight.data.copy_(torch.from_numpy(rounded.copy()))
        loaded = load_model(config(file))
        ids = torch.randint(4096, (1, 40), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(loaded.model(ids).logits, expected(ids).logits)
        assert loaded.n_positions == expected.config.max_position_embeddings
        assert weight_bytes(config(file)) == sum(parameter.nbytes for parameter in loaded.model.parameters())

    def test_has_the_weights_that_transformers_reads(self, folders: dict[str, Path], tmp_path: Path) -> None:
        file = write_gguf(folders["llama"], tmp_path / "model.gguf", kind=GGMLQuantizationType.Q8_0)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name).state_dict()
        ours = load_model(config(file)).model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_takes_the_dtype_that_is_asked_for(self, file: Path) -> None:
        loaded = load_model(config(file, "bfloat16"))
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
        assert weight_bytes(config(file, "bfloat16")) == weight_bytes(config(file)) // 2

    def test_is_known_by_its_content(self, file: Path, folders: dict[str, Path], tmp_path: Path) -> None:
        moved = Path(shutil.copy(file, tmp_path))
        (tmp_path / "tokenizer.json").write_text("{}")  # what lies beside it is not the model's
        assert model_identity(config(moved)) == model_identity(config(file))
        data = bytearray(moved.read_bytes())
        data[-1] ^= 1
        moved.write_bytes(data)
        assert model_fingerprint(config(moved)) != model_fingerprint(config(file))


class TestTheTokenizer:
    def test_gives_the_ids_of_the_one_that_was_written(self, file: Path, tmp_path: Path) -> None:
        alone = Path(shutil.copy(file, tmp_path))
        expected = AutoTokenizer.from_pretrained(reference_model_path("tiny-llama"))
        (tmp_path / "tokenizer.json").write_text("{}")  # would be taken instead of the file's own
        tokenizer = load_tokenizer(config(alone))
        assert tokenizer.encode(TEXT) == expected.encode(TEXT)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 0)
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert rendered == "<|endoftext|>user\nHi\n"

    def test_cuts_before_every_digit_where_the_model_was_trained_so(
        self, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        tokens = {}
        for split in ("gpt-2", "smollm"):
            file = write_gguf(folders["llama"], tmp_path / f"{split}.gguf", changed={"tokenizer.ggml.pre": split})
            tokens[split] = load_tokenizer(config(file)).backend_tokenizer.pre_tokenizer.pre_tokenize_str(DIGITS)
        assert [piece for piece, _ in tokens["smollm"]] == ["a", "ĊĊ", "1", "Ġb", "ĠĠ", "2"]
        assert [piece for piece, _ in tokens["gpt-2"]] == ["a", "Ċ", "Ċ", "1", "Ġb", "Ġ", "Ġ2"]

    def test_every_known_split_is_one_that_somebody_makes(self) -> None:
        assert set(SPLITS) - set(GGUF_PRE_TOKENIZER_SPLITS) == {"gpt-2", "smollm"}


def test_every_known_type_can_be_dequantised() -> None:
    for type_id, block in BLOCK_TYPES.items():
        kind = GGMLQuantizationType(type_id)
        assert (block.name, (block.numbers, block.n_bytes)) == (kind.name, gguf.GGML_QUANT_SIZES[kind])
        assert gguf.dequantize(np.zeros((3, 2 * block.n_bytes), np.uint8), kind).shape == (3, 2 * block.numbers)


class TestPackages:
    @pytest.fixture
    def package(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        folder = tmp_path / "holds_a_model"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise SystemExit('imported')")
        shutil.copy(file, folder)
        monkeypatch.syspath_prepend(tmp_path)
        return folder.name

    def test_a_file_is_found_without_importing_the_package(self, package: str, file: Path) -> None:
        model = config(f"package:{package}/model.gguf")
        check_model(model, {})
        assert model_identity(model) == model_identity(config(file))
        assert package not in sys.modules

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("package:no_such_package/model.gguf", "no package no_such_package is installed here; for its files"),
            ("package:no.such/model.gguf", "no package no.such is installed here"),
            ("package:", "no package  is installed here"),
            ("package:holds_a_model/other.gguf", r"models\.m\.path: no such file: .*/holds_a_model/other\.gguf"),
            ("package:holds_a_model", r"has no config\.json; give one of its files model\.gguf"),
        ],
    )
    def test_a_mistake_is_one_line(self, path: str, message: str, package: str) -> None:
        with pytest.raises(UserError, match=message):
            check_model(config(path), {})

    def test_a_hub_id_stays_one(self) -> None:
        assert local_model("ORG/NAME") is None
        assert resolve("ORG/NAME") == "ORG/NAME"


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"general.architecture": "mamba"},
                "it holds a model of type 'mamba'; known: llama, qwen2, qwen3; use",
            ),
            ({"llama.rope.scaling.type": "yarn"}, r"its llama\.rope\.scaling\.type = yarn is not known here; use the"),
            ({"llama.expert_count": 8}, r"its llama\.expert_count = 8 is not known here"),
            ({"llama.attention.sliding_window": 64}, r"its llama\.attention\.sliding_window = 64 is not known"),
            ({"llama.rope.dimension_count": 4}, "its heads are rotated in part"),
            ({"llama.context_length": None}, r"llama\.context_length is missing, or no number"),
            ({"llama.block_count": 3}, r"it has no tensor blk\.2\.attn_k\.weight"),
            ({"llama.block_count": 1}, r"its tensor blk\.1\.attn_k\.weight is none of a llama model's"),
            ({"split.count": 2}, "it is a part of a model; put the parts together"),
            ({"tokenizer.ggml.model": "bert"}, "its tokenizer is of type 'bert'; known: gpt2, llama"),
            ({"tokenizer.ggml.pre": None}, r"its tokenizer\.ggml\.pre is None; known: gpt-2, smollm"),
        ],
    )
    def test_settings(self, changed: Changed, message: str, folders: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=rf"^models\.m\.path: model\.gguf cannot be used: {message}"):
            check_model(config(write_gguf(folders["llama"], tmp_path / "model.gguf", changed=changed)), {})

    def test_settings_that_change_nothing_are_fine(self, folders: dict[str, Path], tmp_path: Path) -> None:
        changed: Changed = {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.vocab_size": 4096}
        check_model(config(write_gguf(folders["llama"], tmp_path / "model.gguf", changed=changed)), {})

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            (
                {"rope_freqs.weight": np.ones(4, np.float32)},
                r"its tensor rope_freqs\.weight is none of a llama model's",
            ),
            ({"blk.0.attn_q.bias": np.ones(32, np.float32)}, r"its tensor blk\.0\.attn_q\.bias is none of"),
            ({"blk.1.ffn_up.weight": None}, r"it has no tensor blk\.1\.ffn_up\.weight"),
        ],
    )
    def test_tensors(self, tensors: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            check_model(config(write_gguf(folders["llama"], tmp_path / "model.gguf", tensors=tensors)), {})

    def test_an_unknown_quantisation(self, file: Path, tmp_path: Path) -> None:
        data, name = bytearray(file.read_bytes()), b"token_embd.weight"
        place = data.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions, and two of them
        data[place] = 99
        (tmp_path / "model.gguf").write_bytes(data)
        with pytest.raises(UserError, match=r"its quantisation \(ggml type 99\) is unknown; known: F32, F16, Q4_0"):
            check_model(config(tmp_path / "model.gguf"), {})

    @pytest.mark.parametrize(
        ("kept", "message"),
        [
            (slice(0, 0), "not a readable GGUF file"),
            (slice(0, 900), r"not a readable GGUF file \(it ends within its header"),
            (slice(1, None), "not a readable GGUF file .it does not begin with GGUF"),
            (slice(0, -999), "bytes where its header says [0-9]+: cut short or damaged; download or copy it again"),
        ],
    )
    def test_damaged_files(self, kept: slice, message: str, file: Path, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(file.read_bytes()[kept])
        with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path / 'model.gguf'))}: .*{message}"):
            check_model(config(tmp_path / "model.gguf"), {})

    def test_too_few_positions(self, file: Path) -> None:
        check_model(config(file), {"evaluate.length": 1024})
        with pytest.raises(UserError, match="1025 tokens are more than the 1024 positions of model m"):
            check_model(config(file), {"evaluate.length": 1025})

    def test_a_missing_package(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"needs the package gguf, which is not installed: pip install"):
            check_model(config(file), {})
