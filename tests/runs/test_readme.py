"""Every command of the README and the other pages, in a folder where its names are small stand-ins.

Commands with --use_habana run byte for byte on the simulated Gaudi, which counts what they exercised: a recipe that names
lazy mode, HPU graphs or torch.compile has to have used them, and to have shown a card one shape of batches. Other commands
of the scripts run in this process, others of the launcher as a dry run. The rest must name what exists.

The pages' links, flags, tests and words are checked here too.
"""

import csv
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import corpus
import pytest
import yaml
from helpers import ROOT, address_here, corpus_texts, distance_trained, skip_without
from small_tokenizers import make_tokenizers

import gaudi_spawn
import qa.ask
import qa.data
import qa.reading
import qa.report
from qa.argument_file import flags_of_file
from tests import gaudi_sim


# The design document's recipes, copied by hand: the README may say nothing else.
BERT = """
    --model_name_or_path bert-large-uncased-whole-word-masking
    --gaudi_config_name Habana/bert-large-uncased-whole-word-masking --dataset_name squad"""
T5 = """
    --model_name_or_path t5-small --gaudi_config_name Habana/t5
    --dataset_name squad_v2 --version_2_with_negative --context_column context --question_column question
    --answer_column answers --do_train --do_eval --per_device_train_batch_size 16 --per_device_eval_batch_size 33
    --learning_rate 3e-5 --num_train_epochs 2 --max_seq_length 384 --doc_stride 128
    --output_dir /tmp/seq2seq_squad/ --predict_with_generate --use_habana --use_lazy_mode
    --use_hpu_graphs_for_inference --ignore_pad_token_for_loss False --pad_to_max_length --save_strategy epoch
    --throughput_warmup_steps 3 --bf16"""
