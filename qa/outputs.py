"""The part of a model's outputs for a batch that answers need: the same for the trainers' evaluation and for `qa.answerer`."""

import inspect
from functools import partial

import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from qa.candidates import Candidates, best_positions
from qa.generation import end_tokens, shift_right
from qa.lora import own_model


NOT_FOR_THE_MODEL = ("cls_index", "lengths")  # entries of a batch that only `best_positions` needs


def accepted(model, **arguments) -> dict:
    """Return those arguments that the model's forward pass knows."""
    known = inspect.signature(type(own_model(model)).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


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


def encoder_states(model, own, read: dict) -> torch.Tensor:
    """Return the encoder's states of a batch, (batch, length, width), from a pass in which the decoder reads one token.

    A pass of the whole model is one that DDP, graphs, autocast and others wrap, its encoder's is not.

    Args:
        model: computes the states: `own`, or what is wrapped around it.
        own: the model of transformers.
        read: input_ids and attention_mask, (batch, length) each.
    """
    start = torch.full_like(read["input_ids"][:, :1], own.generation_config.decoder_start_token_id)
    settings = accepted(own, use_cache=False, output_router_logits=False)
    return model(**read, **settings, decoder_input_ids=start).encoder_last_hidden_state


def encoded(own, states: torch.Tensor) -> dict:
    """Return the arguments with which a model or its `generate` reads the encoder's states instead of computing them.

    Each call needs its own: `generate` with beams expands them in place. Router logits are not asked for: no answer needs
    them, and Switch would look for them in the states. `input_ids` are passed as well, since FSMT looks ahead without them.
    """
    return {"encoder_outputs": BaseModelOutput(states)} | accepted(own, output_router_logits=False)


def written_scores(
    model,
    own,
    read: dict,
    states: torch.Tensor,
    tokens: torch.Tensor,
    written: torch.Tensor,
    empty_answer: list[int] | None,
) -> list[torch.Tensor]:
    """Return the log-probability of the `written` ones of `tokens`, with an `empty_answer` also that of it; (batch,) each.

    Args:
        model, own, read: as of `encoder_states`.
        states: the encoder's, (batch, length, width).
    """
    shifted = partial(shift_right, start=own.generation_config.decoder_start_token_id, padding=0)
    scored = [(tokens, written)]
    if empty_answer is not None:
        empty = torch.tensor(empty_answer, device=tokens.device).expand(len(tokens), -1)
        scored.append((empty, torch.ones_like(empty)))
    found = []
    for answers, counted in scored:
        settings = accepted(own, use_cache=False) | encoded(own, states)
        logits = model(**read, **settings, decoder_input_ids=shifted(answers)).logits
        found.append(log_probability(logits, answers, counted))
    return found


def log_probability(logits: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the `counted` ones of `tokens`, both (batch, length); (batch,).

    Args:
        logits: (batch, length, vocabulary).
    """
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return -torch.where(counted.bool(), losses, 0.0).sum(1)
