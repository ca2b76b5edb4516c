"""OpenVINO GenAI, which reads a GGUF file; see child.py."""

from collections.abc import Callable

import numpy as np
import openvino
import openvino_genai

LOOKUP_TOKENS, LOOKUP_NGRAM = 5, 3  # the values in its examples


def load(settings: dict) -> Callable[[list[int]], tuple[list[int], float]]:
    """Load the file."""
    more = {"prompt_lookup": True} if settings["lookup"] else {}
    pipe = openvino_genai.LLMPipeline(settings["source"], "CPU", INFERENCE_NUM_THREADS=settings["threads"], **more)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.stop_token_ids = settings["tokens"], set(settings["eos"])
    config.do_sample = False
    if settings["lookup"]:
        config.num_assistant_tokens, config.max_ngram_size = LOOKUP_TOKENS, LOOKUP_NGRAM

    def answer(ids: list[int]) -> tuple[list[int], float]:
        batch = np.array([ids], dtype=np.int64)
        given = openvino_genai.TokenizedInputs(openvino.Tensor(batch), openvino.Tensor(np.ones_like(batch)))
        out = pipe.generate(given, config)
        return list(out.tokens[0]), out.perf_metrics.get_ttft().mean / 1e3

    return answer
