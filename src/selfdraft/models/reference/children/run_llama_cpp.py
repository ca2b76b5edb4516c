"""llama.cpp, which reads a GGUF file; see child.py."""

import time
from collections.abc import Callable

from llama_cpp import Llama

LOOKUP_TOKENS = 10  # the value in its documentation
LONGEST_LOOKUP = 2048  # tokens of a prompt and its answer


def load(settings: dict) -> Callable[[list[int]], tuple[list[int], float]]:
    """Load the file."""
    more = {}
    if settings["lookup"]:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        # It needs the logits of all tokens, for which room is made at once: so fewer positions.
        more = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS), "logits_all": True}
    llama = Llama(
        settings["source"],
        n_ctx=min(settings["positions"], LONGEST_LOOKUP) if settings["lookup"] else settings["positions"],
        n_threads=settings["threads"],
        n_threads_batch=settings["threads"],
        verbose=False,
        **more,
    )

    def answer(ids: list[int]) -> tuple[list[int], float]:
        llama.reset()  # nothing of the prompt before is used again
        output, begun, first_s = [], time.perf_counter(), 0.0
        for token in llama.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
            first_s = first_s or time.perf_counter() - begun
            output.append(token)
            if token in settings["eos"] or len(output) == settings["tokens"]:
                break
        return output, first_s

    return answer