RECIPES = {
    "BERT-large on one card": f"""PT_HPU_LAZY_MODE=0 python run_qa.py {BERT} --do_train --do_eval
        --per_device_train_batch_size 32 --per_device_eval_batch_size 8 --learning_rate 3e-5 --num_train_epochs 2
        --max_seq_length 384 --doc_stride 128 --output_dir /tmp/squad/ --use_habana
        --torch_compile_backend hpu_backend --torch_compile --use_lazy_mode false --throughput_warmup_steps 3 --bf16""",
    # The same with the document's changes, and the batch sizes and the learning rate of its table.
    "ALBERT-XXL with torch.compile": """PT_HPU_LAZY_MODE=0 PT_ENABLE_INT64_SUPPORT=1 python run_qa.py
        --model_name_or_path albert-xxlarge-v1 --gaudi_config_name Habana/bert-large-uncased-whole-word-masking
        --dataset_name squad --do_train --do_eval
        --per_device_train_batch_size 16 --per_device_eval_batch_size 2 --learning_rate 5e-6 --num_train_epochs 2
        --max_seq_length 384 --doc_stride 128 --output_dir /tmp/albert_squad/ --use_habana
        --torch_compile_backend hpu_backend --torch_compile --use_lazy_mode False --throughput_warmup_steps 3 --bf16""",
    "BERT-large on eight cards": f"""PT_HPU_LAZY_MODE=0 python gaudi_spawn.py --world_size 8 --use_mpi run_qa.py {BERT}
        --do_train --do_eval --per_device_train_batch_size 32 --per_device_eval_batch_size 8 --learning_rate 3e-5
        --num_train_epochs 2 --max_seq_length 384 --doc_stride 128 --output_dir /tmp/squad_output/ --use_habana
        --torch_compile_backend hpu_backend --torch_compile --use_lazy_mode false --throughput_warmup_steps 3 --bf16""",
    "BERT-large with DeepSpeed": f"""python gaudi_spawn.py --world_size 8 --use_deepspeed run_qa.py {BERT}
        --do_train --do_eval --per_device_train_batch_size 32 --per_device_eval_batch_size 8 --learning_rate 3e-5
        --num_train_epochs 2 --max_seq_length 384 --doc_stride 128 --output_dir /tmp/squad_output/ --use_habana
        --use_lazy_mode --use_hpu_graphs_for_inference --throughput_warmup_steps 3
        --deepspeed path_to_my_deepspeed_config""",
    "Llama with DeepSpeed": """python gaudi_spawn.py --world_size 8 --use_deepspeed run_qa.py
        --model_name_or_path FlagAlpha/Llama2-Chinese-13b-Chat
        --gaudi_config_name Habana/bert-large-uncased-whole-word-masking --dataset_name squad --do_train --do_eval
        --per_device_train_batch_size 8 --per_device_eval_batch_size 8 --learning_rate 3e-5 --num_train_epochs 2
        --max_seq_length 384 --doc_stride 128 --output_dir /tmp/squad_output/ --use_habana --use_lazy_mode
        --use_hpu_graphs_for_inference --throughput_warmup_steps 3 --max_train_samples 45080
        --deepspeed tests/configs/deepspeed_zero_2.json""",
    "inference only": f"""python run_qa.py {BERT} --do_eval --per_device_eval_batch_size 8
        --max_seq_length 384 --doc_stride 128 --output_dir /tmp/squad/ --use_habana --use_lazy_mode
        --use_hpu_graphs_for_inference --bf16""",
    "T5-small on SQuAD2.0": f"python run_seq2seq_qa.py {T5}",
}
T5_ON_EIGHT_CARDS = f"python gaudi_spawn.py --world_size 8 --use_mpi run_seq2seq_qa.py {T5}"
# Its configuration of DeepSpeed, ZeRO-2.
DEEPSPEED = {
    **{"steps_per_print": 64, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"},
    **{"gradient_accumulation_steps": "auto", "bf16": {"enabled": True}, "gradient_clipping": 1.0},
    "zero_optimization": {
        **{"stage": 2, "overlap_comm": False, "reduce_scatter": False, "contiguous_gradients": False},
    },
}
# learning_rate, num_train_epochs, per_device_train_batch_size, per_device_eval_batch_size
HYPERPARAMETERS = """
    BERT base | 3e-5 | 2 | 24 | 8
    BERT large | 3e-5 | 2 | 24 | 8
    RoBERTa base | 3e-5 | 2 | 12 | 8
    RoBERTa large | 3e-5 | 2 | 12 | 8
    ALBERT large (single-card) | 5e-5 | 2 | 32 | 4
    ALBERT large (multi-card) | 6e-5 | 2 | 32 | 4
    ALBERT XXL (single-card) | 5e-6 | 2 | 16 | 2
    ALBERT XXL (multi-card) | 5e-5 | 2 | 16 | 2
    DistilBERT | 5e-5 | 3 | 8 | 8
    meta-llama/Llama-2-13b-chat-hf (multi-card) | 3e-5 | 2 | 8 | 8
    FlagAlpha/Llama2-Chinese-13b-Chat (multi-card) | 3e-5 | 2 | 8 | 8
"""
# Two nodes, of a card each, where the README has eight; the first name has to resolve.
HOSTS = f"{address_here() or 'node-1'} slots=1\nnode-2 slots=1\n"
RIVERS = ("Nile", "Seine", "Rhine", "Ebro", "Volga", "Po", "Douro", "Tagus", "Rhone", "Elbe", "Loire", "Thames")
CONTRACT = "The lease was signed by Ada Byron on 3 May 2021, in Berlin. It ends on 31 December 2030.\n"
# The folders Habana/... of the hub hold no model, only this file.
GAUDI_CONFIG = {"use_fused_adam": True, "use_fused_clip_norm": True, "use_torch_autocast": True}
# /tmp is the machine's, and may hold what a user trained, or another recipe: the commands' Python writes below a folder
# of the test instead.
PYTHON = """#!/bin/sh
for word; do
  case "$word" in /tmp/*) word="$FOLDER_OF_TMP$word" ;; esac
  shift
  set -- "$@" "$word"
done
exec {python} "$@"
"""


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page's shell blocks; a line that ends in a backslash continues."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [command for block in blocks for command in re.findall(r"(?:.*\\\n)*.+", block)]


def words_of(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "), comments=True)


def all_words_of(command: str) -> list[str]:
    """Return the words of a command with those of a file of `configs/` in its place; a flag that the file turns on is one word."""
    words = words_of(command)
    place = next((place for place, word in enumerate(words) if word.startswith("configs/")), None)
    if place is None:
        return words
    added = [word.removesuffix("=true") for word in flags_of_file(ROOT / words[place])]
    added = [part for word in added for part in word.split("=", 1)]
    compiles = ["--torch_compile"] * ("--torch_compile_backend" in added)  # as for transformers' arguments
    return words[:place] + added + compiles + words[place + 1 :]


def kind_of(command: str) -> str:
    """Return how a command is tested: "gaudi", "dry run", "script", "ask", or "named" for those that are not run."""
    words = all_words_of(command)
    if words[:3] == ["python", "-m", "qa.ask"]:
        return "ask"
    programs = [word for word in words if re.fullmatch(r"(run_\w+|gaudi_spawn)\.py", word)]
    if not programs:
        return "named"
    if "--use_habana" in words and "--use_habana false" not in " ".join(words):
        return "gaudi"
    return "dry run" if programs[0] == "gaudi_spawn.py" else "script"


def deepspeed_block() -> str:
    """Return DeepSpeed's configuration from README.md."""
    (block,) = re.findall(r"```json\n(\{[^`]*zero_optimization[^`]*)```", (ROOT / "README.md").read_text())
    return block


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("benchmarks", "quickstart", "tests/gaudi_sim")]
COMMANDS = {page.relative_to(ROOT).as_posix(): commands_of(page) for page in PAGES}
GAUDI_COMMANDS = list(dict.fromkeys(c for commands in COMMANDS.values() for c in commands if kind_of(c) == "gaudi"))


def my_questions() -> str:
    """Return a CSV file that begins as the README's, as Excel writes it in Germany: with semicolons, and in cp1252."""
    (block,) = re.findall(r"```text\n(context,question,answers\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rows = list(csv.reader(io.StringIO(block)))
    rows += [
        [f"Der Fluss {river} ist {number},5 Meilen länger.", "Welcher Fluss?", river]
        for number, river in enumerate(RIVERS)
    ]
    file = io.StringIO()
    csv.writer(file, delimiter=";", lineterminator="\r\n").writerows(rows)
    return file.getvalue()


def make_dataset(folder: Path, questions: dict[str, int], negatives: bool = False) -> None:
    """Make a dataset folder with a number of invented questions in each split."""
    folder.mkdir()
    for split, part in (("train", "train"), ("validation", "dev")):
        rows = qa.reading.flatten_squad(corpus.make_part(part, questions[split], seed=1)["data"])[: questions[split]]
        for row in rows[::2] if negatives else []:
            row["answers"] = []
        data = qa.data.DataArguments(version_2_with_negative=True)
        shaped, _ = qa.data.checked_rows(qa.data.read_questions(rows, split, data, split), split, data, split)
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, shaped)))


