#!/usr/bin/env bash
# usage: ./setup.sh [mlx] [torch]
# Makes .venv with the packages that these backends (default: both) need on this machine.
# `make demo` and `make test` call it each time; what is complete is left alone.
set -euo pipefail
cd "$(dirname "$0")"

STATE=.venv/.diptych # "unfinished", or what was installed: from which files, where, and what
FILES="$(cat setup.sh pyproject.toml | cksum) in $PWD"

say() { printf '%s\n' "$*" >&2; }

stop() {
    say "error: $*"
    exit 2
}

# Does the state $1 hold the backend $2?
holds() { [[ $1 == *" with"*" $2 "* ]]; }

complete() {
    local state backend
    state=$(cat "$STATE" 2>/dev/null) || return 1
    for backend in "$@"; do
        [[ $state == "$FILES with "* ]] && holds "$state" "$backend" || return 1
    done
    .venv/bin/python -c '' 2>/dev/null
}

# Is $1 a Python from 3.10 to 3.$2, built for this processor, that can make virtual environments?
good_python() {
    "$1" -c "if True:
        import platform, sys
        assert (3, 10) <= sys.version_info < (3, $2 + 1)
        assert platform.machine() == '$(uname -m)'
        import ensurepip, venv" >/dev/null 2>&1
}

find_python() {
    local newest name
    for newest in 14 99; do # the pinned PyTorch has wheels up to Python 3.14
        for name in python3 python3.{14,13,12,11,10} python; do
            if good_python "$name" "$newest"; then
                command -v "$name"
                return
            fi
        done
    done
    stop "no Python 3.10 or newer for $(uname -m), with venv, is on the PATH (python3:" \
        "$(python3 -V 2>/dev/null || echo none)). Get one from python.org, by 'brew install python@3.13'," \
        "or by 'sudo apt-get install python3 python3-venv'"
}

check_platform() {
    local system
    case "$(uname -sm)" in
    "Darwin arm64")
        system=$(sw_vers -productVersion)
        [[ ${system%%.*} -ge 14 ]] || stop "MLX needs macOS 14 or newer, this is $system" ;;
    "Linux x86_64" | "Linux aarch64")
        system=$(getconf GNU_LIBC_VERSION 2>/dev/null) || stop "a Linux with glibc is needed"
        if [[ " $* " == *" mlx "* && ${system#*.} -lt 35 ]]; then
            stop "MLX needs glibc 2.35 (Debian 12, Ubuntu 22.04) or newer, this is $system;" \
                "BACKENDS=torch does without MLX"
        fi ;;
    *)
        stop "macOS on Apple Silicon or Linux on x86-64 or arm64 is needed, this is $(uname -sm)" ;;
    esac
}

# The major CUDA version that the NVIDIA driver knows; nothing without a GPU.
cuda_version() {
    { nvidia-smi 2>/dev/null || true; } |
        sed -nE 's/.*CUDA[A-Za-z ]* Version: *([0-9]+).*/\1/p' | head -1
}

# The extra of pyproject.toml for the backend $1, with CUDA $2 or none.
extra() {
    if [[ $1 == mlx && $2 -ge 12 ]]; then
        echo "mlx-cuda$(($2 > 13 ? 13 : $2))"
    else
        echo "$1"
    fi
}

install_openblas() {
    if [[ $(PATH=$PATH:/sbin ldconfig -p 2>/dev/null) == *libopenblas.so.0* ]]; then
        return
    fi
    if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
        say "Installing libopenblas0: MLX's products on the CPU are 40 times faster with it."
        export DEBIAN_FRONTEND=noninteractive
        if apt-get update -qq && apt-get install -qq -y libopenblas0; then
            return
        fi >/dev/null 2>&1
    fi
    say "MLX on the CPU is slow without OpenBLAS. To get it: sudo apt-get install libopenblas0"
}

install() {
    local state python cuda extras=dev backends='' backend
    check_platform "$@"
    python=$(find_python)
    cuda=$(cuda_version)
    state=$(cat "$STATE" 2>/dev/null || true)
    for backend in mlx torch; do
        if [[ " $* " == *" $backend "* ]] || holds "$state" "$backend"; then
            backends+="$backend "
            extras+=",$(extra "$backend" "${cuda:-0}")"
        fi
    done

    say "Setting up .venv with $("$python" -V) for: $extras. It takes 1 to 10 minutes, once."
    if [[ $(uname) == Linux ]]; then
        if [[ -z $cuda && $backends == *torch* ]]; then
            say "There is no NVIDIA GPU: PyTorch's smaller CPU build would do; it is taken when" \
                "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu is set."
        fi
        [[ $backends != *mlx* ]] || install_openblas
    fi

    if [[ $state == unfinished ]] || ! good_python .venv/bin/python 99 ||
        ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        mkdir -p .venv
        echo unfinished >"$STATE" # a half-written package can look installed: begin afresh
        find .venv -mindepth 1 ! -path "$STATE" -delete
        "$python" -m venv .venv
    fi
    echo unfinished >"$STATE"
    PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -e ".[$extras]" >&2 ||
        stop "pip could not install the packages (see above); the same command begins again"
    echo "$FILES with $backends" >"$STATE"
}

[[ $# -gt 0 ]] || set -- mlx torch
complete "$@" || install "$@"
