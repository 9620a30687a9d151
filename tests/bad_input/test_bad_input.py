"""Mistakes of users: each ends with one line that names what is wrong and what to do, before any model is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_experiment import overrides, start_snakemake, write_model
from transformers import AutoModelForCausalLM

from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration, Prompt
from baklava.cli import main
from baklava.system.fingerprint import fingerprint_folder

CALIBRATE = "calibrate"
MODEL = "models.tiny-llama"


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, texts and settings with something wrong about each."""
    folder = tmp_path_factory.mktemp("invented")
    write_model(folder / "good")
    for name in ("no-config", "not-json", "latin1-config", "encoder", "encoder-decoder", "no-weights", "cut", "header"):
        shutil.copytree(folder / "good", folder / name)
    (folder / "no-config" / "config.json").unlink()
    (folder / "not-json" / "config.json").write_text('{"model_type": "llama",')
    (folder / "latin1-config" / "config.json").write_bytes('{"name": "Höhe"}'.encode("latin-1"))
    change(folder / "encoder", model_type="bert", architectures=["BertForMaskedLM"])
    change(folder / "encoder-decoder", model_type="t5", is_encoder_decoder=True)
    (folder / "no-weights" / "model.safetensors").unlink()
    weights = (folder / "good" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[:-1])
    (folder / "header" / "model.safetensors").write_bytes(weights[:20] + b"\xff" + weights[21:])
    write_model(folder / "short", max_position_embeddings=256)
    write_model(folder / "few-tokens", vocab_size=100)
    write_model(folder / "odd-heads", head_dim=80)
    for name, settings in {
        "no-kv-caches": {"model_type": "rwkv", "architectures": ["RwkvForCausalLM"]},
        "own-code": {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": {"AutoConfig": "own.Own"}},
        "no-tokenizer": {},
    }.items():
        shutil.copytree(folder / "good", folder / name)
        change(folder / name, **settings)
    (folder / "own-code" / "own.py").write_text("raise SystemExit('foreign code was run')\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no-tokenizer" / name).unlink()
    (folder / "latin1.txt").write_bytes("Die Höhe der Brücke. ".encode("latin-1") * 1000)
    (folder / "latin1.jsonl").write_bytes('{"prediction": "Höhe", "answers": ["x"]}\n'.encode("latin-1"))
    with zipfile.ZipFile(folder / "latin1.zip", "w") as archive:
        archive.write(folder / "latin1.jsonl", "data/hotpotqa.jsonl")
    (folder / "bad.jsonl").write_text('{"prediction": "x", "answers": ["x"]}\nnonsense\n')
    (folder / "lacking.jsonl").write_text('{"context": "x", "question": "y", "answers": ["z"]}\n{"context": "x"}')
    (folder / "a-file").write_text("")
    (folder / "dangling").symlink_to(folder / "gone")
    return folder


def change(model: Path, **settings: Any) -> None:
    """Change a model's config; None removes a setting."""
    path = model / "config.json"
    changed = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


@pytest.fixture
def say(
    tmp_path: Path, invented: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command that must fail in an empty folder, and give its one line of complaint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_model)

    def run(*arguments: str) -> str:
        before = {path: text for path, text in files(tmp_path).items() if path.name != "experiment.json"}
        assert main([one.replace("INVENTED", str(invented)) for one in arguments]) in (1, 2)
        shown = capsys.readouterr()
        lines = [
            line for line in shown.err.splitlines() if line and not line.startswith(f"{arguments[0]} ")
        ]  # progress
        assert len(lines) == 1, shown.err
        assert lines[0].startswith(f"baklava {arguments[0]}: error: ")
        assert shown.out == ""
        assert {path: text for path, text in files(tmp_path).items() if path.name != "experiment.json"} == before
        return lines[0]

    return run


def no_model(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded before the mistake is found")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SETTINGS = {
    "unknown key": ("evaluate.samples=3", "evaluate.samples", "did you mean evaluate.n_samples"),
    "key in a wrong place": ("evaluate.ratios=[0.5]", "evaluate.ratios", "did you mean ratios?"),
    "unknown group of choices": ("modell=tiny-llama", "modell", "did you mean model"),
    "unknown key, added": ("+evaluate.samples=3", "evaluate.samples", "not permitted"),
    "unknown group": ("models.other.dtype=float32", "models.other", "no such key"),
    "text for a number": ("evaluate.n_samples=many", "evaluate.n_samples", "'many'"),
    "fraction for a whole number": ("evaluate.n_samples=2.5", "evaluate.n_samples", "2.5"),
    "nothing to do": ("evaluate.n_samples=0", "evaluate.n_samples", "greater than or equal to 1"),
    "everything removed": ("ratios=[1.0]", "ratios.0", "less than 1"),
    "ratio in per cent": ("ratios=[70%]", "ratios.0", "'70%'"),
    "negative ratio": ("ratios=[-0.1]", "ratios.0", "greater than or equal to 0"),
    "no ratio": ("ratios=[]", "ratios", "at least one ratio"),
    "ratio twice": ("ratios=[0.5,0.5]", "ratios", "0.5 occurs again"),
    "one ratio, not a list": ("ratios=0.5", "config: ratios: expected a list such as [0,0.5] (got 0.5)"),
    "no task": ("task=[]", "tasks", "task=NAME"),
    "no model": ("model=[]", "models", "model=NAME"),
    "no allocator": ("allocator=[]", "allocators", "allocator=NAME"),
    "no eviction policy": ("eviction=[]", "evictions", "eviction=NAME"),
    "unknown task": ("task=nothing", "task/nothing"),
    "unknown task near those in a folder": ("task=ruler_niah", "did you mean ruler/niah_multikey_1 or ruler/niah_"),
    "unknown model": ("model=gpt-9", "model/gpt-9", "tiny-llama"),
    "unknown experiment": ("experiment=nothing", "experiment/nothing", "demo"),
    "task twice": ("task=[vt,vt]", "vt"),
    "method twice": ("allocator=[uniform,uniform]", "uniform"),
    "policy twice": ("eviction=[snapkv,snapkv]", "snapkv"),
    "name is no folder name": ("name=../elsewhere", "name", "'../elsewhere'"),
    "name with a slash": ("name=a/b", "name", "'a/b'"),
    "name of dots": ("name=..", "name", "'..'"),
    "empty name": ("name=''", "name", "''"),
    "name and key differ": (f"{MODEL}.name=other", "models", "tiny-llama", "'other'"),
    "unknown arithmetic": (f"{MODEL}.dtype=int8", f"{MODEL}.dtype", "'int8'", "bfloat16"),
    "unknown device": (f"{MODEL}.device=gpu", f"{MODEL}.device", "'gpu'"),
    "unknown protocol": ("evaluate.protocol=both", "evaluate.protocol", "question_aware"),
    "unknown estimator": ("profile.estimators=[guess]", "profile", "'guess'", "eviction_shift"),
    "window beyond the prompt": ("profile.window=7", "profile.window", "less than or equal to 1"),
    "no prompt to profile": ("calibration.n_profile=0", "calibration.n_profile"),
    "continuation longer than the rest": (
        "calibration=text calibration.length=300",
        "config: calibration.text.continuation: 256 tokens leave less than half of calibration.length, 300,",
    ),
    "prompts too short": ("calibration.length=10", "calibration.length", "64"),
    "confidence in per cent": ("summary.confidence=95", "summary.confidence", "less than 1"),
    "unknown parameter of a policy": ("+evictions.streaming_llm.sink=4", "evictions.streaming_llm", "sink"),
    "bad parameter of a policy": ("evictions.streaming_llm.n_sink=-1", "evictions.streaming_llm", "n_sink"),
    "unknown family": ("tasks.vt.family=guess", "tasks.vt", "'guess'", "niah"),
    "no file for an allocator": ("allocator=lu_curve", "allocators", "lu_curve"),
    "no data for a task": ("task=longbench/hotpotqa", "tasks.longbench_hotpotqa.data"),
    "data that is not there": (
        "task=jsonl tasks.jsonl.data=/nothing/mine.jsonl",
        "jsonl",
        "/nothing/mine.jsonl",
        "set tasks.jsonl.data",
    ),
    "text that is not there": ("calibration=text calibration.text.data=/nothing.txt", "/nothing.txt", "to a text"),
    "text that is no UTF-8": ("calibration=text calibration.text.data=INVENTED/latin1.txt", "latin1.txt", "UTF-8"),
    "row without a question": (
        "task=jsonl tasks.jsonl.data=INVENTED/lacking.jsonl",
        "lacking.jsonl, line 2: question: missing; the row has context; add the field question",
    ),
    "policy that needs another decoding": ("eviction=[snapkv,r_kv]", "evaluate.decoding: r_kv", "decoding=fixed"),
    "rows that are no UTF-8": (
        "task=jsonl tasks.jsonl.data=INVENTED/latin1.jsonl",
        "latin1.jsonl, line 1: not in UTF-8",
        "convert it",
    ),
    "archive with rows that are no UTF-8": (
        "task=longbench/hotpotqa tasks.longbench_hotpotqa.data=INVENTED/latin1.zip",
        "latin1.zip/data/hotpotqa.jsonl, line 1: not in UTF-8",
    ),
    "archive of something else": (
        "task=longbench/2wikimqa tasks.longbench_2wikimqa.data=INVENTED/latin1.zip",
        "latin1.zip: no 2wikimqa.jsonl",
    ),
    "essay that is no UTF-8": (
        "task=ruler/niah_single_2 tasks.ruler_niah_single_2.essay=INVENTED/latin1.txt",
        "latin1.txt, line 1: not in UTF-8",
    ),
    "scored text that is no UTF-8": (
        "task=continuation tasks.continuation.data=INVENTED/latin1.txt",
        "latin1.txt, line 1: not in UTF-8",
    ),
    "no KEY=VALUE": ("evaluate.n_samples", "evaluate.n_samples"),
    "unbalanced bracket": ("ratios=[0.5", "ratios", "'[0.5'"),
    "unknown reference model": (f"{MODEL}.path=reference:huge", "'huge'", "known: tiny-llama"),
    "no such model": (f"{MODEL}.path=/nothing/model", f"{MODEL}.path", "/nothing/model", "ORG/NAME"),
    "folder without a model": (f"{MODEL}.path=INVENTED/no-config", f"{MODEL}.path", "no config.json"),
    "config that is no JSON": (
        f"{MODEL}.path=INVENTED/not-json",
        "not-json/config.json",
        "not a readable model config",
    ),
    "config that is no UTF-8": (f"{MODEL}.path=INVENTED/latin1-config", "latin1-config/config.json", "not a readable"),
    "encoder": (f"{MODEL}.path=INVENTED/encoder", f"{MODEL}.path", "BertForMaskedLM", "needs a decoder"),
    "encoder-decoder": (f"{MODEL}.path=INVENTED/encoder-decoder", f"{MODEL}.path", "needs a decoder-only model"),
    "no weights": (f"{MODEL}.path=INVENTED/no-weights", f"{MODEL}.path", "no weights", "download"),
    "weights cut short": (f"{MODEL}.path=INVENTED/cut", "cut/model.safetensors", "cut short or damaged", "again"),
    "weights with a broken header": (f"{MODEL}.path=INVENTED/header", "header/model.safetensors", "not a readable"),
    "no KV caches": (
        f"{MODEL}.path=INVENTED/no-kv-caches",
        "model tiny-llama",
        "'rwkv' models",
        "instead of KV caches",
    ),
    "no tokenizer": (f"{MODEL}.path=INVENTED/no-tokenizer", "model tiny-llama", "tokenizer"),
    "tokenizer of another model": (f"{MODEL}.path=INVENTED/few-tokens", "model tiny-llama", "100 tokens", "tokenizer"),
    "code of its own": (f"{MODEL}.path=INVENTED/own-code", "model tiny-llama", "set trust_remote_code to true"),
    "longer than the positions": ("evaluate.length=5000", "evaluate.length: 5000", "4096 positions", "or less"),
    "prompts longer than the positions": (f"{MODEL}.path=INVENTED/short", "evaluate.length", "256 positions"),
    "password in the settings": (
        "tracking.uri=https://me:se@tracking.example",
        "tracking.uri: holds a password",
        "set the variable MLFLOW_TRACKING_URI",
    ),
    "results that MLflow cannot address": ("results=what?", "results: what? holds a question mark", "tracking.uri"),
    "results with a name too long": (f"results={'x' * 300}", "results: xxx", "File name too long"),
    "results at an address": ("results=s3://bucket/x", "results: s3://bucket/x is an address; give a folder"),
    "name that MLflow's files have": ("name=mlartifacts", "name: mlartifacts is what MLflow's part", "choose another"),
    "results in a link to nothing": ("results=INVENTED/dangling", "results: ", "dangling is a link to nothing"),
    "model in a link to nothing": (f"{MODEL}.path=INVENTED/dangling", "models.tiny-llama.path: no such folder"),
    "model of a user that is not there": (f"{MODEL}.path=~nobody-at-all/x", "models.tiny-llama.path: no such folder"),
    "text of a user that is not there": (
        "calibration=text calibration.text.data=~nobody-at-all/x.txt",
        "~nobody-at-all/x.txt",
    ),
    "model with a name too long": (f"{MODEL}.path=/{'x' * 300}", "File name too long"),
    "bits for heads of no whole groups": (
        f"allocator=uniform_4bit {MODEL}.path=INVENTED/odd-heads",
        "allocator uniform_4bit, model tiny-llama: packing: group 32 does not divide the head dimension 80",
    ),
    "results in a file": ("results=INVENTED/a-file", "results", "a-file is not a folder", "set results=FOLDER"),
}


@pytest.mark.parametrize("mistake", SETTINGS)
def test_a_mistake_in_the_settings(say: Callable[..., str], mistake: str) -> None:
    given, *expected = SETTINGS[mistake]
    said = say(CALIBRATE, "experiment=smoke", *given.split(" "))
    assert [part for part in expected if part not in said] == [], said


def test_a_package_that_a_metric_lacks(say: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    for task in ("longbench/dureader", "jsonl tasks.jsonl.metric=qa_f1_zh"):
        name = task.split(" ")[0].replace("/", "_")
        said = say(CALIBRATE, "experiment=smoke", *f"task={task}".split(" "), f"tasks.{name}.data=INVENTED/bad.jsonl")
        assert "Chinese metrics need jieba; install it with `pip install 'baklava-kv[chinese]'`" in said


INVOCATIONS = {
    "job that is no JSON": (["profile", "--job", "{"], "--job", "not JSON"),
    "job of another stage": (["profile", "--job", '{"summary": {}}'], "--job: model", "required"),
    "job and overrides": (["profile", "--job", "{}", "a=1"], "'a=1'"),
    "profile before prompts": (["profile", "experiment=smoke"], "calibration/tiny-llama.json", "no such"),
    "budgets before the profile": (["allocate", "experiment=smoke"], "tiny-llama.safetensors", "`baklava profile`"),
    "answers before the budgets": (["evaluate", "experiment=smoke"], "0.5.json", "no such budgets"),
    "summary before the records": (["summarize", "experiment=smoke"], "no such records", "`baklava evaluate`"),
    "figures before the summary": (["report", "experiment=smoke"], "no such summary", "`baklava summarize`"),
    "table before the results": (["table", "experiment=smoke"], "no results yet", "baklava run experiment=smoke"),
    "no such device": (
        ["measure", "experiment=smoke", f"{MODEL}.device=cuda:99", "allocator=uniform"],
        f"{MODEL}.device",
        "auto or cpu",
    ),
    "memory without a unit": (["plan", "plan.gpu_memory=much"], "plan.gpu_memory", "24GiB"),
    "recipe that is not there": (["train-reference", "model=huge"], "'huge'", "known: tiny-llama"),
    "unknown task to score": (["score", "--task", "vtt", "--predictions", "p.jsonl"], "'vtt'", "try vt"),
    "no predictions": (["score", "--task", "vt", "--predictions", "gone.jsonl"], "gone.jsonl"),
    "predictions that are no UTF-8": (["score", "--task", "vt", "--predictions", "INVENTED/latin1.jsonl"], "line 1"),
    "predictions that are no JSON": (["score", "--task", "vt", "--predictions", "INVENTED/bad.jsonl"], "line 2"),
}


@pytest.mark.parametrize("mistake", INVOCATIONS)
def test_a_mistake_in_the_call(say: Callable[..., str], mistake: str) -> None:
    arguments, *expected = INVOCATIONS[mistake]
    said = say(*arguments)
    assert [part for part in expected if part not in said] == [], said


def budgets_file(folder: Path) -> Path:
    return folder / "results" / "smoke" / "budgets" / "tiny-llama" / "uniform" / "streaming_llm" / "0.5.json"


class TestFilesOfAnEarlierStage:
    EVALUATE = ("evaluate", "experiment=smoke", "allocator=uniform", "ratios=[0.5]")

    def test_negative_budget(self, say: Callable[..., str], tmp_path: Path) -> None:
        path = budgets_file(tmp_path)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"schema_version": 1, "ratio": 0.5, "shares": [[1.25, -0.25]]}))
        said = say(*self.EVALUATE)
        assert f"{path.relative_to(tmp_path)}: budgets: every share must be a number in [0, 1]" in said

    def test_budgets_of_another_ratio(self, say: Callable[..., str], tmp_path: Path) -> None:
        Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.8).save(budgets_file(tmp_path))
        assert "0.5.json: budgets for ratio 0.8, expected 0.5" in say(*self.EVALUATE)

    def test_prompts_that_were_changed_by_hand(self, say: Callable[..., str], tmp_path: Path) -> None:
        path = tmp_path / "results" / "smoke" / "calibration" / "tiny-llama.json"
        Calibration((Prompt("t", 0, "Some context.", "Why?", "So."),), ()).save(path)
        path.write_text(path.read_text().replace("Why", "Who"))
        said = say("profile", "experiment=smoke")
        assert "calibration/tiny-llama.json: the calibration file does not match its checksum" in said

    def test_profile_of_other_weights(self, say: Callable[..., str], tmp_path: Path, invented: Path) -> None:
        import numpy as np

        from baklava.importance.profile import Profile

        values = np.ones((1, 2, 4), np.float32)
        path = tmp_path / "results" / "smoke" / "profile" / "tiny-llama.safetensors"
        path.parent.mkdir(parents=True)
        known = {"content": fingerprint_folder(invented / "good")}
        Profile("tiny-llama", 2, {"e": values}, values[..., 0], known).save(path)
        said = say("allocate", "experiment=smoke", "allocator=uniform")
        assert "tiny-llama.safetensors: measured on other files than reference:tiny-llama holds now" in said


