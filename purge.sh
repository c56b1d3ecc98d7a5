#!/usr/bin/env bash
# Remove what setup.sh and the tools made: environments, caches, logs. Never data, never experiments.
#   ./purge.sh          asks first
#   ./purge.sh --yes    does not ask
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
yes=0
case "${1:-}" in
    "") ;;
    --yes) yes=1 ;;
    -h | --help) sed -n '2,4p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) echo "error: purge.sh: unknown flag $1; see ./purge.sh --help" >&2; exit 2 ;;
esac
found=()
for path in .venv .conda data/.cache logs .pytest_cache .ruff_cache .hypothesis; do
    [ ! -e "$path" ] || found+=("$path")
done
while IFS= read -r -d '' path; do found+=("$path"); done < <(find . -path ./.venv -prune -o -path ./.conda -prune -o -name __pycache__ -type d -print0)
if [ ${#found[@]} -eq 0 ]; then
    echo "nothing to remove"
    exit 0
fi
du -sh -- "${found[@]}"
if [ "$yes" = 0 ]; then
    read -r -p "remove these? [y/N] " answer || answer=
    case "$answer" in y | Y | yes) ;; *) echo "nothing was removed"; exit 0 ;; esac
fi
rm -rf -- "${found[@]}"
echo "removed"
