"""The two kinds of trained models, those that mark answers and those that write them, ready to answer without a trainer.

Both have the same methods, which call the functions of the scripts' evaluation:

    features = reader.features(rows)
    tables = reader.step(batch)                         # for each batch of features
    answers = reader.answers(rows, features, tables)
"""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM

from qa.answers import AnswerRules, Answers, find_answers
from qa.arguments import ModelArguments
from qa.candidates import Candidates
from qa.finite import check_weights
from qa.generation import empty_answer, read_generation_config, set_generation_config, set_language
from qa.models import (
    check_model,
    is_causal,
    load_extractive_model,
    load_seq2seq_model,
    longest_input,
    sequence_limit,
)
from qa.outputs import (
    NOT_FOR_THE_MODEL,
    accepted,
    batch_candidates,
    encoded,
    encoder_states,
    generation_settings,
    written_part,
    written_scores,
)
from qa.seq2seq import choose_windows, prepare_seq2seq_features, read_seq2seq_template
from qa.settings import Settings
from qa.windows import Template, literal_tokenizer, read_template
from utils_qa import prepare_features


class Reader:
    """A model with its tokenizer and its settings.

    Args:
        settings: with which the model answers; its lengths are lowered to those that the model takes.
        stride_is_known: otherwise the overlap is lowered too, where windows are shorter.
    """

    auto_class: type

    def __init__(
        self,
        model_args: ModelArguments,
        config,
        tokenizer,
        settings: Settings,
        stride_is_known: bool,
        device: torch.device,
    ):
        self.tokenizer, self.settings, self.device = tokenizer, settings, device
        template = self.prepare(config, model_args)
        weightless = check_model(self.auto_class, config, tokenizer, model_args, remote=False)
        if not stride_is_known:
            length = min(tokenizer.model_max_length, settings.max_seq_length)
            length = longest_input(weightless, length, tokenizer, template)
            settings = replace(settings, max_seq_length=length, doc_stride=min(settings.doc_stride, length // 3))
        length = sequence_limit(settings, weightless, tokenizer, template)
        self.settings = replace(settings, max_seq_length=length)
        self.literal = literal_tokenizer(tokenizer)  # copied once for all questions
        self.model = self.load(config, model_args).to(device).eval()
        check_weights(self.model, model_args.model_name_or_path)

    def prepare(self, config, model_args: ModelArguments) -> Template:
        """Read what the kind needs in addition to the model, and return the tokens around a pair of texts."""
        raise NotImplementedError

    def load(self, config, model_args: ModelArguments):
        """Return the model with the weights of its checkpoint, those of its head included."""
        raise NotImplementedError

    def window_settings(self) -> dict:
        return {"max_seq_length": self.settings.max_seq_length, "doc_stride": self.settings.doc_stride}


class Marking(Reader):
    """A model that marks the answer in its context."""

    auto_class = AutoModelForQuestionAnswering

    def prepare(self, config, model_args: ModelArguments) -> Template:
        self.causal = is_causal(config)
        return read_template(self.tokenizer, self.causal)

    def load(self, config, model_args: ModelArguments):
        return load_extractive_model(config, model_args, trained=True)

    def features(self, rows: list[dict]):
        return prepare_features(rows, self.literal, causal=self.causal, **self.window_settings())

    def step(self, batch: dict) -> list[np.ndarray]:
        """Return the best positions of the features of a batch, (batch, columns)."""
        places = [batch.pop(name) for name in NOT_FOR_THE_MODEL]
        output = self.model(**accepted(self.model, **batch))
        return [batch_candidates(output[:2], *places, self.settings.n_best_size).packed()]

    def answers(self, rows: list[dict], features, tables: list[np.ndarray]) -> Answers:
        return find_answers(rows, features, Candidates.unpacked(tables[0]), AnswerRules.of(self.settings))


class Writing(Reader):
    """A model that writes the answer."""

    auto_class = AutoModelForSeq2SeqLM

    def prepare(self, config, model_args: ModelArguments) -> Template:
        set_language(self.tokenizer, self.settings.language_code)
        self.generation = read_generation_config(
            config, self.tokenizer, model_args, SimpleNamespace(generation_config=None)
        )
        self.empty_answer = empty_answer(self.tokenizer) if self.settings.version_2_with_negative else None
        return read_seq2seq_template(self.tokenizer)

    def load(self, config, model_args: ModelArguments):
        model = load_seq2seq_model(config, model_args, trained=True)
        set_generation_config(model, self.generation, SimpleNamespace())
        return model

    def features(self, rows: list[dict]):
        settings = self.window_settings() | {"version_2_with_negative": self.settings.version_2_with_negative}
        return prepare_seq2seq_features(
            rows, self.literal, max_answer_length=self.settings.max_answer_length, **settings
        )

    def step(self, batch: dict) -> list[np.ndarray]:
        """Return the texts written for a batch and their log-probability, with negatives that of "no answer"; (batch,)."""
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        longest = self.settings.generation_max_length or self.settings.max_answer_length
        padding = self.tokenizer.pad_token_id
        settings = generation_settings(longest, self.settings.generation_num_beams, self.empty_answer)
        if self.device.type == "hpu":  # arguments of optimum-habana's `generate`
            settings |= {
                "lazy_mode": os.environ.get("PT_HPU_LAZY_MODE") != "0",
                "ignore_eos": True,
                "hpu_graphs": False,
            }
        states = encoder_states(self.model, self.model, read)
        tokens = self.model.generate(**read, **settings, **encoded(self.model, states))[:, 1:longest].to(self.device)
        written = written_part(tokens, self.model.generation_config, padding)
        scores = written_scores(self.model, self.model, read, states, tokens, written, self.empty_answer)
        texts = self.tokenizer.batch_decode(tokens.masked_fill(~written, padding), skip_special_tokens=True)
        return [np.array(texts, dtype=object), *(score.cpu().numpy() for score in scores)]

    def answers(self, rows: list[dict], features, tables: list[np.ndarray]) -> Answers:
        texts, scores, *null_scores = tables
        return choose_windows(
            rows,
            features,
            texts=texts.tolist(),
            scores=scores,
            null_scores=null_scores[0] if null_scores else None,
            null_score_diff_threshold=self.settings.null_score_diff_threshold,
            temperature=self.settings.temperature,
        )


READERS = {"span": Marking, "written": Writing}