def make_pretrained(folder: Path, kind: str) -> None:
    """Save a small BERT, ALBERT or Llama as after pretraining: without a head for questions."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"embedding_size": 16} if kind == "albert" else {}
    tokenizer = make_tokenizers(corpus_texts())[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
    head = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModelForMaskedLM
    transformers.set_seed(0)
    head.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def stand_ins(tiny_writers, remote_shells, tmp_path_factory):
    """Return a folder where the README's names are small stand-ins: models, Gaudi configurations, datasets, arguments."""
    folder = tmp_path_factory.mktemp("readme")
    for path in [*ROOT.glob("*.py"), ROOT / "tests", ROOT / "configs"]:
        (folder / path.name).symlink_to(path)
    make_pretrained(folder / "bert-large-uncased-whole-word-masking", "bert")
    make_pretrained(folder / "albert-xxlarge-v1", "albert")
    make_pretrained(folder / "FlagAlpha" / "Llama2-Chinese-13b-Chat", "llama")
    make_pretrained(folder / "FacebookAI" / "roberta-large", "roberta")
    make_pretrained(folder / "meta-llama" / "Llama-3.1-8B", "llama")
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "deepset/minilm-uncased-squad2"):
        (folder / name).parent.mkdir()
        (folder / name).symlink_to(folder / "bert-large-uncased-whole-word-masking")
    (folder / "bert-base-uncased").symlink_to(folder / "bert-large-uncased-whole-word-masking")
    shutil.copytree(tiny_writers["t5"], folder / "t5-small")
    for name in ("bert-large-uncased-whole-word-masking", "t5"):
        (folder / "Habana" / name).mkdir(parents=True)
        (folder / "Habana" / name / "gaudi_config.json").write_text(json.dumps(GAUDI_CONFIG))
    (folder / "path_to_my_deepspeed_config").write_text(deepspeed_block())
    # A full batch of every size that a recipe trains with, on eight cards too.
    make_dataset(folder / "squad", {"train": 256, "validation": 128})
    make_dataset(folder / "squad_v2", {"train": 128, "validation": 33}, negatives=True)
    settings = {
        "model_name_or_path": "bert-large-uncased-whole-word-masking",
        "dataset_name": "squad",
        "do_train": True,
    }
    settings |= {"max_steps": 1, "output_dir": "my_run", "overwrite_output_dir": True, "max_eval_samples": 8}
    (folder / "my_run.yaml").write_text(json.dumps(settings))
    (folder / "my_questions.csv").write_bytes(my_questions().encode("cp1252"))
    (folder / "contract.txt").write_text(CONTRACT)
    (folder / "questions.txt").write_text("Who signed it?\nWhen does it end?\n")
    (folder / "new_questions.csv").write_text(f'context,question\n"{CONTRACT.strip()}",Who signed it?\n')
    (folder / "hosts.txt").write_text(HOSTS)
    (folder / "bin").mkdir()
    for shell in remote_shells.iterdir():
        (folder / "bin" / shell.name).symlink_to(shell)
    (folder / "bin" / "python").write_text(PYTHON.format(python=sys.executable))
    (folder / "bin" / "python").chmod(0o755)
    return folder


