# Does what nix-eval-jobs does, which distributions other than NixOS hardly have: walks the attributes of an expression, into those
# with recurseForDerivations, and prints a line of JSON for each derivation and each error. One attribute at a time, each by a
# nix-instantiate of its own, which does the evaluation.

left=$#
while [ "$left" -gt 0 ]; do
    left=$((left - 1)) argument=$1
    shift
    case $argument in
    --workers | --max-memory-size) shift; left=$((left - 1)) ;;
    --expr) expression=$1; shift; left=$((left - 1)) ;;
    *) set -- "$@" "$argument" ;;
    esac
done

scratch=$XDG_CACHE_HOME/nix-eval-jobs-$$
mkdir -p "$scratch"
# shellcheck disable=SC2016
look='attrPath: value:
let
  attr = builtins.concatStringsSep "." attrPath;
  found = builtins.foldl'"'"' (value: name: value.${name}) value attrPath;
  recurses = attrPath == [ ] || found.recurseForDerivations or false;
in
if !builtins.isAttrs found then { attrs = [ ]; }
else if found.type or null == "derivation"
then { inherit attr attrPath; inherit (found) drvPath name; outputs.out = found.outPath; }
else { attrs = if recurses then builtins.attrNames found else [ ]; }'

# The names of an attribute path, in Nix.
evaluate() (
    names=$1
    shift
    {
        nix-instantiate "$@" --eval --strict --json --read-write-mode --expr "($look) [ $names ] ($expression)" >"$scratch/printed"
        echo $? >"$scratch/status"
    } 2>&1 | tee "$scratch/said" >&2
    case $(cat "$scratch/status") in
    0) ;;
    1)
        [ -n "$names" ] || exit 1
        error=$(sed -n '/^error:/,$p' "$scratch/said")
        printed=$(error=$error nix-instantiate --eval --strict --json --expr "
            rec { attrPath = [ $names ]; attr = builtins.concatStringsSep \".\" attrPath; error = builtins.getEnv \"error\"; }")
        printf '%s\n' "$printed"
        exit
        ;;
    *)
        echo "error: while reading result for attrPath '$names', evaluation worker got killed" >&2
        exit 1
        ;;
    esac
    printed=$(cat "$scratch/printed")
    case $printed in
    '{"attrs":['*)
        printed=${printed#'{"attrs":['}
        echo "${printed%']}'}" | tr ',' '\n' | while read -r name; do
            [ -z "$name" ] || evaluate "$names $name" "$@" </dev/null || exit 1
        done
        ;;
    *) printf '%s\n' "$printed" ;;
    esac
)

evaluate "" "$@"
