"""Puts this folder on the path, so that every test can import the helpers beside this file, and keeps to one thread."""

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

# Matrices of tiny models only lose by being shared out, and manifold so when the machine is busy.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, all processes of a test would inherit deafness to the Ctrl-C it sends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise under nohup
