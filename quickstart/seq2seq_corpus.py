"""Generate the corpus of the seq2seq quickstart (SQuAD v1.1 format, or 2.0 with --negatives).

    python quickstart/seq2seq_corpus.py OUT_DIR [--train 48000] [--dev 500] [--seed 0]
        [--negatives 0.3] [--windows 4 --window_tokens 60]

Every context describes one person by one fact each of three or four kinds: profession, instrument, home and so on, in
mixed order. A question asks for one kind. Answers come from short lists that training and evaluation share,
every value as often as any other: a model has to read the context to know which one, and always writing the most frequent
one scores a few percent (see `baseline_exact_match`). It does not have to distinguish names, which a small model does
not learn from scratch in minutes (the corpus of run_qa.py's quickstart asks for that, and starts from a checkpoint).

People of the evaluation part bear names that never occur in training, and their contexts are new combinations of facts.

Two ways to make it harder:

--negatives  a share of the questions asks for a kind of fact that the context does not state.
--windows    contexts so long that a model reads them in that many windows, with the facts spread among sentences that
             describe the weather and the neighbourhood, so that the asked one is in any of them. In train.json most
             contexts stay short: a window of a long one holds one fact or two. A model that learned from such windows
             alone answers with any fact, and is as sure of it in windows that do not hold the asked one.
"""

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from corpus import (
    ASIDES,
    INSTRUMENTS,
    PRODUCTS,
    PROFESSIONS,
    SUBJECTS,
    distinct,
    fill,
    use_pronoun,
    word,
)


# Marks a file as generated here, so that the report knows which baseline to compute.
VERSION = "quickstart-seq2seq-1"

TOWNS = distinct(random.Random("towns"), "train", word, 48)
STATED = [3, 4]  # kinds of facts in a context
QUESTIONS = 2  # asked about a context, so that the same text has different answers

# kind of fact -> (values, sentences, questions); {e} is the person and {v} the value. A word that says which kind is
# asked is in no sentence: a small model would take minutes to learn which of two equal words is the question's.
# Each further wording of a question takes longer too: learning which kind its words ask for costs the most.
KINDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "profession": (
        PROFESSIONS,
        [
            "{e} earns a living as a {v}.",
            "For many years {e} has been a {v}.",
            "{e} is a {v} like both parents.",
            "{e} was trained to be a {v}.",
        ],
        ["What is the profession of {e}?", "As what does {e} work?"],
    ),
    "instrument": (
        INSTRUMENTS,
        [
            "{e} practises the {v} every evening.",
            "On Sundays one can hear {e} on the {v}.",
            "The sound of the {v} made {e} happy.",
            "{e} takes lessons on the {v}.",
        ],
        ["Which instrument does {e} play?", "What is the instrument of {e}?"],
    ),
    "home": (
        TOWNS,
        [
            "{e} has settled in {v} for good.",
            "A small house in {v} belongs to {e}.",
            "{e} moved to {v} long ago.",
            "In {v} the door of {e} is always open.",
        ],
        ["Where does {e} live?", "Where is the home of {e}?"],
    ),
    "collection": (
        PRODUCTS,
        [
            "{e} has filled three rooms with {v}.",
            "No one owns more {v} than {e}.",
            "Friends bring {v} whenever they visit {e}.",
            "{e} is always looking for old {v}.",
        ],
        ["What does {e} collect?", "Of what does {e} have a collection?"],
    ),
    "reading": (
        SUBJECTS,
        [
            "Books about {v} lie on the desk of {e}.",
            "{e} borrowed all that the library has on {v}.",
            "{e} knows every novel about {v}.",
            "At night {e} turns pages about {v}.",
        ],
        ["On which subject does {e} read?", "What is the favourite subject of {e}?"],
    ),
}

# Sentences that state none of these facts, with a slot each, to fill long contexts with.
FILLERS = [
    "It {weather} all day on {day}.",
    "On {day} it {weather} until noon.",
    "Last {month} it {weather} for a week.",
    "The road was closed in {month}.",
    "The bus does not run on {day}.",
    "Since {month} the old gate has been open.",
    "The neighbours have a {animal}.",
    "A {animal} ran across the yard on {day}.",
    "Nobody knows who lost the {animal}.",
    "The {animal} slept under the stairs.",
    "In {month} the days grow short there.",
    "The post arrives on {day} as a rule.",
    "The wall was painted in {month}.",
    "One could hear the {animal} at night.",
]
SLOTS = {
    "weather": "rained snowed hailed thundered froze drizzled".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "month": "January February March April May June July August September October November December".split(),
    "animal": "cat dog goat goose donkey rooster rabbit parrot duck pony".split(),
}


def make_filler(rng: random.Random) -> str:
    """Make one sentence without a fact."""
    return rng.choice(FILLERS).format(**{slot: rng.choice(words) for slot, words in SLOTS.items()})


def count_tokens(text: str) -> int:
    """Guess a tokenizer's count: one token for a word or a mark.

    The quickstart's tokenizer makes some percent more of it, because it cuts people's names into pieces.
    """
    return len(re.findall(r"\w+|[^\w\s]", text))


def make_facts(rng: random.Random, name: str, kinds: list[str]) -> list[tuple[str, str, str, int]]:
    """State one fact of each kind, in mixed order: (sentence, kind, value, where the value begins in the sentence)."""
    pronoun = rng.choice(["She", "He"])
    facts = []
    for number, kind in enumerate(rng.sample(kinds, len(kinds))):
        values, sentences, _ = KINDS[kind]
        template = rng.choice(sentences)
        if number > 0 and rng.random() < 0.6:
            template = use_pronoun(template, pronoun)
        value = rng.choice(values)
        sentence, offset = fill(template, name, value)
        facts.append((sentence, kind, value, offset))
    return facts


