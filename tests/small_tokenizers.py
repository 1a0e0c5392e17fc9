"""Small real tokenizers of every kind that extractive models come with, and nasty text to train and try them on.

    tokenizers = make_tokenizers(SENTENCES)
    questions, contexts, answers = make_rows(100)

Each follows the converter of its model in transformers' `convert_slow_tokenizer.py` in what matters for windows and
offsets: normalizer, pre-tokenizer, model, template and padding side. Nothing is downloaded; training takes seconds.
"""

import json
import random
import string

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AlbertTokenizerFast,
    BartTokenizerFast,
    BertTokenizerFast,
    DistilBertTokenizerFast,
    LlamaTokenizerFast,
    MBartTokenizerFast,
    NllbTokenizerFast,
    PreTrainedTokenizerFast,
    Qwen2TokenizerFast,
    RobertaTokenizerFast,
    T5TokenizerFast,
    XLNetTokenizerFast,
)


VOCAB_SIZE = 500
# All that the WordPiece and Llama pieces know; every other character is unknown, or falls back to its bytes.
ALPHABET = string.ascii_letters + string.digits + string.punctuation + "▁éüł€½京都ひらनд"

# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------

PLAIN = (
    "the of and in was river city bridge built after which king music school north water first century people battle "
    "church named large population against government university between company several early"
).split()
NAMES = (
    "Zürich Kraków São Łódź Dvořák Brontë Ångström Nguyễn İstanbul Straße Æthelred Ὀδυσσεύς Москва O'Neill Jean-Luc "
    "McDonald's U.S. A.B.C. naïve café cafe\u0301 n\u0303andu\u0301 e\u0301\u0323 Z\u0335\u0321a\u0353lgo "
    "\ufb01sh \u216b"
).split()
OTHER_SCRIPTS = "東京都 北京大学 ひらがな カタカナ 서울 हिन्दी العربية עברית ไทย 𝔘𝔫𝔦 ﷺ".split()
EMOJI = "🙂 👩‍👩‍👧‍👦 🇨🇭 👍🏽 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣".split()
NUMBERS = "1976 3.14159 1,234,567 $5.00 €99 ¥1000 £3½ 50% 10² 12:30 1990–1995 №7 -40°C".split()
LONG = "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft https://ex.org/a?b=c&d=%20".split()
LONG += ["a" * 120, "x1" * 30]
# Among them are names of special tokens, which a tokenizer takes for its own when they are in the text.
PUNCTUATION = ", . ; — … “quoted” ``old'' (so) [1] ' \" !? <s> [SEP] </ <0x41>".split()
SYLLABLES = "ba re lon ti shu ka mor en do is ta ver ghi os lu pre ment ness ing ly Ka Re Mo".split()
UNSEEN = "龘龘 Ж𐍈 ꙮ ⵣⵣ ᚠᚢ ૐ 🦖 e\u0328 <cls>".split()
GAPS = [" "] * 30 + "  |   |\n|\n\n|\r\n|\t|\u00a0|\u2003|\u3000|\u200b|\u00ad|\ufeff|\x00|".split("|")


def make_word(rng: random.Random, unseen: bool) -> str:
    """Return a word, most often a plain or an invented one; characters that no corpus has only where `unseen`."""
    invented = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 5)))
    kinds = (PLAIN, [invented], NAMES, NUMBERS, PUNCTUATION, OTHER_SCRIPTS, EMOJI, LONG, UNSEEN)
    return rng.choice(rng.choices(kinds, weights=(40, 20, 12, 9, 9, 4, 2, 2, 2 if unseen else 0))[0])


def make_sentence(rng: random.Random, words: int, unseen: bool = False) -> str:
    """Return `number` words with a gap after each, some of them nasty."""
    return "".join(make_word(rng, unseen) + rng.choice(GAPS) for _ in range(words))


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """Return `number` sentences of 3 to 40 words; the same seed returns the same ones."""
    rng = random.Random(seed)
    return [make_sentence(rng, rng.randint(3, 40)) for _ in range(count)]


def make_answer(rng: random.Random, context: str) -> dict[str, list]:
    """Return a span of the context, cut at any character; about one in six is no answer, some go to either end."""
    if not context or rng.random() < 1 / 6:
        return {"text": [], "answer_start": []}
    start = rng.choice([0, *(rng.randrange(len(context)) for _ in range(9))])
    end = rng.choice([len(context), *(rng.randint(start + 1, min(len(context), start + 60)) for _ in range(9))])
    return {"text": [context[start:end]], "answer_start": [start]}


