# shellcheck shell=bash
# The scripts in this folder source this file. It handles ports, and processes that outlive the
# script that starts them, each in its own folder.

say() { printf '%s\n' "${0##*/}: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_ports prints the first of COUNT free ports in a row, below the range from which the system
# assigns ports.
free_ports() { # COUNT
  local attempt i first
  for attempt in {1..50}; do
    first=$((20000 + (RANDOM % 1200) * 10))
    for ((i = 0; i < $1; i++)); do port_free $((first + i)) || continue 2; done
    printf '%s' "$first"
    return
  done
  die "could not find $1 free ports in a row in $attempt attempts"
}

# alone becomes COMMAND, in a new session if possible: Ctrl-C at the terminal must reach only the
# script, which knows in what order to stop things.
alone() { # COMMAND [ARG]...
  if command -v setsid >/dev/null; then exec setsid "$@"; fi
  exec "$@"
}

# running prints the pid in a file, if that process lives. Its working directory must be DIR,
# because an old pid may now belong to another process.
running() { # PID_FILE DIR
  local pid
  pid=$(head -n 1 "$1" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
  if [ -d /proc/self ] && [ "$(readlink "/proc/$pid/cwd")" != "$2" ]; then return 1; fi
  printf '%s' "$pid"
}
