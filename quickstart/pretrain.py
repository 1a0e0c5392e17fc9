"""Pre-train the quickstart's small BERT on matching: finding the place that a question's words point at.

    python quickstart/pretrain.py [--steps 6000] [--out quickstart/checkpoint] | tee quickstart/pretrain.log

The documents consist of random word pieces that mean nothing: two to four "names", one or two "relations", and for each
pair of them a "value" after the relation in a "sentence" with the name. The question holds one name and one relation in
any order; the span to find is that pair's value. Nothing of the corpus is in them. The tokenizer alone is trained on text
of the corpus, of its training part.

Three things make it learn that in minutes where a plain start stays at guessing:

- Attention starts out near "look at your own token, near you" (Trockman and Kolter, "Mimetic Initialization of
  Self-Attention Layers", 2023): queries and keys begin as near-identity maps, most dimensions of the embeddings hold
  the token and the last ones hold sinusoidal positions.
- A second head marks every token of every sentence that speaks of the asked name: two hundred targets a document
  instead of two. It is dropped afterwards.
- In the first tenth of the steps a document has two names only.
"""

import argparse
import math
import random
import time

import corpus
import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast


VOCABULARY = 1500
BATCH = 32
LEARNING_RATE = 5e-4
WARMUP = 0.05  # of the steps
TOKEN_LOSS = 1.0  # weight of the second head


def train_tokenizer() -> BertTokenizerFast:
    """Lower-case WordPiece from contexts and questions of a training part of the corpus (not the quickstart's own)."""
    texts = []
    for paragraph in corpus.make_part("train", 20_000, seed=1)["data"][0]["paragraphs"]:
        texts += [paragraph["context"], *(qa["question"] for qa in paragraph["qas"])]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, do_lower_case=True, model_max_length=384)


def make_model(tokenizer: BertTokenizerFast) -> BertForQuestionAnswering:
    """Return a BERT of 4 layers, 128 wide, whose attention begins with matching (see above)."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=384,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForQuestionAnswering(config)
    for_tokens = config.hidden_size - config.hidden_size // config.num_attention_heads
    embeddings = model.bert.embeddings
    with torch.no_grad():
        for table, scale in ((embeddings.word_embeddings, 1.0), (embeddings.token_type_embeddings, 0.3)):
            table.weight.normal_(std=scale)
            table.weight[:, for_tokens:] = 0
        embeddings.position_embeddings.weight.zero_()
        embeddings.position_embeddings.weight[:, for_tokens:] = sinusoids(config.max_position_embeddings, 32)
        for layer in model.bert.encoder.layer:
            attention = layer.attention
            for part in (attention.self.query, attention.self.key):
                part.weight.copy_(math.sqrt(1.5) * torch.eye(config.hidden_size)).add_(
                    torch.randn_like(part.weight), alpha=0.02
                )
            attention.self.value.weight.normal_(std=0.088)  # 1 / sqrt(hidden_size): keeps the size of what is copied
            attention.output.dense.weight.normal_(std=0.088)
            layer.intermediate.dense.weight.normal_(std=0.05)
            layer.output.dense.weight.normal_(std=0.05)
    return model


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """(positions, width) sines and cosines with wavelengths from 2 pi to 64 times that."""
    frequencies = 64 ** -(torch.arange(width // 2) / (width // 2 - 1))
    angles = torch.arange(positions)[:, None] * frequencies
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def make_document(
    rng: random.Random, pieces: tuple[list[int], list[int]], marks: tuple[int, int, int], most_names: int
) -> dict:
    """Return one question with its document, as ids; `marks` are the ids of [CLS], [SEP] and the full stop.

    Returns `ids`, `types`, the positions `start` and `end` of the answer, and `about`: for every token of the document
    whether its sentence speaks of the asked name, -100 elsewhere.
    """
    begin, separator, stop = marks
    names = make_names(rng, pieces, rng.randint(2, most_names))
    relations = [rng.choice(pieces[0]) for _ in range(rng.randint(1, 2))]
    filler = [rng.choice(pieces[0]) for _ in range(8)]
    facts = [(name, relation) for name in range(len(names)) for relation in range(len(relations))]
    rng.shuffle(facts)
    if rng.random() < 0.5:
        facts.sort()
    asked = rng.choice(facts)
    words = [
        names[asked[0]],
        [relations[asked[1]]],
        rng.choices(filler, k=rng.randint(0, 2)),
        rng.choices(filler, k=rng.randint(0, 2)),
    ]
    rng.shuffle(words)
    question = [begin, *sum(words, []), separator]
    document, about, previous, start, end = [], [], None, 0, 0
    for name, relation in facts:
        # Half of the sentences that go on about a name say a "pronoun" for it.
        subject = [rng.choice(filler)] if name == previous and rng.random() < 0.5 else names[name]
        value = make_word(rng, pieces, 0)
        sentence, place = make_sentence(rng, subject, [relations[relation], *value], filler)
        if (name, relation) == asked:
            start = len(question) + len(document) + place + 1
            end = start + len(value) - 1
        document += [*sentence, stop]
        about += [int(name == asked[0])] * (len(sentence) + 1)
        previous = name
    return {
        "ids": [*question, *document, separator],
        "types": [0] * len(question) + [1] * (len(document) + 1),
        "start": start,
        "end": end,
        "about": [-100] * len(question) + about + [-100],
    }


def make_word(rng: random.Random, pieces: tuple[list[int], list[int]], least: int) -> list[int]:
    """Return a random first piece with `least` to three random later ones."""
    return [rng.choice(pieces[0]), *(rng.choice(pieces[1]) for _ in range(rng.randint(least, 3)))]


def make_names(rng: random.Random, pieces: tuple[list[int], list[int]], count: int) -> list[list[int]]:
    """Names of one or two words; some share their beginning with another, so that all of a name counts."""
    names = []
    for _ in range(count):
        name = make_word(rng, pieces, 1) + (make_word(rng, pieces, 1) if rng.random() < 0.5 else [])
        if names and rng.random() < 0.15:
            other = rng.choice(names)
            name = other[: rng.randint(1, len(other) - 1)] + make_word(rng, pieces, 1)[1:]
        names.append(name)
    return names


def make_sentence(rng: random.Random, subject: list[int], fact: list[int], filler: list[int]) -> tuple[list[int], int]:
    """Subject and fact in either order with filler between; and where in it the fact begins."""
    before, after = rng.choices(filler, k=rng.randint(0, 2)), rng.choices(filler, k=rng.randint(0, 2))
    if rng.random() < 0.5:
        head = [*before, *subject, *rng.choices(filler, k=rng.randint(0, 3))]
        return [*head, *fact, *after], len(head)
    return [*before, *fact, *rng.choices(filler, k=rng.randint(1, 3)), *subject, *after], len(before)


def batch_of(documents: list[dict]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Model inputs, padded to the longest document, and the second head's targets."""
    width = max(len(document["ids"]) for document in documents)
    padding = {"ids": 0, "types": 0, "about": -100}
    table = {
        name: torch.tensor([document[name] + [pad] * (width - len(document[name])) for document in documents])
        for name, pad in padding.items()
    }
    lengths = torch.tensor([len(document["ids"]) for document in documents])
    inputs = {
        "input_ids": table["ids"],
        "token_type_ids": table["types"],
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "start_positions": torch.tensor([document["start"] for document in documents]),
        "end_positions": torch.tensor([document["end"] for document in documents]),
    }
    return inputs, table["about"]