def spread(rng: random.Random, facts: list[tuple], tokens: int, parts: int) -> list[tuple]:
    """Put facts into a text of about that many tokens, each into any of its equal parts, and fill the gaps."""
    places = sorted(rng.randrange(parts) for _ in facts)  # facts keep their order: the first one bears the name
    sentences: list[tuple] = []
    written = 0
    for part in range(parts):
        here = [fact for fact, place in zip(facts, places) if place == part]
        room = tokens * (part + 1) / parts - written - sum(count_tokens(fact[0]) for fact in here)
        fillers = []
        while room > 0:
            fillers.append((make_filler(rng), None, None, 0))
            room -= count_tokens(fillers[-1][0])
        for position, fact in zip(sorted(rng.sample(range(len(fillers) + len(here)), len(here))), here):
            fillers.insert(position, fact)
        sentences += fillers
        written += sum(count_tokens(sentence[0]) for sentence in fillers)
    return sentences


def join(sentences: list[tuple]) -> tuple[str, dict[str, dict]]:
    """Join the sentences; return the text and each kind's answer as SQuAD writes it."""
    context = ""
    answers = {}
    for sentence, kind, value, offset in sentences:
        context += " " if context else ""
        if kind is not None:
            answers[kind] = {"text": value, "answer_start": len(context) + offset}
        context += sentence
    return context, answers


def make_paragraph(
    rng: random.Random, part: str, label: str, negatives: float | None, tokens: int, parts: int
) -> dict:
    """Make one context about one person, and ask for some of its facts or, with `negatives`, for one it does not state."""
    stated = rng.sample(sorted(KINDS), rng.choice(STATED))
    name = word(rng, part)  # one word: names are what a short vocabulary spends most pieces on
    sentences: list[tuple] = make_facts(rng, name, stated)
    if tokens:
        sentences = spread(rng, sentences, tokens, parts)
    elif rng.random() < 0.3:
        sentences.insert(0, (rng.choice(ASIDES), None, None, 0))
    context, answers = join(sentences)

    unstated = sorted(KINDS.keys() - answers.keys())
    qas: list[dict] = []
    while len(qas) < QUESTIONS:
        kind = rng.choice(unstated if negatives and rng.random() < negatives else stated)
        qa = {"id": f"{label}-{kind}", "question": rng.choice(KINDS[kind][2]).format(e=name)}
        qa["answers"] = [answers[kind]] if kind in answers else []
        if negatives is not None:
            qa["is_impossible"] = kind not in answers
        if qa["id"] not in [other["id"] for other in qas]:
            qas.append(qa)
    return {"context": context, "qas": qas}


def make_part(
    part: str,
    questions: int,
    seed: int,
    negatives: float | None = None,
    windows: int = 1,
    window_tokens: int = 60,
    long_share: float = 1.0,
) -> dict:
    """Make the "train" or the "dev" part, with about `questions` questions.

    Args:
        negatives: share of the questions that have no answer; None writes SQuAD v1.1, without `is_impossible`.
        windows: 1 makes contexts of facts alone; more make contexts of `windows` times `window_tokens` tokens, where
            the asked fact is in any of the `windows` parts with the same probability.
        long_share: with `windows`, share of the contexts that are long; the others have facts alone.
    """
    rng = random.Random(f"{part} {seed}")
    paragraphs: list[dict] = []
    while len(paragraphs) * QUESTIONS < questions:
        label = f"{part}-{len(paragraphs)}"
        tokens = windows * window_tokens if windows > 1 and rng.random() < long_share else 0
        paragraphs.append(make_paragraph(rng, part, label, negatives, tokens, windows))
    return {"version": VERSION, "data": [{"title": f"quickstart {part}", "paragraphs": paragraphs}]}


def baseline_exact_match(squad: dict) -> float:
    """Return the exact match, in percent, of the best model that does not read the context.

    It knows the asked kind of fact and writes the answer that is the most frequent one to this kind's questions in
    `squad` itself, so it is better than one that counted in training.
    """
    answers = defaultdict(Counter)
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                text = qa["answers"][0]["text"] if qa["answers"] else ""
                answers[qa["id"].rsplit("-", 1)[1]][text] += 1
    hits = sum(counts.most_common(1)[0][1] for counts in answers.values())
    return 100 * hits / sum(counts.total() for counts in answers.values())


def main() -> None:
    """Write train.json and dev.json."""
    parser = argparse.ArgumentParser(description="Generate the seq2seq quickstart's corpus.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--train", type=int, default=48_000, help="questions to train on (about)")
    parser.add_argument("--dev", type=int, default=500, help="questions to evaluate on (about)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--negatives", type=float, help="share of questions without an answer; writes SQuAD 2.0")
    parser.add_argument("--windows", type=int, default=1, help="windows a context is long")
    parser.add_argument("--window_tokens", type=int, default=60, help="tokens that each window adds to a context")
    parser.add_argument(
        "--train_long", type=float, default=0.15, help="share of long contexts in train.json, with --windows"
    )
    args = parser.parse_args()

    args.out_dir.mkdir(parents=True, exist_ok=True)
    # The settings of the quickstart were tried out on the dev part of seed 0; this is one nobody looked at.
    for part, questions, seed in (("train", args.train, args.seed), ("dev", args.dev, args.seed + 1000)):
        share = args.train_long if part == "train" else 1.0
        squad = make_part(part, questions, seed, args.negatives, args.windows, args.window_tokens, share)
        path = args.out_dir / f"{part}.json"
        path.write_text(json.dumps(squad, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: {sum(len(p['qas']) for p in squad['data'][0]['paragraphs'])} questions")


if __name__ == "__main__":
    main()
