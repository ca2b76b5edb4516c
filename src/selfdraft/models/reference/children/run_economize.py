"""economize, whose lookup drafts for a stock model of transformers; see child.py.

It needs two settings more: `dtype` of the weights, and `revision` of a model of the Hub, or null.
"""

import time
from collections.abc import Callable

import economize
import torch
from economize.techniques.lookup import LookupConfig
from transformers import AutoModelForCausalLM
from transformers.utils import logging

LOOKUP_NGRAM, CYCLE = 3, 6  # the values in its documentation: a cycle is a draft of five tokens and the model's own


def load(settings: dict) -> Callable[[list[int]], tuple[list[int], float]]:
    """Load the model folder, of which no code is run."""
    torch.set_num_threads(settings["threads"])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    stock = AutoModelForCausalLM.from_pretrained(
        settings["source"],
        revision=settings["revision"],
        dtype=getattr(torch, settings["dtype"]),
        use_safetensors=True,
        trust_remote_code=False,
    )
    decoding = economize.DecodeConfig(cycle_length=CYCLE, lossless=True)
    model = economize.apply(stock.eval(), LookupConfig(max_ngram=LOOKUP_NGRAM), decoding=decoding)

    def answer(ids: list[int]) -> tuple[list[int], float]:
        begun, first = time.perf_counter(), []

        def ends(row: torch.Tensor) -> bool:  # called after every new token but the last that there is room for
            first.append(time.perf_counter() - begun)
            return int(row[-1]) in settings["eos"]

        room = min(settings["tokens"], settings["positions"] - len(ids))
        output = model.decode(torch.tensor(ids), room, stop=ends).tokens.tolist()
        return output, first[0] if first else time.perf_counter() - begun

    return answer
