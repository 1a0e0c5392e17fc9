"""Answers in seven languages: the rules by which MLQA's evaluator normalizes them, and the language of a text.

Rules: mlqa_evaluation_v1.py of https://github.com/facebookresearch/MLQA (Lewis et al.: MLQA, ACL 2020).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable


# Articles, which are removed. Hindi and Chinese have none; in Arabic the article is written as part of its word.
ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "hi": r"$^",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"ال",
    "zh": r"$^",
}
LANGUAGES = tuple(ARTICLES)
IDEOGRAPH = re.compile("[\u4e00-\u9fa5]")

# Frequent words that other languages do not share: together 8 % or more of any longer text.
COMMON = {
    "en": "the of and to",
    "es": "el los las y por",
    "hi": "के में की है और से का को",
    "vi": "của là những được các một có và",
    "de": "der die das und den von ist im",
    "zh": "的 在 是 了 和 有",
}
LEAST_COMMON = 0.05  # the smallest share of such words in a text of that language
WORDS_READ = 20_000


class Punctuation(dict):
    """A table for `str.translate` that drops ASCII's punctuation and symbols, and all punctuation of Unicode."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        dropped = character in string.punctuation or unicodedata.category(character).startswith("P")
        self[code] = None if dropped else code
        return self[code]


WITHOUT_PUNCTUATION = Punctuation()


def normalize(text: str, language: str) -> str:
    """Return a text in lower case, without punctuation and articles, its words and ideographs parted by single spaces.

    >>> normalize("Der Nil, in Ägypten!", "de")
    'nil in ägypten'
    >>> normalize("尼罗河 (Nile)", "zh")
    '尼 罗 河 nile'
    """
    text = re.sub(ARTICLES[language], " ", text.lower().translate(WITHOUT_PUNCTUATION))
    if language == "zh":
        text = IDEOGRAPH.sub(r" \g<0> ", text)
    return " ".join(text.split())


def detect_language(texts: Iterable[str]) -> str | None:
    """Return which of the seven languages most of the texts are in, by their most frequent words; None for others."""
    words = Counter()
    for text in texts:
        words.update(IDEOGRAPH.sub(r" \g<0> ", text.lower().translate(WITHOUT_PUNCTUATION)).split())
        if words.total() > WORDS_READ:
            break
    found = {language: sum(words[word] for word in common.split()) for language, common in COMMON.items()}
    found["ar"] = sum(count for word, count in words.items() if word.startswith("ال"))  # one word in four
    best = max(found, key=found.get)
    return best if found[best] > LEAST_COMMON * words.total() else None