def run_block(block: str, folder: Path, output: Path) -> subprocess.CompletedProcess:
    """Run a block in bash, with /tmp in `output`; on the simulated Gaudi, with its `counts.jsonl`, if it asks for one."""
    environment = dict(os.environ)
    if kind_of(block) == "gaudi":
        try:
            environment = gaudi_sim.environment(counts_file=output / "counts.jsonl")
        except gaudi_sim.CannotBuild as error:
            pytest.skip(str(error))
    environment.pop("PT_HPU_LAZY_MODE", None)  # the commands say it, or leave it to the flags
    environment |= {"PATH": f"{folder / 'bin'}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["FOLDER_OF_TMP"] = str(output)
    return subprocess.run(["bash", "-c", block], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("number", range(len(GAUDI_COMMANDS)))
def test_commands_for_a_gaudi_run(stand_ins, number, tmp_path):
    """They also use a Gaudi as their flags say."""
    command = GAUDI_COMMANDS[number]
    words = all_words_of(command)
    engine = next((name for name in ("mpi", "deepspeed") if f"--use_{name}" in words), "")
    skip_without(engine)
    done = run_block(command, stand_ins, tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    if "--do_eval" in words:
        assert re.search(r"^F1 +\d", done.stdout, re.MULTILINE)
    if {"run_qa.py", "--do_train"} <= set(words):
        check_weights(words, stand_ins, tmp_path)
    lines = (tmp_path / "counts.jsonl").read_text().splitlines()
    check_ranks(words, list(map(json.loads, lines)))
    assert done.stderr.count("simulated Gaudi: ops ") == len(lines)


def test_a_compiled_recipe_with_length_buckets_has_static_graphs_of_each_length(stand_ins, tmp_path):
    """A forward and a backward in training, a forward in evaluation: more than PyTorch's limit of graphs, which is 8."""
    recipe = next(c for c in COMMANDS["README.md"] if words_of(c) == words_of(RECIPES["BERT-large on one card"]))
    few = "--per_device_train_batch_size 4 --max_steps 6 --max_eval_samples 64"  # a step of each length
    done = run_block(f"{recipe} --length_buckets auto 6 {few}", stand_ins, tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    (counts,) = map(json.loads, (tmp_path / "counts.jsonl").read_text().splitlines())
    trained, evaluated = (counts["input_shapes"][phase] for phase in ("train", "eval"))
    assert {trained, evaluated} <= {5, 6}  # so few features of one split may lack a length
    assert (counts["compiles"], counts["symbolic_graphs"]) == (2 * trained + evaluated, 0)


def test_commands_without_a_gaudi_run(stand_ins, monkeypatch, capsys):
    """In the order of the pages, so that a command finds the files of earlier ones."""
    monkeypatch.chdir(stand_ins)
    monkeypatch.setenv("WANDB_MODE", "offline")
    kinds = {command: kind_of(command) for commands in COMMANDS.values() for command in commands}
    for command in (command for command, kind in kinds.items() if kind in ("script", "ask")):
        if kinds[command] == "ask":
            check_asking(words_of(command)[3:], monkeypatch, capsys)
            continue
        python, script, *flags = words_of(command)
        assert python == "python"
        if lacks_tracker(flags):
            continue
        importlib.import_module(script.removesuffix(".py")).main(flags)
        output = capsys.readouterr().out
        checks = "--check" in flags
        assert ("checked, a run could start" in output) == checks, command
        scored = re.search(r"^F1 +\d", output, re.MULTILINE)
        assert bool(scored) == ("--do_eval" in all_words_of(command) and not checks), command


def lacks_tracker(flags: list[str]) -> bool:
    """Return whether a command logs to a tracker that is not installed."""
    tracker = dict(zip(flags, flags[1:])).get("--report_to", "none")
    return tracker != "none" and importlib.util.find_spec(tracker) is None


def check_asking(words: list[str], monkeypatch, capsys) -> None:
    """Check that questions about the contract are answered with a text of it, on the screen or in a file."""
    if "<" in words:
        words, read = words[: words.index("<")], words[words.index("<") + 1]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(read).read_bytes())))
    importlib.import_module("qa.ask").main(words)
    printed = capsys.readouterr().out
    if "--output" in words:
        printed = Path(words[words.index("--output") + 1]).read_text()
    assert any(word in printed for word in CONTRACT.split()), printed


def test_python_of_the_page_of_recipes_runs(stand_ins, monkeypatch, capsys):
    """Byte for byte; several runs in one process, and their comparison."""
    monkeypatch.chdir(stand_ins)
    page = (ROOT / "docs" / "recipes.md").read_text()
    seeds, sweep = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert (
        max(len(block.strip().splitlines()) for block in (seeds, sweep)) <= 17
    )  # two of the blank lines are the formatter's
    exec(compile(seeds, "seeds", "exec"), {})
    scores = [json.loads(Path("seeds", seed, "all_results.json").read_text())["eval_f1"] for seed in "123"]
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed == f"F1 {statistics.mean(scores):.2f}, deviation {statistics.stdev(scores):.2f}"
    (command,) = (words_of(command) for command in COMMANDS["docs/recipes.md"] if "qa.report" in command)
    qa.report.main(command[3:])
    assert f"{statistics.mean(scores):.2f}" in capsys.readouterr().out
    exec(compile(sweep, "sweep", "exec"), {})
    best = capsys.readouterr().out.splitlines()[-1]
    results = [json.loads(path.read_text())["eval_f1"] for path in Path("sweep").glob("*/all_results.json")]
    assert len(results) == 8 and best.startswith(f"{max(results)} {{'learning_rate': ")


def test_commands_of_the_launcher_print_what_would_be_started(stand_ins, monkeypatch, capfd):
    monkeypatch.chdir(stand_ins)
    monkeypatch.setenv("PATH", f"{stand_ins / 'bin'}:{os.environ['PATH']}")
    for command in (
        command for commands in COMMANDS.values() for command in commands if kind_of(command) == "dry run"
    ):
        gaudi_spawn.main(["--dry_run", *words_of(command)[2:]])
        assert "my_run.yaml" in capfd.readouterr().out


def test_other_commands_name_existing_files():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in (command for commands in COMMANDS.values() for command in commands if kind_of(command) == "named"):
        words = words_of(command)
        for word in words:
            assert not re.fullmatch(r"[\w./-]+\.(py|txt)", word) or (ROOT / word).is_file(), command
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), command
            if "-k" in words:
                assert re.search(f"def test_.*{words[-1]}", (ROOT / words[3]).read_text()), command
        else:
            assert words[0] in ("docker", "pip", "tensorboard", "wandb") or words[:2] in (
                ["python3", "-m"],
                ["python", "quickstart/pretrain.py"],
            )


