"""The flags of the scripts, as dataclasses.

Names and defaults are those of optimum-habana's question-answering example.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Optional

from qa.mlqa import LANGUAGES


# The parts of the data: the flag of each one's file, and the stage that uses it.
SPLITS = {"train": "train_file", "validation": "validation_file", "test": "test_file"}
STAGES = {"train": "train", "validation": "eval", "test": "predict"}
TITLES = {"train": "training", "eval": "evaluation", "predict": "prediction", "tuning": "tuning"}  # of the stages
PREFIXES = {"train": "train", "eval": "eval", "predict": "test"}  # of a stage's metrics


@dataclass
class ModelArguments:
    """Which model and tokenizer to start from."""

    model_name_or_path: str = field(metadata={"help": "Folder of a model, or its name on the hub."})
    config_name: Optional[str] = field(
        default=None, metadata={"help": "Folder or hub name of a configuration other than the model's own."}
    )
    tokenizer_name: Optional[str] = field(
        default=None, metadata={"help": "Folder or hub name of a tokenizer other than the model's own."}
    )
    cache_dir: Optional[str] = field(default=None, metadata={"help": "Folder for downloads from the hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    token: Optional[str] = field(
        default=None, metadata={"help": "Access token for the hub; by default the one `huggingface-cli login` keeps."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code that the model's or the dataset's repository brings. Only for authors you trust."
        },
    )
    language: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Languages for the model card, as in `en de`; by default the one of --answer_language."},
    )
    license: Optional[str] = field(
        default=None, metadata={"help": "Licence for the model card, by its name on the hub, such as `apache-2.0`."}
    )
    lora_r: Optional[int] = field(
        default=None,
        metadata={
            "help": "Train adapters of this rank and the answer head in place of the whole model (LoRA, with the package peft)."
        },
    )
    lora_alpha: Optional[int] = field(
        default=None, metadata={"help": "The adapters' effect is scaled by alpha / r; by default 2 x `lora_r`."}
    )
    lora_dropout: Optional[float] = field(
        default=None, metadata={"help": "Dropout of the adapters' input in training; by default 0.05."}
    )
    lora_target_modules: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": "Last names of the layers that get adapters, as in `q_proj v_proj`; by default all linear layers of the "
            "body."
        },
    )


def hub_place(model_args: ModelArguments) -> dict:
    """Return the arguments with which the libraries find files on the hub that hold no code."""
    return {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}


def hub_arguments(model_args: ModelArguments) -> dict:
    """Return the arguments with which `from_pretrained` finds what the flags name on the hub."""
    return hub_place(model_args) | {"trust_remote_code": model_args.trust_remote_code}


@dataclass
class DataArguments:
    """Which questions to read, and how to turn them into features; shared by both scripts."""

    dataset_name: Optional[str] = field(
        default=None, metadata={"help": "Name of a dataset on the hub (`squad`, `squad_v2`), or a folder of one."}
    )
    dataset_config_name: Optional[str] = field(default=None, metadata={"help": "Configuration of that dataset."})
    train_file: Optional[str] = field(
        default=None,
        metadata={
            "help": "Training questions: SQuAD's own JSON, a JSON list, JSON lines, CSV, TSV, Parquet or Excel (.gz too)."
        },
    )
    validation_file: Optional[str] = field(
        default=None, metadata={"help": "Questions to evaluate on, in any of the same formats."}
    )
    test_file: Optional[str] = field(
        default=None, metadata={"help": "Questions to predict, in any of the same formats; answers may be missing."}
    )
    overwrite_cache: bool = field(
        default=False,
        metadata={"help": "Without effect, kept for old commands: features are built again in seconds, never cached."},
    )
    preprocessing_num_workers: Optional[int] = field(
        default=None, metadata={"help": "Without effect, kept for old commands: the tokenizer uses all cores itself."}
    )
    max_seq_length: int = field(
        default=384, metadata={"help": "Tokens of a feature: question, context window and special tokens together."}
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "Pad every feature to `max_seq_length` (one shape, as a Gaudi needs), not to its batch's longest."
        },
    )
    length_buckets: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": "Pad the features of a batch to the first of these lengths that holds them, as in `160 256 384` (the last "
            "is `max_seq_length`), instead of all to the last: few shapes, little padding. `auto` chooses lengths by the "
            "data, four on a Gaudi and twelve elsewhere, `auto 6` six."
        },
    )
    max_train_samples: Optional[int] = field(
        default=None, metadata={"help": "Train on the first N questions only (all their windows are kept)."}
    )
    max_eval_samples: Optional[int] = field(default=None, metadata={"help": "Evaluate the first N questions only."})
    max_predict_samples: Optional[int] = field(default=None, metadata={"help": "Predict the first N questions only."})
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Some questions have no answer, as in SQuAD 2.0."}
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={
            "help": "Answer nothing when the no-answer score exceeds the best answer's by more than this many logits."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Divide the scores of the candidates by this number before a softmax makes probabilities of them. More "
            "than 1 lowers high probabilities, and the answers stay the same."
        },
    )
    tuned_on = 0  # no flag: the number of questions on which threshold and temperature were found
    doc_stride: int = field(
        default=128, metadata={"help": "Tokens that neighbouring windows of a long context have in common."}
    )
    n_best_size: int = field(default=20, metadata={"help": "Candidates kept for each question."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer, in tokens."})
    answer_language: str = field(
        default="off",
        metadata={
            "help": "Also score answers by MLQA's rules for a language: its articles, all of Unicode's punctuation, in "
            "Chinese its characters. `auto` finds the language in the contexts.",
            "choices": ["off", "auto", *LANGUAGES],
        },
    )
    eval_report: bool = field(
        default=True,
        metadata={"help": "Write `eval_report.html`, which shows how good the model is and where it fails."},
    )
    report_columns: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": "Columns of the validation data by which the report groups the scores, as in `title language`."
        },
    )
    question_column: str = field(default="question", metadata={"help": "Column of the data that holds the question."})
    context_column: str = field(default="context", metadata={"help": "Column of the data that holds the context."})
    answer_column: str = field(
        default="answers",
        metadata={
            "help": "Column of the data that holds the answers: {text: [...], answer_start: [...]}, a plain text, or "
            "another form that docs/data.md lists."
        },
    )
    id_column: Optional[str] = field(
        default=None,
        metadata={"help": "Column of the data that holds the ids; by default `id`, and without it rows are numbered."},
    )
    on_bad_rows: str = field(
        default="stop",
        metadata={
            "help": "Bad rows (no context, the same question twice, in training an answer that is not in its context...): "
            "`stop` reports them and ends the run, `skip` omits them and counts them in the results.",
            "choices": ["stop", "skip"],
        },
    )
    ambiguous_answers: str = field(
        default="first",
        metadata={
            "help": "Training answers that occur several times in their context, and not at their `answer_start`: `first` "
            "takes the place nearest to the `answer_start`, else the first, and counts them in the results; `stop` "
            "and `skip` treat their rows as bad ones.",
            "choices": ["first", "stop", "skip"],
        },
    )
    validation_split: Optional[float] = field(
        default=None,
        metadata={
            "help": "Share of the contexts of the training data that is held out of training, with all their questions, "
            "and is the validation part. Which ones depends on `data_seed`, else `seed`."
        },
    )
    tune_null_threshold: Optional[float] = field(
        default=None,
        metadata={
            "help": "Share of the contexts of the training data that is held out of training, with all their questions. After "
            "the training the no-answer threshold and the temperature are found on them, and saved with the model."
        },
    )
    check: bool = field(
        default=False,
        metadata={
            "help": "Only check device, arguments, data, tokenizer and model (without reading its weights); exit with 0 if a run "
            "could start, else 2."
        },
    )
    check_steps: Optional[int] = field(
        default=None,
        metadata={
            "help": "With --check also run N steps of each shape on the device, without writing anything, and report time, speed "
            "and memory of the run."
        },
    )
    debug_traceback: bool = field(
        default=False, metadata={"help": "Print the traceback of an error too, for a report of a defect."}
    )

    pack: ClassVar[bool] = False  # a flag of models that mark answers

    def laid_out_by(self) -> str | None:
        """Return the flag by which features are laid out in batches of a given size, if there is one."""
        return "pack" if self.pack else None if self.length_buckets is None else "length_buckets"


@dataclass
class SpanDataArguments(DataArguments):
    """How a model that marks answers takes its batches, in addition to the arguments of both scripts."""

    pack: bool = field(
        default=False,
        metadata={
            "help": "Put whole features side by side in rows of `max_seq_length`: one shape, next to no padding. Each sees only "
            "itself, and a batch holds as many features as without."
        },
    )


@dataclass
class Seq2SeqModelArguments(ModelArguments):
    """Which encoder-decoder to start from."""

    use_fast_tokenizer: bool = field(
        default=True,
        metadata={
            "help": "Without effect, kept for old commands: the fast tokenizer is used, windows need its offsets."
        },
    )


@dataclass
class Seq2SeqDataArguments(DataArguments):
    """How an encoder-decoder writes its answers, in addition to the arguments of both scripts."""

    val_max_answer_length: Optional[int] = field(
        default=None,
        metadata={
            "help": "Longest answer that evaluation and prediction write, in tokens, the one that starts it included; "
            "by default `max_answer_length`. `--generation_max_length` overrides it."
        },
    )
    language_code: Optional[str] = field(
        default=None,
        metadata={
            "help": "Language of questions, contexts and answers, for tokenizers that mark it: `de_DE` with mBART, `deu_Latn` "
            "with NLLB. By default the one that the tokenizer is set to."
        },
    )
    num_beams: Optional[int] = field(
        default=None,
        metadata={
            "help": "Beams that evaluation and prediction write with; by default as the model is configured (mostly 1)."
        },
    )
    ignore_pad_token_for_loss: bool = field(
        default=True, metadata={"help": "Leave the padding of the answers out of the loss."}
    )

    def __post_init__(self):
        if self.val_max_answer_length is None:
            self.val_max_answer_length = self.max_answer_length