def make_rows(count: int, seed: int = 1) -> tuple[list[str], list[str], list[dict[str, list]]]:
    """Questions of up to 60 characters, contexts of up to 150 words, and answers, all for `oracle.features`."""
    rng = random.Random(seed)
    questions, contexts, answers = [], [], []
    for _ in range(count):
        questions.append(
            rng.choice(["", "", "", " ", "\n\t ", "\u00a0"]) + make_sentence(rng, rng.randint(1, 12), True)[:60]
        )
        contexts.append(rng.choice(["", "", "", " ", "  \n"]) + make_sentence(rng, rng.randint(1, 150), True))
        answers.append(make_answer(rng, contexts[-1]))
    return questions, contexts, answers


SENTENCES = make_sentences(600)

# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers
# ---------------------------------------------------------------------------------------------------------------------


def make_tokenizers(corpus: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    """Return one tokenizer of each kind, by name. The two llamas and xlnet pad left as their classes do; see each maker.

    The llamas have no pad token: set `pad_token = eos_token` where padding is needed.
    """
    # No trained piece may be called like a special token or a byte, whose names the corpus has too.
    corpus = [text.replace("<", " ").replace("[", " ") for text in corpus]
    wordpiece = train_wordpiece(corpus)
    llama_vocab, llama_merges = train_llama(corpus)
    return {
        "bert": BertTokenizerFast(tokenizer_object=wordpiece),
        "bert_left": BertTokenizerFast(tokenizer_object=wordpiece, padding_side="left"),
        "distilbert": DistilBertTokenizerFast(tokenizer_object=wordpiece),
        "roberta": RobertaTokenizerFast(tokenizer_object=train_roberta(corpus)),
        "qwen2": Qwen2TokenizerFast(tokenizer_object=train_qwen2(corpus)),
        "albert": AlbertTokenizerFast(tokenizer_object=train_albert(corpus)),
        "xlnet": XLNetTokenizerFast(tokenizer_object=train_xlnet(corpus)),
        "llama": make_llama(llama_vocab, llama_merges),
        "llama_legacy": make_llama_legacy(llama_vocab, llama_merges),
    }


def make_writers(corpus: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    """Tokenizers of encoder-decoders by name: T5 in its two forms, BART, and mBART and NLLB, which mark the language.

    mBART marks it after the end of a text, NLLB before its beginning; the tokens of the languages come after all others.
    """
    corpus = [text.replace("<", " ").replace("[", " ") for text in corpus]
    t5 = train_t5(corpus)
    t5_old = Tokenizer.from_str(t5.to_str())
    t5_old.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), t5.pre_tokenizer])
    return {
        "t5": T5TokenizerFast(tokenizer_object=t5, extra_ids=0),
        "t5_old": T5TokenizerFast(tokenizer_object=t5_old, extra_ids=0),
        "bart": BartTokenizerFast(tokenizer_object=train_roberta(corpus)),
        "mbart": MBartTokenizerFast(tokenizer_object=Tokenizer.from_str(t5.to_str()), src_lang="de_DE"),
        "nllb": NllbTokenizerFast(tokenizer_object=Tokenizer.from_str(t5.to_str())),
    }