def test_commands_are_in_shell_blocks():
    """Other blocks and indented text may only show commands that are abridged, or those of a Makefile's target."""
    for page in PAGES:
        text = re.sub(r"```(bash|text)\n.*?```", "", page.read_text(), flags=re.DOTALL)
        assert not re.search(r"^ *(python|pip|make) \S", text, re.MULTILINE), page


def test_links_lead_to_pages_and_headings():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text()):
            path, _, heading = target.partition("#")
            path = page.parent / path if path else page
            assert path.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


def test_flags_in_the_text_exist(capsys):
    from qa.arguments import DataArguments, ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments
    from qa.device import training_arguments

    kinds = [ModelArguments, DataArguments, Seq2SeqModelArguments, Seq2SeqDataArguments]
    kinds += [training_arguments(False), training_arguments(True)]
    known = {name for kind in kinds for name in kind.__dataclass_fields__}
    gaudi_spawn.main(["--help"])
    known |= set(re.findall(r"--(\w+)", capsys.readouterr().out)) | {"help_all", "gaudi"}
    known |= set(re.findall(r"--(\w+)", qa.ask.make_parser().format_help()))
    for page in PAGES:
        found = set(re.findall(r"`--(\w+)", page.read_text())) - {"do_"}
        assert found <= known, f"{page.name}: {found - known}"


