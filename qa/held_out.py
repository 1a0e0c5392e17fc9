"""Parts of the training data that are held out of training: to evaluate on, and to tune the no-answer threshold on.

No context is in two parts, however many questions it has.
"""

import hashlib
import math

from qa.arguments import DataArguments
from qa.errors import UserError
from qa.numbers import count_of


TITLES = {
    "train": ", the part to train on",
    "validation": ", the held-out part",
    "tuning": ", the part to tune on",
}


def parts_of(questions: list, source: str, split: str, data_args: DataArguments, training_args) -> dict[str, list]:
    """Return the questions of a train file that are in a split, and with `train` those in `tuning`, by split.

    The choice depends on the contexts, the shares and `--data_seed` (else `--seed`) alone: it is the same on every rank,
    in a resumed run, in a later evaluation, and whatever the order of the rows. The validation part is the same with
    and without tuning.

    Args:
        questions: each a `qa.data.Question`.

    Raises:
        UserError: there are too few contexts.
    """
    validation, rest = divide(questions, source, data_args, training_args, flag="validation_split")
    if split == "validation":
        return {"validation": validation}
    tuning, rest = divide(rest, source, data_args, training_args, flag="tune_null_threshold")
    return {"train": rest} | ({"tuning": tuning} if tuning else {})


def divide(questions: list, source: str, data_args: DataArguments, training_args, flag: str) -> tuple[list, list]:
    """Return the questions of the share of the contexts that a flag names, and the others, among them bad ones."""
    share = getattr(data_args, flag)
    if share is None:
        return [], questions
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    contexts = {context_key(question) for question in questions if question.problem is None}
    held = held_out(contexts, share, seed)
    if len(held) == len(contexts):
        raise UserError(why_none_is_left(questions, source, f"--{flag} {share}", len(contexts)))
    parts = [], []
    for question in questions:
        parts[context_key(question) not in held].append(question)
    return parts


def why_none_is_left(questions: list, source: str, flag: str, contexts: int) -> str:
    """Return why a share of so few contexts cannot be held out, with the first bad row, which may be the reason."""
    bad = [question for question in questions if question.problem is not None]
    advice = "lower it, or add contexts" if contexts > 1 else "add contexts"
    if bad:
        advice += f", or fix its bad rows, {len(bad)} in all, such as row {bad[0].number}: {bad[0].problem}"
    return f"{flag} of {count_of(contexts, 'context')} leaves nothing of {source} to train on; {advice}"


def context_key(question) -> str:
    """Return a question's context in the form that is compared with others, which ignores blanks."""
    return " ".join(str(question.row["context"]).split())


def held_out(contexts: set[str], share: float, seed: int) -> set[str]:
    """Return a share of the contexts, rounded up: those with the lowest hashes.

    >>> sorted(held_out({"Nile", "Rhine", "Rhône", "Seine"}, 0.5, seed=0))
    ['Rhône', 'Seine']
    """
    number = math.ceil(round(share * len(contexts), 6))
    return set(sorted(contexts, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())[:number])
