"""Bad input, as data: the mistakes that docs/errors.md lists and tests/test_errors.py makes.

A group is a command with `{}` where its cases differ. A case is the text that is typed there, or a file that is fed: its
name, which is typed there, and its content. tests/error_page.py runs them and writes the page.
"""

import gzip
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from helpers import ROOT


class Group(NamedTuple):
    """Cases of one kind. `words` are typed; `files` are fed; `needed` are files that all of its cases find."""

    title: str
    command: str
    words: tuple[str, ...] = ()
    files: tuple[tuple, ...] = ()
    needed: dict[str, object] = {}


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


ROW = {"id": "1", "context": "The Nile flows through Egypt.", "question": "What flows through Egypt?"}
ROW |= {"answers": {"text": ["The Nile"], "answer_start": [0]}}
TRAIN = "run_qa.py --model_name_or_path bert-base-uncased --dataset_name squad --do_train {}"
WRITE = "run_seq2seq_qa.py --model_name_or_path t5-small --dataset_name squad --do_eval {}"
EVALUATE = "run_qa.py --model_name_or_path bert-base-uncased --do_eval --validation_file {}"
CHECK = "run_qa.py --check --do_eval --validation_file good.json --model_name_or_path {}"
GOOD = {"good.json": json.dumps([ROW])}


# ---------------------------------------------------------------------------------------------------------------------
# The command line

