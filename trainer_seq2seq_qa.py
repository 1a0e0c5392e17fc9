"""The trainer of encoder-decoders: writes an answer for every window, and says how sure it is of it."""

import torch

from qa.device import trainer_class
from qa.speed import TrainingSpeed
from qa.upstream import ResumedEpochs
from trainer_qa import AnswerEvaluation


class QuestionAnsweringSeq2SeqTrainer(ResumedEpochs, TrainingSpeed, AnswerEvaluation, trainer_class(True)):
    """Trains and evaluates models that write the answer: GaudiSeq2SeqTrainer's or Seq2SeqTrainer's subclass.

    Args (beyond those of `AnswerEvaluation` and the base):
        empty_answer: with negatives, the tokens that stand for "no answer" as a label. The model then writes its best
            text that is not empty, and the empty answer is scored beside it.

    `args.generation_max_length` and `args.generation_num_beams` hold for evaluation and prediction alike.
    """

    def __init__(self, *args, empty_answer: list[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.empty_answer = empty_answer
        self.compute_loss_func = self.token_loss

    def token_loss(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        """The mean loss of the labels' tokens; in training that over all ranks and accumulated steps, by their number.

        The models' own loss is a mean over one batch of one rank: batches of short answers would count as much as those
        of long ones. transformers 4.55 multiplies what this returns by the number of ranks, as it should; the loss of
        T5 itself, which optimum-habana 1.21.2 lets through as if it were of this kind, comes out that many times too
        large.
        """
        if self.label_smoother is not None:
            mean = self.label_smoother(outputs, labels)
        else:
            mean = torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten())
        return mean if num_items_in_batch is None else mean * labels.ne(-100).sum() / num_items_in_batch

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss; with --predict_with_generate keeps what the model writes, (batch, length), the log-probability of it,
        (batch,), and with negatives that of the empty answer, (batch,)."""
        inputs = self._prepare_inputs(inputs)
        if not self.args.predict_with_generate:
            prediction_loss_only = True
        settings = {} if prediction_loss_only else self.generation_settings()
        loss, tokens, _ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **settings)
        if prediction_loss_only or tokens is None:
            return loss, None, None
        if self.args.use_habana:  # one shape; the beams of optimum-habana 1.21.2 come back on the host
            tokens = self._pad_tensors_to_max_len(tokens.to(self.args.device), self.args.generation_max_length)
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**read, decoder_input_ids=tokens[:, :-1])
            written = self.written(tokens[:, 1:])
            scores = [log_probability(output.logits, tokens[:, 1:], written)]
            if self.empty_answer is not None:
                empty = torch.tensor(self.empty_answer, device=tokens.device).expand(len(tokens), -1)
                encoded = {"encoder_outputs": (output.encoder_last_hidden_state,)}
                before = torch.cat([tokens[:, :1], empty[:, :-1]], dim=1)
                output = model(**encoded, attention_mask=read["attention_mask"], decoder_input_ids=before)
                scores.append(log_probability(output.logits, empty, torch.ones_like(empty)))
        # With --ignore_eos, the default on a Gaudi, the model writes on behind the end of its answer.
        answers = tokens[:, 1:].masked_fill(~written, self.processing_class.pad_token_id)
        # One width for all batches: transformers 4.55 pads them to the longest, or to the model's own `max_length`.
        most = self.args.generation_max_length
        self.keep(self._pad_tensors_to_max_len(answers[:, :most], most), *scores)
        return loss, None, None

    def generation_settings(self) -> dict:
        settings = {"max_length": self.args.generation_max_length, "num_beams": self.args.generation_num_beams}
        if self.empty_answer is not None:
            # One more for the start token. With `min_new_tokens` optimum-habana 1.21.2 counts from the longest answer's end.
            settings["min_length"] = len(self.empty_answer) + 1
        return settings

    def written(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, length) whether a token belongs to the answer: up to its end token, and not the padding behind it."""
        ends = torch.tensor(self.model.generation_config.eos_token_id, device=tokens.device).reshape(-1)
        end = torch.isin(tokens, ends)
        behind = end.cumsum(1) - end.long() > 0
        return ~behind & (end | (tokens != self.processing_class.pad_token_id))


def log_probability(logits: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """(batch,) log-probability of `tokens` (batch, length) under `logits` (batch, length, vocabulary), of those `counted`."""
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return -torch.where(counted.bool(), losses, 0.0).sum(1)
