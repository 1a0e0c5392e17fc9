"""The smallest and the largest value of every numeric flag: its own, the libraries' and the Gaudi's.

Libraries take values that cannot be, and fail after minutes, train nothing or write nothing. Here they are problems of the
command line. A new numeric flag needs a row of this table; a test demands it.
"""

import math
from typing import NamedTuple

from qa.errors import short


MANY = 2**31 - 1  # of anything: numbers beyond it overflow somewhere
# Optimizers multiply two of these numbers and divide by down to 1e-16: more than 3.4e38 overflows float32.
LARGEST = 1e18


class Limit(NamedTuple):
    """The values that a flag takes: `least` to `most`, both included unless `above` or `below` says so; or `also`.

    `hint` completes the message: how to have the effect that a refused value may have been meant for.
    """

    least: float = 1
    most: float = MANY
    above: bool = False
    below: bool = False
    also: float | None = None
    hint: str = ""

    def allows(self, value: float) -> bool:
        """Return whether a flag may have the value; NaN is never within limits."""
        from_least = self.least < value if self.above else self.least <= value
        to_most = value < self.most if self.below else value <= self.most
        return from_least and to_most or value == self.also

    def describe(self, value: float = 0) -> str:
        """Return the limits as words for a message about a value.

        >>> Limit(2).describe(), Limit(2).describe(1e20), Limit(0, 1).describe(), Limit(0, 1, below=True).describe()
        ('2 or more', '2 or more, 2147483647 at most', '0 or more, 1 at most', '0 or more, less than 1')
        """
        words = f"more than {self.least:g}" if self.above else f"{self.least:g} or more"
        if self.least == -math.inf:
            words = "a number"
        elif self.least == self.most:
            words = f"{self.least:g}"
        elif self.most not in (MANY, LARGEST) or value > self.most:
            words += f", less than {self.most:g}" if self.below else f", {self.most:.10g} at most"
        return words + (f", or {self.also:g}" if self.also is not None else "") + self.hint


LONGEST = 2**20  # tokens: longer than any model reads or writes
BEAMS = Limit(1, 1024)  # each is a copy of the batch
SEEDS = Limit(0, 2**32 - 1)  # NumPy's
COUNT = Limit(1)
FROM_0 = Limit(0)
NOT_NEGATIVE = Limit(0, LARGEST)
POSITIVE = Limit(0, above=True)
SHARE = Limit(0, 1, above=True, below=True, hint=": it is a share, as in 0.1")

LIMITS = {
    # Data, features and answers
    "max_seq_length": Limit(8, LONGEST),
    "doc_stride": FROM_0,
    "n_best_size": Limit(1, 1024),  # a window has up to n x n pairs, and a file n answers for each question
    "max_answer_length": Limit(1, LONGEST),
    "val_max_answer_length": Limit(2, LONGEST),
    "num_beams": BEAMS,
    "max_train_samples": COUNT,
    "max_eval_samples": COUNT,
    "max_predict_samples": COUNT,
    "check_steps": COUNT,
    "null_score_diff_threshold": Limit(-math.inf, math.inf),
    "temperature": Limit(0.01, 1000),  # beyond it the softmax overflows, or is the same for all candidates
    "validation_split": SHARE,
    "tune_null_threshold": SHARE,
    # Training
    "learning_rate": NOT_NEGATIVE,  # 0 trains nothing, which measurements want
    "num_train_epochs": POSITIVE._replace(hint="; to score the model as it is, omit --do_train"),
    "max_steps": Limit(1, also=-1, hint=" for --num_train_epochs; to score the model as it is, omit --do_train"),
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "per_gpu_train_batch_size": COUNT,
    "per_gpu_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "warmup_ratio": Limit(0, 1),
    "warmup_steps": FROM_0,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": Limit(0, 1, below=True),
    "adam_beta2": Limit(0, 1, below=True),
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE._replace(hint="; 0 is without a limit"),
    "label_smoothing_factor": Limit(0, 1),
    "neftune_noise_alpha": NOT_NEGATIVE,
    "early_stopping_patience": COUNT,
    "nan_patience": COUNT,
    "max_train_minutes": POSITIVE,
    "lora_r": COUNT,
    "lora_alpha": COUNT,
    "lora_dropout": Limit(0, 1, below=True),
    # Evaluations, checkpoints and the log
    "eval_steps": POSITIVE._replace(hint="; for no evaluation during training --eval_strategy no"),
    "eval_delay": FROM_0,
    "eval_accumulation_steps": COUNT,
    "save_steps": POSITIVE._replace(hint="; for no checkpoints --save_strategy no"),
    "save_total_limit": COUNT._replace(
        hint="; omit it to keep all checkpoints, or write none with --save_strategy no"
    ),
    "logging_steps": POSITIVE._replace(hint="; for no log --logging_strategy no"),
    "generation_max_length": Limit(2, LONGEST),
    "generation_num_beams": BEAMS,
    # The machine
    "seed": SEEDS,
    "data_seed": SEEDS,
    "dataloader_num_workers": Limit(0, 1024),
    "dataloader_prefetch_factor": Limit(1, 2**16),
    "torch_empty_cache_steps": COUNT,
    "ddp_bucket_cap_mb": Limit(1, 2**20),
    "ddp_timeout": COUNT,
    "fsdp_min_num_params": FROM_0,
    "past_index": Limit(-1, -1, hint=", no model here returns its past states"),
    # A Gaudi
    "cache_size_limit": COUNT,
    "max_hpu_graphs": FROM_0,
    "context_parallel_size": COUNT,
    "throughput_warmup_steps": FROM_0,
    "profiling_warmup_steps": FROM_0,
    "profiling_steps": FROM_0,
    "profiling_warmup_steps_eval": FROM_0,
    "profiling_steps_eval": FROM_0,
}

# Numeric flags that take any value, each with its reason.
ANY_VALUE = {
    "preprocessing_num_workers": "without effect, kept for old commands",
    "local_rank": "set by launchers of ranks, which may choose their own sign for none",
    "tpu_num_cores": "for TPUs, which the scripts do not use",
}


def number_problems(values) -> list[str]:
    """Return a problem for each flag whose value is outside its limits.

    Args:
        values: the values of all flags, as a namespace or a dataclass; those it lacks, or that are None, are not checked.
    """
    return [
        f"--{name} is {short(value)}; give {limit.describe(value)}"
        for name, limit in LIMITS.items()
        if (value := getattr(values, name, None)) is not None
        and not limit.allows(value)
        and not (name == "num_train_epochs" and is_unused(values))
    ]


def is_unused(values) -> bool:
    """Return whether the number of epochs has no effect: there are steps, or no training."""
    return not getattr(values, "do_train", True) or getattr(values, "max_steps", -1) > 0
