"""The attention of a model: what a configuration may not ask for, and what `--attn_implementation` asks for."""

import json
import shutil
import sys

import pytest
import transformers.modeling_utils
from helpers import load

import run_qa
import run_seq2seq_qa
from qa.errors import UserError


KERNELS = """
import pathlib

def get_kernel(name):
    with pathlib.Path(__file__).with_name("asked").open("a") as file:
        print(name, file=file)
    raise RuntimeError("no network")
"""
# Parts of a config.json that name code for the attention: under each key and in each form that transformers 4.55 has, in
# a part of the configuration, and under a key that an attribute map, also the file's, stores under another name.
NAMING = {
    "internal": ({"_attn_implementation_internal": "someone/kernel"}, ["someone/kernel"]),
    "function": ({"_attn_implementation": "someone/kernel:attend"}, ["someone/kernel:attend"]),
    "wrapped": ({"_attn_implementation": "sdpa|someone/kernel"}, ["sdpa|someone/kernel"]),
    "public": ({"attn_implementation": "someone/kernel"}, ["someone/kernel"]),
    "by part": (
        {"_attn_implementation": {"": "someone/kernel", "part": "other/one"}},
        ["someone/kernel", "other/one"],
    ),
    "nested": ({"parts": [{"_attn_implementation_internal": "someone/kernel"}]}, ["someone/kernel"]),
    "mapped": ({"attribute_map": {"alias": "_attn_implementation_internal"}, "alias": "someone/kernel"}, []),
    "own name": ({"attribute_map": {"_name_or_path": "_attn_implementation_internal"}}, []),
}


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Let transformers find a package `kernels` that writes down which repositories it is asked for, in the file returned."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "kernels.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(tmp_path / "package")
    from kernels import get_kernel

    monkeypatch.setattr(transformers.modeling_utils, "get_kernel", get_kernel, raising=False)
    monkeypatch.setattr(transformers.modeling_utils, "is_kernels_available", lambda: True)
    yield tmp_path / "package" / "asked"
    del sys.modules["kernels"]


def flags_of(model, squad_files, tmp_path, *more) -> list[str]:
    flags = ["--model_name_or_path", model, "--output_dir", tmp_path / "out", "--report_to", "none", *more]
    flags += ["--do_eval", "--validation_file", squad_files / "dev.json", "--max_eval_samples", 2]
    return list(map(str, [*flags, "--max_seq_length", 96, "--doc_stride", 24]))


def copy_of(model, folder, change: dict):
    """Return a copy of a model with other settings in its config.json."""
    shutil.copytree(model, folder)
    (folder / "config.json").write_text(json.dumps(load(folder / "config.json") | change))
    return folder


@pytest.mark.parametrize("change, named", NAMING.values(), ids=NAMING)
def test_a_configuration_runs_no_code_of_the_hub(
    tiny_model, squad_files, tmp_path, monkeypatch, caplog, kernels, change, named
):
    model = copy_of(tiny_model, tmp_path / "some" / "model", change)
    monkeypatch.chdir(tmp_path)
    run_qa.main(flags_of("some/model", squad_files, tmp_path))
    assert not kernels.exists()
    assert [record.message for record in caplog.records if record.name == "qa.attention"] == [
        f"some/model: its configuration names code for the attention, {name!r}, which is not run; add --trust_remote_code if "
        "you trust its authors"
        for name in named
    ]
    assert (model / "config.json").exists()


def test_trusted_code_for_the_attention_is_asked_for(tiny_model, squad_files, tmp_path, kernels):
    model = copy_of(tiny_model, tmp_path / "model", NAMING["internal"][0])
    run_qa.main(flags_of(model, squad_files, tmp_path, "--trust_remote_code"))
    assert set(kernels.read_text().split()) == {"someone/kernel"}


@pytest.mark.parametrize("trusted", [False, True])
def test_a_folder_runs_no_code_for_generation(tiny_writers, squad_files, tmp_path, caplog, trusted):
    model = shutil.copytree(tiny_writers["t5"], tmp_path / "model")
    (model / "custom_generate").mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n\ndef generate(*args, **kwargs):\n    pass\n"
    (model / "custom_generate" / "generate.py").write_text(code)
    flags = ["--trust_remote_code"] * trusted
    run_seq2seq_qa.main(flags_of(model, squad_files, tmp_path, *flags))
    assert (tmp_path / "ran").exists() == trusted
    ignored = f"{model}: its code for generation, custom_generate/generate.py, is not run; add --trust_remote_code if you trust it"
    assert [record.message for record in caplog.records if record.name == "qa.upstream.models"] == [ignored] * (
        not trusted
    )


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_is_the_one_that_is_named(tiny_model, squad_files, tmp_path, monkeypatch, name):
    """By the class of BERT's layers."""
    made, start = [], run_qa.run
    monkeypatch.setattr(
        run_qa, "run", lambda trainer, *args, **kwargs: made.append(trainer.model) or start(trainer, *args, **kwargs)
    )
    run_qa.main(flags_of(tiny_model, squad_files, tmp_path, "--attn_implementation", name))
    attention = type(made[0].bert.encoder.layer[0].attention.self).__name__
    assert attention == {"eager": "BertSelfAttention", "sdpa": "BertSdpaSelfAttention"}[name]


def test_an_attention_that_a_model_lacks_is_an_error(tiny_writers, squad_files, tmp_path):
    with pytest.raises(UserError) as caught:
        run_seq2seq_qa.main(flags_of(tiny_writers["t5"], squad_files, tmp_path, "--attn_implementation", "sdpa"))
    assert caught.value.problems == (
        "--attn_implementation sdpa: models of the type t5 do not compute their attention that way on this device; use eager, "
        "or omit the flag",
    )
