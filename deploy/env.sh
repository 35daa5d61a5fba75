#!/bin/sh
# Makes .env for docker compose from .env.example, with a fresh secret for each empty one. It never
# changes an existing .env.
set -eu
cd "$(dirname "$0")/.."
umask 077
if [ -e .env ]; then
  echo "env.sh: .env exists: remove it first if you no longer need its secrets" >&2
  exit 1
fi
while IFS= read -r line; do
  case $line in
    [A-Z]*=) printf '%s%s\n' "$line" "$(head -c 48 /dev/urandom | base64 | tr '+/' 'Aa' | tr -d '\n')" ;;
    *) printf '%s\n' "$line" ;;
  esac
done <.env.example >.env
echo "env.sh: .env is ready; keep it to yourself" >&2