class TestConfigurationFiles:
    @pytest.fixture
    def conf(self, tmp_path: Path, repository: Path) -> Path:
        shutil.copytree(repository / "conf", tmp_path / "conf")
        return tmp_path / "conf" / "experiment" / "mine.yaml"

    def test_not_utf8(self, say: Callable[..., str], conf: Path) -> None:
        conf.write_bytes("# @package _global_\nname: Höhe\n".encode("latin-1"))
        assert "utf-8" in say(CALIBRATE, "experiment=mine")

    def test_a_key_twice(self, say: Callable[..., str], conf: Path) -> None:
        conf.write_text("# @package _global_\nname: mine\nname: yours\n")
        assert "duplicate key name" in say(CALIBRATE, "experiment=mine")

    def test_two_experiments_of_one_name(self, say: Callable[..., str], conf: Path, invented: Path) -> None:
        shutil.copy(conf.with_name("smoke.yaml"), conf)  # and its name is left as it was
        conf.write_text(conf.read_text().replace("n_samples: 4", "n_samples: 9"))
        say("profile", "experiment=smoke")  # has no prompts yet; the folder is its own from here on
        said = say("profile", "experiment=mine")
        assert "results/smoke/experiment.json: " in said
        assert "experiment=smoke with evaluate.n_samples = 4, and experiment=mine has 9" in said
        assert "name=" in said
        assert "no such calibration" in say("profile", "experiment=smoke", "evaluate.n_samples=9")  # its own change


def test_results_that_cannot_be_written(say: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert "cannot be written; set results=FOLDER" in say(CALIBRATE, "experiment=smoke")


class TestProcesses:
    """The same through the executable and through Snakemake."""

    def test_the_command(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "baklava", CALIBRATE, f"{MODEL}.path=/nothing/model"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"{MODEL}.path: no such folder: /nothing/model" in done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ("evaluate.length=5000", "evaluate.length: 5000 tokens are more than the 1024 positions"),
            ("models.tiny-llama.path=/nothing/model", "models.tiny-llama.path: no such folder"),
            ("results=/dev/null/results", "results: /dev/null is not a folder"),
        ],
    )
    def test_the_workflow(self, repository: Path, tmp_path: Path, invented: Path, changed: str, expected: str) -> None:
        some = overrides(invented / "good", changed)
        assert start_snakemake(repository, tmp_path, some).wait() != 0
        said = [line for line in (tmp_path / "snakemake.log").read_text().splitlines() if "Using " not in line]
        assert len(said) == 1
        assert said[0].startswith(f"error: {expected}")
        assert not (tmp_path / "results").exists()