COMMAND_LINE = [
    Group(
        "Flags that are missing, unknown or misspelt",
        "run_qa.py --model_name_or_path bert-base-uncased {}",
        lines("""
            --dataset_name squad
            --do_train
            --do_eval
            --do_predict --train_file good.json
            --do_train --do_eval --train_file good.json
            --do_trian --do_eval --dataset_name squad
            --do_eval --dataset_name squad --learnin_rate 1e-4
            --do_eval --dataset_name squad --model_path bert
            --do_eval --dataset_name squad -lr 1e-4
            --do_eval --dataset_name squad stray
            --do_eval --dataset_name squad --do
            --do_eval --dataset_name squad --use
            --do_eval --dataset_name squad --=x
            --do_eval --dataset_name squad --seed
            --do_eval --dataset_name squad --length_buckets
            --do_eval --dataset_name squad --num_beams 4
            --do_eval --dataset_name squad --predict_with_generate
            --do_eval --dataset_name my data.csv
            --do_eval --dataset_name squad --token hf_secret1 hf_secret2
            --do_eval --dataset_name squad --hub_tokn=hf_secret1
            --do_eval --dataset_name squad --hub_tokn hf_secret1
            --do_eval --dataset_name squad --hub_tokn:hf_secret1
            --do_eval --dataset_name squad --hub_tokenhf_secret1
            --do_eval --dataset_name squad hub_token hf_secret1
            --do_eval --dataset_name squad \u2014hub_token hf_secret1
            --do_eval --dataset_name squad --seed hf_secret1
        """),
        needed=GOOD,
    ),
    Group(
        "Values of the wrong type",
        TRAIN,
        lines("""
            --do_eval maybe
            --pad_to_max_length 2
            --max_seq_length many
            --max_seq_length 384.0
            --max_seq_length 64 128
            --max_seq_length=
            --num_train_epochs two
            --learning_rate 3e-5x
            --learning_rate 3,5
            --seed 0x10
            --save_strategy sometimes
            --eval_strategy never
            --lr_scheduler_type quadratic
            --log_level loud
            --hub_strategy rarely
            --license apache2
            --language German
            --debug everything
            --answer_language klingon
            --on_bad_rows ignore
            --ambiguous_answers last
            --attn_implementation fast
            --length_buckets a b
            --length_buckets auto 0
            --length_buckets 256 128
            --length_buckets 128 256
            --liger_kernel_config rope
        """),
    ),
    Group(
        "Numbers that cannot be",
        TRAIN,
        lines("""
            --per_device_train_batch_size 0
            --per_device_train_batch_size -4
            --per_device_train_batch_size 99999999999
            --per_device_eval_batch_size 0
            --gradient_accumulation_steps 0
            --gradient_accumulation_steps -1
            --learning_rate -1
            --learning_rate -1e-5
            --learning_rate nan
            --learning_rate inf
            --learning_rate 1e38
            --num_train_epochs 0
            --num_train_epochs -1
            --num_train_epochs nan
            --max_steps 0
            --max_steps -2
            --warmup_ratio 1.5
            --warmup_ratio nan
            --warmup_steps -1
            --weight_decay -0.1
            --weight_decay inf
            --adam_beta1 1
            --adam_beta2 -0.1
            --adam_epsilon nan
            --max_grad_norm -1
            --neftune_noise_alpha -5
            --neftune_noise_alpha 1e308
            --max_grad_norm 1e308
            --max_seq_length 0
            --max_seq_length 7
            --max_seq_length 99999999
            --doc_stride -1
            --check_steps 5
            --doc_stride 384
            --n_best_size 0
            --n_best_size 2147483647
            --max_answer_length 0
            --max_train_samples 0
            --max_eval_samples -1
            --max_predict_samples 0
            --null_score_diff_threshold nan
            --validation_split 0
            --validation_split 1
            --validation_split nan
            --tune_null_threshold 1
            --temperature 0
            --save_steps 0
            --save_steps -1
            --save_total_limit 0
            --save_total_limit -1
            --eval_steps 0
            --eval_steps -1
            --eval_steps 1.5 --eval_strategy steps
            --eval_delay -1
            --eval_accumulation_steps 0
            --logging_steps 0
            --logging_steps nan
            --early_stopping_patience 0
            --nan_patience 0
            --max_train_minutes 0
            --max_train_minutes nan
            --seed -1
            --seed 4294967296
            --data_seed -1
            --dataloader_num_workers -1
            --dataloader_num_workers 99999
            --dataloader_num_workers 1 --dataloader_prefetch_factor 0
            --torch_empty_cache_steps 0
            --ddp_timeout 0
            --past_index 0
            --throughput_warmup_steps -1
            --per_device_train_batch_size 0 --learning_rate nan --seed x --do_trian
        """),
    ),
    Group(
        "Numbers of models that write",
        WRITE,
        lines("""
            --num_beams 0
            --generation_num_beams -1
            --generation_max_length 1
            --val_max_answer_length 1
            --max_answer_length 1
            --max_answer_length 0
            --max_answer_length 2147483647
            --val_max_answer_length 0
            --val_max_answer_length 2147483647
            --generation_max_length 0
            --generation_max_length 2147483647
            --num_beams -4
            --num_beams 2147483647
            --generation_num_beams 0
            --generation_num_beams 2147483647
            --label_smoothing_factor 2
            --label_smoothing_factor nan
            --label_smoothing_factor -0.1
            --max_seq_length 7
            --doc_stride 384
            --num_beams 0 --generation_num_beams 0 --val_max_answer_length 1 --generation_max_length x
        """),
    ),
    Group(
        "Values of models that write",
        WRITE,
        lines("""
            --use_fast_tokenizer maybe
            --predict_with_generate often
            --ignore_pad_token_for_loss 2
            --sortish_sampler 7
            --num_beams four
            --num_beams 2.5
            --num_beams=
            --num_beams 2 4
            --num_beams nan
            --generation_num_beams many
            --generation_max_length long
            --generation_max_length 30.0
            --val_max_answer_length 10 20
            --val_max_answer_length
            --max_answer_length short
            --language_code
            --language_code de DE
            --generation_config
            --beams 4
            --num_beam=4 --num_beems 4
            --predict_with_generat true --predict_with_generation
            --val_max_target_length 30
            --max_target_length 30
            --source_prefix question:
            --do_trian --predict_with_generate
            --do_train --pack
            --token hf_secret1 hf_secret2
        """),
    ),
    Group(
        "Flags of models that write which do not go together",
        WRITE,
        lines("""
            --do_train --metric_for_best_model f1 --eval_strategy epoch
            --do_train --metric_for_best_model exact_match --eval_strategy epoch
            --do_train --metric_for_best_model bleu --eval_strategy epoch --predict_with_generate
            --do_train --metric_for_best_model loss --eval_strategy epoch --greater_is_better true
            --do_train --metric_for_best_model f1 --eval_strategy epoch --predict_with_generate --prediction_loss_only
            --do_train --metric_for_best_model f1 --eval_strategy epoch --predict_with_generate --greater_is_better false
            --do_train --metric_for_best_model HasAns_f1 --eval_strategy epoch --predict_with_generate
            --do_train --early_stopping_patience 2 --predict_with_generate
            --do_train --save_strategy best --predict_with_generate
            --do_train --load_best_model_at_end --predict_with_generate
            --do_train --length_buckets 128 384 --group_by_length
            --length_buckets 128 256
            --validation_split 0.1 --validation_file good.json
            --tune_null_threshold 0.1
            --tune_null_threshold 0.1 --version_2_with_negative --null_score_diff_threshold 1 --temperature 2
            --do_train --tune_null_threshold 0.1 --version_2_with_negative
            --fp16 --use_cpu
            --use_habana
            --num_beams 0 --metric_for_best_model bleu --output_dir a_file --language_code
        """),
        needed=GOOD | {"a_file": ""},
    ),
    Group(
        "Problems of all kinds, at once",
        "run_seq2seq_qa.py --check --model_name_or_path t5-small --do_train {}",
        lines("""
            --seed x --num_beams 0 --output_dir a_file/below --cache_dir a_file --use_habana --learnin_rate 1
            --validation_file nowhere.json --do_eval --output_dir a_file --use_habana --bf16 maybe --hub_tokn hf_secret1
            --dataset_name squad --output_dir '' --optim quick --fp16 --use_cpu --num_beams many --n_best_size 0
        """),
        needed={"a_file": ""},
    ),
    Group(
        "Names, and packages that are not installed",
        TRAIN,
        lines("""
            --optim adam
            --optim quick
            --optim adamw_bnb_8bit
            --optim paged_lion_32bit
            --optim adamw_apex_fused
            --optim galore_adamw
            --optim schedule_free_adamw
            --optim_args lr
            --report_to wandb
            --report_to tensorbord
            --report_to none wandb
            --use_liger_kernel
            --use_ipex
            --half_precision_backend apex
            --torch_compile_backend fast
            --torch_compile_backend ''
            --torch_compile_mode fast
            --fsdp sharded --use_cpu
            --ddp_backend tcp
            --metric_for_best_model f11
            --metric_for_best_model ''
            --metric_for_best_model accuracy --eval_strategy epoch
            --metric_for_best_model exact --eval_strategy epoch
            --metric_for_best_model HasAns_f1 --eval_strategy epoch
            --use_habana
        """),
    ),
    Group(
        "JSON in flags",
        TRAIN,
        lines("""
            --lr_scheduler_kwargs cycles
            --lr_scheduler_kwargs {'num_cycles':2}
            --lr_scheduler_kwargs '{"cycles": 2}'
            --lr_scheduler_kwargs '{"num_cycles": "two"}' --lr_scheduler_type cosine
            --lr_scheduler_type cosine_with_min_lr
            --lr_scheduler_type polynomial --learning_rate 0
            --gradient_checkpointing_kwargs reentrant
            --accelerator_config nowhere.json
            --accelerator_config '{"batches": 3}'
            --accelerator_config '{"split_batches": true}'
            --fsdp_config nowhere.json
            --deepspeed nowhere.json
            --deepspeed good.json
            --deepspeed nested.json
            --deepspeed '{"zero_optimization": 3}'
        """),
        needed=GOOD | {"nested.json": "[" * 99999},
    ),
    Group(
        "Flags that do not go together, or have no effect",
        TRAIN,
        lines("""
            --fp16 --use_cpu
            --fp16 --bf16 --use_cpu
            --fsdp full_shard --use_cpu
            --ddp_backend gloo --use_cpu
            --label_smoothing_factor 0.1
            --load_best_model_at_end
            --load_best_model_at_end --eval_strategy steps --eval_steps 300
            --load_best_model_at_end --eval_strategy epoch
            --early_stopping_patience 2
            --save_strategy best
            --lr_scheduler_type reduce_lr_on_plateau
            --dataloader_prefetch_factor 2
            --metric_for_best_model f1 --eval_strategy epoch --greater_is_better false
            --metric_for_best_model loss --eval_strategy epoch --greater_is_better true
            --metric_for_best_model f1 --eval_strategy epoch --prediction_loss_only
            --validation_split 0.1 --validation_file good.json
            --length_buckets 128 384 --group_by_length
            --length_buckets 128 384 --auto_find_batch_size
            --pack --length_buckets 128 384
            --pack --group_by_length
            --pack --accelerator_config '{"dispatch_batches": true}'
            --push_to_hub
            --resume_from_checkpoint nowhere
        """),
        needed=GOOD,
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Files of arguments

ARGUMENT_FILES = [
    Group(
        "A file of arguments: where it is",
        "run_qa.py {}",
        lines("""
            nowhere.yaml
            --model_name_or_path m --dataset_name squad --do_eval my.yaml
            --model_name_or_path m --dataset_name squad --do_eval --seed 7 my.yaml
            my.yaml my.yaml
        """),
        needed={"my.yaml": "model_name_or_path: m\ndataset_name: squad\ndo_eval: true\n"},
    ),
    Group(
        "A file of arguments: its content",
        "run_qa.py {} --model_name_or_path m --dataset_name squad --do_eval",
        files=(
            ("empty.yaml", ""),
            ("list.yaml", "- do_train\n- do_eval\n"),
            ("text.yaml", "do_train do_eval"),
            ("open.yaml", "length_buckets: [128, 256"),
            ("colons.yaml", "run_name: a: b: c"),
            ("tab.yaml", "seed:\t7\n\tdo_train: true"),
            ("twice.yaml", "seed: 1\ndo_eval: true\nseed: 2\n"),
            ("twice.json", '{"seed": 1,\n "seed": 2}'),
            ("thrice.yaml", "seed: 1\nseed: 2\nseed: 3\nmax_steps: 1\nmax_steps: 2\n"),
            ("base60.yaml", "max_seq_length: 1:30\n"),
            ("hex.yaml", "max_seq_length: 0x80\n"),
            ("list_for_number.yaml", "max_seq_length: [128, 256]\n"),
            ("map_for_number.yaml", "max_seq_length: {tokens: 128}\n"),
            ("empty_list.yaml", "length_buckets: []\n"),
            ("text_for_number.yaml", "learning_rate: high\n"),
            ("unknown.yaml", "learnin_rate: 1e-4\n"),
            ("nested.yaml", "training:\n  seed: 7\n"),
            ("dashes.yaml", "--seed: 7\n"),
            ("number_for_name.yaml", "7: seed\n"),
            ("list_for_name.yaml", "[seed, data_seed]: 7\n"),
            ("python.yaml", "run_name: !!python/object/apply:os.system [ls]\n"),
            ("secret_alias.yaml", "hub_token: *hf_secret1\n"),
            ("secret_open.yaml", 'hub_token: "hf_secret1\n'),
            ("secret_tag.yaml", "hub_token: !hf_secret1 x\n"),
            ("secret_colon.yaml", "hub_token: hf_secret1: x\n"),
            ("secret_json.json", '{"hub_token": hf_secret1}'),
            ("secret_name.yaml", "hub_tokn: hf_secret1\nhf_secret1: x\n"),
            ("itself.yaml", "label_names: &a [*a]\n"),
            (
                "bomb.yaml",
                bomb := "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '0'] * 9)}]\n" for n in range(9)),
            ),
            (
                "merge_bomb.yaml",
                bomb.replace("[", "{<<: [").replace("]", "]}").replace("[0, 0, 0, 0, 0, 0, 0, 0, 0]", "{b: 1}"),
            ),
            ("deep.yaml", "a: " + "[" * 3000),
            ("two.yaml", "seed: 1\n---\nseed: 2\n"),
            ("latin.yaml", "run_name: Zürich".encode("latin-1")),
            ("huge.yaml", "# " + "x" * (1 << 20)),
            ("broken.json", '{"seed": 7'),
            ("list.json", '["seed", 7]'),
            ("quotes.json", "{'seed': 7}"),
            ("nan.json", '{"learning_rate": NaN}'),
            ("text_for_flag.json", '{"do_train": "perhaps"}'),
            ("no_file.json", lambda path: path.mkdir(), "a folder"),
        ),
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Folders

FOLDERS = [
    Group(
        "Folders to write to",
        TRAIN,
        lines(f"""
            --output_dir ''
            --output_dir a_file
            --output_dir a_file/below
            --output_dir to_nowhere
            --output_dir {"x" * 300}
            --output_dir {"new/" * 1200}
            --output_dir full
            --logging_dir a_file
            --cache_dir a_file
            --cache_dir ''
        """),
        needed={
            "a_file": "",
            "to_nowhere": lambda path: path.is_symlink() or path.symlink_to("gone"),
            "full/precious.txt": "mine",
        },
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Data


def with_row(**changes) -> str:
    """Return a JSON list of the good row, changed; None omits a column."""
    row = ROW | changes
    return json.dumps([{name: value for name, value in row.items() if value is not None}])


def row(file: str, **changes) -> tuple[str, str, str]:
    """Return a file of the good row, changed, with the changes as its label."""
    parts = [f"{name}: {json.dumps(value)}" if value is not None else f"no {name}" for name, value in changes.items()]
    return file, with_row(**changes), ", ".join(parts)


def squad(paragraphs) -> str:
    return json.dumps({"data": [{"title": "Nile", "paragraphs": paragraphs}]})


DATA = [
    Group(
        "Data: names",
        "run_qa.py --model_name_or_path bert-base-uncased --do_eval {}",
        lines("""
            --validation_file nowhere.json
            --validation_file .
            --validation_file notes.txt
            --validation_file archive.zip
            --validation_file ''
            --dataset_name ''
            --dataset_name notes.txt
            --dataset_name nowhere/at/all
            --dataset_name org/private
            --dataset_name empty_folder
        """),
        needed={"notes.txt": "", "archive.zip": "", "empty_folder": lambda path: path.mkdir(exist_ok=True)},
    ),
    Group(
        "Data: files",
        EVALUATE,
        files=(
            ("empty.json", ""),
            ("blank.json", "  \n\n"),
            ("none.json", "[]"),
            ("null.json", "null"),
            ("number.json", "7"),
            ("text.json", '"rows"'),
            ("numbers.json", "[1, 2]"),
            ("lists.json", "[[1], [2]]"),
            ("no_data.json", '{"data": 7}'),
            ("no_rows.json", '{"data": []}'),
            ("open.json", '[{"id": "1"'),
            ("comma.json", '[{"id": "1"},, {"id": "2"}]'),
            ("line_2.jsonl", '{"id": "1"}\n{"id": \n'),
            ("deep.json", "[" * 20000),
            ("no_paragraphs.json", '{"data": [{"title": "a", "paragraphs": 7}]}'),
            ("paragraph.json", squad([7])),
            ("no_qas.json", squad([{"context": "The Nile"}])),
            ("qas.json", squad([{"context": "The Nile", "qas": ["What?"]}])),
            ("no_context.json", squad([{"qas": [{"id": "1", "question": "What?", "answers": []}]}])),
            ("latin.json", b'[{"id": "\xff\xfe\xe4"'),
            ("damaged.csv", "context,question\nZürich,Größe\n".encode() + b"\xc3(,x\n"),
            ("binary.csv", bytes(range(1, 32)) * 9),
            ("empty.csv", ""),
            ("header.csv", "id,context,question,answers\n"),
            ("json.csv", '{"data": []}'),
            ("twice.csv", "id,context,context\n1,a,b\n"),
            ("quote.csv", 'context,question,answers\n"The Nile,What?,x\n'),
            ("columns.csv", "text,query\nThe Nile,What?\n"),
            ("fields.csv", "context,question,answers\nThe Nile, the longest,What?,The Nile\n"),
            ("no_gzip.json.gz", "[]"),
            ("short.json.gz", gzip.compress(json.dumps([ROW]).encode(), mtime=0)[:-9], "the beginning of a gzip file"),
            ("parquet.json", b"PAR1xxxxPAR1"),
            ("not.parquet", "context,question\n"),
            ("short.parquet", b"PAR1xxxx"),
            ("excel.csv", b"PK\x03\x04xxxx"),
            ("not.xlsx", "context,question\n"),
            ("short.xlsx", b"PK\x03\x04xxxx"),
        ),
    ),
    Group(
        "Data: rows",
        EVALUATE,
        files=(
            row("no_context.json", context=None),
            row("no_question.json", question=None),
            row("no_answers.json", answers=None),
            (
                "null_context.json",
                json.dumps([ROW, ROW | {"id": "2", "context": None}]),
                "row 2 with the context null",
            ),
            row("empty_context.json", context=" "),
            row("number_context.json", context=7),
            row("list_question.json", question=["What?"]),
            row("surrogate.json", context="The \ud83d Nile"),
            row("list_id.json", id=[1]),
            ("twice.json", json.dumps([ROW, ROW]), "the same row twice"),
            row("impossible.json", answers={"text": [], "answer_start": []}),
            row("maybe_impossible.json", is_impossible="maybe"),
            row("flag_answers.json", answers={"text": [True], "answer_start": [0]}),
            row("starts.json", answers={"text": ["The Nile"], "answer_start": [0, 4]}),
            row("float_start.json", answers={"text": ["The Nile"], "answer_start": [0.5]}),
            row("text_start.json", answers={"text": ["The Nile"], "answer_start": ["first"]}),
            row("huge_start.json", answers={"text": ["The Nile"], "answer_start": [10**20]}),
            row("no_text.json", answers={"start": 0}),
            ("cell.csv", "context,question,answers\nThe Nile,What?,\"{'text': The Nile}\"\n"),
            row("spans.json", answers={"text": "The Nile", "char_spans": [[0]]}),
            (
                "seven.json",
                json.dumps([ROW | {"id": str(number), "context": ""} for number in range(7)]),
                "seven rows without a text",
            ),
        ),
    ),
    Group(
        "Data: rows to train on, and columns",
        "run_qa.py --model_name_or_path bert-base-uncased {}",
        lines("""
            --do_train --train_file elsewhere.json
            --do_train --train_file ambiguous.json --ambiguous_answers stop
            --do_train --train_file good.json --validation_split 0.5
            --do_train --train_file good.json --tune_null_threshold 0.5 --version_2_with_negative
            --do_train --train_file fifty.json --tune_null_threshold 0.5 --version_2_with_negative
            --do_train --train_file hundred.json --tune_null_threshold 0.5 --version_2_with_negative
            --do_eval --validation_file good.json --context_column text
            --do_eval --validation_file good.json --question_column query --answer_column gold
            --do_eval --validation_file good.json --id_column key
            --do_eval --validation_file good.json --report_columns topic title
            --do_train --train_file elsewhere.json --do_eval --validation_file twice.csv
            --do_eval --validation_file bad_only.json --on_bad_rows skip
            --do_eval --validation_file klingon.json --answer_language auto
            --do_train --train_file good.json --do_eval --validation_file good.json --metric_for_best_model NoAns_f1 --eval_strategy epoch --version_2_with_negative
        """),
        needed=GOOD
        | {
            "elsewhere.json": with_row(answers={"text": ["The Rhine"], "answer_start": [0]}),
            "ambiguous.json": with_row(context="Nile and Nile.", answers={"text": ["Nile"], "answer_start": [3]}),
            "twice.csv": "id,context,context\n1,a,b\n",
            "bad_only.json": with_row(context=""),
            "fifty.json": json.dumps([ROW | {"id": str(n), "context": f"The Nile, {n}"} for n in range(50)]),
            "hundred.json": json.dumps([ROW | {"id": str(n), "context": f"The Nile, {n}"} for n in range(100)]),
            "klingon.json": with_row(context="1234 5678", answers={"text": ["1234"], "answer_start": [0]}),
        },
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Models: the quickstart's checkpoint, with one file changed

CHECKPOINT = ROOT / "quickstart" / "checkpoint"
WEIGHTS = "model.safetensors"


def changed(name: str, content: bytes | str | Callable | None) -> Callable[[Path], None]:
    """Return what makes a copy of the checkpoint in which a file has another content; None omits it."""

    def make(folder: Path) -> None:
        if folder.exists():
            return
        folder.mkdir()
        for file in CHECKPOINT.iterdir():
            (folder / file.name).symlink_to(file)
        before = CHECKPOINT / name
        (folder / name).unlink(missing_ok=True)
        if name == "pytorch_model.bin":
            (folder / WEIGHTS).unlink()
        new = content(before) if callable(content) else content
        if new is not None:
            (folder / name).write_bytes(new.encode() if isinstance(new, str) else new)

    return make


def config(**settings) -> Callable[[Path], str]:
    return lambda file: json.dumps(json.loads(file.read_text()) | settings)


def tensors(rename: Callable[[str], str | None]) -> Callable[[Path], bytes]:
    """Return what makes a file of weights with other names; without those for which there is None."""

    def make(file: Path) -> bytes:
        from safetensors.torch import load_file, save

        found = {rename(name): tensor for name, tensor in load_file(file).items()}
        return save({name: tensor for name, tensor in found.items() if name is not None}, {"format": "pt"})

    return make


def head(content) -> bytes:
    """Return a file of safetensors that is a head alone."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


def code(_: Path) -> bytes:
    """Return a file of PyTorch that would run a program."""
    import io
    import os

    import torch

    class Program:
        def __reduce__(self):
            return os.system, ("false",)

    file = io.BytesIO()
    torch.save({"a": Program()}, file)
    return file.getvalue()


def without_head(file: Path) -> bytes:
    """Return the tensors of a file of safetensors that are no part of the head for answers."""
    from safetensors.torch import load_file, save

    tensors = load_file(file)
    return save({name: tensors[name] for name in tensors if not name.startswith("qa_outputs")}, {"format": "pt"})


def model(folder: str, name: str, content, label: str) -> tuple:
    return folder, changed(name, content), label


def index(folder: Path, content: str = '{"weight_map": {"a": "model-1.safetensors"}}') -> None:
    changed(WEIGHTS, None)(folder)
    (folder / f"{WEIGHTS}.index.json").write_text(content)


def copy_without_config(folder: Path) -> None:
    if not folder.exists():
        shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("config.json"))


def adapter(**settings) -> str:
    """Return an `adapter_config.json` of LoRA, for the quickstart's model."""
    base = {"peft_type": "LORA", "r": 8, "target_modules": ["query"], "modules_to_save": ["qa_outputs"]}
    return json.dumps(base | {"base_model_name_or_path": str(CHECKPOINT.relative_to(ROOT))} | settings)


MODELS = [
    Group(
        "Models: names",
        "run_qa.py --check --do_eval --validation_file good.json {}",
        lines(f"""
            --do_eval
            --model_name_or_path ''
            --model_name_or_path good.json
            --model_name_or_path empty_folder
            --model_name_or_path nowhere/at/all
            --model_name_or_path bert:base
            --model_name_or_path {"x" * 300}
            --model_name_or_path org/private
            --model_name_or_path org/private --tokenizer_name not/a/name
            --model_name_or_path org/private --config_name ''
        """),
        needed=GOOD | {"empty_folder": lambda path: path.mkdir(exist_ok=True)},
    ),
    Group(
        "Models: weights",
        CHECK,
        files=(
            model("half", WEIGHTS, lambda file: file.read_bytes()[:100_000], f"the first 100 KB of {WEIGHTS}"),
            model("no_bytes", WEIGHTS, "", f"an empty {WEIGHTS}"),
            model("noise", WEIGHTS, b"\xfe\x01" * 999, f"a {WEIGHTS} of other bytes"),
            model(
                "pointer",
                WEIGHTS,
                "version https://git-lfs.github.com/spec/v1\n",
                f"a pointer of Git LFS as {WEIGHTS}",
            ),
            model("head_list", WEIGHTS, head([1]), f"a {WEIGHTS} whose head is a list"),
            model("head_only", WEIGHTS, head({"a": {"dtype": "F32"}}), f"a {WEIGHTS} without places of its tensors"),
            model("no_weights", WEIGHTS, None, f"no {WEIGHTS}"),
            ("no_shard", index, "an index of files that are not there"),
            ("no_map", lambda folder: index(folder, "{}"), "an index without names"),
            ("map_list", lambda folder: index(folder, "[]"), "a list as index"),
            model("no_torch", "pytorch_model.bin", "noise", "a pytorch_model.bin of other bytes"),
            model(
                "no_archive", "pytorch_model.bin", b"PK\x03\x04" + b"x" * 99, "the beginning of a pytorch_model.bin"
            ),
            model("program", "pytorch_model.bin", code, "a pytorch_model.bin that would run a program"),
            model("other_names", WEIGHTS, tensors("x.".__add__), "other names of all tensors"),
            model(
                "few_layers",
                WEIGHTS,
                tensors(lambda name: None if ".layer.1." in name else name),
                "weights without a layer",
            ),
            model(
                "more_layers",
                "config.json",
                config(num_hidden_layers=5),
                "more layers in config.json than in the weights",
            ),
            model("wider", "config.json", config(hidden_size=256), "another hidden_size in config.json"),
            model("more_labels", "config.json", config(num_labels=5), "5 labels in config.json"),
        ),
        needed=GOOD,
    ),
    Group(
        "Models: configuration and tokenizer",
        CHECK,
        files=(
            ("no_config", copy_without_config, "no config.json"),
            model("config_empty", "config.json", "", "an empty config.json"),
            model("config_list", "config.json", "[]", "a list as config.json"),
            model("config_open", "config.json", "{", "half a config.json"),
            model("no_type", "config.json", "{}", "a config.json without a model_type"),
            model("new_type", "config.json", '{"model_type": "wonder"}', "an unknown model_type"),
            model("no_heads", "config.json", config(num_attention_heads=0), "0 attention heads"),
            model("seven_heads", "config.json", config(num_attention_heads=7), "7 attention heads for 128 numbers"),
            model("text_layers", "config.json", config(num_hidden_layers="two"), "two as the number of layers"),
            model("activation", "config.json", config(hidden_act="wonder"), "an unknown activation"),
            model("dropout", "config.json", config(hidden_dropout_prob=7), "a dropout of 7"),
            model("no_words", "config.json", config(vocab_size=0), "a vocabulary of 0 words"),
            model("dtype", "config.json", config(torch_dtype="wonder"), "an unknown torch_dtype"),
            model("tokenizer_open", "tokenizer.json", "{", "half a tokenizer.json"),
            model("tokenizer_list", "tokenizer.json", "[]", "a list as tokenizer.json"),
            model("settings_open", "tokenizer_config.json", "{", "half a tokenizer_config.json"),
            model(
                "tokenizer_class",
                "tokenizer_config.json",
                config(tokenizer_class="Wonder"),
                "an unknown tokenizer_class",
            ),
            model("no_length", "tokenizer_config.json", config(model_max_length=0), "a model_max_length of 0"),
            model(
                "text_length", "tokenizer_config.json", config(model_max_length="long"), "a text as model_max_length"
            ),
        ),
        needed=GOOD,
    ),
    Group(
        "Models: flags that do not fit them",
        f"run_qa.py --check --model_name_or_path {CHECKPOINT.relative_to(ROOT)} --validation_file good.json --do_eval {{}}",
        lines("""
            --max_seq_length 512 --doc_stride 384
            --tokenizer_name empty_folder
            --config_name wider
        """),
        needed=GOOD
        | {
            "quickstart": lambda path: path.exists() or path.symlink_to(ROOT / "quickstart"),
            "empty_folder": lambda path: path.mkdir(exist_ok=True),
            "wider": changed("config.json", config(hidden_size=256)),
        },
    ),
    Group(
        "Models: adapters",
        "run_qa.py --check --validation_file good.json --do_eval --train_file good.json {}",
        lines(f"""
            --model_name_or_path bert-base-uncased --do_train --lora_r 0
            --model_name_or_path bert-base-uncased --do_train --lora_r 0.5
            --model_name_or_path bert-base-uncased --do_train --lora_r 8 --lora_alpha -1 --lora_dropout 1
            --model_name_or_path bert-base-uncased --do_train --lora_alpha 8 --lora_dropout 0.1 --lora_target_modules query
            --model_name_or_path bert-base-uncased --merge_lora
            --model_name_or_path {CHECKPOINT.relative_to(ROOT)} --do_train --merge_lora
            --model_name_or_path {CHECKPOINT.relative_to(ROOT)} --do_train --lora_r 8 --lora_target_modules query q_proj
            --model_name_or_path no_weights
            --model_name_or_path no_weights --do_train --lora_r 8
            --model_name_or_path no_model
            --model_name_or_path not_here
            --model_name_or_path other_kind
            --model_name_or_path no_json
            --model_name_or_path nested
            --model_name_or_path half
        """),
        needed=GOOD
        | {
            "quickstart": lambda path: path.exists() or path.symlink_to(ROOT / "quickstart"),
            "no_weights/adapter_config.json": adapter(),
            "no_model/adapter_config.json": adapter(base_model_name_or_path="gone/to/rest"),
            "not_here/adapter_config.json": adapter(base_model_name_or_path="owner/model"),
            "other_kind/adapter_config.json": adapter(peft_type="IA3"),
            "no_json/adapter_config.json": "{",
            "nested/adapter_config.json": "[" * 99999,
            "half/adapter_config.json": adapter(),
            "half/adapter_model.safetensors": "noise",
        },
    ),
    Group(
        "Predictions that would compute nothing",
        "run_seq2seq_qa.py --check --model_name_or_path t5-small --test_file questions.json --do_predict {}",
        lines("""
            --report_to none
            --predict_with_generate --prediction_loss_only
        """),
        needed={"questions.json": '[{"id": "1", "context": "Ada signed.", "question": "Who signed?"}]'},
    ),
    Group(
        "Models that mark answers, in the script for those that write",
        "run_seq2seq_qa.py --check --validation_file good.json --do_eval {}",
        lines(f"""
            --model_name_or_path {CHECKPOINT.relative_to(ROOT)}
            --model_name_or_path {CHECKPOINT.relative_to(ROOT)} --language_code de_DE
        """),
        needed=GOOD | {"quickstart": lambda path: path.exists() or path.symlink_to(ROOT / "quickstart")},
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Asking

ASK = [
    Group(
        "Asking: the command line",
        "-m qa.ask {}",
        lines("""
            --context good.txt
            out --context good.txt ''
            out "What flows through Egypt?"
            out --contxt good.txt "What flows through Egypt?"
            out --context
            out --context -
            out --context good.txt --questions good.json
            out --context good.txt --output answers.csv
            out --questions good.json
            out --questions good.json --output answers.csv "What flows through Egypt?"
            out --questions good.json --output answers.xlsx
            out --questions good.json --output nowhere/answers.csv
            out --questions good.csv --output good.csv
            out --context good.txt --batch_size 0 What?
            out --context good.txt --batch_size 99999999999 What?
            out --context good.txt --batch_size many What?
            out --context good.txt --max_answer_length 0 --num_beams 0 What?
            out --context good.txt --device tpu9 What?
            out --context good.txt --token hf_secret1 --hub_tokn hf_secret1 What?
            token=secret1 out --context good.txt What?
            bert-large --context good.txt What?
            empty_folder --context good.txt What?
            nowhere/out --context good.txt What?
            ../out --context good.txt What?
            good.txt --context good.txt What?
            no_head --context good.txt What?
            trained --context good.txt --max_seq_length 32 --doc_stride 32 What?
            trained --context good.txt --num_beams 2 --language_code de_DE What?
            damaged --context good.txt What?
            nested --context good.txt What?
        """),
        needed=GOOD
        | {
            "good.txt": "The Nile flows through Egypt.",
            "good.csv": "context,question\nThe Nile flows.,What flows?\n",
            "empty_folder": lambda path: path.mkdir(exist_ok=True),
            "no_head": changed(WEIGHTS, without_head),
            "trained": lambda path: path.exists() or path.symlink_to(CHECKPOINT),
            "damaged": changed("qa_settings.json", '{"version": 1, "kind": "spoken"}'),
            "nested": changed("qa_settings.json", "[" * 99999),
        },
    ),
    Group(
        "Asking: contexts",
        "-m qa.ask out What? --context {}",
        files=(
            ("gone.txt", lambda path: None, "no such file"),
            ("folder.txt", lambda path: path.mkdir(exist_ok=True), "a folder"),
            ("empty.txt", ""),
            ("blank.txt", " \n\n"),
            ("contract.pdf", b"%PDF-1.7\n"),
            ("contract.docx", b"PK\x03\x04"),
            ("zeros.txt", b"a\0b"),
        ),
    ),
    Group(
        "Asking: files of questions",
        "-m qa.ask out --output answers.csv --questions {}",
        files=(
            ("gone.csv", lambda path: None, "no such file"),
            ("questions.txt", "What flows?"),
            ("empty.csv", ""),
            ("header.csv", "context,question\n"),
            ("no_question.csv", "id,context\n1,The Nile flows.\n"),
            ("neither.csv", "id,text\n1,The Nile flows.\n"),
            ("no_context.csv", "context,question\n,What flows?\n"),
            ("blank_question.csv", 'context,question\nThe Nile flows.," "\n'),
        ),
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# The launcher

LAUNCHER = [
    Group(
        "Launcher: flags",
        "gaudi_spawn.py {}",
        lines("""
            --world_size 2
            run_qq.py
            --world_size 0 run_qa.py
            --world_size -1 run_qa.py
            --world_size two run_qa.py
            --world_size 2.0 run_qa.py
            --world_size 9999999999 run_qa.py
            --world_size
            --world_size= run_qa.py
            --world_sise 2 run_qa.py
            --do_train run_qa.py
            --hub_tokn hf_secret1 run_qa.py
            --hub_token=secret1 run_qa.py
            \u2014hub_token=secret1 run_qa.py
            --use_mpi=hf_secret1 run_qa.py
            --world_size hf_secret1 run_qa.py
            --use_mpi=yes run_qa.py
            --use_mpi --node_rank 1 run_qa.py
            --master_port 0 run_qa.py
            --master_port 65536 run_qa.py
            --master_port http run_qa.py
            --grace_seconds -1 run_qa.py
            --grace_seconds soon run_qa.py
            --nnodes 0 run_qa.py
            --nnodes 2 run_qa.py
            --world_size 3 --nnodes 2 --node_rank 0 --master_addr localhost run_qa.py
            --world_size 2 --nnodes 2 --node_rank 2 --master_addr localhost run_qa.py
            --world_size 2 --nnodes 2 --node_rank 0 run_qa.py
            --world_size 2 --use_mpi --nnodes 2 run_qa.py
            --world_size 2 --hostfile good.txt run_qa.py
            --world_size 3 --hostfile good.txt --use_mpi run_qa.py
            --world_size 0 --master_port 0 --grace_seconds x run_qq.py
        """),
        needed={"good.txt": "node-1 slots=8\nnode-2 slots=8\n", "run_qa.py": ""},
    ),
    Group(
        "Launcher: hostfiles",
        "gaudi_spawn.py --use_deepspeed --hostfile {} run_qa.py",
        files=(
            ("gone.txt", lambda path: None, "no such file"),
            ("folder.txt", lambda path: path.mkdir(exist_ok=True), "a folder"),
            ("empty.txt", ""),
            ("comments.txt", "# nodes\n\n"),
            ("bytes.txt", b"\xff\xfe\x00"),
            ("no_slots.txt", "node-1\n"),
            ("colon.txt", "node-1:8\n"),
            ("number.txt", "node-1 8\n"),
            ("zero.txt", "node-1 slots=0\n"),
            ("minus.txt", "node-1 slots=-1\n"),
            ("text.txt", "node-1 slots=all\n"),
            ("many.txt", "node-1 slots=99999999\n"),
            ("twice.txt", "node-1 slots=8\nnode-1 slots=8\n"),
            ("ipv6.txt", "fe80::1 slots=8\n"),
            ("shell.txt", "node;reboot slots=8\n"),
            ("more.txt", "node-1 slots=8 cards=8\n"),
            ("several.txt", "node-1\nnode-2 slots=x\nnode-3 slots=8\n"),
        ),
        needed={"run_qa.py": ""},
    ),
]

PARTS = {
    "Command line": COMMAND_LINE,
    "Files of arguments": ARGUMENT_FILES,
    "Folders": FOLDERS,
    "Data": DATA,
    "Models": MODELS,
    "Asking": ASK,
    "Launcher": LAUNCHER,
}


def all_groups() -> Iterator[Group]:
    """Yield the groups in the order of the page."""
    for groups in PARTS.values():
        yield from groups
