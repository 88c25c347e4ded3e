#!/usr/bin/env bash
# Make .venv with everything in it. Does nothing when the requirement files have not changed.
# With ECHO_LIT_VENV_CACHE=DIR the environment lives in DIR, named by a hash of those files, and .venv is a link to it.
# Stops before it begins where the disk is too full: packages take 7.5 GB, and pip unpacks them beside each other.
set -euo pipefail
cd "$(dirname "$0")/.."

python=''
for p in ${PYTHON:-python3 python3.11 python3.12 python3.13 python}; do
    if command -v "$p" >/dev/null && "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$p; break; fi
done
if [ -z "$python" ]; then
    echo "echo_lit needs Python 3.11 or newer, found $(${PYTHON:-python3} -V 2>&1 || true); name another one with: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi

key=$("$python" - <<'PY'
import hashlib, sys
files = b''.join(open(f, 'rb').read() for f in ('pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt'))
print(hashlib.sha256(sys.version.encode() + files).hexdigest()[:16])
PY
)
want="$key $PWD"
if [ "$(cat .venv/echo_lit.stamp 2>/dev/null || true)" = "$want" ] && .venv/bin/python -c '' 2>/dev/null; then exit 0; fi

if [ -n "${ECHO_LIT_VENV_CACHE:-}" ]; then
    venv="$ECHO_LIT_VENV_CACHE/$key"
    mkdir -p "$ECHO_LIT_VENV_CACHE"
    if [ -e .venv ] && [ ! -L .venv ]; then rm -rf .venv; fi
    ln -sfn "$venv" .venv
else
    venv=.venv
    if [ -L .venv ]; then rm .venv; fi
fi
have=$(cut -d' ' -f1 "$venv/echo_lit.stamp" 2>/dev/null || true)
if [ "$have" != "$key" ]; then
    need=10
    free=$(df -Pk "$(dirname "$venv")" 2>/dev/null | awk 'NR == 2 {print $4}' || true)
    held=$(du -sk "$venv/" 2>/dev/null | cut -f1 || true)
    if [ -n "$free" ] && [ $((free + ${held:-0})) -lt $((need*1024*1024)) ]; then
        echo "set-up: only $(((free + ${held:-0})/1024/1024)) GB for the environment in $(cd "$(dirname "$venv")" && pwd), and it needs $need GB; make room there, or name a folder on another disk: ECHO_LIT_VENV_CACHE=DIR make" >&2
        exit 1
    fi
fi
version='import sys; print(sys.version_info[:2])'
if [ "$("$venv/bin/python" -c "$version" 2>/dev/null || true)" != "$("$python" -c "$version")" ]; then
    echo "set-up: making an environment in $venv"
    "$python" -m venv --clear "$venv" || { echo "set-up: could not make a virtual environment (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
fi
pip=("$venv/bin/python" -m pip -qq --disable-pip-version-check install -c constraints.txt)
if [ "$have" = "$key" ]; then
    echo "set-up: pointing the cached environment at this clone"
    "${pip[@]}" --no-deps -e .
else
    rm -f "$venv/echo_lit.stamp"
    echo "set-up: installing the packages (several GB with PyTorch, some minutes)"
    "${pip[@]}" -e '.[dev]'
fi
echo "$want" > "$venv/echo_lit.stamp"
echo "set-up: done"
