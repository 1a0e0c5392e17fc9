"""What answers need of a model's outputs for a batch: the same for the trainers' evaluation and for `qa.answerer`."""

import inspect
from functools import partial

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from qa.answers import Candidates, best_positions
from qa.generation import end_tokens, shift_right
from qa.lora import has_adapters


NOT_FOR_THE_MODEL = ("cls_index", "lengths")  # entries of a batch that only `best_positions` needs


def accepted(model, **arguments) -> dict:
    """Return those arguments that the model's forward pass knows."""
    model = model.get_base_model() if has_adapters(model) else model
    known = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


class PreallocatedArrays:
    """Arrays of at most `total` rows that are added in pieces, (batch, ...) each, to memory that is allocated once.

    A list of the pieces would fragment the heap, since each step allocates and frees between them: a GB at 200,000
    rows.
    """

    def __init__(self, total: int):
        self.total, self.count, self.arrays = total, 0, []

    def add(self, pieces: list[np.ndarray]) -> None:
        """Add one piece to each array.

        Raises:
            ValueError: there are more rows than `total`.
        """
        if not self.arrays:
            self.arrays = [np.empty((self.total, *piece.shape[1:]), piece.dtype) for piece in pieces]
        before, self.count = self.count, self.count + len(pieces[0])
        if self.count > self.total:
            raise ValueError(f"got over {self.total} rows")
        for array, piece in zip(self.arrays, pieces):
            array[before : self.count] = piece

    def tables(self) -> list[np.ndarray]:
        """Return the rows of each array so far."""
        return [array[: self.count] for array in self.arrays]


# ---------------------------------------------------------------------------------------------------------------------
# Models that mark answers


def batch_candidates(logits: tuple, cls_index: torch.Tensor, lengths: torch.Tensor, n_best_size: int) -> Candidates:
    """Return the best positions of the features of a batch, a tenth of the logits.

    Args:
        logits: the model's outputs without the loss: logits of starts and ends, (batch, length) each. BART also returns
            its encoder's states.
        cls_index, lengths: (batch,) of the features, see `best_positions`.
    """
    sides = tuple(side.float().cpu().numpy() for side in logits[:2])
    return best_positions(sides, cls_index.cpu().numpy(), n_best_size=n_best_size, lengths=lengths.cpu().numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Models that write answers


def generation_settings(longest: int, beams: int | None, empty_answer: list[int] | None) -> dict:
    """Return the arguments of `generate` for answers of at most `longest` tokens, the one that starts them included.

    Args:
        beams: None for the number in the model's configuration.
        empty_answer: with negatives, the tokens of "no answer" as a label. The model then writes its best text that is not
            empty.
    """
    settings = {"max_length": longest, "max_new_tokens": None}  # a checkpoint's value would override the length
    if beams is not None:
        settings["num_beams"] = beams
    if empty_answer is not None:
        # The start token counts too. optimum-habana 1.21.2 counts `min_new_tokens` from the longest answer's end.
        settings["min_length"] = len(empty_answer) + 1
    return settings


def written_part(tokens: torch.Tensor, generation: GenerationConfig, padding: int) -> torch.Tensor:
    """Return (batch, length) whether a token belongs to the answer: up to its end token, without the padding."""
    ends = torch.tensor(end_tokens(generation), device=tokens.device)
    end = torch.isin(tokens, ends)
    after_end = end.cumsum(1) - end.long() > 0
    return ~after_end & (end | (tokens != padding))


def written_scores(
    model, own, read: dict, tokens: torch.Tensor, written: torch.Tensor, empty_answer: list[int] | None
) -> list[torch.Tensor]:
    """Return the log-probability of the `written` ones of `tokens`, with an `empty_answer` also that of it; (batch,) each.

    Router logits are not asked for: no answer needs them, and Switch would look for them in encoder states that
    are passed to it. `input_ids` are always passed, since FSMT looks ahead without them.

    Args:
        model: computes the logits: `own`, or what DDP, graphs or others wrap around it.
        own: the model of transformers.
        read: input_ids and attention_mask, (batch, length) each.
    """
    read = read | accepted(own, use_cache=False, output_router_logits=False)
    shifted = partial(shift_right, start=own.generation_config.decoder_start_token_id, padding=0)
    output = model(**read, decoder_input_ids=shifted(tokens))
    found = [log_probability(output.logits, tokens, written)]
    if empty_answer is not None:
        empty = torch.tensor(empty_answer, device=tokens.device).expand(len(tokens), -1)
        encoded = BaseModelOutput(output.encoder_last_hidden_state)  # ProphetNet takes no tuple
        output = model(**read, encoder_outputs=encoded, decoder_input_ids=shifted(empty))
        found.append(log_probability(output.logits, empty, torch.ones_like(empty)))
    return found


def log_probability(logits: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the `counted` ones of `tokens`, both (batch, length); (batch,).

    Args:
        logits: (batch, length, vocabulary).
    """
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return -torch.where(counted.bool(), losses, 0.0).sum(1)
