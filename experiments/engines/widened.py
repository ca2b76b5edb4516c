"""Write the default model's GGUF file anew, with matrices in 16 bits, for engines that are to read as many.

    python experiments/engines/widened.py f16.gguf

4-bit values are rounded to float16; all else is copied.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.models.loading.embedded_gguf import smollm2_135m_gguf

WRITTEN_BY_ITSELF = ("GGUF.", "general.architecture", "general.file_type")  # keys that the writer adds


@one_line_script("widened")
def main(arguments: list[str]) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", type=Path, help="the file to write; it must not exist")
    to = parser.parse_args(arguments).to
    if to.exists() or not to.parent.is_dir():
        raise UserError(f"{to} exists already, or its folder does not: give another name")
    read = GGUFReader(smollm2_135m_gguf())
    writer = GGUFWriter(to, read.fields["general.architecture"].contents())
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for name, field in read.fields.items():
        if not name.startswith(WRITTEN_BY_ITSELF):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in read.tensors:
        is_norm = tensor.tensor_type == GGMLQuantizationType.F32
        values = tensor.data if is_norm else dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