def test_files_and_tests_that_the_pages_name_exist():
    named = re.compile(r"`((?:qa|tests|docs|quickstart|benchmarks|\.ci)/[\w./-]+)(?:::(\w+))?`")
    for page in PAGES:
        for path, test in named.findall(page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
            assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{page.name}: {path}::{test}"


def test_every_module_and_test_is_in_the_map_of_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = [*ROOT.glob("*.py"), *ROOT.glob("qa/**/*.py"), *ROOT.glob("tests/**/test_*.py")]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.stat().st_size}
    assert names <= set(re.findall(r"`([\w./-]+\.py)`", text))


def test_the_models_in_the_manual_are_those_that_tests_train():
    from test_architectures import EXTRACTIVE, WRITING
    from test_gaudi_models import SETTINGS

    rows = re.findall(
        r"^\| (encoders|decoders|encoder-decoders .*?) \| (.*?) \|$",
        (ROOT / "docs" / "models.md").read_text(),
        re.MULTILINE,
    )
    assert {kind for _, kinds in rows for kind in kinds.split(", ")} == {*EXTRACTIVE, *WRITING, *SETTINGS}


def test_the_citation_is_complete():
    """By the rules of https://citation-file-format.github.io, version 1.2.0, that matter here."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    for key in ("version", "license"):
        assert f'{key} = "{citation[key]}"' in (ROOT / "pyproject.toml").read_text()
    for source in citation["references"]:
        assert {"type", "title", "authors"} <= source.keys()
        assert all(
            "name" in author or {"family-names", "given-names"} <= author.keys() for author in source["authors"]
        )
        assert source.get("doi", source.get("repository-code")) in (ROOT / "docs" / "differences.md").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 350


@pytest.mark.parametrize(
    "text, found",
    [
        ("The run is told of it.", "told"),  # right English
        ("Leave the flag away.", "Leave the flag away"),  # right English
        ("It does so by itself.", "by itself"),  # right English
        ("What is left is a file.", "begins with What"),
        ("A word " * 13 + "ends.", "27 words"),
        ("`told` in code too", "told"),  # right English
    ],
)
def test_words_that_read_as_translated_are_found(text, found):
    findings = runpy.run_path(str(ROOT / ".ci" / "words.py"))["findings"]
    assert not list(findings("A plain sentence.\n\n| a table | " + "word " * 30 + "|\n", True))
    ((line, finding),) = findings(f"A plain sentence.\n\n{text}\n", True)
    assert line == 3 and found in finding


def check_weights(words: list[str], folder: Path, output: Path) -> None:
    """Check that a training began with the checkpoint: random weights would differ by 0.1, training moves them by 1e-3."""
    name, place = (words[words.index(flag) + 1] for flag in ("--model_name_or_path", "--output_dir"))
    place = Path(f"{output}{place}") if place.startswith("/tmp") else folder / place
    if "--lora_r" in words:  # the checkpoint is not in the output
        assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    else:
        assert 0 < distance_trained(folder / name, place) < 0.01


def world_size_of(words: list[str]) -> int:
    if "--hostfile" in words:
        return HOSTS.count("slots=1\n")
    return int(words[words.index("--world_size") + 1]) if "--world_size" in words else 1


def check_ranks(words: list[str], counts: list[dict]) -> None:
    """Check that every rank of a run reports its counts, which are equal, and that several ranks communicated."""
    assert sorted(count["rank"] for count in counts) == list(range(world_size_of(words)))
    for count in counts:
        check_counts(words, count)
        assert (count["collectives"] > 0) == (len(counts) > 1)
        assert count["input_shapes"] == counts[0]["input_shapes"]


def check_counts(words: list[str], counts: dict) -> None:
    """Check that a run on the simulated Gaudi exercised what its command line says, with the fewest shapes.

    One for training and one for evaluation; a model that writes is also called for the score of what it wrote, and
    with negatives for that of the empty answer. A compiled run has one graph for each, and another for the backward
    of the training: no graph with a symbolic shape, and nothing that runs without one.
    """
    assert counts["ops"] > 0
    compiled = "--torch_compile" in words
    assert (counts["mark_steps"] > 0, counts["mark_steps_ignored"] > 0) == (not compiled, False)
    graphs = "--use_hpu_graphs_for_inference" in words
    assert [counts[name] > 0 for name in ("graph_wraps", "graph_captures", "graph_replays")] == [graphs] * 3
    calls = 3 if "--version_2_with_negative" in words else 1
    shapes = {"train": int("--do_train" in words), "eval": calls}
    assert {phase: counts["input_shapes"][phase] for phase in shapes} == shapes
    assert counts["compiles"] == (2 * shapes["train"] + shapes["eval"]) * compiled
    assert counts["symbolic_graphs"] == 0


@pytest.mark.parametrize(
    "right, wrong, message",
    [
        ("--use_hpu_graphs_for_inference", "--use_hpu_graph_for_inference", "(did you mean --use_hpu_graphs_for_inf"),
        ("name Habana/bert", "name Habana/brt", "--gaudi_config_name Habana/brt-large-uncased-whole-word-masking: no"),
    ],
)
def test_a_recipe_with_a_mistake_would_be_noticed(stand_ins, tmp_path, right, wrong, message):
    recipe = next(c for c in COMMANDS["README.md"] if words_of(c) == words_of(RECIPES["inference only"]))
    done = run_block(recipe.replace(right, wrong), stand_ins, tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ") and message in line]


# The counts of a compiled run that differ from those of a lazy one.
COMPILED = {"mark_steps": 0, "graph_wraps": 0, "graph_captures": 0, "graph_replays": 0, "compiles": 3}
COMPILED |= {"input_shapes": {"train": 1, "eval": 1}}


@pytest.mark.parametrize(
    "recipe, changed",
    [
        ("T5-small on SQuAD2.0", {"mark_steps": 0}),
        ("T5-small on SQuAD2.0", {"mark_steps_ignored": 3}),
        ("T5-small on SQuAD2.0", {"graph_replays": 0}),
        ("T5-small on SQuAD2.0", {"input_shapes": {"train": 2, "eval": 3}}),
        ("T5-small on SQuAD2.0", {"compiles": 1}),
        ("BERT-large on one card", {}),  # the counts of a lazy run
        ("BERT-large on one card", {"mark_steps": 0, "graph_wraps": 0, "graph_captures": 0, "graph_replays": 0}),
        ("BERT-large on one card", COMPILED | {"compiles": 2}),  # an evaluation without a graph
        ("BERT-large on one card", COMPILED | {"symbolic_graphs": 1}),
        ("inference only", {"ops": 0}),
    ],
)
def test_a_run_that_ignores_its_flags_would_be_noticed(recipe, changed):
    lazy = {"ops": 9, "mark_steps": 9, "mark_steps_ignored": 0, "compiles": 0, "graph_wraps": 1, "graph_captures": 1}
    lazy |= {"graph_replays": 9, "input_shapes": {"train": 1, "eval": 3}, "symbolic_graphs": 0}
    check_counts(words_of(RECIPES["T5-small on SQuAD2.0"]), lazy)
    check_counts(words_of(RECIPES["BERT-large on one card"]), lazy | COMPILED)
    with pytest.raises(AssertionError):
        check_counts(words_of(RECIPES[recipe]), lazy | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"rank": 0},
        {"collectives": 0},
        {"input_shapes": {"train": 1, "eval": 3, "all": 5}},
        {"mark_steps": 0},
    ],
)
def test_a_rank_that_differs_from_the_others_would_be_noticed(changed):
    words = words_of(T5_ON_EIGHT_CARDS)
    count = {"ops": 9, "mark_steps": 9, "mark_steps_ignored": 0, "compiles": 0, "graph_wraps": 1, "graph_captures": 1}
    count |= {"graph_replays": 9, "collectives": 9, "input_shapes": {"train": 1, "eval": 3, "all": 4}}
    count |= {"symbolic_graphs": 0}
    counts = [count | {"rank": rank} for rank in range(8)]
    check_ranks(words, counts)
    for wrong in ([*counts[:5], counts[5] | changed, *counts[6:]], counts[:7]):
        with pytest.raises(AssertionError):
            check_ranks(words, wrong)


def test_deepspeeds_configuration_is_the_design_documents():
    assert json.loads(deepspeed_block()) == DEEPSPEED
    assert json.loads((ROOT / "tests" / "configs" / "deepspeed_zero_2.json").read_text()) == DEEPSPEED


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_the_design_documents(name):
    assert words_of(RECIPES[name]) in [words_of(command) for command in COMMANDS["README.md"]]


def test_t5_on_eight_cards_is_its_recipe_after_the_launcher():
    (command,) = (c for c in COMMANDS["docs/several-cards.md"] if "run_seq2seq_qa.py" in c)
    assert words_of(command) == words_of(T5_ON_EIGHT_CARDS)


def test_the_table_of_hyperparameters_is_the_design_documents():
    text = re.sub(r"\[([^]]*)\]\(configs/[^)]*\)", r"\1", (ROOT / "README.md").read_text())
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    header = [
        "",
        "",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "",
    ]
    start = cells.index(header) + 2
    expected = [[cell.strip() for cell in line.split("|")] for line in HYPERPARAMETERS.strip().splitlines()]
    assert [row[1:-1] for row in cells[start : start + len(expected)]] == expected