def pretrain(model: BertForQuestionAnswering, tokenizer: BertTokenizerFast, steps: int, seed: int) -> None:
    """Train on fresh documents in every step; print the loss and the share of spans found exactly."""
    vocabulary = tokenizer.get_vocab()
    pieces = (
        sorted(number for piece, number in vocabulary.items() if piece.isalnum()),
        sorted(number for piece, number in vocabulary.items() if piece.startswith("##")),
    )
    marks = (tokenizer.cls_token_id, tokenizer.sep_token_id, vocabulary["."])
    head = torch.nn.Linear(model.config.hidden_size, 2)
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        LEARNING_RATE,
        total_steps=steps + 1,
        pct_start=WARMUP,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    rng = random.Random(seed)
    sums, begin = torch.zeros(3), time.time()
    for step in range(1, steps + 1):
        most_names = 2 if step < 0.1 * steps else 4
        inputs, about = batch_of([make_document(rng, pieces, marks, most_names) for _ in range(BATCH)])
        output = model(**inputs, output_hidden_states=True)
        token_loss = cross_entropy(head(output.hidden_states[-1]).flatten(0, 1), about.flatten())
        (output.loss + TOKEN_LOSS * token_loss).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        right = output.start_logits.argmax(1) == inputs["start_positions"]
        right &= output.end_logits.argmax(1) == inputs["end_positions"]
        sums += torch.stack([output.loss, token_loss, right.float().mean()]).detach()
        if step % 100 == 0:
            span, token, found = (sums / 100).tolist()
            print(
                f"step {step} span loss {span:.3f} token loss {token:.3f} found {found:.3f} seconds {time.time() - begin:.0f}",
                flush=True,
            )
            sums.zero_()


def main() -> None:
    """Make the tokenizer and the model, pre-train, save both."""
    parser = argparse.ArgumentParser(description="Pre-train the quickstart's model on matching.")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="quickstart/checkpoint")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer()
    model = make_model(tokenizer)
    print(
        vars(args), f"torch {torch.__version__}, {model.num_parameters():,} parameters, batches of {BATCH}", flush=True
    )
    pretrain(model, tokenizer, args.steps, args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
