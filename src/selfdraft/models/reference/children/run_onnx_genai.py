"""ONNX Runtime GenAI, which reads a folder that its model builder has made; see child.py."""

import json
import time
from collections.abc import Callable

import numpy as np
import onnxruntime_genai

LOOKUP_NGRAM, LOOKUP_TOKENS = 3, 4  # what its documentation says to begin with


def load(settings: dict) -> Callable[[list[int]], tuple[list[int], float]]:
    """Load the folder, with our threads and ends of sequence instead of its own."""
    config = onnxruntime_genai.Config(settings["source"])
    session = {"session_options": {"intra_op_num_threads": settings["threads"]}}
    config.overlay(json.dumps({"model": {"eos_token_id": settings["eos"], "decoder": session}}))
    model = onnxruntime_genai.Model(config)

    def answer(ids: list[int]) -> tuple[list[int], float]:
        begun, first_s = time.perf_counter(), 0.0
        longest = min(len(ids) + settings["tokens"], settings["positions"])
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(
            do_sample=False,
            num_beams=1,
            max_length=longest,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        if settings["lookup"]:
            params.set_speculative_options(ngram_size=LOOKUP_NGRAM, max_draft_tokens=LOOKUP_TOKENS)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        output: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            output.append(int(generator.get_next_tokens()[0]))
            first_s = first_s or time.perf_counter() - begun
        return output, first_s

    return answer
