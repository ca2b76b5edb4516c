#!/usr/bin/env bash
# Creates .venv and installs SelfDraft into it, with the build of torch that suits this machine.
#
#   make setup                          what everyone runs; quick when nothing has changed
#   PYTHON=python3.12 make setup        another interpreter (3.10 or newer)
#   TORCH_INDEX=<url> make setup        take torch from this package index, and from nowhere else
#
# pip's whole output is in .venv/setup.log.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,8s/^# \?//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
PYTHON=${PYTHON:-python3}
VENV=.venv
STAMP=$VENV/setup.stamp
LOG=$VENV/setup.log

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
die() { printf '[setup] %s\n' "$*" >&2; exit 1; }

# Everything the result depends on. The folder is in it because a copied .venv still imports the sources of the original.
state() { cat pyproject.toml scripts/setup.sh | cksum; echo "$PWD ${TORCH_INDEX:-}"; }

# Runs pip with its output in the log, and on the terminal a dot a package, so that nobody takes minutes for a hang.
pip_install() {
    local status=0
    PYTHONUNBUFFERED=1 "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1 |
        tee -a "$LOG" |
        awk '/^(Collecting|Requirement)/ { printf "."; fflush(); dots = 1 }
             /^ *Downloading .*\([0-9.]+ [MG]B\)/ { printf "\n    %s", $0; fflush(); dots = 1 }
             /^Installing collected/ { printf "\n    unpacking %d packages ...", gsub(/,/, "") + 1; fflush(); dots = 1 }
             END { if (dots) print "" }' || status=$?
    return "$status"
}
fail_with_log() { tail -n 15 "$LOG" >&2; die "pip failed while installing $1; the whole log: $LOG"; }

create_venv() {
    command -v "$PYTHON" >/dev/null || die "'$PYTHON' was not found: install Python 3.10 or newer, or name one as in PYTHON=python3.12 make setup"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$("$PYTHON" --version 2>&1) is too old: SelfDraft needs Python 3.10 or newer (PYTHON=python3.12 make setup)"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "this Python cannot create virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"
    say "creating $VENV with $("$PYTHON" --version 2>&1)"
    "$PYTHON" -m venv --clear "$VENV"
}

install_torch() {
    local installed
    installed=$("$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    case "$installed" in "$TORCH" | "$TORCH"+*) say "torch $installed is there already"; return ;; esac

    if [ -n "${TORCH_INDEX:-}" ]; then
        say "installing torch $TORCH from TORCH_INDEX"
        pip_install "torch==$TORCH" --index-url "$TORCH_INDEX" || fail_with_log torch
        return
    fi
    if ! command -v nvidia-smi >/dev/null && [ "$(uname -s)" = Linux ]; then
        say "no NVIDIA GPU here: looking for the CPU build of torch $TORCH"
        pip_install "torch==$TORCH+cpu" && return
        # Only where there is no such build: after any other failure, several GB of the wrong one would be no help.
        grep -q 'No matching distribution found for torch' "$LOG" || fail_with_log torch
        say "pip's package sources have none: taking plain torch $TORCH, which may be the CUDA build of several GB" \
            "(to avoid that, name PyTorch's CPU wheel index: TORCH_INDEX=<url> make setup)"
    else
        say "installing torch $TORCH"
    fi
    pip_install "torch==$TORCH" || fail_with_log torch
}

[ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(state)" ] && [ -x "$VENV/bin/python" ] && exit 0
"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || create_venv
: >"$LOG"
rm -f "$STAMP"
install_torch
say "installing SelfDraft and its dependencies"
pip_install -e '.[dev]' || fail_with_log SelfDraft
if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    say "no C++ compiler here: installing the package ziglang, which has one"
    pip_install 'ziglang>=0.13,<1' ||
        say "that failed, so layers will be run by OpenVINO: several times slower (to change that: apt install g++)"
fi
state >"$STAMP"
say "ready: $VENV/bin/python run.py --help"
