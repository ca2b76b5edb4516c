"""Answer prompts with llama.cpp:  python -I run_llama_cpp.py SETTINGS

SETTINGS is a JSON object: `file` (GGUF), `positions`, `tokens` (new tokens at most), `eos` (ids), `threads`, `lookup`
(whether to draft by prompt lookup). Reads a JSON list of token ids a line, and writes a line with the answer for each.
"""

import json
import sys
import time

from llama_cpp import Llama

LOOKUP_TOKENS = 10  # the value in its documentation
LONGEST_LOOKUP = 2048  # tokens of a prompt and its answer


def main() -> None:
    """Load the file, then answer until the input ends."""
    settings = json.loads(sys.argv[1])
    begun = time.perf_counter()
    more = {}
    if settings["lookup"]:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        # It needs the logits of all tokens, for which room is made at once: so fewer positions.
        more = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS), "logits_all": True}
    llama = Llama(
        settings["file"],
        n_ctx=min(settings["positions"], LONGEST_LOOKUP) if settings["lookup"] else settings["positions"],
        n_threads=settings["threads"],
        n_threads_batch=settings["threads"],
        verbose=False,
        **more,
    )
    print(json.dumps({"load_s": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        ids = json.loads(line)
        llama.reset()  # nothing of the prompt before is used again
        output, times = [], [time.perf_counter()]
        for token in llama.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
            times.append(time.perf_counter())
            output.append(token)
            if token in settings["eos"] or len(output) == settings["tokens"]:
                break
        told = {"output": output, "first_s": times[1] - times[0], "latency_s": times[-1] - times[0], "first_tokens": 1}
        print(json.dumps(told), flush=True)


main()