def train_wordpiece(corpus: list[str]) -> Tokenizer:
    """BERT: lower case without accents, pieces of words, [CLS] A [SEP] B [SEP], an unknown token.

    The library's own trainer for it returns different pieces on every run. So they are those of BPE, each once for the
    start of a word and once for the rest of it.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    words = [word for text in corpus for word in words_of(tokenizer, text)]
    pieces, _ = train_pieces(words, pre_tokenizers.WhitespaceSplit())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.model = models.WordPiece(
        numbered(special + pieces + ["##" + piece for piece in pieces]), unk_token="[UNK]"
    )
    tokenizer.add_special_tokens(special)
    set_template(tokenizer, "[CLS]:0 $A:0 [SEP]:0", " $B:1 [SEP]:1", ["[CLS]", "[SEP]"])
    return tokenizer


def train_roberta(corpus: list[str]) -> Tokenizer:
    """RoBERTa: byte-level BPE, <s> A </s></s> B </s>, offsets trimmed of spaces, no token types."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    train_bpe(tokenizer, corpus, special, pre_tokenizers.ByteLevel.alphabet())
    sep, cls = (("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    return tokenizer


def train_t5(corpus: list[str]) -> Tokenizer:
    """T5: Unigram pieces, A </s>, no token types. (t5-small's own file splits at white space first: `t5_old`.)"""
    tokenizer = train_unigram(corpus, ["<pad>", "</s>", "<unk>"], lowercase=False)
    set_template(tokenizer, "$A </s>", " $B </s>", ["</s>"])
    return tokenizer


def train_qwen2(corpus: list[str]) -> Tokenizer:
    """Qwen2: composed characters, byte-level BPE with single digits, offsets not trimmed, no special token at all."""
    words = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    train_bpe(tokenizer, corpus, ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def train_albert(corpus: list[str]) -> Tokenizer:
    """ALBERT: lower case without accents, Unigram pieces, [CLS] A [SEP] B [SEP]."""
    tokenizer = train_unigram(corpus, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], lowercase=True)
    set_template(tokenizer, "[CLS]:0 $A:0 [SEP]:0", " $B:1 [SEP]:1", ["[CLS]", "[SEP]"])
    return tokenizer


def train_xlnet(corpus: list[str]) -> Tokenizer:
    """XLNet: Unigram pieces, A <sep> B <sep> <cls> with type 2 for the last, padded left."""
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eop>", "<eod>"]
    tokenizer = train_unigram(corpus, special, lowercase=False)
    set_template(tokenizer, "$A:0 <sep>:0", " $B:1 <sep>:1", ["<sep>", "<cls>"], last=" <cls>:2")
    return tokenizer


def train_unigram(corpus: list[str], special: list[str], lowercase: bool) -> Tokenizer:
    """Train the Unigram tokenizer of ALBERT and XLNet; Nmt and NFKC replace SentencePiece's table of characters."""
    steps = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
    ]
    if lowercase:
        steps.append(normalizers.Lowercase())
    steps += [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.model = models.Unigram(settled_scores(tokenizer, special), special.index("<unk>"))
    return tokenizer


def settled_scores(tokenizer: Tokenizer, special: list[str]) -> list[tuple[str, float]]:
    """Return a Unigram vocabulary without the random parts of its training.

    That is the order of the single characters, which differ by 0.0001 each, and the last digits of all other scores.
    """
    scores = {piece: round(score, 9) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]}
    lowest = min(score for piece, score in scores.items() if len(piece) > 1)
    pieces = [(-scores[piece] if len(piece) > 1 else -lowest, piece) for piece in scores if piece not in special]
    return [(piece, 0.0) for piece in special] + [(piece, -score) for score, piece in sorted(pieces)]


def train_llama(corpus: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a BPE vocabulary with <unk> <s> </s> and the 256 bytes first, and its merges."""
    pieces, merges = train_pieces(corpus, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"))
    return numbered(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]), merges


def make_llama(vocab: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Llama, not legacy: spaces become ▁ in the pre-tokenizer, nothing is split, <s> A <s> B, padded left."""
    tokenizer = llama_model(vocab, merges)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return LlamaTokenizerFast(tokenizer_object=tokenizer, legacy=False)


def make_llama_legacy(vocab: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Llama as its first files have it: the normalizer puts the ▁, there is no pre-tokenizer."""
    tokenizer = llama_model(vocab, merges)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return LlamaTokenizerFast(tokenizer_object=tokenizer, legacy=True)


def llama_model(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """BPE that falls back to bytes, with its three special tokens."""
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def train_bpe(tokenizer: Tokenizer, corpus: list[str], special: list[str], alphabet: list[str]) -> None:
    """Train a BPE tokenizer in place, with this alphabet and no other character."""
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)


def train_pieces(
    corpus: list[str], pre_tokenizer: pre_tokenizers.PreTokenizer
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces and the merges of BPE on characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    train_bpe(tokenizer, corpus, [], list(ALPHABET))
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the words of a text as the tokenizer's model gets them."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def numbered(tokens: list[str]) -> dict[str, int]:
    """Return a vocabulary: every token with its place in the list."""
    return {token: index for index, token in enumerate(tokens)}


def set_template(tokenizer: Tokenizer, first: str, second: str, special: list[str], last: str = "") -> None:
    """The special tokens around one sequence, and around two."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=first + last,
        pair=first + second + last,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
